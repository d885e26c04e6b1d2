// Flash attention over the paged cache (cache.cl): online softmax, never a score matrix (arXiv 2205.14135), grouped heads.
//
// The host defines MAX_WIDTH, the widest head of the model, padded to 32.
//
// A row's positions are cut into segments whose length depends on the row's own position alone (engine/backends/opencl/
// segments.py). Each starts an online softmax of its own, and merge_segment joins them in their order. So a row comes
// out bit for bit the same whether one tile walks through all of its segments or several work-groups take one each, and
// whichever other rows share its tile: a position that a row does not see changes none of its sums.

#define MAX_QUERIES 32 // query vectors (rows times heads) of one tile
#define DIRECT 4       // so many of them, or fewer, read the cache as it lies; for more it is made floats once

// Rotates columns start .. start + 2 * half_width - 1 of the heads of one row in place; table holds cos[half_width] and
// sin[half_width].
static inline void rotate_row(__global float *x, int heads, int head_width, int start, const __global float *table,
                              int half_width, int interleaved)
{
    x += start;
    for (int h = 0; h < heads; h++, x += head_width)
        for (int i = 0; i < half_width; i++) {
            const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half_width;
            const float c = table[i], s = table[half_width + i], u = x[a], v = x[b];
            x[a] = u * c - v * s;
            x[b] = u * s + v * c;
        }
}

// What a row and head have gathered: the sum of exp(score - best) times value, not yet divided by `total`, the sum of
// exp(score - best). best is -INFINITY and the rest 0 while nothing was seen.
typedef struct {
    float best, total;
} Gathered;

// Adds a segment's result to that of the segments before it. The first, added to nothing, stays as it is.
static inline __attribute__((always_inline)) void merge_segment(
    __private Gathered *all, __private float16 *sum, Gathered part, const __private float16 *part_sum, int vectors)
{
    const float best = all->best > part.best ? all->best : part.best, base = best == -INFINITY ? 0.0f : best;
    const float a = all->best == -INFINITY ? 0.0f : exp16((float16)(all->best - base)).s0;
    const float b = part.best == -INFINITY ? 0.0f : exp16((float16)(part.best - base)).s0;
    all->best = best;
    all->total = all->total * a + part.total * b;
    for (int d = 0; d < vectors; d++)
        sum[d] = sum[d] * a + part_sum[d] * b;
}

// Writes the mean of the values: the sum by its total, to which a sink, if there is one, adds its share.
static inline __attribute__((always_inline)) void finish_row(
    Gathered all, const __private float16 *sum, int value_width, const __global float *sink, __global float *out)
{
    const float at = sink ? sink[0] : -INFINITY, most = all.best > at ? all.best : at;
    const float weight = exp16((float16)(all.best - most)).s0;
    const float total = all.total * weight + (sink ? exp16((float16)(at - most)).s0 : 0.0f);
    int d = 0;
    for (; d + 16 <= value_width; d += 16)
        vstore16(sum[d / 16] * (weight / total), 0, out + d);
    for (; d < value_width; d++)
        out[d] = ((const __private float *)sum)[d] * (weight / total);
}

// Attention of some rows and some query heads that share a key/value head.
typedef struct {
    const __global float *q;         // of the first row and head
    int q_stride, out_stride;        // floats between rows
    int rows, heads;                 // rows * heads <= MAX_QUERIES
    int row_position;                // position of the first row in its sequence; the others follow
    int whole;                       // every row reads all of the positions, not only those up to its own
    int first, last;                 // key positions first .. last-1; first is a multiple of 32
    int segment;                     // positions of a segment, a multiple of 32
    int kv_head, kv_heads, head_width, value_width;
    float scale, softcap;            // softcap 0: none
    int window;                      // 0: none; else position p reads p - window + 1 .. p
    const __global uchar *keys, *values;
    const __global int *block_table;
    const __global float *sinks;     // of the first head, or 0
    __global float *out;             // of the first row and head
    __global float *partial;         // or 0; see below
    long partial_stride;             // floats between rows
} Attend;

#if KV_TYPE == KV_F16

typedef const __global float *Query;

// Sixteen columns of the values of position x of a block, from column d on.
static inline __attribute__((always_inline)) float16 value16(const __global uchar *vt, int value_width, int x, int d)
{
    return load_half16((const __global ushort *)vt + x * padded16(value_width) + d);
}

#else

// A query as whole numbers of 15 bits, a scale and 8 times the sum for each 32 columns.
typedef struct {
    const __private short *codes;
    const __private float *scales;
    const __private int *offsets;
} Query;

#define QUERY_LARGEST 16256.0f

static inline void quantise_query(
    const __global float *q, int width, __private short *codes, __private float *scales, __private int *offsets)
{
    for (int d = 0; d < width; d += 32) {
        float numbers[32] __attribute__((aligned(64)));
        columns32(q, d, width, numbers);
#if KV_TYPE == KV_Q4_0
        rotate32(numbers);
#endif
        const float16 a = *(const __private float16 *)numbers, b = *(const __private float16 *)(numbers + 16);
        const float largest = max16(max_16(abs_16(a), abs_16(b)));
        const float inverse = largest > 0.0f ? QUERY_LARGEST / largest : 0.0f;
        const float16 magic = (float16)(12582912.0f); // adding and subtracting it rounds to the nearest integer
        const int16 low = __builtin_convertvector((a * inverse + magic) - magic, int16);
        const int16 high = __builtin_convertvector((b * inverse + magic) - magic, int16);
        *(__private short16 *)(codes + d) = __builtin_convertvector(low, short16);
        *(__private short16 *)(codes + d + 16) = __builtin_convertvector(high, short16);
        scales[d / 32] = largest / QUERY_LARGEST;
        offsets[d / 32] = 8 * (sum_int16(low) + sum_int16(high));
    }
}

// acc[lane] + the sum of two products of 16-bit numbers that lie in each lane
static inline __attribute__((always_inline)) int8 dot_pairs(int8 acc, short16 k, int q)
{
#ifdef REALM_BYTES // there is no dot2, but what it is made of
    typedef short pairs __attribute__((vector_size(32)));
    return acc + __builtin_astype(__builtin_ia32_pmaddwd256(__builtin_astype(k, pairs),
                                                            __builtin_astype((int8)(q), pairs)), int8);
#else
    return dot2(acc, __builtin_astype(k, int8), q);
#endif
}

// Codes of sixteen columns of the values of position x of a block, from column d on.
static inline __attribute__((always_inline)) float16 value16(const __global uchar *vt, int value_width, int x, int d)
{
#if KV_TYPE == KV_Q8_0
    const uchar16 codes = load_uchar16(vt + x * padded32(value_width) + d);
    return to_float(__builtin_convertvector(__builtin_astype(codes, char16), int16));
#else
    const uchar16 both = load_uchar16(vt + x * padded32(value_width) / 2 + d / 32 * 16);
    return to_float(__builtin_convertvector(d % 32 ? both >> (uchar)4 : both & (uchar)15, int16));
#endif
}

#endif

// A tile's work on one block of the cache: scores, softmax and values of queries j .. j + n - 1, n a constant.
typedef struct {
    const Attend *a;
    int start, written;              // the block's first position; how many of its positions may be read
    const __global uchar *kt, *vt;   // the block's keys and values of this head
    const __private float *kf, *vf;  // the same as floats (keys of KV_F16 only; codes of values), or 0
    const __private Query *q;
    __private Gathered *state;
    __private float16 *acc;
} Block;
