// Matrix products of many rows on NVIDIA's tensor cores, of one quantisation type, after layout.cl and simt_matmul.cl.
//
// Weights become halves of 16 times their values, in the registers where the tensor cores want them: the order of the
// values that are summed is free, so a work-item takes the two words of four values that it finds in one place. Rows of
// activations are halves of a 16th of their values, in the same order (simt_rows.cl), copied to local memory two blocks
// ahead. Both have 11 bits then, weights from 4e-6 to 4,000, and their products are added in float32. A work-group of
// eight warps has MMA_SIDE rows times MMA_SIDE columns; each warp 64 rows and 64 columns of every second block of 32, so
// that few instructions between those of the tensor cores serve many of them. At the end two warps add their sums.
//
// A work-item unpacks two neighbouring rows of weights of a group: what it needs of both lies together.
//
// Sums here are not those of simt_matmul.cl to the bit: the tensor cores' own order of addition is not known.

#define PARTS (32 / SUB)

// Words i and i + 4 of a block for one lane (layout.cl), from the RAW_WORDS words that have their bits.
#if BITS == 8
#define RAW_WORDS 2
#define RAW_PLANE(j, i) ((j)*4 + (i))
#define RAW_LOW(r, i) (r[0])
#define RAW_HIGH(r, i) (r[1])
#elif BITS >= 4
#define RAW_WORDS (BITS - 3)
#define RAW_PLANE(j, i) ((j) == 0 ? (i) : 3 + (j))
#if BITS == 4
#define RAW_LOW(r, i) (r[0] & 0x0f0f0f0f)
#define RAW_HIGH(r, i) ((r[0] >> 4) & 0x0f0f0f0f)
#elif BITS == 5
#define RAW_LOW(r, i) ((r[0] & 0x0f0f0f0f) | ((r[1] >> (i)) & 0x01010101) << 4)
#define RAW_HIGH(r, i) (((r[0] >> 4) & 0x0f0f0f0f) | ((r[1] >> ((i) + 4)) & 0x01010101) << 4)
#else
#define RAW_LOW(r, i) ((r[0] & 0x0f0f0f0f) | ((r[1] >> (2 * (i))) & 0x03030303) << 4)
#define RAW_HIGH(r, i) (((r[0] >> 4) & 0x0f0f0f0f) | ((r[2] >> (2 * (i))) & 0x03030303) << 4)
#endif
#elif BITS == 1
#define RAW_WORDS 1
#define RAW_PLANE(j, i) 0
#define RAW_LOW(r, i) ((r[0] >> (i)) & 0x01010101)
#define RAW_HIGH(r, i) ((r[0] >> ((i) + 4)) & 0x01010101)
#else
#define RAW_WORDS BITS
#define RAW_PLANE(j, i) (j)
#if BITS == 2
#define RAW_LOW(r, i) ((r[0] >> (2 * (i))) & 0x03030303)
#define RAW_HIGH(r, i) ((r[1] >> (2 * (i))) & 0x03030303)
#else
#define RAW_LOW(r, i) (((r[0] >> (2 * (i))) & 0x03030303) | ((r[2] >> (i)) & 0x01010101) << 2)
#define RAW_HIGH(r, i) (((r[1] >> (2 * (i))) & 0x03030303) | ((r[2] >> ((i) + 4)) & 0x01010101) << 2)
#endif
#endif

#if CODES == C_PLAIN
#define CODE_VALUES(w) (w)
#else
#define CODE_VALUES(w) T(value_of)(w)
#endif

// Scales of two neighbouring rows as they lie, in SCALE_WORDS words, and then as numbers: of row `h` for part j of a block.
#define PAIR_OF_BYTES(i) (*(const __global ushort *)(r + 16 * (i)))
#define PAIR_OF_HALVES(at) (*(const __global uint *)(r + (at) + 2 * (row & ~1)))
#define BYTE_OF(pair) as_float(0x4b000000u | (((pair) >> 8 * h) & 255)) - 8388608.0f // quicker than a conversion
#if SCALES == S_D || SCALES == S_DM || SCALES == S_D32
#define SCALE_WORDS 2
#elif SCALES == S_K
#define SCALE_WORDS (PARTS + 1)
#elif SCALES == S_KM
#define SCALE_WORDS (2 * PARTS + 2)
#elif SCALES == S_K4M
#define SCALE_WORDS (PARTS + 2)
#else
#define SCALE_WORDS PARTS
#endif

static inline void T(fetch_scales)(const __global uchar *records, int block, int row, uint *f)
{
    const __global uchar *r = records + (long)(block / (SUPER / 32)) * RECORD_BYTES;
#if SCALES == S_D
    f[0] = f[1] = PAIR_OF_HALVES(0);
#elif SCALES == S_DM
    f[0] = PAIR_OF_HALVES(0);
    f[1] = PAIR_OF_HALVES(32);
#elif SCALES == S_D32
    const uint2 two = *(const __global uint2 *)(r + 4 * row);
    f[0] = two.x, f[1] = two.y;
#else
#if SCALES == S_K
    f[PARTS] = PAIR_OF_HALVES(RECORD_BYTES - 32);
#elif SCALES == S_KM || SCALES == S_K4M
    f[SCALE_WORDS - 2] = PAIR_OF_HALVES(RECORD_BYTES - 64);
    f[SCALE_WORDS - 1] = PAIR_OF_HALVES(RECORD_BYTES - 32);
#endif
    r += row;
    const int first = (block % (SUPER / 32)) * PARTS;
    _Pragma("unroll") for (int j = 0; j < PARTS; j++)
    {
        f[j] = PAIR_OF_BYTES(first + j);
#if SCALES == S_KM
        f[PARTS + j] = PAIR_OF_BYTES(N_SUB + first + j);
#endif
    }
#endif
}

static inline float T(scale_of)(const uint *f, int h, int j)
{
#if SCALES == S_D || SCALES == S_DM
    return FACTOR * half_of(f[0], h);
#elif SCALES == S_D32
    return FACTOR * as_float(f[h]);
#elif SCALES == S_K
    return FACTOR * half_of(f[PARTS], h) * (float)(char)(f[j] >> 8 * h);
#elif SCALES == S_KM
    return FACTOR * half_of(f[SCALE_WORDS - 2], h) * (BYTE_OF(f[j]));
#elif SCALES == S_K4M
    return FACTOR * half_of(f[SCALE_WORDS - 2], h) * (BYTE_OF(f[j] & 0x0f0f));
#elif SCALES == S_E8M0
    const int byte = f[j] >> 8 * h & 255;
    return as_float(max((byte - 1) * (1 << 23), (byte + 1) << 21));
#elif SCALES == S_UE4M3
    const int byte = f[j] >> 8 * h & 255;
    return (float)((byte & 7) + (byte > 7 ? 8 : 0)) * as_float((max(byte >> 3, 1) + 116) << 23);
#endif
}

static inline float T(minimum_of)(const uint *f, int h, int j)
{
#if SCALES == S_DM
    return FACTOR * half_of(f[1], h);
#elif SCALES == S_KM
    return -FACTOR * half_of(f[SCALE_WORDS - 1], h) * (BYTE_OF(f[PARTS + j]));
#elif SCALES == S_K4M
    return -FACTOR * half_of(f[SCALE_WORDS - 1], h) * (BYTE_OF(f[j] >> 4 & 0x0f0f));
#else
    return 0.0f;
#endif
}

// Rows of two blocks, to the half of the tile that is not being read; zeros behind the last one.
#define COPY_ROWS(pair)                                                                                                \
    UNROLLED for (int two = 0; two < 2; two++)                                                                         \
    {                                                                                                                  \
        const int b = 2 * (pair) + two, from = 4 * min(b, blocks - 1);                                                 \
        const LocalAddress to = tile_at + (pair) % 2 * 2 * BLOCK_TILE + two * BLOCK_TILE;                              \
        copy_or_clear(to + 16 * MMA_PIECE(me / 4, me % 4), x_0 + from, b < blocks);                                    \
        copy_or_clear(to + 16 * MMA_PIECE(me / 4 + 64, me % 4), x_1 + from, b < blocks);                               \
    }                                                                                                                  \
    end_copies();

#define FETCH_WEIGHTS(pair)                                                                                            \
    {                                                                                                                  \
        const int b = min(2 * (pair) + of_pair, blocks - 1);                                                           \
        UNROLLED for (int i = 0; i < 4; i++)                                                                           \
        {                                                                                                              \
            const __global uint2 *planes = (const __global uint2 *)(weights + group_at[i] + (long)b * BLOCK_BYTES) + lane / 4; \
            UNROLLED for (int j = 0; j < RAW_WORDS; j++)                                                               \
            {                                                                                                          \
                const uint2 two = planes[8 * RAW_PLANE(j, lane % 4)];                                                  \
                raw[i][0][j] = two.x, raw[i][1][j] = two.y;                                                            \
            }                                                                                                          \
            T(fetch_scales)(weights + group_at[i] + (long)blocks * BLOCK_BYTES, b, lane / 4 * 2, scales[i]);           \
        }                                                                                                              \
    }

// Sums i and i + 1 of the warp's four times 16 columns go to the warp that has the same ones of the other blocks.
#define GIVE_SUMS(i, sender)                                                                                           \
    barrier(CLK_LOCAL_MEM_FENCE);                                                                                      \
    if (of_pair == (sender)) {                                                                                         \
        UNROLLED for (int c = 0; c < 2; c++) UNROLLED for (int j = 0; j < 8; j++)                                      \
        {                                                                                                              \
            exchanged[(c * 8 + j) * 128 + me % 128] = acc[(i) + c][j];                                                 \
        }                                                                                                              \
    }                                                                                                                  \
    barrier(CLK_LOCAL_MEM_FENCE);                                                                                      \
    if (of_pair != (sender)) {                                                                                         \
        UNROLLED for (int c = 0; c < 2; c++) UNROLLED for (int j = 0; j < 8; j++)                                      \
        {                                                                                                              \
            const float4 sum = acc[(i) + c][j] + exchanged[(c * 8 + j) * 128 + me % 128];                              \
            STORE_SUM(sum.x, (i) + c, j, 0, 0)                                                                         \
            STORE_SUM(sum.z, (i) + c, j, 0, 1)                                                                         \
            STORE_SUM(sum.y, (i) + c, j, 1, 0)                                                                         \
            STORE_SUM(sum.w, (i) + c, j, 1, 1)                                                                         \
        }                                                                                                              \
    }

#define STORE_SUM(sum, i, j, next, h)                                                                                  \
    {                                                                                                                  \
        const int row = first_row + my_rows + 8 * (j) + lane % 4 * 2 + (next);                                         \
        const int column = first_column + 16 * (i) + lane / 4 * 2 + (h);                                               \
        if (row < end_row && column < end_column)                                                                      \
            STORE_OUTPUT(sum, row, column)                                                                             \
    }

__kernel __attribute__((reqd_work_group_size(MMA_THREADS, 1, 1))) void T(matmul_mma)(PRODUCT_ARGUMENTS)
{
    __local uint4 tile[4 * BLOCK_TILE / 16];
    TENSOR_SPACE(MMA_THREADS)
    int part = get_group_id(0);
    CHOOSE_MATRIX(part, MMA_SIDE)
    const int me = get_local_id(0), warp = me / 32, lane = me % 32, end_row = in[rows_word], blocks = k / 32;
    const int of_pair = warp / 4, my_rows = warp / 2 % 2 * 64;
    const int groups = (n + 15) / 16, per_head = n / heads, head_parts = (per_head + MMA_SIDE - 1) / MMA_SIDE;
    const int head = heads > 1 ? part / head_parts : 0;
    const int first_column = head * per_head + (part - head * head_parts) * MMA_SIDE + warp % 2 * 64;
    const int end_column = (head + 1) * per_head, first_row = get_group_id(1) * MMA_SIDE;
    const long bias_base = 0, row_bytes = half_row_bytes(k);
    uint group_at[4];
    UNROLLED for (int i = 0; i < 4; i++) group_at[i] = min(first_column / 16 + i, groups - 1) * (uint)T(group_bytes)(k);
    const __global uchar *x = x_buffer + x_at + me % 4 * 16;
    const __global uint4 *x_0 =
        (const __global uint4 *)(x + ((long)min(first_row + me / 4, end_row - 1) * heads + head) * row_bytes);
    const __global uint4 *x_1 =
        (const __global uint4 *)(x + ((long)min(first_row + me / 4 + 64, end_row - 1) * heads + head) * row_bytes);
    const LocalAddress tile_at = local_address(tile);
    const uint offset = two_halves(1024.0f + (OFFSET), 1024.0f + (OFFSET));
    const int matrix = lane / 8, my_row = my_rows + matrix / 2 * 8 + lane % 8;
    float4 acc[4][8];
    UNROLLED for (int i = 0; i < 4; i++) UNROLLED for (int j = 0; j < 8; j++) acc[i][j] = (float4)(0.0f);
    uint raw[4][2][RAW_WORDS], scales[4][SCALE_WORDS];
    COPY_ROWS(0)
    FETCH_WEIGHTS(0)
    for (int pair = 0; 2 * pair < blocks; pair++) {
        wait_for_copies();
        barrier(CLK_LOCAL_MEM_FENCE);
        COPY_ROWS(pair + 1)
        uint4 w[4][2];
        UNROLLED for (int i = 0; i < 4; i++)
        {
            uint pairs[2][2][2];
            UNROLLED for (int h = 0; h < 2; h++)
            {
                const int low = CODE_VALUES(RAW_LOW(raw[i][h], lane % 4)), high = CODE_VALUES(RAW_HIGH(raw[i][h], lane % 4));
                UNROLLED for (int step = 0; step < 2; step++)
                {
                    const float s = HALF_UNIT * T(scale_of)(scales[i], h, step * (PARTS - 1));
                    const float m = HALF_UNIT * T(minimum_of)(scales[i], h, step * (PARTS - 1));
                    const uint two_s = two_halves(s, s), two_m = two_halves(m, m);
                    pairs[step][h][0] = weights_of(step ? high : low, FIRST_TWO, offset, two_s, two_m);
                    pairs[step][h][1] = weights_of(step ? high : low, LAST_TWO, offset, two_s, two_m);
                }
            }
            UNROLLED for (int step = 0; step < 2; step++) w[i][step] =
                (uint4)(pairs[step][0][0], pairs[step][1][0], pairs[step][0][1], pairs[step][1][1]);
        }
        FETCH_WEIGHTS(pair + 1)
        const LocalAddress from = tile_at + pair % 2 * 2 * BLOCK_TILE + of_pair * BLOCK_TILE;
        UNROLLED for (int step = 0; step < 2; step++)
        {
            UNROLLED for (int j = 0; j < 4; j++)
            {
                const uint4 rows = load_fragments(from + 16 * MMA_PIECE(my_row + 16 * j, 2 * step + matrix % 2));
                UNROLLED for (int i = 0; i < 4; i++)
                {
                    acc[i][2 * j] = mma_half(acc[i][2 * j], w[i][step], rows.x, rows.y);
                    acc[i][2 * j + 1] = mma_half(acc[i][2 * j + 1], w[i][step], rows.z, rows.w);
                }
            }
        }
    }
    wait_for_copies();
    __local float4 *exchanged = (__local float4 *)tile;
    GIVE_SUMS(0, 1)
    GIVE_SUMS(2, 0)
}

#undef PARTS
#undef RAW_WORDS
#undef RAW_PLANE
#undef RAW_LOW
#undef RAW_HIGH
#undef CODE_VALUES
#undef SCALE_WORDS
#undef PAIR_OF_BYTES
#undef PAIR_OF_HALVES
#undef BYTE_OF
#undef COPY_ROWS
#undef FETCH_WEIGHTS
#undef GIVE_SUMS
#undef STORE_SUM
