// Matrix products of one quantisation type on a GPU, after layout.cl.
//
// The length of a row is cut into slices of `slice` blocks of 32 values. A result is the sum of its slices' sums in
// their order, each of them a sum in the order of the blocks. matvec gives each slice to another work-item; matmul
// goes through them one after the other. So both come to the same bits.

#define WORD_OF_LANE(p, i) (((const __global int *)(p))[(i) * 16 + lane])
#define PARTS (32 / SUB)

// Quants as signed bytes: where OFFSET is 128 it goes at once, and without it they are below 128 anyway (layout.cl).
#if OFFSET == 128
#define SIGNED_WORDS(w)                                                                                                \
    _Pragma("unroll") for (int i = 0; i < 8; i++) w[i] ^= (int)0x80808080;
#define SIGNED_OFFSET 0
#else
#define SIGNED_WORDS(w)
#define SIGNED_OFFSET (OFFSET)
#endif

// acc + one part of a block: `sum` of products of quants, `total` of the activations' quants.
static inline float T(add_part)(float acc, int sum, int total, float scale, float minimum, float x_scale)
{
    acc = fma((float)(sum - SIGNED_OFFSET * total), scale * x_scale, acc);
    if (HAS_MINIMUM)
        acc = fma(minimum, x_scale * (float)total, acc);
    return acc;
}

static inline int T(four_products)(int sum, const int *w, int4 q)
{
    return dot4(dot4(dot4(dot4(sum, w[0], q.x), w[1], q.y), w[2], q.z), w[3], q.w);
}

// ROWS rows of activations (or fewer) times 16 rows of weights to a work-group of 16 by `slices` work-items, or fewer. UNROLL:
// how many blocks are on their way at once; for few rows it is memory that is waited for.
#define MATVEC_BLOCK(ROWS, EXPERTS, b, p, V)                                                                           \
    {                                                                                                                  \
        int w[8];                                                                                                      \
        UNPACK(p, w, V)                                                                                                \
        SIGNED_WORDS(w)                                                                                                \
        float scale[PARTS], minimum[PARTS];                                                                            \
        T(lane_scales)(records, b, lane, scale, minimum);                                                              \
        _Pragma("unroll") for (int t = 0; t < ROWS; t++)                                                               \
        {                                                                                                              \
            const __global uchar *row = x_buffer + x_at + MATVEC_INPUT(EXPERTS, t) * prepared_bytes(k);                \
            const __global int4 *q = (const __global int4 *)(row + (b) * 64);                                          \
            const float x_scale = ((const __global float *)(row + 2 * (long)k))[b];                                    \
            const __global int *totals = (const __global int *)(row + 2 * (long)k) + 2 * blocks;                       \
            int sum = T(four_products)(T(four_products)(0, w, q[0]) << 7, w, q[2]);                                    \
            if (PARTS == 2) {                                                                                          \
                acc[t] = T(add_part)(acc[t], sum, totals[blocks + 2 * (b)], scale[0], minimum[0], x_scale);            \
                sum = 0;                                                                                               \
            }                                                                                                          \
            sum += T(four_products)(T(four_products)(0, w + 4, q[1]) << 7, w + 4, q[3]);                               \
            acc[t] = T(add_part)(acc[t], sum, PARTS == 2 ? totals[blocks + 2 * (b) + 1] : totals[b],                   \
                                 scale[PARTS - 1], minimum[PARTS - 1], x_scale);                                       \
        }                                                                                                              \
    }

#ifdef STEP_THREADS
#define FETCHED_WORD(p, i) ((p)[i])
#ifdef REALM_SIMT_DP4A
#define FETCHED_BLOCKS (BITS > 5 ? 2 : 4) // of each of two groups, on their way at once
#else
#define FETCHED_BLOCKS 1 // elsewhere steps are not run so but in the tests, whose compiler takes long over more
#endif
#define STEP_BLOCKS(COUNT)                                                                                             \
    {                                                                                                                  \
        int fetched[COUNT][2][BITS];                                                                                   \
        _Pragma("unroll") for (int u = 0; u < COUNT; u++) _Pragma("unroll") for (int g = 0; g < 2; g++)                \
            _Pragma("unroll") for (int i = 0; i < BITS; i++) fetched[u][g][i] =                                        \
                WORD_OF_LANE(base[g] + (long)(b + u) * BLOCK_BYTES, i);                                                \
        _Pragma("unroll") for (int u = 0; u < COUNT; u++)                                                              \
        {                                                                                                              \
            const int4 q_0 = q[4 * (b + u)], q_1 = q[4 * (b + u) + 1], q_2 = q[4 * (b + u) + 2], q_3 = q[4 * (b + u) + 3]; \
            const float x_scale = x_scales[b + u];                                                                     \
            const int total_0 = totals[PARTS == 2 ? blocks + 2 * (b + u) : b + u];                                     \
            const int total_1 = PARTS == 2 ? totals[blocks + 2 * (b + u) + 1] : total_0;                               \
            _Pragma("unroll") for (int g = 0; g < 2; g++)                                                              \
            {                                                                                                          \
                int w[8];                                                                                              \
                UNPACK(fetched[u][g], w, FETCHED_WORD)                                                                 \
                SIGNED_WORDS(w)                                                                                        \
                float scale[PARTS], minimum[PARTS];                                                                    \
                T(lane_scales)(base[g] + records, b + u, lane, scale, minimum);                                        \
                int sum = T(four_products)(T(four_products)(0, w, q_0) << 7, w, q_2);                                  \
                if (PARTS == 2) {                                                                                      \
                    acc[g] = T(add_part)(acc[g], sum, total_0, scale[0], minimum[0], x_scale);                         \
                    sum = 0;                                                                                           \
                }                                                                                                      \
                sum += T(four_products)(T(four_products)(0, w + 4, q_1) << 7, w + 4, q_3);                             \
                acc[g] = T(add_part)(acc[g], sum, total_1, scale[PARTS - 1], minimum[PARTS - 1], x_scale);             \
            }                                                                                                          \
        }                                                                                                              \
    }

static inline void T(step_matvec)(OpPointer op, int tile, __local float *sums)
{
    BEGIN_STEP_MATVEC
        const int blocks = k / 32, last = min((s + 1) * slice, blocks);
        const long records = (long)blocks * BLOCK_BYTES;
        const __global uchar *x = OP_BYTES(0) + head * prepared_bytes(k);
        const __global int4 *q = (const __global int4 *)x;
        const __global float *x_scales = (const __global float *)(x + 2 * (long)k);
        const __global int *totals = (const __global int *)x_scales + 2 * blocks;
        int b = s * slice;
#if FETCHED_BLOCKS > 1
        for (; b + FETCHED_BLOCKS <= last; b += FETCHED_BLOCKS)
            STEP_BLOCKS(FETCHED_BLOCKS)
#endif
        for (; b < last; b++)
            STEP_BLOCKS(1)
    END_STEP_MATVEC
}
#undef FETCHED_WORD
#undef FETCHED_BLOCKS
#undef STEP_BLOCKS
#endif

#define DEFINE_MATVEC(NAME, ROWS, EXPERTS, UNROLL)                                                                     \
    __kernel void T(NAME)(PRODUCT_ARGUMENTS)                                                                           \
    {                                                                                                                  \
        __local float sums[MOST_SLICES * ROWS * 16];                                                                   \
        MATVEC_ROWS(EXPERTS)                                                                                           \
        const int blocks = k / 32;                                                                                     \
        const __global uchar *records = base + (long)blocks * BLOCK_BYTES;                                             \
        for (int s = get_local_id(1); s < slices; s += items) {                                                        \
            const int last = min((s + 1) * slice, blocks);                                                             \
            float acc[ROWS];                                                                                           \
            _Pragma("unroll") for (int t = 0; t < ROWS; t++) acc[t] = 0.0f;                                            \
            int b = s * slice;                                                                                         \
            for (; b + UNROLL <= last; b += UNROLL) {                                                                  \
                _Pragma("unroll") for (int u = 0; u < UNROLL; u++)                                                     \
                    MATVEC_BLOCK(ROWS, EXPERTS, b + u, base + (long)(b + u) * BLOCK_BYTES, WORD_OF_LANE)               \
            }                                                                                                          \
            for (; b < last; b++)                                                                                      \
                MATVEC_BLOCK(ROWS, EXPERTS, b, base + (long)b * BLOCK_BYTES, WORD_OF_LANE)                             \
            MATVEC_KEEP(ROWS)                                                                                          \
        }                                                                                                              \
        MATVEC_FINISH(ROWS)                                                                                            \
    }

DEFINE_MATVEC(matvec_1, 1, 0, 4)
DEFINE_MATVEC(matvec_2, 2, 0, 2)
DEFINE_MATVEC(matvec_4, 4, 0, 1)
DEFINE_MATVEC(matvec_8, 8, 0, 1)
#ifdef WITH_EXPERTS
DEFINE_MATVEC(expert_matvec, 1, 1, 4)
#endif
#undef DEFINE_MATVEC

// PER rows of activations for each of TILE_HEIGHT, times TILE_COLUMNS rows of weights, to a work-group of 16 by
// TILE_HEIGHT work-items, each of which has 4 columns of PER rows. Two blocks at a time lie unpacked in local memory,
// word by word; the next two are fetched while these are multiplied.
#define DEFINE_MATMUL(NAME, PER, EXPERTS)                                                                              \
    __kernel __attribute__((reqd_work_group_size(16, TILE_HEIGHT, 1))) void T(NAME)(PRODUCT_ARGUMENTS)                 \
    {                                                                                                                  \
        enum {                                                                                                         \
            TILE_ROWS = TILE_HEIGHT * PER,                                                                             \
            ITEMS = 2 * (TILE_COLUMNS + 2 * TILE_ROWS),                                                                \
            THREADS = 16 * TILE_HEIGHT,                                                                                \
            EACH = (ITEMS + THREADS - 1) / THREADS                                                                     \
        };                                                                                                             \
        __local int4 w_tile[2 * 8 * TILE_COLUMNS / 4];                                                                 \
        __local float4 scale_tile[2 * PARTS * TILE_COLUMNS / 4], minimum_tile[2 * PARTS * TILE_COLUMNS / 4];           \
        __local int x_tile[4 * 8 * TILE_ROWS] ALIGNED, total_tile[2 * PARTS * TILE_ROWS] ALIGNED;                      \
        __local float x_scale_tile[2 * TILE_ROWS] ALIGNED;                                                             \
        MATMUL_ROWS(EXPERTS)                                                                                           \
        const int blocks = is_tile ? k / 32 : 0;                                                                       \
        float4 acc[PER], total[PER];                                                                                   \
        _Pragma("unroll") for (int r = 0; r < PER; r++) acc[r] = total[r] = (float4)(0.0f);                            \
        int v[EACH][8], v_total[EACH][PARTS];                                                                          \
        float v_scale[EACH][PARTS], v_minimum[EACH][PARTS];                                                            \
        for (int pair = -2; pair < blocks; pair += 2) {                                                                \
            if (pair >= 0) {                                                                                           \
                barrier(CLK_LOCAL_MEM_FENCE);                                                                          \
                _Pragma("unroll") for (int e = 0; e < EACH; e++)                                                       \
                {                                                                                                      \
                    const int item = me + e * THREADS;                                                                 \
                    if (item < 2 * TILE_COLUMNS) {                                                                     \
                        const int two = item / TILE_COLUMNS, c = item % TILE_COLUMNS;                                  \
                        for (int i = 0; i < 8; i++)                                                                    \
                            ((__local int *)w_tile)[(two * 8 + i) * TILE_COLUMNS + c] = v[e][i];                       \
                        for (int j = 0; j < PARTS; j++) {                                                              \
                            ((__local float *)scale_tile)[(two * PARTS + j) * TILE_COLUMNS + c] = v_scale[e][j];       \
                            ((__local float *)minimum_tile)[(two * PARTS + j) * TILE_COLUMNS + c] = v_minimum[e][j];   \
                        }                                                                                              \
                    } else if (item < ITEMS) {                                                                         \
                        const int part = (item - 2 * TILE_COLUMNS) / TILE_ROWS, r = (item - 2 * TILE_COLUMNS) % TILE_ROWS; \
                        const int two = part / 2;                                                                      \
                        for (int i = 0; i < 8; i++)                                                                    \
                            x_tile[(part * 8 + i) * TILE_ROWS + r] = v[e][i];                                          \
                        for (int j = 0; j < PARTS; j++)                                                                \
                            total_tile[(two * PARTS + j) * TILE_ROWS + r] = v_total[e][j];                             \
                        x_scale_tile[two * TILE_ROWS + r] = v_scale[e][0];                                             \
                    }                                                                                                  \
                }                                                                                                      \
                barrier(CLK_LOCAL_MEM_FENCE);                                                                          \
            }                                                                                                          \
            if (pair + 2 < blocks) {                                                                                   \
                _Pragma("unroll") for (int e = 0; e < EACH; e++)                                                       \
                {                                                                                                      \
                    const int item = me + e * THREADS;                                                                 \
                    const int of_x = item >= 2 * TILE_COLUMNS, i_x = item - 2 * TILE_COLUMNS;                          \
                    const int b = pair + 2 + (of_x ? i_x / TILE_ROWS / 2 : item / TILE_COLUMNS);                       \
                    for (int i = 0; i < 8; i++)                                                                        \
                        v[e][i] = 0;                                                                                   \
                    for (int j = 0; j < PARTS; j++) {                                                                  \
                        v_scale[e][j] = v_minimum[e][j] = 0.0f;                                                        \
                        v_total[e][j] = 0;                                                                             \
                    }                                                                                                  \
                    if (item < ITEMS && b < blocks) {                                                                  \
                        if (of_x) {                                                                                    \
                            const int row = MATMUL_INPUT(EXPERTS, first_row + i_x % TILE_ROWS);                        \
                            const __global uchar *x = x_buffer + x_at + row * prepared_bytes(k);                       \
                            const __global int4 *q = (const __global int4 *)(x + b * 64 + i_x / TILE_ROWS % 2 * 32);   \
                            v[e][0] = q[0].x, v[e][1] = q[0].y, v[e][2] = q[0].z, v[e][3] = q[0].w;                    \
                            v[e][4] = q[1].x, v[e][5] = q[1].y, v[e][6] = q[1].z, v[e][7] = q[1].w;                    \
                            v_scale[e][0] = ((const __global float *)(x + 2 * (long)k))[b];                            \
                            const __global int *totals = (const __global int *)(x + 2 * (long)k) + 2 * blocks;         \
                            for (int j = 0; j < PARTS; j++)                                                            \
                                v_total[e][j] = PARTS == 2 ? totals[blocks + 2 * b + j] : totals[b];                   \
                        } else {                                                                                       \
                            const int c = item % TILE_COLUMNS, lane = c % 16;                                          \
                            const int group = min(first_column / 16 + c / 16, groups - 1);                             \
                            const __global uchar *base = weights + group * bytes;                                      \
                            int w[8];                                                                                  \
                            UNPACK(base + (long)b * BLOCK_BYTES, w, WORD_OF_LANE)                                      \
                            SIGNED_WORDS(w)                                                                            \
                            for (int i = 0; i < 8; i++)                                                                \
                                v[e][i] = w[i];                                                                        \
                            T(lane_scales)(base + (long)blocks * BLOCK_BYTES, b, lane, v_scale[e], v_minimum[e]);      \
                        }                                                                                              \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
            if (pair < 0)                                                                                              \
                continue;                                                                                              \
            for (int two = 0; two < 2; two++) {                                                                        \
                if ((pair + two) % slice == 0) {                                                                       \
                    _Pragma("unroll") for (int r = 0; r < PER; r++)                                                    \
                    {                                                                                                  \
                        total[r] += acc[r];                                                                            \
                        acc[r] = (float4)(0.0f);                                                                       \
                    }                                                                                                  \
                }                                                                                                      \
                _Pragma("unroll") for (int j = 0; j < PARTS; j++)                                                      \
                {                                                                                                      \
                    int4 sum[PER];                                                                                     \
                    _Pragma("unroll") for (int r = 0; r < PER; r++) sum[r] = (int4)(0);                                \
                    _Pragma("unroll") for (int low = 0; low < 2; low++)                                                \
                    {                                                                                                  \
                        if (low) {                                                                                     \
                            _Pragma("unroll") for (int r = 0; r < PER; r++) sum[r] <<= 7;                              \
                        }                                                                                              \
                        _Pragma("unroll") for (int i = j * (SUB / 4); i < (j + 1) * (SUB / 4); i++)                    \
                        {                                                                                              \
                            const int4 w = w_tile[((two * 8 + i) * TILE_COLUMNS) / 4 + tx];                            \
                            int x[PER];                                                                                \
                            READ_##PER(int, x, x_tile + ((2 * two + low) * 8 + i) * TILE_ROWS + ty * PER)              \
                            _Pragma("unroll") for (int r = 0; r < PER; r++)                                            \
                            {                                                                                          \
                                sum[r].x = dot4(sum[r].x, w.x, x[r]);                                                  \
                                sum[r].y = dot4(sum[r].y, w.y, x[r]);                                                  \
                                sum[r].z = dot4(sum[r].z, w.z, x[r]);                                                  \
                                sum[r].w = dot4(sum[r].w, w.w, x[r]);                                                  \
                            }                                                                                          \
                        }                                                                                              \
                    }                                                                                                  \
                    const float4 scale = scale_tile[(two * PARTS + j) * TILE_COLUMNS / 4 + tx];                        \
                    const float4 minimum = minimum_tile[(two * PARTS + j) * TILE_COLUMNS / 4 + tx];                    \
                    float x_scale[PER];                                                                                \
                    int t[PER];                                                                                        \
                    READ_##PER(float, x_scale, x_scale_tile + two * TILE_ROWS + ty * PER)                              \
                    READ_##PER(int, t, total_tile + (two * PARTS + j) * TILE_ROWS + ty * PER)                          \
                    _Pragma("unroll") for (int r = 0; r < PER; r++)                                                    \
                    {                                                                                                  \
                        acc[r].x = T(add_part)(acc[r].x, sum[r].x, t[r], scale.x, minimum.x, x_scale[r]);              \
                        acc[r].y = T(add_part)(acc[r].y, sum[r].y, t[r], scale.y, minimum.y, x_scale[r]);              \
                        acc[r].z = T(add_part)(acc[r].z, sum[r].z, t[r], scale.z, minimum.z, x_scale[r]);              \
                        acc[r].w = T(add_part)(acc[r].w, sum[r].w, t[r], scale.w, minimum.w, x_scale[r]);              \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        _Pragma("unroll") for (int r = 0; r < PER; r++)                                                                \
        {                                                                                                              \
            const int row = first_row + ty * PER + r, column = first_column + 4 * tx;                                  \
            const float4 result = total[r] + acc[r];                                                                   \
            if (row < end_row)                                                                                         \
                STORE_FOUR(result, MATMUL_OUTPUT(EXPERTS, row), column, end_column)                                    \
        }                                                                                                              \
    }

DEFINE_MATMUL(matmul_1, 1, 0)
DEFINE_MATMUL(matmul_4, 4, 0)
#ifdef WITH_EXPERTS
DEFINE_MATMUL(expert_matmul_1, 1, 1)
DEFINE_MATMUL(expert_matmul_4, 4, 1)
#endif
#undef DEFINE_MATMUL

// 32 values, block b, of row `token` of a table, as float32.
static inline void T(embed_block)(const __global uchar *weights, int token, int k, int b, float scale_of_all, __global float *to)
{
    const int lane = token % 16;
    const __global uchar *base = weights + (token / 16) * T(group_bytes)(k);
    int w[8];
    UNPACK(base + (long)b * BLOCK_BYTES, w, WORD_OF_LANE)
    float scale[PARTS], minimum[PARTS];
    T(lane_scales)(base + (long)(k / 32) * BLOCK_BYTES, b, lane, scale, minimum);
    for (int i = 0; i < 32; i++) {
        const int q = (w[i / 4] >> (8 * (i % 4))) & 0xff;
        to[i] = fma(scale[i / SUB], (float)(q - (OFFSET)), HAS_MINIMUM ? minimum[i / SUB] : 0.0f) * scale_of_all;
    }
}

// The rows that the tokens name, of those from `first` on that lie here: one work-item to a block of 32 values, a row to
// each index of the second dimension.
__kernel void T(embed)(
    const __global int *in, int index, const __global uchar *weights, long weights_at, int first, int rows, int k,
    float scale_of_all, __global uchar *out, long out_at)
{
    const int b = get_global_id(0), row = get_global_id(1), token = CHOSEN_ROW(index, row) - first;
    if (b < k / 32 && token >= 0 && token < rows)
        T(embed_block)(weights + weights_at, token, k, b, scale_of_all,
                       FLOATS(out, out_at) + (long)row * k + 32 * b);
}

#ifdef STEP_THREADS
static inline void T(step_embed)(OpPointer op, int token, int item)
{
    T(embed_block)(OP_BYTES(0), token, op->k, item, op->scale, OP_FLOATS(1) + 32 * item);
}
#endif

#undef PARTS
#undef SIGNED_WORDS
#undef SIGNED_OFFSET
