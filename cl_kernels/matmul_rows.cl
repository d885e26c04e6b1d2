// One type's share of a matrix product: groups first .. last-1 of the weights times the rows of a Product.

#ifdef PANEL_COLUMNS
// For many rows: as evenly as they go, so many at a time that their columns of a panel stay in the cache, with the sums
// of some groups.
static void T(matmul_panels)(const __global uchar *weights, int first, int last, const Product *p)
{
    const long bytes = T(group_bytes)(p->k);
    const int turns = (p->rows + PANEL_ROWS - 1) / PANEL_ROWS, panels = (p->k + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
    float16 acc[PANEL_TURNS][2 * PANEL_ROWS];
    int less[2 * PANEL_BLOCKS * PANEL_ROWS];
    const __global char *x[PANEL_ROWS];
    for (int turn = 0; turn < turns; turn++) {
        const int begin = (long)p->rows * turn / turns, end = (long)p->rows * (turn + 1) / turns;
        const int padded = (end - begin + 3) / 4 * 4;
        for (int t = 0; t < padded; t++)
            x[t] = product_input(p, min(begin + t, end - 1));
        for (int from = first, to; from < last; from = to) {
            to = min(from + PANEL_TURNS * PANEL_GROUPS, last);
            const int steps = (to - from + PANEL_GROUPS - 1) / PANEL_GROUPS;
            for (int s = 0; s < steps; s++)
                for (int t = 0; t < padded; t++)
                    acc[s][t] = acc[s][PANEL_ROWS + t] = (float16)(0.0f);
            for (int i = 0, at = 0, next; i < panels; i++, at = next) {
                next = i + 1 < panels ? p->k / 32 * (i + 1) / panels * 32 : p->k;
                for (int s = 0; s < steps; s++) {
                    const int group = from + s * PANEL_GROUPS, same = s + 1 < steps, more = same || next < p->k;
                    const int following = same ? group + PANEL_GROUPS : more ? from : to;
                    T(add_columns)(weights + group * bytes, min(PANEL_GROUPS, to - group), p->k, at, next,
                                   weights + following * bytes, same ? at : more ? next : 0, x, padded, s == 0, less, acc[s]);
                }
            }
            for (int s = 0; s < steps; s++)
                for (int g = 0; g < min(PANEL_GROUPS, to - from - s * PANEL_GROUPS); g++)
                    for (int t = begin; t < end; t++)
                        product_output(p, t, 16 * (from + s * PANEL_GROUPS + g), PANEL_RESULT(acc[s], g, t - begin));
        }
    }
}
#endif

#ifdef TWO_GROUPS_LEAST
// Two adjacent groups times TWO_GROUPS_LEAST rows or more, three or four at a time. Each turn of rows asks for its part
// of the next pair: the first of them alone would ask faster than memory answers.
static void T(matmul_two_groups)(const __global uchar *pair, int group, const Product *p)
{
    const long bytes = 2 * T(group_bytes)(p->k);
    const int turns = (p->rows + MOST - 1) / MOST, blocks = p->k / 32, share = bytes / (turns * blocks) + 1;
    const __global uchar *ahead = pair + bytes;
    float16 acc[2 * MOST];
    const __global char *x[MOST];
    for (int t = 0, tile; t < p->rows; t += tile, ahead += blocks * share) {
        tile = T(tile)(p->rows - t);
        for (int u = 0; u < MOST; u++)
            x[u] = product_input(p, min(t + u, p->rows - 1));
        if (tile == 4)
            T(two_groups_4)(pair, p->k, x, acc, ahead, share);
        else
            T(two_groups_3)(pair, p->k, x, acc, ahead, share);
        for (int g = 0; g < 2; g++)
            for (int u = 0; u < tile; u++)
                product_output(p, t + u, 16 * (group + g), acc[g * MOST + u]);
    }
}
#endif

static void T(matmul_rows)(const __global uchar *weights, int first, int last, const Product *p)
{
    const long bytes = T(group_bytes)(p->k);
#ifdef PANEL_COLUMNS
    if (p->rows >= PANEL_LEAST) {
        T(matmul_panels)(weights, first, last, p);
        return;
    }
#endif
#ifdef TWO_GROUPS_LEAST
    for (; p->rows >= TWO_GROUPS_LEAST && first + 2 <= last; first += 2)
        T(matmul_two_groups)(weights + first * bytes, first, p);
#endif
    for (int g = first; g < last; g++) {
        const __global uchar *group = weights + g * bytes;
        float16 acc[MOST];
        const __global char *x[MOST];
        for (int t = 0; t < p->rows;) {
            const int tile = T(tile)(p->rows - t);
            for (int u = 0; u < tile; u++)
                x[u] = product_input(p, t + u);
            T(dot)(tile, group, p->k, x, acc);
            for (int u = 0; u < tile; u++)
                product_output(p, t + u, 16 * g, acc[u]);
            t += tile;
        }
    }
}
