// Two panels of bytes times four rows of activations, with fewer products, for processors that add vectors beside
// multiplying them (those of AMD, which have four pipes for vectors and multiply in two), as measured (cpu_choices.py).
//
// After Winograd: x1 w1 + x2 w2 = (x1 + w2) (x2 + w1) - x1 x2 - w1 w2, one product and two sums for two products; what is
// taken off depends on activations alone (prepare.cl has it) or on weights alone (Panel.less). It takes place among the
// low bytes of activations, between the first word of weights and the second, the third and the fourth and so on: there
// a sum of both fits into a byte when PAIR_BIAS is added to one of the weights and taken off the other, so that the
// former sum is never negative and the latter below 128. So weights must be between 0 and 2 * PAIR_BIAS.

#ifdef REALM_PAIRS
#define EVEN_OF_PAIR(w) add_bytes(w, (int16)(PAIR_BIAS * 0x01010101))
#define ODD_OF_PAIR(w) add_bytes(w, (int16)(int)((256 - PAIR_BIAS) * 0x01010101u))

// Like P(multiply) of panel_tile.cl, to the bit
#define DEFINE_PAIRS(MINIMUM)                                                                                          \
    static __attribute__((noinline)) void multiply_pairs_##MINIMUM(                                                    \
        const Panel *panel, int first, int count, int k, const int *less, const __global char *const *x, float16 *out, \
        const Ahead *ahead, int turn)                                                                                  \
    {                                                                                                                  \
        const int blocks = k / 32;                                                                                     \
        const __global char *row[4];                                                                                   \
        _Pragma("unroll") for (int t = 0; t < 4; t++) row[t] = x[t];                                                   \
        for (int b = 0; b < count; b++) {                                                                              \
            const long at = first + b;                                                                                 \
            fetch_panels(ahead, b, turn, 2);                                                                           \
            int16 high[2][4], low[2][4];                                                                               \
            _Pragma("unroll") for (int t = 0; t < 4; t++)                                                              \
                _Pragma("unroll") for (int g = 0; g < 2; g++)                                                          \
                {                                                                                                      \
                    high[g][t] = (int16)(0);                                                                           \
                    low[g][t] = (int16)(less[t * PANEL_BLOCKS + b]);                                                   \
                }                                                                                                      \
            _Pragma("unroll 1") for (int i = 0; i < 8; i += 2) /* unrolled, the compiler runs out of registers */      \
            {                                                                                                          \
                int16 w[2], w_next[2], even[2], odd[2];                                                                \
                _Pragma("unroll") for (int g = 0; g < 2; g++)                                                          \
                {                                                                                                      \
                    w[g] = panel[g].w[8 * b + i];                                                                      \
                    w_next[g] = panel[g].w[8 * b + i + 1];                                                             \
                    even[g] = EVEN_OF_PAIR(w[g]);                                                                      \
                    odd[g] = ODD_OF_PAIR(w_next[g]);                                                                   \
                }                                                                                                      \
                _Pragma("unroll") for (int t = 0; t < 4; t++)                                                          \
                {                                                                                                      \
                    const __global int *q = (const __global int *)(row[t] + at * 64) + i;                              \
                    _Pragma("unroll") for (int g = 0; g < 2; g++)                                                      \
                    {                                                                                                  \
                        high[g][t] = dot4(high[g][t], w[g], q[0]);                                                     \
                        low[g][t] = dot4_each(low[g][t], add_bytes(even[g], (int16)(q[9])),                            \
                                              add_bytes(odd[g], (int16)(q[8])));                                       \
                        high[g][t] = dot4(high[g][t], w_next[g], q[1]);                                                \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
            _Pragma("unroll") for (int g = 0; g < 2; g++)                                                              \
            {                                                                                                          \
                const float16 scale = panel[g].scale[b];                                                               \
                const int16 less_w = panel[g].less[b];                                                                 \
                _Pragma("unroll") for (int t = 0; t < 4; t++)                                                          \
                {                                                                                                      \
                    const __global float *x_scale = (const __global float *)(row[t] + 2 * (long)k);                    \
                    float16 sum = out[g * PANEL_ROWS + t];                                                             \
                    sum = add_scaled(sum, (high[g][t] << 7) + (low[g][t] - less_w), scale, x_scale[at]);               \
                    if (MINIMUM)                                                                                       \
                        sum = add_minimum(sum, panel[g].minimum[b], x_scale[blocks + at]);                             \
                    out[g * PANEL_ROWS + t] = sum;                                                                     \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    static void multiply_panels_pairs_##MINIMUM(const Panel *panel, int groups, int first, int count, int k,           \
                                                const int *less, const __global char *const *x, int rows,              \
                                                float16 *acc, const Ahead *ahead)                                      \
    {                                                                                                                  \
        if (groups == 1)                                                                                               \
            multiply_panels_1_##MINIMUM(panel, groups, first, count, k, less, x, rows, acc, ahead);                    \
        else                                                                                                           \
            for (int t = 0; t < rows; t += 4)                                                                          \
                multiply_pairs_##MINIMUM(panel, first, count, k, less + t * PANEL_BLOCKS, x + t, acc + t, ahead,       \
                                         rows > 4 ? t / 4 : ONLY_TURN);                                                \
    }

DEFINE_PAIRS(0)
DEFINE_PAIRS(1)
#undef DEFINE_PAIRS
#endif
