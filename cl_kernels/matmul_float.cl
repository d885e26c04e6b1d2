// Matrix products with weights in floating point: 16 rows lie together, element by element. The host defines
//   T(name), ELEMENT_BYTES, LOAD16(p) -> float16 and LOAD1(p) -> float.
// Activations are float32 rows.

static inline long T(group_bytes)(int k) { return ((long)k * 16 * ELEMENT_BYTES + 63) / 64 * 64; }

// Two sums per row take turns, so that additions do not wait for each other.
#define DEFINE_DOT(NAME, TILE)                                                                                         \
    static inline __attribute__((always_inline)) void T(NAME)(                                                         \
        const __global uchar *group, int k, const __global char *const *x, float16 *acc)                               \
    {                                                                                                                  \
        float16 odd[TILE];                                                                                             \
        for (int t = 0; t < TILE; t++)                                                                                 \
            acc[t] = odd[t] = (float16)(0.0f);                                                                         \
        int i = 0;                                                                                                     \
        for (; i + 2 <= k; i += 2) {                                                                                   \
            if (TILE == 1) /* what a single row waits for; see common.cl */                                            \
                for (int at = 0; at < 32 * ELEMENT_BYTES; at += 64)                                                    \
                    FETCH(group + (long)i * 16 * ELEMENT_BYTES + FETCH_BYTES + at);                                           \
            const float16 a = LOAD16(group + (long)i * 16 * ELEMENT_BYTES);                                            \
            const float16 b = LOAD16(group + (long)(i + 1) * 16 * ELEMENT_BYTES);                                      \
            _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                           \
            {                                                                                                          \
                const __global float *row = (const __global float *)x[t];                                              \
                acc[t] += a * row[i];                                                                                  \
                odd[t] += b * row[i + 1];                                                                              \
            }                                                                                                          \
        }                                                                                                              \
        if (i < k)                                                                                                     \
            for (int t = 0; t < TILE; t++)                                                                             \
                acc[t] += LOAD16(group + (long)i * 16 * ELEMENT_BYTES) * ((const __global float *)x[t])[i];            \
        for (int t = 0; t < TILE; t++)                                                                                 \
            acc[t] += odd[t];                                                                                          \
    }

// As many rows at a time as find room for their sums in registers: 32 of AVX-512, half as wide and half as many else.
#ifdef REALM_F16_AVX512
#define MOST 8
#define FEWER 4
#else
#define MOST 3
#define FEWER 2
#endif
DEFINE_DOT(dot_1, 1)
DEFINE_DOT(dot_fewer, FEWER)
DEFINE_DOT(dot_most, MOST)
#undef DEFINE_DOT

#ifdef PANEL_ROWS
#define PANEL_COLUMNS PANEL_FLOATS
#define PANEL_RESULT(t) (acc[t] + acc[PANEL_ROWS + (t)])

// As in matmul.cl; odd columns are added up apart, in acc[PANEL_ROWS + t].
static inline void T(add_columns)(
    const __global uchar *group, int k, int first, int count, const __global char *const *x, int rows, float16 *acc)
{
    Panel panel;
    for (int i = 0; i < count; i++)
        panel.f[i] = LOAD16(group + (long)(first + i) * 16 * ELEMENT_BYTES);
    for (int t = 0; t < rows; t += 4) {
        multiply_floats(panel.f, first, count, x + t, acc + t);
        multiply_floats(panel.f + 1, first + 1, count - 1, x + t, acc + PANEL_ROWS + t);
    }
}
#endif

static inline void T(expand_row)(const __global uchar *weights, int row, int k, __global float *out)
{
    const __global uchar *group = weights + (row / 16) * T(group_bytes)(k);
    for (int i = 0; i < k; i++)
        out[i] = LOAD1(group + ((long)i * 16 + row % 16) * ELEMENT_BYTES);
}
