// TILE rows of activations times panels of bytes of GROUPS groups, which have PARTS scales a block and, where MINIMUM,
// minima. The host puts these definitions before it, and P(name), the name with their values.
//
// Each word of activations serves all groups. The products with the high bytes are summed up and shifted before those
// with the low ones are added, so that a sum takes one register.

// out[g * PANEL_ROWS + t] += blocks first .. first + count - 1 of group g times activation row x[t]; less: of less_of
static __attribute__((noinline)) void P(multiply)(
    const Panel *panel, int first, int count, int k, const int *less, const __global char *const *x, float16 *out,
    const Ahead *ahead, int turn)
{
    const int blocks = k / 32;
    const __global char *row[TILE];
#pragma unroll
    for (int t = 0; t < TILE; t++)
        row[t] = x[t];
    for (int b = 0; b < count; b++) {
        const long at = first + b;
        fetch_panels(ahead, b, turn, GROUPS);
#pragma unroll
        for (int j = 0; j < PARTS; j++) {
            int16 acc[GROUPS][TILE];
#pragma unroll
            for (int low = 0; low < 2; low++) {
#pragma unroll
                for (int t = 0; t < TILE; t++)
#pragma unroll
                    for (int g = 0; g < GROUPS; g++) {
                        if (!low)
                            acc[g][t] = (int16)(0);
                        else if (MINIMUM)
                            acc[g][t] = acc[g][t] << 7;
                        else
                            acc[g][t] = (acc[g][t] << 7) + less[PARTS * (t * PANEL_BLOCKS + b) + j];
                    }
#pragma unroll
                for (int i = 8 / PARTS * j; i < 8 / PARTS * (j + 1); i++) {
                    int16 w[GROUPS];
#pragma unroll
                    for (int g = 0; g < GROUPS; g++)
                        w[g] = panel[g].w[8 * b + i];
#pragma unroll
                    for (int t = 0; t < TILE; t++) {
                        const int q = ((const __global int *)(row[t] + at * 64))[8 * low + i];
#pragma unroll
                        for (int g = 0; g < GROUPS; g++)
                            acc[g][t] = dot4(acc[g][t], w[g], q);
                    }
                }
            }
#pragma unroll
            for (int t = 0; t < TILE; t++) {
                const __global float *x_scale = (const __global float *)(row[t] + 2 * (long)k);
                const __global float *x_sum = x_scale + blocks;
                const __global int *q_sum = (const __global int *)(x_sum + blocks);
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    float16 sum = out[g * PANEL_ROWS + t];
                    sum = add_scaled(sum, acc[g][t], panel[g].scale[PARTS * b + j], x_scale[at]);
                    if (MINIMUM)
                        sum = add_minimum(sum, panel[g].minimum[PARTS * b + j],
                                          PARTS == 1 ? x_sum[at] : x_scale[at] * (float)q_sum[blocks + 2 * at + j]);
                    out[g * PANEL_ROWS + t] = sum;
                }
            }
        }
    }
}
