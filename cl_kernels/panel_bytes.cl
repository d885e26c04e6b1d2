// Panels of bytes: the products of panel_tile.cl, each with as many groups and rows of activations as there are.

// multiply_<groups>_<tile>_<parts>_<minimum>, from panel_tile.cl, for the rows of a turn: `rows` is a multiple of four
#define DEFINE_MULTIPLY(KIND)                                                                                          \
    static void multiply_panels_##KIND(const Panel *panel, int groups, int first, int count, int k, int offset,        \
                                       const __global char *const *x, int rows, float16 *acc, const Ahead *ahead)      \
    {                                                                                                                  \
        for (int t = 0; t < rows; t += 8) {                                                                            \
            const int turn = rows > 8 ? t / 8 : ONLY_TURN;                                                             \
            if (groups == 2 && rows - t > 4)                                                                           \
                multiply_2_8_##KIND(panel, first, count, k, offset, x + t, acc + t, ahead, turn);                      \
            else if (groups == 2)                                                                                      \
                multiply_2_4_##KIND(panel, first, count, k, offset, x + t, acc + t, ahead, turn);                      \
            else if (rows - t > 4)                                                                                     \
                multiply_1_8_##KIND(panel, first, count, k, offset, x + t, acc + t, ahead, turn);                      \
            else                                                                                                       \
                multiply_1_4_##KIND(panel, first, count, k, offset, x + t, acc + t, ahead, turn);                      \
        }                                                                                                              \
    }

DEFINE_MULTIPLY(1_0)
DEFINE_MULTIPLY(1_1)
DEFINE_MULTIPLY(2_0)
DEFINE_MULTIPLY(2_1)
#undef DEFINE_MULTIPLY
