// Matrix products with weights in floating point: 16 rows lie together, element by element. The host defines
//   T(name), ELEMENT_BYTES, LOAD16(p) -> float16 and LOAD1(p) -> float.
// Activations are float32 rows.

static inline long T(group_bytes)(int k) { return ((long)k * 16 * ELEMENT_BYTES + 63) / 64 * 64; }

// Two sums per row take turns, so that additions do not wait for each other.
#define DEFINE_DOT(NAME, TILE)                                                                                         \
    static inline __attribute__((always_inline)) void T(NAME)(                                                         \
        const __global uchar *group, int k, const __global char *const *x, float16 *sums)                              \
    {                                                                                                                  \
        float16 even[TILE], odd[TILE];                                                                                 \
        const __global float *rows[TILE];                                                                              \
        _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                               \
        {                                                                                                              \
            even[t] = odd[t] = (float16)(0.0f);                                                                        \
            rows[t] = (const __global float *)x[t];                                                                    \
        }                                                                                                              \
        int i = 0;                                                                                                     \
        for (; i + 2 <= k; i += 2) { /* what a few rows wait for is memory; see common.cl */                           \
            _Pragma("unroll") for (int at = 0; at < 32 * ELEMENT_BYTES; at += 64)                                      \
                FETCH(group + (long)i * 16 * ELEMENT_BYTES + FETCH_BYTES + at);                                        \
            const float16 a = LOAD16(group + (long)i * 16 * ELEMENT_BYTES);                                            \
            const float16 b = LOAD16(group + (long)(i + 1) * 16 * ELEMENT_BYTES);                                      \
            _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                           \
            {                                                                                                          \
                even[t] += a * rows[t][i];                                                                             \
                odd[t] += b * rows[t][i + 1];                                                                          \
            }                                                                                                          \
        }                                                                                                              \
        if (i < k)                                                                                                     \
            _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                           \
                even[t] += LOAD16(group + (long)i * 16 * ELEMENT_BYTES) * rows[t][i];                                  \
        _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                               \
            sums[t] = even[t] + odd[t];                                                                                \
    }

// As many rows at a time as find room for their sums in registers: 32 of AVX-512, half as wide and half as many else.
// A few rows wait for memory, so every number of them has its own loop: a second one through the weights would not be free.
DEFINE_DOT(dot_1, 1)
DEFINE_DOT(dot_2, 2)
DEFINE_DOT(dot_3, 3)
#ifdef REALM_F16_AVX512
#define MOST 8
DEFINE_DOT(dot_4, 4)
DEFINE_DOT(dot_5, 5)
DEFINE_DOT(dot_6, 6)
DEFINE_DOT(dot_7, 7)
DEFINE_DOT(dot_8, 8)
#else
#define MOST 3
#endif
#undef DEFINE_DOT

static inline __attribute__((always_inline)) int T(tile)(int left)
{
    const int turns = (left + MOST - 1) / MOST;
    return (left + turns - 1) / turns;
}

static inline __attribute__((always_inline)) void T(dot)(
    int tile, const __global uchar *group, int k, const __global char *const *x, float16 *acc)
{
    switch (tile) {
#if MOST == 8
    case 8: T(dot_8)(group, k, x, acc); break;
    case 7: T(dot_7)(group, k, x, acc); break;
    case 6: T(dot_6)(group, k, x, acc); break;
    case 5: T(dot_5)(group, k, x, acc); break;
    case 4: T(dot_4)(group, k, x, acc); break;
#endif
    case 3: T(dot_3)(group, k, x, acc); break;
    case 2: T(dot_2)(group, k, x, acc); break;
    default: T(dot_1)(group, k, x, acc);
    }
}

#ifdef PANEL_FLOATS
#define PANEL_COLUMNS PANEL_FLOATS
#define PANEL_RESULT(acc, g, t) ((acc)[t] + (acc)[PANEL_ROWS + (t)])

// As in matmul.cl; odd columns are added up apart, in acc[PANEL_ROWS + t].
static inline void T(add_columns)(const __global uchar *group, int groups, int k, int first, int last,
                                  const __global uchar *ahead, int next_first, const __global char *const *x, int rows,
                                  int is_first, int *less, float16 *acc)
{
    Panel panel;
    for (int i = first; i < last; i++)
        panel.f[i - first] = LOAD16(group + (long)i * 16 * ELEMENT_BYTES);
    for (int t = 0; t < rows; t += 4) {
        multiply_floats(panel.f, first, last - first, x + t, acc + t);
        multiply_floats(panel.f + 1, first + 1, last - first - 1, x + t, acc + PANEL_ROWS + t);
    }
}
#endif

static inline void T(expand_row)(const __global uchar *weights, int row, int k, __global float *out)
{
    const __global uchar *group = weights + (row / 16) * T(group_bytes)(k);
    for (int i = 0; i < k; i++)
        out[i] = LOAD1(group + ((long)i * 16 + row % 16) * ELEMENT_BYTES);
}
