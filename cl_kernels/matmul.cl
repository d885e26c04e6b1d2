// Matrix products of one quantisation type (see layout.cl): 16 rows of weights times a few rows of activations.
//
// An activation row of k values holds 15-bit integers in one of two forms, and for every 32 values float scale, float
// scale * sum and int sum, and int sum per 16 values (prepare.cl writes it). The second integer product costs little
// where memory is what is waited for, and results come out as exact as float32 activations would.

#define WORDS16(p, i) (((const __global int16 *)(p))[i])

// lane_scales() for all sixteen rows
static inline __attribute__((always_inline)) void T(scales)(
    const __global uchar *records, int block, float16 *scale, float16 *minimum)
{
    const __global uchar *r = records + (long)(block / (SUPER / 32)) * RECORD_BYTES;
    const int first = (block % (SUPER / 32)) * (32 / SUB);
#if SCALES == S_D
    scale[0] = FACTOR * load_half16(r);
#elif SCALES == S_DM
    scale[0] = FACTOR * load_half16(r);
    minimum[0] = FACTOR * load_half16(r + 32);
#elif SCALES == S_D32
    scale[0] = FACTOR * load16((const __global float *)r);
#elif SCALES == S_E8M0
    const int16 e = __builtin_convertvector(load_uchar16(r + 16 * first), int16);
    // below 2, where the number is subnormal, the second is larger
    const int16 large = (e - 1) << 23, small = (e + 1) << 21;
    scale[0] = __builtin_astype(large > small ? large : small, float16);
#elif SCALES == S_UE4M3
    _Pragma("unroll") for (int j = 0; j < 32 / SUB; j++) {
        // half precision has the same fields with more bits, and another bias
        const short16 h = __builtin_convertvector(load_uchar16(r + 16 * (first + j)), short16) << (short16)(7);
        scale[j] = 128.0f * half16_to_float(h);
    }
#else
    const float16 d = FACTOR * load_half16(r + RECORD_BYTES - (SCALES == S_K ? 32 : 64));
#if SCALES != S_K
    const float16 dmin = FACTOR * load_half16(r + RECORD_BYTES - 32);
#endif
    _Pragma("unroll") for (int j = 0; j < 32 / SUB; j++) {
#if SCALES == S_K
        scale[j] = d * to_float(__builtin_convertvector(__builtin_astype(load_uchar16(r + 16 * (first + j)), char16), int16));
#elif SCALES == S_KM
        scale[j] = d * to_float(__builtin_convertvector(load_uchar16(r + 16 * (first + j)), int16));
        minimum[j] = -dmin * to_float(__builtin_convertvector(load_uchar16(r + 16 * (N_SUB + first + j)), int16));
#else
        const int16 both = __builtin_convertvector(load_uchar16(r + 16 * (first + j)), int16);
        scale[j] = d * to_float(both & 15);
        minimum[j] = -dmin * to_float(both >> 4);
#endif
    }
#endif
}

#define FETCH_BLOCKS (FETCH_BYTES / BLOCK_BYTES)

static inline __attribute__((always_inline)) void T(fetch_scales)(const __global uchar *records, int number)
{
    if (number % (SUPER / 32) == 0)
        _Pragma("unroll") for (int i = 0; i < RECORD_BYTES; i += 64)
            FETCH(records + (long)(number / (SUPER / 32)) * RECORD_BYTES + i);
}

static inline __attribute__((always_inline)) void T(fetch)(
    const __global uchar *block, const __global uchar *records, int number)
{
    _Pragma("unroll") for (int i = 0; i < BLOCK_BYTES; i += 64) FETCH(block + i);
    T(fetch_scales)(records, number);
}

#define PARTS (32 / SUB)

// acc[t] = 16 rows of the group times activation row x[t]. TILE_PART does it for part j of block b, whose quants are w.
#define DEFINE_DOT(NAME, TILE)                                                                                         \
    static inline __attribute__((always_inline)) void T(NAME)(                                                         \
        const __global uchar *group, int k, const __global char *const *x, float16 *acc)                               \
    {                                                                                                                  \
        const int blocks = k / 32;                                                                                     \
        const __global uchar *records = group + (long)blocks * BLOCK_BYTES;                                            \
        int ahead_block = FETCH_BLOCKS % blocks;                                                                       \
        const __global uchar *ahead = group + FETCH_BLOCKS / blocks * T(group_bytes)(k);                               \
        for (int t = 0; t < TILE; t++)                                                                                 \
            acc[t] = (float16)(0.0f);                                                                                  \
        for (int b = 0; b < blocks; b++) {                                                                             \
            int16 w[8];                                                                                                \
            UNPACK(group + (long)b * BLOCK_BYTES, w, WORDS16)                                                          \
            T(fetch)(ahead + (long)ahead_block * BLOCK_BYTES, ahead + (long)blocks * BLOCK_BYTES, ahead_block);        \
            if (++ahead_block == blocks) {                                                                             \
                ahead_block = 0;                                                                                       \
                ahead += T(group_bytes)(k);                                                                            \
            }                                                                                                          \
            float16 scale[PARTS], minimum[PARTS];                                                                      \
            T(scales)(records, b, scale, minimum);                                                                     \
            _Pragma("unroll") for (int j = 0; j < PARTS; j++)                                                          \
            {                                                                                                          \
                TILE_PART(TILE)                                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    }

// The sums of block b in a row of activations
#define SUMS_OF(t)                                                                                                     \
    const __global int *q = (const __global int *)(x[t] + b * 64);                                                     \
    const __global float *x_scale = (const __global float *)(x[t] + 2 * (long)k);                                      \
    const __global float *x_sum = x_scale + blocks;                                                                    \
    const __global int *q_sum = (const __global int *)(x_sum + blocks);                                                \
    const int total = PARTS == 1 ? q_sum[b] : q_sum[blocks + 2 * b + j];

#define ADD_PART(acc, sum, scale, minimum)                                                                             \
    acc = add_scaled(acc, sum, scale, x_scale[b]);                                                                     \
    if (HAS_MINIMUM)                                                                                                   \
        acc = add_minimum(acc, minimum, PARTS == 1 ? x_sum[b] : x_scale[b] * (float)total);

#ifdef REALM_BYTES
#define TILE_PART(TILE)                                                                                                \
    _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                                   \
    {                                                                                                                  \
        SUMS_OF(t)                                                                                                     \
        int16 high = (int16)(0), low = OFFSET ? (int16)(-(OFFSET) * total) : (int16)(0);                               \
        _Pragma("unroll") for (int i = 0; i < SUB / 4; i++)                                                            \
        {                                                                                                              \
            high = dot4(high, w[j * (SUB / 4) + i], q[j * (SUB / 4) + i]);                                             \
            low = dot4(low, w[j * (SUB / 4) + i], q[8 + j * (SUB / 4) + i]);                                           \
        }                                                                                                              \
        ADD_PART(acc[t], low + (high << 7), scale[j], minimum[j])                                                      \
    }
#else
#define TILE_PART(TILE)                                                                                                \
    int8 lo[TILE], hi[TILE];                                                                                           \
    _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                                   \
    {                                                                                                                  \
        SUMS_OF(t)                                                                                                     \
        lo[t] = hi[t] = OFFSET ? (int8)(-(OFFSET) * total) : (int8)(0);                                                \
    }                                                                                                                  \
    _Pragma("unroll") for (int i = 0; i < SUB / 4; i++)                                                                \
    {                                                                                                                  \
        const int16 word = w[j * (SUB / 4) + i], even = word & 0x00ff00ff, odd = (word >> 8) & 0x00ff00ff;             \
        _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                               \
        {                                                                                                              \
            const __global int *q = (const __global int *)(x[t] + b * 64) + 2 * (j * (SUB / 4) + i);                   \
            lo[t] = dot2(dot2(lo[t], even.lo, q[0]), odd.lo, q[1]);                                                    \
            hi[t] = dot2(dot2(hi[t], even.hi, q[0]), odd.hi, q[1]);                                                    \
        }                                                                                                              \
    }                                                                                                                  \
    _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                                   \
    {                                                                                                                  \
        SUMS_OF(t)                                                                                                     \
        ADD_PART(acc[t], ((int16)(lo[t], hi[t])), scale[j], minimum[j])                                                \
    }
#endif

#define MOST 4
DEFINE_DOT(dot_1, 1)
DEFINE_DOT(dot_2, 2)
#ifdef REALM_BYTES
DEFINE_DOT(dot_3, 3)
#endif
DEFINE_DOT(dot_4, 4)

#ifdef REALM_BYTES
#define TWO_GROUPS_LEAST 8 // rows; fewer wait for memory

// acc[g * MOST + t] = 16 rows of group g, of two adjacent ones, times activation row x[t]: a word of activations that is
// read serves both. Asks for `share` bytes from `ahead` on with each block.
#define DEFINE_TWO_GROUPS(NAME, TILE)                                                                                  \
    static inline __attribute__((always_inline)) void T(NAME)(                                                         \
        const __global uchar *pair, int k, const __global char *const *x, float16 *acc,                                \
        const __global uchar *ahead, int share)                                                                        \
    {                                                                                                                  \
        const int blocks = k / 32;                                                                                     \
        const long bytes = T(group_bytes)(k);                                                                          \
        for (int i = 0; i < 2 * MOST; i++)                                                                             \
            acc[i] = (float16)(0.0f);                                                                                  \
        for (int b = 0; b < blocks; b++, ahead += share) {                                                             \
            int16 w[2][8];                                                                                             \
            float16 scale[2][PARTS], minimum[2][PARTS];                                                                \
            for (int i = 0; i < share; i += 64)                                                                        \
                FETCH(ahead + i);                                                                                      \
            _Pragma("unroll") for (int g = 0; g < 2; g++)                                                              \
            {                                                                                                          \
                const __global uchar *group = pair + g * bytes;                                                        \
                UNPACK(group + (long)b * BLOCK_BYTES, w[g], WORDS16)                                                   \
                T(scales)(group + (long)blocks * BLOCK_BYTES, b, scale[g], minimum[g]);                                \
            }                                                                                                          \
            _Pragma("unroll") for (int j = 0; j < PARTS; j++)                                                          \
            {                                                                                                          \
                int16 high[2][TILE], low[2][TILE];                                                                     \
                _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                       \
                {                                                                                                      \
                    SUMS_OF(t)                                                                                         \
                    high[0][t] = high[1][t] = (int16)(0);                                                              \
                    low[0][t] = low[1][t] = OFFSET ? (int16)(-(OFFSET)*total) : (int16)(0);                            \
                }                                                                                                      \
                _Pragma("unroll") for (int i = j * (SUB / 4); i < (j + 1) * (SUB / 4); i++)                            \
                    _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                   \
                {                                                                                                      \
                    const __global int *q = (const __global int *)(x[t] + b * 64);                                     \
                    _Pragma("unroll") for (int g = 0; g < 2; g++)                                                      \
                    {                                                                                                  \
                        high[g][t] = dot4(high[g][t], w[g][i], q[i]);                                                  \
                        low[g][t] = dot4(low[g][t], w[g][i], q[8 + i]);                                                \
                    }                                                                                                  \
                }                                                                                                      \
                _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                       \
                {                                                                                                      \
                    SUMS_OF(t)                                                                                         \
                    _Pragma("unroll") for (int g = 0; g < 2; g++)                                                      \
                    {                                                                                                  \
                        ADD_PART(acc[g * MOST + t], low[g][t] + (high[g][t] << 7), scale[g][j], minimum[g][j])         \
                    }                                                                                                  \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
DEFINE_TWO_GROUPS(two_groups_3, 3)
DEFINE_TWO_GROUPS(two_groups_4, 4)
#undef DEFINE_TWO_GROUPS
#endif

#if defined(REALM_PAIRS) && SUB == 32 && LARGEST_CODE <= 2 * PAIR_BIAS
#define PAIRS 1
#else
#define PAIRS 0
#endif

// `count` blocks of a group from the first on into a panel (panel.cl); asks for the panel after this one, or for
// its scales alone
static void T(unpack_panel)(const __global uchar *group, const __global uchar *ahead, int blocks, int first, int next,
                            int count, Panel *panel)
{
    const long records = (long)blocks * BLOCK_BYTES;
    for (int b = 0; b < count; b++) {
        int16 w[8];
        if (UNPACK_FETCHES)
            T(fetch)(ahead + (long)(next + b) * BLOCK_BYTES, ahead + records, next + b);
        else
            T(fetch_scales)(ahead + records, next + b);
        UNPACK(group + (long)(first + b) * BLOCK_BYTES, w, WORDS16)
        _Pragma("unroll") for (int i = 0; i < 8; i++) panel_word(panel, 8 * b + i, w[i], OFFSET);
        T(scales)(group + records, first + b, panel->scale + PARTS * b, panel->minimum + PARTS * b);
#if PAIRS
        int16 less = (int16)(0);
        _Pragma("unroll") for (int i = 0; i < 8; i += 2)
            less = dot4_each(less, EVEN_OF_PAIR(w[i]), ODD_OF_PAIR(w[i + 1]));
        panel->less[b] = less;
#endif
    }
}

#if PAIRS && HAS_MINIMUM
#define MULTIPLY_PANELS multiply_panels_pairs_1
#elif PAIRS
#define MULTIPLY_PANELS multiply_panels_pairs_0
#elif SUB == 32 && !HAS_MINIMUM
#define MULTIPLY_PANELS multiply_panels_1_0
#elif SUB == 32
#define MULTIPLY_PANELS multiply_panels_1_1
#elif !HAS_MINIMUM
#define MULTIPLY_PANELS multiply_panels_2_0
#else
#define MULTIPLY_PANELS multiply_panels_2_1
#endif
#define PANEL_COLUMNS (32 * PANEL_BLOCKS)
#define PANEL_RESULT(acc, g, t) (acc)[(g) * PANEL_ROWS + t]

// acc[g * PANEL_ROWS + t] += columns first .. last - 1 of group g times activation row x[t], for up to PANEL_GROUPS
// groups and `rows` rows, a multiple of 4; the groups `ahead` follow, with columns from next_first on. `less` of these
// columns is made where is_first, and whenever there are fewer groups.
static inline void T(add_columns)(const __global uchar *weights, int groups, int k, int first, int last,
                                  const __global uchar *ahead, int next_first, const __global char *const *x, int rows,
                                  int is_first, int *less, float16 *acc)
{
    const long bytes = T(group_bytes)(k);
    const int blocks = k / 32, at = first / 32, count = (last - first) / 32, next = next_first / 32;
    Panel panel[PANEL_GROUPS];
    for (int g = 0; g < groups; g++)
        T(unpack_panel)(weights + g * bytes, ahead + g * bytes, blocks, at, next, count, panel + g);
    const Ahead raw = {ahead + (long)next * BLOCK_BYTES, bytes, BLOCK_BYTES};
    if (is_first || groups < PANEL_GROUPS)
        less_of(x, rows, k, at, count, PARTS, OFFSET, PAIRS && groups == 2, less);
    MULTIPLY_PANELS(panel, groups, at, count, k, less, x, rows, acc, &raw);
}

// How many of the rows that are left go together
static inline __attribute__((always_inline)) int T(tile)(int left)
{
#ifdef REALM_BYTES // as evenly as they go: each time the weights are unpacked anew
    const int turns = (left + MOST - 1) / MOST;
    return (left + turns - 1) / turns;
#else
    return left >= MOST ? MOST : left >= 2 ? 2 : 1;
#endif
}

static inline __attribute__((always_inline)) void T(dot)(
    int tile, const __global uchar *group, int k, const __global char *const *x, float16 *acc)
{
    switch (tile) {
    case 4: T(dot_4)(group, k, x, acc); break;
#ifdef REALM_BYTES
    case 3: T(dot_3)(group, k, x, acc); break;
#endif
    case 2: T(dot_2)(group, k, x, acc); break;
    default: T(dot_1)(group, k, x, acc);
    }
}
#undef DEFINE_DOT
#undef SUMS_OF
#undef ADD_PART
#undef TILE_PART

#define WORD_OF_LANE(p, i) (((const __global int *)(p))[(i) * 16 + lane])

// One row of weights as float32, for embeddings.
static inline void T(expand_row)(const __global uchar *weights, int row, int k, __global float *out)
{
    const __global uchar *group = weights + (row / 16) * T(group_bytes)(k);
    const int lane = row % 16;
    const __global uchar *records = group + (long)(k / 32) * BLOCK_BYTES;
    for (int b = 0; b < k / 32; b++) {
        int w[8];
        UNPACK(group + (long)b * BLOCK_BYTES, w, WORD_OF_LANE)
        float scale[32 / SUB], minimum[32 / SUB];
        T(lane_scales)(records, b, lane, scale, minimum);
        for (int i = 0; i < 32; i++) {
            const int q = (w[i / 4] >> (8 * (i % 4))) & 0xff;
            out[b * 32 + i] = scale[i / SUB] * (float)(q - (OFFSET)) + (HAS_MINIMUM ? minimum[i / SUB] : 0.0f);
        }
    }
}
