// attend_tile of simt_attend_tile.cl on NVIDIA's tensor cores, before that file's names are undefined. HW is a multiple of
// 16; heads are at most 128 wide, so a tile has 64 queries, 16 for each of four warps.
//
// Keys lie as columns by positions and values as positions by columns: both are what the second operand of the products
// wants, transposed by ldmatrix. A block of 32 positions is multiplied while the next one is copied. Queries (times the
// scale of the scores) and weights of positions are halves; everything is added in float32.

// Quantised keys and values become halves on their way there, in the order in which they lie: keys as positions by
// columns, values as columns by positions, neither transposed.

#define HEAD_STEPS (QUERY_WIDTH / 16)
#define VALUE_TILES (PADDED / 8)

#if KV_TYPE == KV_F16
#define V_PIECES ((PADDED / 8 + 7) / 8 * 8) // of 8 halves, in a row in local memory
#define V_PIECE(row, piece) ((row)*V_PIECES + ((piece) ^ ((row)&7)))
#define K_TILE (4 * HW) // pieces
#define KV_PIECES (K_TILE + 32 * V_PIECES)

#define COPY_BLOCK(start, buffer)                                                                                      \
    {                                                                                                                  \
        const long block = (long)table[(start) / 32] * kv_heads + kv_head;                                             \
        const __global uint4 *k_from = (const __global uint4 *)((const __global half *)keys + block * HW * 32);        \
        const __global uint4 *v_from = (const __global uint4 *)((const __global half *)values + block * 32 * PADDED);  \
        const LocalAddress to = tile_at + (buffer)*16 * KV_PIECES, v_to = to + 16 * K_TILE;                            \
        for (int i = me; i < 4 * HW; i += THREADS)                                                                     \
            copy_to_local(to + 16 * MMA_PIECE(i / 4, i % 4), k_from + i);                                              \
        for (int i = me; i < 32 * (PADDED / 8); i += THREADS) /* behind `last` there may be no numbers at all */       \
            copy_or_clear(v_to + 16 * V_PIECE(i / (PADDED / 8), i % (PADDED / 8)), v_from + i,                         \
                          (start) + i / (PADDED / 8) < last);                                                          \
    }

// Fragments of 16 columns by 16 positions of keys, or of values: `j` counts positions of keys and columns of values.
#define KEY_FRAGMENTS(step, j)                                                                                         \
    load_fragments_transposed(k_from + 16 * MMA_PIECE(16 * (step) + matrix % 2 * 8 + line, 2 * (j) + matrix / 2))
#define VALUE_FRAGMENTS(step, j)                                                                                       \
    load_fragments_transposed(v_from + 16 * V_PIECE(16 * (step) + matrix % 2 * 8 + line, 2 * (j) + matrix / 2))
#else
#define K_PIECES ((QUERY_WIDTH / 8 + 7) / 8 * 8)
#define K_PIECE(row, piece) ((row)*K_PIECES + ((piece) ^ ((row)&7)))
#define K_TILE (32 * K_PIECES)
#define KV_PIECES (K_TILE + 4 * PADDED)
#define CODE_OFFSET (KV_TYPE == KV_Q8_0 ? 0x64806480u : 0x64086408u) // the halves 1024 + the code of 0
#define FOUR_HALVES(to, word, low_scales, high_scales)                                                                 \
    to.x = weights_of(word, FIRST_TWO, CODE_OFFSET, low_scales, 0), to.y = weights_of(word, LAST_TWO, CODE_OFFSET, high_scales, 0);

// 8 columns of a position, and 8 positions of a column.
static inline uint4 A(eight_of_key)(const __global uchar *from, int position, int piece)
{
    const __global ushort *scales = (const __global ushort *)(from + CODE_BYTES(HW));
    const uint scale = scales[piece / 4 * 32 + position] * 0x10001u;
    const __global uint *words = (const __global uint *)from + piece * (8 / WORD_COLUMNS) * 32 + position;
    uint2 low, high;
#if KV_TYPE == KV_Q8_0
    FOUR_HALVES(low, words[0], scale, scale)
    FOUR_HALVES(high, words[32], scale, scale)
#else
    const uint word = words[0];
    FOUR_HALVES(low, word & 0x0f0f0f0fu, scale, scale)
    FOUR_HALVES(high, word >> 4 & 0x0f0f0f0fu, scale, scale)
#endif
    return (uint4)(low, high);
}

static inline uint4 A(eight_of_values)(const __global uchar *from, int column, int piece, int written)
{
    uint scales[4];
    _Pragma("unroll") for (int i = 0; i < 4; i++)
    {
        const int at = 8 * piece + 2 * i; // behind the last one written there may be no numbers
        const uint two = ((const __global uint *)(from + CODE_BYTES(VW)))[column / 32 * 16 + at / 2];
        scales[i] = at + 1 < written ? two : at < written ? two & 0xffff : 0;
    }
    uint2 low, high;
#if KV_TYPE == KV_Q8_0
    const __global uint *words = (const __global uint *)from + 2 * piece * PADDED + column;
    FOUR_HALVES(low, words[0], scales[0], scales[1])
    FOUR_HALVES(high, words[PADDED], scales[2], scales[3])
#else
    const __global uint *words = (const __global uint *)from + piece * PADDED + column / 32 * 16 + column % 16;
    const int shift = column % 32 / 16 * 4;
    FOUR_HALVES(low, words[0] >> shift & 0x0f0f0f0fu, scales[0], scales[1])
    FOUR_HALVES(high, words[PADDED / 2] >> shift & 0x0f0f0f0fu, scales[2], scales[3])
#endif
    return (uint4)(low, high);
}

#define COPY_BLOCK(start, buffer)                                                                                      \
    {                                                                                                                  \
        const long block = (long)table[(start) / 32] * kv_heads + kv_head;                                             \
        const __global uchar *k_block = keys + block * HEAD_BYTES(HW), *v_block = values + block * HEAD_BYTES(VW);     \
        __local uint4 *k_to = kv_tile + (buffer)*KV_PIECES, *v_to = k_to + K_TILE;                                     \
        for (int i = me; i < 32 * (QUERY_WIDTH / 8); i += THREADS)                                                     \
            k_to[K_PIECE(i % 32, i / 32)] = A(eight_of_key)(k_block, i % 32, i / 32);                                  \
        for (int i = me; i < 4 * PADDED; i += THREADS)                                                                 \
            v_to[MMA_PIECE(i % PADDED, i / PADDED)] =                                                                  \
                A(eight_of_values)(v_block, i % PADDED, i / PADDED, last - (start));                                   \
    }

#define KEY_FRAGMENTS(step, j)                                                                                         \
    load_fragments(k_from + 16 * K_PIECE(16 * (j) + matrix / 2 * 8 + line, 2 * (step) + matrix % 2))
#define VALUE_FRAGMENTS(step, j)                                                                                       \
    load_fragments(v_from + 16 * MMA_PIECE(16 * (j) + matrix / 2 * 8 + line, 2 * (step) + matrix % 2))
#endif

__kernel __attribute__((reqd_work_group_size(THREADS, 1, 1))) void A(attend_mma)(
    const __global int *in, const __global uchar *q_buffer, long q_at, const __global uchar *keys,
    const __global uchar *values, __global uchar *out_buffer, long out_at, const __global uchar *sinks, long sinks_at,
    int heads, int kv_heads, int window, float scale, float softcap)
{
    __local uint4 kv_tile[2 * KV_PIECES];
    TENSOR_SPACE(THREADS)
    const int me = get_local_id(0), warp = me / 32, lane = me % 32, head = get_group_id(0) * TILE_HEADS;
    const __global int *tile = in + in[IN_AT_TILES] + 4 * get_group_id(1); // first row, rows, its position, step to the next's
    const int row = tile[0], queries = tile[1] * TILE_HEADS, row_position = tile[2], row_step = tile[3];
    const int last = row_position + (tile[1] - 1) * row_step + 1;
    const int kv_head = head / (heads / kv_heads), sequence = in[in[IN_AT_SEQUENCES] + row];
    const __global int *table = in + in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS];
    const LocalAddress tile_at = local_address(kv_tile);
    const int matrix = lane / 8, line = lane % 8, pair = lane % 4 * 2;
    int query[2], at[2];
    uint4 q[HEAD_STEPS];
    {
        const __global float *from[2];
        UNROLLED for (int h = 0; h < 2; h++)
        {
            query[h] = 16 * warp + 8 * h + lane / 4;
            at[h] = row_position + query[h] / TILE_HEADS * row_step;
            const int here = min(query[h], queries - 1);
            from[h] = FLOATS_IN(q_buffer, q_at)
                      + ((long)(row + here / TILE_HEADS) * heads + head + here % TILE_HEADS) * QUERY_WIDTH + pair;
        }
        UNROLLED for (int s = 0; s < HEAD_STEPS; s++)
        {
            q[s].x = two_halves(from[0][16 * s] * scale, from[0][16 * s + 1] * scale);
            q[s].y = two_halves(from[1][16 * s] * scale, from[1][16 * s + 1] * scale);
            q[s].z = two_halves(from[0][16 * s + 8] * scale, from[0][16 * s + 9] * scale);
            q[s].w = two_halves(from[1][16 * s + 8] * scale, from[1][16 * s + 9] * scale);
        }
    }
    float4 acc[VALUE_TILES];
    UNROLLED for (int j = 0; j < VALUE_TILES; j++) acc[j] = (float4)(0.0f);
    float best[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    const int first = window ? max(0, row_position - window + 1) / 32 * 32 : 0;
    COPY_BLOCK(first, 0)
    end_copies();
    for (int start = first, buffer = 0; start < last; start += 32, buffer = 1 - buffer) {
        if (start + 32 < last)
            COPY_BLOCK(start + 32, 1 - buffer)
        end_copies();
        wait_for_copies_but_one();
        barrier(CLK_LOCAL_MEM_FENCE);
        const LocalAddress k_from = tile_at + buffer * 16 * KV_PIECES, v_from = k_from + 16 * K_TILE;
        float4 s[4];
        UNROLLED for (int j = 0; j < 4; j++) s[j] = (float4)(0.0f);
        UNROLLED for (int step = 0; step < HEAD_STEPS; step++)
        {
            UNROLLED for (int j = 0; j < 2; j++)
            {
                const uint4 k = KEY_FRAGMENTS(step, j);
                s[2 * j] = mma_half(s[2 * j], q[step], k.x, k.y);
                s[2 * j + 1] = mma_half(s[2 * j + 1], q[step], k.z, k.w);
            }
        }
        float most[2] = {-INFINITY, -INFINITY};
        UNROLLED for (int j = 0; j < 4; j++)
        {
            const int position = start + 8 * j + pair;
            float score[4] = {s[j].x, s[j].y, s[j].z, s[j].w};
            UNROLLED for (int i = 0; i < 4; i++)
            {
                const int p = position + i % 2, mine = at[i / 2];
                const float capped = softcap > 0.0f ? softcap * tanh(score[i] / softcap) : score[i];
                score[i] = p > mine || p <= mine - (window ? window : mine + 1) ? -INFINITY : capped;
                most[i / 2] = fmax(most[i / 2], score[i]);
            }
            s[j] = (float4)(score[0], score[1], score[2], score[3]);
        }
        float base[2];
        UNROLLED for (int h = 0; h < 2; h++)
        {
            most[h] = fmax(most[h], of_neighbour(most[h], 1));
            most[h] = fmax(most[h], of_neighbour(most[h], 2));
            const float now = fmax(best[h], most[h]);
            base[h] = now == -INFINITY ? 0.0f : now; // later rows of the tile may see nothing so far
            const float shrink = exp(best[h] - base[h]);
            best[h] = now;
            total[h] *= shrink;
            UNROLLED for (int j = 0; j < VALUE_TILES; j++)
            {
                if (h == 0)
                    acc[j].x *= shrink, acc[j].y *= shrink;
                else
                    acc[j].z *= shrink, acc[j].w *= shrink;
            }
        }
        UNROLLED for (int step = 0; step < 2; step++)
        {
            uint p[4];
            UNROLLED for (int j = 0; j < 2; j++)
            {
                const float4 e = s[2 * step + j];
                const float a = exp(e.x - base[0]), b = exp(e.y - base[0]), c = exp(e.z - base[1]), d = exp(e.w - base[1]);
                total[0] += a + b;
                total[1] += c + d;
                p[2 * j] = two_halves(a, b);
                p[2 * j + 1] = two_halves(c, d);
            }
            const uint4 weights = (uint4)(p[0], p[1], p[2], p[3]);
            UNROLLED for (int j = 0; j < VALUE_TILES / 2; j++)
            {
                const uint4 v = VALUE_FRAGMENTS(step, j);
                acc[2 * j] = mma_half(acc[2 * j], weights, v.x, v.y);
                acc[2 * j + 1] = mma_half(acc[2 * j + 1], weights, v.z, v.w);
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    UNROLLED for (int h = 0; h < 2; h++)
    {
        total[h] += of_neighbour(total[h], 1);
        total[h] += of_neighbour(total[h], 2);
        if (query[h] < queries) {
            const int my_head = head + query[h] % TILE_HEADS;
            const float factor = A(mean_factor)(best[h], total[h], sinks, sinks_at, my_head);
            __global float *to =
                FLOATS(out_buffer, out_at) + ((long)(row + query[h] / TILE_HEADS) * heads + my_head) * VW;
            UNROLLED for (int j = 0; j < VALUE_TILES; j++)
            {
                const int d = 8 * j + pair;
                if (d < VW)
                    to[d] = (h ? acc[j].z : acc[j].x) * factor;
                if (d + 1 < VW)
                    to[d + 1] = (h ? acc[j].w : acc[j].y) * factor;
            }
        }
    }
}

#undef HEAD_STEPS
#undef VALUE_TILES
#undef V_PIECES
#undef V_PIECE
#undef K_PIECES
#undef K_PIECE
#undef K_TILE
#undef KV_PIECES
#undef CODE_OFFSET
#undef FOUR_HALVES
#undef COPY_BLOCK
#undef KEY_FRAGMENTS
#undef VALUE_FRAGMENTS
