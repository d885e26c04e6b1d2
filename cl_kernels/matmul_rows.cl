// One type's share of a matrix product: groups first .. last-1 times all rows, with bias and residual.

static void T(matmul_rows)(
    const __global uchar *weights, int first, int last, int n, int k, const __global char *x, long x_stride, int rows,
    __global float *out, int out_stride, const __global float *bias, const __global float *residual)
{
    const long bytes = T(group_bytes)(k);
    for (int g = first; g < last; g++) {
        const __global uchar *group = weights + g * bytes;
        const int column = 16 * g;
        float16 acc[8];
        for (int t = 0; t < rows;) {
            int tile = 1;
            if (rows - t >= 8) {
                T(dot_8)(group, k, x + t * x_stride, x_stride, acc);
                tile = 8;
            } else if (rows - t >= 4) {
                T(dot_4)(group, k, x + t * x_stride, x_stride, acc);
                tile = 4;
            } else {
                T(dot_1)(group, k, x + t * x_stride, x_stride, acc);
            }
            for (int u = 0; u < tile; u++)
                store_outputs(acc[u], column, n, out + (long)(t + u) * out_stride, bias,
                              residual ? residual + (long)(t + u) * out_stride : 0);
            t += tile;
        }
    }
}
