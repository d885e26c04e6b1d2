// Panels of bytes: the products of panel_tile.cl, each with as many groups and rows of activations as there are.

// less[parts * (t * PANEL_BLOCKS + b) + j]: what the offset adds to the sum of part j of block first + b in row x[t],
// and, where two groups are multiplied in pairs (panel_pairs.cl), the activations. All groups share it.
static void less_of(const __global char *const *x, int rows, int k, int first, int count, int parts, int offset,
                    int pairs, int *less)
{
    const int blocks = k / 32;
    for (int t = 0; t < rows; t++) {
        const __global int *sums = (const __global int *)(x[t] + 2 * (long)k) + (1 + parts) * blocks + parts * first;
        const __global int *of_pairs = (const __global int *)(x[t] + 2 * (long)k) + 5 * blocks + first;
        int *out = less + parts * t * PANEL_BLOCKS;
        for (int i = 0; i < parts * count; i++)
            out[i] = -offset * sums[i] - (pairs ? of_pairs[i] : 0);
    }
}

// multiply_<groups>_<tile>_<parts>_<minimum>, from panel_tile.cl, for the rows of a turn: `rows` is a multiple of four
#define DEFINE_MULTIPLY(KIND, PARTS)                                                                                   \
    static void multiply_panels_##KIND(const Panel *panel, int groups, int first, int count, int k, const int *less,   \
                                       const __global char *const *x, int rows, float16 *acc, const Ahead *ahead)      \
    {                                                                                                                  \
        for (int t = 0; t < rows; t += 8) {                                                                            \
            const int *at = less + PARTS * t * PANEL_BLOCKS;                                                           \
            const int turn = rows > 8 ? t / 8 : ONLY_TURN;                                                             \
            if (groups == 2 && rows - t > 4)                                                                           \
                multiply_2_8_##KIND(panel, first, count, k, at, x + t, acc + t, ahead, turn);                          \
            else if (groups == 2)                                                                                      \
                multiply_2_4_##KIND(panel, first, count, k, at, x + t, acc + t, ahead, turn);                          \
            else if (rows - t > 4)                                                                                     \
                multiply_1_8_##KIND(panel, first, count, k, at, x + t, acc + t, ahead, turn);                          \
            else                                                                                                       \
                multiply_1_4_##KIND(panel, first, count, k, at, x + t, acc + t, ahead, turn);                          \
        }                                                                                                              \
    }

DEFINE_MULTIPLY(1_0, 1)
DEFINE_MULTIPLY(1_1, 1)
DEFINE_MULTIPLY(2_0, 2)
DEFINE_MULTIPLY(2_1, 2)
#undef DEFINE_MULTIPLY
