// One type's share of a matrix product: groups first .. last-1 of the weights times the rows of a Product.

static void T(matmul_rows)(const __global uchar *weights, int first, int last, const Product *p)
{
    const long bytes = T(group_bytes)(p->k);
    for (int g = first; g < last; g++) {
        const __global uchar *group = weights + g * bytes;
        float16 acc[8];
        const __global char *x[8];
        for (int t = 0; t < p->rows;) {
            const int tile = p->rows - t >= 8 ? 8 : p->rows - t >= 4 ? 4 : 1;
            for (int u = 0; u < tile; u++)
                x[u] = product_input(p, t + u);
            if (tile == 8)
                T(dot_8)(group, p->k, x, acc);
            else if (tile == 4)
                T(dot_4)(group, p->k, x, acc);
            else
                T(dot_1)(group, p->k, x, acc);
            for (int u = 0; u < tile; u++)
                product_output(p, t + u, 16 * g, acc[u]);
            t += tile;
        }
    }
}
