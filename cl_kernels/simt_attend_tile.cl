// Attention of a tile of rows, for a shape of heads as in simt_attention.cl. 16 by 8 work-items have PER_ITEM queries by 4 positions each for the scores, and by four columns
// out of every 32 for the values. Local memory holds 32 columns of queries and keys at a time, then the values.

#define THREADS 128
#define PER_ITEM (TILE_QUERIES / 16)
#define V_ROWS (PADDED > 256 ? 16 : 32) // positions whose values are in local memory at a time
#define COLUMN_STEPS ((PADDED + 31) / 32)
#define QK_FLOATS (32 * TILE_QUERIES + 32 * 32)
#define V_FLOATS (V_ROWS * PADDED / 2)

__kernel __attribute__((reqd_work_group_size(THREADS, 1, 1))) void A(attend_tile)(
    const __global int *in, const __global uchar *q_buffer, long q_at, const __global uchar *keys,
    const __global uchar *values, __global uchar *out_buffer, long out_at, const __global uchar *sinks, long sinks_at,
    int heads, int kv_heads, int window, float scale, float softcap)
{
    __local float4 shared[(QK_FLOATS > V_FLOATS ? QK_FLOATS : V_FLOATS) / 4];
    __local float p_tile[32 * TILE_QUERIES] ALIGNED;
    __local float part_of[TILE_QUERIES * 8];
    __local float *q_tile = (__local float *)shared, *k_tile = q_tile + 32 * TILE_QUERIES;
    __local uint *v_words = (__local uint *)shared;
    __local half *v_tile = (__local half *)shared;
    const int me = get_local_id(0), mine = me / 8 * PER_ITEM, across = me % 8, head = get_group_id(0) * TILE_HEADS;
    const __global int *tile = in + in[IN_AT_TILES] + 4 * get_group_id(1); // first row, rows, its position, step to the next's
    const int row = tile[0], queries = tile[1] * TILE_HEADS, row_position = tile[2], row_step = tile[3];
    const int last = row_position + (tile[1] - 1) * row_step + 1;
    const int kv_head = head / (heads / kv_heads), sequence = in[in[IN_AT_SEQUENCES] + row];
    const __global int *table = in + in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS];
    const __global float *q = FLOATS_IN(q_buffer, q_at) + ((long)row * heads + head) * QUERY_WIDTH;
    float4 acc[PER_ITEM][COLUMN_STEPS];
    float best[PER_ITEM], total[PER_ITEM];
    _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
    {
        _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++) acc[i][j] = (float4)(0.0f);
        best[i] = -INFINITY;
        total[i] = 0.0f;
    }
    const int first = window ? max(0, row_position - window + 1) / 32 * 32 : 0;
    for (int start = first; start < last; start += 32) {
        const long block = (long)table[start / 32] * kv_heads + kv_head;
#if KV_TYPE == KV_F16
        const __global half *kt = (const __global half *)keys + block * HW * 32;
#else
        const __global uchar *kt = keys + block * HEAD_BYTES(HW);
#endif
        float4 s[PER_ITEM];
        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) s[i] = (float4)(0.0f);
        for (int d0 = 0; d0 < QUERY_WIDTH; d0 += 32) {
            const int columns = min(32, QUERY_WIDTH - d0);
            for (int i = me; i < 32 * TILE_QUERIES; i += THREADS) {
                const int j = i % TILE_QUERIES, d = i / TILE_QUERIES;
                q_tile[i] = j < queries && d < columns
                                ? q[((long)(j / TILE_HEADS) * heads + j % TILE_HEADS) * QUERY_WIDTH + d0 + d]
                                : 0.0f;
            }
#if KV_TYPE == KV_F16
            for (int i = me; i < 32 * columns; i += THREADS)
                k_tile[i] = vload_half(32 * d0 + i, kt);
#else
            for (int i = me; i < 32 * 32 / WORD_COLUMNS; i += THREADS) {
                const float k_scale = vload_half(d0 + i % 32, (const __global half *)(kt + CODE_BYTES(HW)));
                const uint word = ((const __global uint *)kt)[d0 / WORD_COLUMNS * 32 + i];
                __local float *to = k_tile + i / 32 * WORD_COLUMNS * 32 + i % 32;
                const float4 k = LOW_NUMBERS(word) * k_scale;
                to[0] = k.x, to[32] = k.y, to[64] = k.z, to[96] = k.w;
#if KV_TYPE == KV_Q4_0
                const float4 k_behind = HIGH_NUMBERS(word) * k_scale;
                to[128] = k_behind.x, to[160] = k_behind.y, to[192] = k_behind.z, to[224] = k_behind.w;
#endif
            }
#endif
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int d = 0; d < columns; d++) {
                const float4 k = ((const __local float4 *)k_tile)[8 * d + across];
                _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) s[i] =
                    fma((float4)(q_tile[d * TILE_QUERIES + mine + i]), k, s[i]);
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        const int4 position = start + 4 * across + (int4)(0, 1, 2, 3);
        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
        {
            const int at = row_position + (mine + i) / TILE_HEADS * row_step;
            s[i].x = A(score)(s[i].x, scale, softcap);
            s[i].y = A(score)(s[i].y, scale, softcap);
            s[i].z = A(score)(s[i].z, scale, softcap);
            s[i].w = A(score)(s[i].w, scale, softcap);
            s[i] = select(s[i], (float4)(-INFINITY), (position > at) | (position <= at - (window ? window : at + 1)));
            part_of[(mine + i) * 8 + across] = fmax(fmax(s[i].x, s[i].y), fmax(s[i].z, s[i].w));
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
        {
            float now = best[i];
            for (int j = 0; j < 8; j++)
                now = fmax(now, part_of[(mine + i) * 8 + j]);
            const float base = now == -INFINITY ? 0.0f : now; // later rows of the tile may see nothing so far
            const float shrink = exp(best[i] - base);
            const float4 p = exp(s[i] - base);
            best[i] = now;
            total[i] = fma(total[i], shrink, p.x + p.y + p.z + p.w);
            _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++) acc[i][j] *= shrink;
            p_tile[(4 * across) * TILE_QUERIES + mine + i] = p.x;
            p_tile[(4 * across + 1) * TILE_QUERIES + mine + i] = p.y;
            p_tile[(4 * across + 2) * TILE_QUERIES + mine + i] = p.z;
            p_tile[(4 * across + 3) * TILE_QUERIES + mine + i] = p.w;
        }
        for (int x0 = 0; x0 < 32; x0 += V_ROWS) {
#if KV_TYPE == KV_F16
            const __global uint *vt = (const __global uint *)((const __global ushort *)values + block * 32 * PADDED);
            for (int i = me; i < V_ROWS * PADDED / 2; i += THREADS) // behind `last` there may be no numbers at all
                v_words[i] = start + x0 + 2 * i / PADDED < last ? vt[x0 * PADDED / 2 + i] : 0;
#else
            const __global uchar *vt = values + block * HEAD_BYTES(VW);
            for (int i = me; i < V_ROWS / 4 * PADDED / 2; i += THREADS) {
                const int pair = i % (PADDED / 2), x = i / (PADDED / 2) * 4, d = PAIR_COLUMN(pair);
                const float4 scales =
                    scales_of_four((const __global half *)(vt + CODE_BYTES(VW)) + d / 32 * 32, start + x0 + x, last);
                float4 a, b;
                PAIR_OF_VALUES(vt, VW, (x0 + x) / 4, pair, a, b)
                a *= scales, b *= scales;
                const float four[4][2] = {{a.x, b.x}, {a.y, b.y}, {a.z, b.z}, {a.w, b.w}};
                _Pragma("unroll") for (int j = 0; j < 4; j++)
                {
                    vstore_half_rte(four[j][0], (x + j) * PADDED + d, v_tile);
                    vstore_half_rte(four[j][1], (x + j) * PADDED + d + PAIR_DISTANCE, v_tile);
                }
            }
#endif
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int x = 0; x < V_ROWS; x++) {
                float p[PER_ITEM];
                _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) p[i] = p_tile[(x0 + x) * TILE_QUERIES + mine + i];
                _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++)
                {
                    const int d = 32 * j + 4 * across;
                    if (d < PADDED) {
                        const float4 v = vload_half4(0, v_tile + x * PADDED + d);
                        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) acc[i][j] =
                            fma((float4)(p[i]), v, acc[i][j]);
                    }
                }
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
    }
    _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) part_of[(mine + i) * 8 + across] = total[i];
    barrier(CLK_LOCAL_MEM_FENCE);
    _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
    {
        const int query = mine + i;
        float sum = 0.0f;
        for (int j = 0; j < 8; j++)
            sum += part_of[query * 8 + j];
        if (query < queries) {
            const float factor = A(mean_factor)(best[i], sum, sinks, sinks_at, head + query % TILE_HEADS);
            __global float *to = FLOATS(out_buffer, out_at)
                                 + ((long)(row + query / TILE_HEADS) * heads + head + query % TILE_HEADS) * VW;
            _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++)
            {
                const int d = 32 * j + 4 * across;
                if (d < VW)
                    to[d] = acc[i][j].x * factor;
                if (d + 1 < VW)
                    to[d + 1] = acc[i][j].y * factor;
                if (d + 2 < VW)
                    to[d + 2] = acc[i][j].z * factor;
                if (d + 3 < VW)
                    to[d + 3] = acc[i][j].w * factor;
            }
        }
    }
}

#undef V_ROWS
#undef PER_ITEM
#undef COLUMN_STEPS
#undef QK_FLOATS
#undef V_FLOATS
