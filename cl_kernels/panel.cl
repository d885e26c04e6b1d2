// Many rows of activations: weights are unpacked once into a panel, which then serves them all.
//
// A panel is some columns of a group of 16 rows of weights. Quantised weights, whatever their type, are bytes there where
// activations are (panel_bytes.cl), else int16 with the offset subtracted (panel_words.cl), and have scales in float32;
// weights in floating point are float32. Sums are those of matmul.cl and matmul_float.cl to the bit: integers are exact,
// and floats are added in the same order.

#define PANEL_BLOCKS 16 // of 32 columns, of quantised weights, at most
#define PANEL_ROWS 128  // rows of activations that a panel serves before the next takes its place
#define PANEL_TURNS 8    // times PANEL_GROUPS groups, whose sums grow side by side

#ifdef REALM_BYTES
#define PANEL_GROUPS 2   // that go together
#define UNPACK_FETCHES 0 // fetch_panels does
#define PANEL_LEAST 17   // with fewer rows it does not pay

typedef struct {
    int16 w[8 * PANEL_BLOCKS];
    float16 scale[2 * PANEL_BLOCKS], minimum[2 * PANEL_BLOCKS];
#ifdef REALM_PAIRS
    int16 less[PANEL_BLOCKS]; // see panel_pairs.cl
#endif
} Panel;

// Puts word i of the columns into the panel.
static inline __attribute__((always_inline)) void panel_word(Panel *panel, int i, int16 w, int offset)
{
    panel->w[i] = w;
}
#else
#define PANEL_GROUPS 1
#define UNPACK_FETCHES 1 // weights for the next panel: spread among the products it slows AVX2 down
#define PANEL_LEAST 8
#define PANEL_FLOATS 256 // columns of weights in floating point

typedef struct {
    union {
        int16 w[16 * PANEL_BLOCKS]; // 2 i: the even bytes of word i (layout.cl), 2 i + 1: the odd ones
        float16 f[PANEL_FLOATS];
    };
    float16 scale[2 * PANEL_BLOCKS], minimum[2 * PANEL_BLOCKS];
} Panel;

static inline __attribute__((always_inline)) int16 less_offset(int16 pairs, short offset)
{
    return (int16)(__builtin_astype(__builtin_astype(pairs.lo, short16) - offset, int8),
                   __builtin_astype(__builtin_astype(pairs.hi, short16) - offset, int8));
}

// Puts word i of the columns into the panel.
static inline __attribute__((always_inline)) void panel_word(Panel *panel, int i, int16 w, int offset)
{
    panel->w[2 * i] = less_offset(w & 0x00ff00ff, offset);
    panel->w[2 * i + 1] = less_offset((w >> 8) & 0x00ff00ff, offset);
}
#endif

// Where the blocks lie that the next panels are made of: `bytes` each, `stride` between groups
typedef struct {
    const __global uchar *blocks;
    long stride;
    int bytes;
} Ahead;

#define ONLY_TURN -1 // where one turn s all rows

// Asks for the next panels' block b while these are multiplied, so that requests do not come faster than memory answers:
// the first turn of rows for every other block, the second for the rest.
static inline __attribute__((always_inline)) void fetch_panels(const Ahead *ahead, int b, int turn, int groups)
{
    if (turn != (b & 1) && turn != ONLY_TURN)
        return;
    const __global uchar *block = ahead->blocks + (long)b * ahead->bytes;
    for (int i = 0; i < ahead->bytes; i += 64)
        for (int g = 0; g < groups; g++)
            FETCH(block + g * ahead->stride + i);
}
