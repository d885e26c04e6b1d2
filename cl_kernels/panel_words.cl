// Panels of integers of 16 bits and of weights in floating point; four rows of activations go through one together.

// Weights have no offset any more.
static void less_of(const __global char *const *x, int rows, int k, int first, int count, int parts, int offset,
                    int pairs, int *less)
{
}

// acc[t] += blocks first .. first + count - 1 of the group times activation row x[t], for four rows of k values
#define DEFINE_MULTIPLY(KIND, PARTS, MINIMUM)                                                                          \
    static __attribute__((noinline)) void multiply_panel_##KIND(                                                       \
        const Panel *panel, int first, int count, int k, const __global char *const *x, float16 *acc)                  \
    {                                                                                                                  \
        const int blocks = k / 32;                                                                                     \
        const __global char *const x0 = x[0], *const x1 = x[1], *const x2 = x[2], *const x3 = x[3];                    \
        for (int b = 0; b < count; b++) {                                                                              \
            const int at = first + b;                                                                                  \
            _Pragma("unroll") for (int j = 0; j < PARTS; j++)                                                          \
            {                                                                                                          \
                int8 lo[4], hi[4];                                                                                     \
                _Pragma("unroll") for (int t = 0; t < 4; t++) lo[t] = hi[t] = (int8)(0);                               \
                _Pragma("unroll") for (int i = j * (16 / PARTS); i < (j + 1) * (16 / PARTS); i++)                      \
                {                                                                                                      \
                    const int8 w_lo = panel->w[16 * b + i].lo, w_hi = panel->w[16 * b + i].hi;                         \
                    _Pragma("unroll") for (int t = 0; t < 4; t++)                                                      \
                    {                                                                                                  \
                        const __global char *row = t == 0 ? x0 : t == 1 ? x1 : t == 2 ? x2 : x3;                       \
                        const int q = ((const __global int *)(row + at * 64))[i];                                      \
                        lo[t] = dot2(lo[t], w_lo, q);                                                                  \
                        hi[t] = dot2(hi[t], w_hi, q);                                                                  \
                    }                                                                                                  \
                }                                                                                                      \
                _Pragma("unroll") for (int t = 0; t < 4; t++)                                                          \
                {                                                                                                      \
                    const __global char *row = t == 0 ? x0 : t == 1 ? x1 : t == 2 ? x2 : x3;                           \
                    const __global float *x_scale = (const __global float *)(row + 2 * (long)k);                       \
                    const __global float *x_sum = x_scale + blocks;                                                    \
                    const __global int *q_sum = (const __global int *)(x_sum + blocks);                                \
                    acc[t] = add_scaled(acc[t], (int16)(lo[t], hi[t]), panel->scale[PARTS * b + j], x_scale[at]);      \
                    if (MINIMUM)                                                                                       \
                        acc[t] = add_minimum(acc[t], panel->minimum[PARTS * b + j],                                    \
                                             PARTS == 1 ? x_sum[at]                                                    \
                                                        : x_scale[at] * (float)q_sum[blocks + 2 * at + j]);            \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void multiply_panels_##KIND(const Panel *panel, int groups, int first, int count, int k, const int *less,   \
                                       const __global char *const *x, int rows, float16 *acc, const Ahead *ahead)      \
    {                                                                                                                  \
        for (int t = 0; t < rows; t += 4)                                                                              \
            multiply_panel_##KIND(panel, first, count, k, x + t, acc + t);                                             \
    }

DEFINE_MULTIPLY(1_0, 1, 0)
DEFINE_MULTIPLY(1_1, 1, 1)
DEFINE_MULTIPLY(2_0, 2, 0)
DEFINE_MULTIPLY(2_1, 2, 1)
#undef DEFINE_MULTIPLY

// acc[t] += every other column of a panel times activation row x[t], of `count` columns from the first on
static __attribute__((noinline)) void multiply_floats(
    const float16 *w, int first, int count, const __global char *const *x, float16 *acc)
{
    float8 lo[4], hi[4];
    _Pragma("unroll") for (int t = 0; t < 4; t++) {
        lo[t] = acc[t].lo;
        hi[t] = acc[t].hi;
    }
    const __global float *const x0 = (const __global float *)x[0] + first, *const x1 = (const __global float *)x[1] + first;
    const __global float *const x2 = (const __global float *)x[2] + first, *const x3 = (const __global float *)x[3] + first;
    for (int i = 0; i < count; i += 2) {
        const float8 w_lo = w[i].lo, w_hi = w[i].hi;
        lo[0] += w_lo * x0[i];
        hi[0] += w_hi * x0[i];
        lo[1] += w_lo * x1[i];
        hi[1] += w_hi * x1[i];
        lo[2] += w_lo * x2[i];
        hi[2] += w_hi * x2[i];
        lo[3] += w_lo * x3[i];
        hi[3] += w_hi * x3[i];
    }
    _Pragma("unroll") for (int t = 0; t < 4; t++) acc[t] = (float16)(lo[t], hi[t]);
}
