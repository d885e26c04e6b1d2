// Matrix products with weights in floating point on a GPU: 16 rows lie together, element by element (repack_float.cl).
// The host defines T(name), ELEMENT_BYTES and LOAD1(p) -> float. Activations are float32 rows. Slices are counted in
// 32 values and added in the order that simt_matmul.cl tells.

static inline long T(group_bytes)(int k) { return ((long)k * 16 * ELEMENT_BYTES + 63) / 64 * 64; }

#define DEFINE_MATVEC(NAME, ROWS, EXPERTS, UNROLL)                                                                     \
    __kernel void T(NAME)(PRODUCT_ARGUMENTS)                                                                           \
    {                                                                                                                  \
        __local float sums[MOST_SLICES * ROWS * 16];                                                                   \
        MATVEC_ROWS(EXPERTS)                                                                                           \
        const __global float *x = FLOATS_IN(x_buffer, x_at);                                                           \
        for (int s = get_local_id(1); s < slices; s += items) {                                                        \
            const int last = min(32 * (s + 1) * slice, k);                                                             \
            float acc[ROWS];                                                                                           \
            _Pragma("unroll") for (int t = 0; t < ROWS; t++) acc[t] = 0.0f;                                            \
            _Pragma(UNROLL) for (int i = 32 * s * slice; i < last; i++)                                                \
            {                                                                                                          \
                const float w = LOAD1(base + ((long)i * 16 + lane) * ELEMENT_BYTES);                                   \
                _Pragma("unroll") for (int t = 0; t < ROWS; t++) acc[t] =                                              \
                    fma(w, x[(long)MATVEC_INPUT(EXPERTS, t) * k + i], acc[t]);                                         \
            }                                                                                                          \
            MATVEC_KEEP(ROWS)                                                                                          \
        }                                                                                                              \
        MATVEC_FINISH(ROWS)                                                                                            \
    }

DEFINE_MATVEC(matvec_1, 1, 0, "unroll 16")
DEFINE_MATVEC(matvec_2, 2, 0, "unroll 8")
DEFINE_MATVEC(matvec_4, 4, 0, "unroll 4")
DEFINE_MATVEC(matvec_8, 8, 0, "unroll 4")
#ifdef WITH_EXPERTS
DEFINE_MATVEC(expert_matvec, 1, 1, "unroll 16")
#endif
#undef DEFINE_MATVEC

#ifdef STEP_THREADS
static inline void T(step_matvec)(OpPointer op, int tile, __local float *sums)
{
    BEGIN_STEP_MATVEC
        const int last = min(32 * (s + 1) * slice, k);
        const __global float *x = OP_FLOATS(0) + (long)head * k;
        _Pragma("unroll 8") for (int i = 32 * s * slice; i < last; i++)
        {
            const float x_i = x[i];
            _Pragma("unroll") for (int g = 0; g < 2; g++) acc[g] =
                fma(LOAD1(base[g] + ((long)i * 16 + lane) * ELEMENT_BYTES), x_i, acc[g]);
        }
    END_STEP_MATVEC
}

static inline void T(step_embed)(OpPointer op, int token, int item)
{
    const __global uchar *row = OP_BYTES(0) + (token / 16) * T(group_bytes)(op->k) + token % 16 * ELEMENT_BYTES;
    OP_FLOATS(1)[item] = LOAD1(row + (long)item * 16 * ELEMENT_BYTES) * op->scale;
}
#endif

// As in simt_matmul.cl, with 16 values of each row in local memory at a time.
#define DEFINE_MATMUL(NAME, PER, EXPERTS)                                                                              \
    __kernel __attribute__((reqd_work_group_size(16, TILE_HEIGHT, 1))) void T(NAME)(PRODUCT_ARGUMENTS)                 \
    {                                                                                                                  \
        enum { TILE_ROWS = TILE_HEIGHT * PER, THREADS = 16 * TILE_HEIGHT };                                            \
        __local float4 w_tile[16 * TILE_COLUMNS / 4];                                                                  \
        __local float x_tile[16 * TILE_ROWS] ALIGNED;                                                                  \
        MATMUL_ROWS(EXPERTS)                                                                                           \
        const __global float *x = (const __global float *)(x_buffer + x_at);                                           \
        float4 acc[PER], total[PER];                                                                                   \
        _Pragma("unroll") for (int r = 0; r < PER; r++) acc[r] = total[r] = (float4)(0.0f);                            \
        for (int first = 0; first < (is_tile ? k : 0); first += 16) {                                                                  \
            barrier(CLK_LOCAL_MEM_FENCE);                                                                              \
            for (int item = me; item < 16 * TILE_COLUMNS; item += THREADS) {                                           \
                const int lane = item % 16, i = item / 16 % 16, g = item / 256;                                        \
                const int group = min(first_column / 16 + g, groups - 1);                                     \
                ((__local float *)w_tile)[i * TILE_COLUMNS + 16 * g + lane] =                                          \
                    first + i < k ? LOAD1(weights + group * bytes + ((long)(first + i) * 16 + lane) * ELEMENT_BYTES)   \
                                  : 0.0f;                                                                              \
            }                                                                                                          \
            for (int item = me; item < 16 * TILE_ROWS; item += THREADS) {                                              \
                const int i = item % 16, r = item / 16;                                                                \
                x_tile[i * TILE_ROWS + r] =                                                                            \
                    first + i < k ? x[(long)MATMUL_INPUT(EXPERTS, first_row + r) * k + first + i] : 0.0f;                      \
            }                                                                                                          \
            barrier(CLK_LOCAL_MEM_FENCE);                                                                              \
            if (first % (32 * slice) == 0) {                                                                           \
                _Pragma("unroll") for (int r = 0; r < PER; r++)                                                        \
                {                                                                                                      \
                    total[r] += acc[r];                                                                                \
                    acc[r] = (float4)(0.0f);                                                                           \
                }                                                                                                      \
            }                                                                                                          \
            _Pragma("unroll 4") for (int i = 0; i < 16; i++)                                                           \
            {                                                                                                          \
                const float4 w = w_tile[i * TILE_COLUMNS / 4 + tx];                                                    \
                float row[PER];                                                                                        \
                READ_##PER(float, row, x_tile + i * TILE_ROWS + ty * PER)                                              \
                _Pragma("unroll") for (int r = 0; r < PER; r++) acc[r] = fma(w, (float4)(row[r]), acc[r]);             \
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

__kernel void T(embed)(
    const __global int *in, int index, const __global uchar *weights, long weights_at, int first, int rows, int k,
    float scale_of_all, __global uchar *out, long out_at)
{
    const int i = get_global_id(0), row = get_global_id(1), token = CHOSEN_ROW(index, row) - first;
    if (i < k && token >= 0 && token < rows)
        FLOATS(out, out_at)[(long)row * k + i] =
            LOAD1(weights + weights_at + (token / 16) * T(group_bytes)(k) + ((long)i * 16 + token % 16) * ELEMENT_BYTES)
            * scale_of_all;
}
