// Flash attention over the paged cache (cache.cl): online softmax, never a score matrix (arXiv 2205.14135), grouped heads.
//
// The host defines MAX_WIDTH, the widest head of the model, padded to 32.
//
// A row's positions are cut into segments whose length depends on the row's own position alone (engine/backends/opencl/
// segments.py). Each starts an online softmax of its own, and merge_segment joins them in their order. So a row comes
// out bit for bit the same whether one tile walks through all of its segments or several work-groups take one each, and
// whichever other rows share its tile: a position that a row does not see changes none of its sums.

#define MAX_QUERIES 32 // query vectors (rows times heads) of one tile
// So many of them go together, whose sums registers hold, and read the cache as it lies: for more it is made floats once.
#if defined(REALM_F16_AVX512) && KV_TYPE == KV_F16
#define DIRECT 8
#define MOST_PAIRED 3 // so few take two blocks of keys at a time (attend_block.cl)
#else
#define DIRECT 4
#define MOST_PAIRED 0
#endif

// Rotates columns start .. start + 2 * half_width - 1 of the heads of one row in place; table holds cos[half_width] and
// sin[half_width].
static inline void rotate_row(__global float *x, int heads, int head_width, int start, const __global float *table,
                              int half_width, int interleaved)
{
    x += start;
    for (int h = 0; h < heads; h++, x += head_width) {
        int i = 0;
        for (; interleaved && i + 8 <= half_width; i += 8) {
            const float8 c = load8(table + i), s = load8(table + half_width + i);
            const float16 pairs = load16(x + 2 * i), other = pairs.s1032547698badcfe;
            store16(pairs * c.s0011223344556677 + other * (float16)(-s, s).s08192a3b4c5d6e7f, x + 2 * i);
        }
        for (; !interleaved && i + 16 <= half_width; i += 16) {
            const float16 c = load16(table + i), s = load16(table + half_width + i);
            const float16 u = load16(x + i), v = load16(x + half_width + i);
            store16(u * c - v * s, x + i);
            store16(u * s + v * c, x + half_width + i);
        }
        for (; i < half_width; i++) {
            const int a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + half_width;
            const float c = table[i], s = table[half_width + i], u = x[a], v = x[b];
            x[a] = u * c - v * s;
            x[b] = u * s + v * c;
        }
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
        store16(sum[d / 16] * (weight / total), out + d);
    for (; d < value_width; d++)
        out[d] = ((const __private float *)sum)[d] * (weight / total);
}

// Attention of some rows and of the query heads of some key/value heads.
typedef struct {
    const __global float *q;         // of the first row and head
    int q_stride, out_stride;        // floats between rows
    int rows, heads;                 // query heads of a key/value head
    int together;                    // key/value heads, which divide kv_heads; rows * heads * together <= MAX_QUERIES
    int row_position;                // position of the first row in its sequence; the others follow
    int whole;                       // every row reads all of the positions, not only those up to its own
    int first, last;                 // key positions first .. last-1; first is a multiple of 32
    int segment;                     // positions of a segment, a multiple of SPAN
    int end, fetch;                  // positions of the sequence, and blocks of keys or values to ask for ahead
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

#else

// Whole numbers of 15 bits, to be multiplied with codes of the cache: queries, and weights of positions. Four of them are
// two words: with REALM_BYTES the bytes 128 a + b, a in one word and b in the other, otherwise int16 in the order 0, 2
// and 1, 3. `count` of them are two arrays of bytes, or one of pairs of words.
#define LARGEST_FACTOR 16256.0f

typedef struct {
    int a, b;
} Four;

static inline __attribute__((always_inline)) Four four(const __private uchar *factors, int count, int i)
{
    Four x;
#ifdef REALM_BYTES
    x.a = ((const __private int *)factors)[i];
    x.b = ((const __private int *)(factors + count))[i];
#else
    x.a = ((const __private int *)factors)[2 * i];
    x.b = ((const __private int *)factors)[2 * i + 1];
#endif
    return x;
}

// Sixteen whole numbers as factors `at` .. at + 15; of n only the lower 16 bits matter.
static inline __attribute__((always_inline)) void put_factors(int16 n, __private uchar *factors, int count, int at)
{
#ifdef REALM_BYTES
    *(__private uchar16_unaligned *)(factors + at) = __builtin_convertvector(n >> 7, uchar16);
    *(__private uchar16_unaligned *)(factors + count + at) = __builtin_convertvector(n & 127, uchar16);
#else
    *(__private short16_unaligned *)(factors + 2 * at) = __builtin_convertvector(n, short16).s021346578a9bcedf;
#endif
}

// Codes of the cache, four a lane, each 0 .. 255, as dot_codes wants them
#ifdef REALM_BYTES
#define SUMS 2
typedef int16 Codes;
static inline __attribute__((always_inline)) Codes codes_of(int16 bytes) { return bytes; }
#else
#define SUMS 1
typedef struct {
    int16 even, odd;
} Codes;
static inline __attribute__((always_inline)) Codes codes_of(int16 bytes)
{
    Codes c;
    c.even = bytes & 0x00ff00ff;
    c.odd = (bytes >> 8) & 0x00ff00ff;
    return c;
}
#endif

static inline __attribute__((always_inline)) void dot_codes(__private int16 *sums, Codes c, Four x)
{
#ifdef REALM_BYTES
    sums[0] = dot4(sums[0], c, x.a);
    sums[1] = dot4(sums[1], c, x.b);
#else
    sums[0].lo = dot2(dot2(sums[0].lo, c.even.lo, x.a), c.odd.lo, x.b);
    sums[0].hi = dot2(dot2(sums[0].hi, c.even.hi, x.a), c.odd.hi, x.b);
#endif
}

static inline __attribute__((always_inline)) int16 dot_total(const __private int16 *sums)
{
    return SUMS == 2 ? (sums[0] << 7) + sums[SUMS - 1] : sums[0];
}

#define ROUND_MAGIC 12582912.0f    // x + this has x, rounded to the nearest whole number, in its lowest bits
#define ROUND_MAGIC_BITS 0x4b400000

// A query as factors, a scale for each 32 columns, and what the codes' zero adds to their products.
typedef struct {
    const __private uchar *factors;
    const __private float *scales;
    const __private int *offsets;
} Query;

static inline void quantise_query(
    const __global float *q, int width, __private uchar *factors, __private float *scales, __private int *offsets)
{
    for (int d = 0; d < width; d += 32) {
        float numbers[32] __attribute__((aligned(64)));
        columns32(q, d, width, numbers);
#if KV_TYPE == KV_Q4_0
        rotate32(numbers);
#endif
        const float16 a = *(const __private float16 *)numbers, b = *(const __private float16 *)(numbers + 16);
        const float largest = max16(max_16(abs_16(a), abs_16(b)));
        const float inverse = largest > 0.0f ? LARGEST_FACTOR / largest : 0.0f;
        const int16 low = __builtin_astype(a * inverse + ROUND_MAGIC, int16) - ROUND_MAGIC_BITS;
        const int16 high = __builtin_astype(b * inverse + ROUND_MAGIC, int16) - ROUND_MAGIC_BITS;
        put_factors(low, factors, padded32(width), d);
        put_factors(high, factors, padded32(width), d + 16);
        scales[d / 32] = largest / LARGEST_FACTOR;
        offsets[d / 32] = CODE_ZERO * sum_int16(low + high);
    }
}

#endif

// Blocks whose scores pass through one softmax: a segment is a whole number of such spans.
#define SPAN_BLOCKS 4
#define FETCH_AHEAD (32 << 10) // bytes of the cache that are asked for before they are used
#define SPAN (SPAN_BLOCKS * POSITIONS)

// A tile's work on one span.
typedef struct {
    const Attend *a;
    int start;                              // its first position
    int first, last;                        // the blocks of it that the tile reads: first .. last - 1
    const __global uchar *kt[SPAN_BLOCKS], *vt[SPAN_BLOCKS]; // the first head's keys and values in them
    const __private Query *q;
    __private Gathered *state;
    __private float16 *acc;                 // [queries][padded value width]
    __private float *p;                     // [queries][SPAN]: scores, then exp(score - best)
#if KV_TYPE != KV_F16
    __private uchar *weights;               // [queries] factors: p times the scale of the values' group
    __private float *weight_scales;         // [queries]
    __private int *weight_offsets;          // [queries]: what the codes' zero adds to the products
#endif
} Span;

// What is used a->fetch blocks of keys or values after the keys (or values) of block k of the span: those of `head` there,
// or `own`, which is being used, where nothing more comes. It is asked for bit by bit while these are used, all heads of a
// block after one another: the processor then goes on in the order of addresses by itself.
static inline const __global uchar *ahead_of(const Span *s, int k, int values, int head, const __global uchar *own)
{
    const Attend *a = s->a;
    const int after = SPAN_BLOCKS * values + k + a->fetch;
    int block = s->start / POSITIONS + after % SPAN_BLOCKS, first = a->kv_head;
    if (after >= 2 * SPAN_BLOCKS) {
        // whoever has a segment of some heads goes on with that of the next heads, and then with the next segment
        const int ends = a->partial && s->start + SPAN >= a->last, more = first + a->together < a->kv_heads;
        if (ends)
            first = more ? first + a->together : 0;
        if (!ends || !more)
            block += SPAN_BLOCKS;
    }
    if (POSITIONS * block >= a->end)
        return own;
    const long at = (long)a->block_table[block] * a->kv_heads + first + head;
    return after / SPAN_BLOCKS % 2 ? a->values + at * value_bytes(a->value_width) : a->keys + at * key_bytes(a->head_width);
}

// Where query i's row stands.
static inline __attribute__((always_inline)) int position_of(const Attend *a, int i)
{
    return a->whole ? a->last - 1 : a->row_position + i % (a->rows * a->heads) / a->heads;
}

// Whether none of the rows of queries i .. i + n - 1 sees a position from .. to - 1.
static inline __attribute__((always_inline)) int unseen(const Attend *a, int i, int n, int from, int to)
{
    return position_of(a, i + n - 1) < from || (a->window && to <= position_of(a, i) - a->window + 1);
}

// Scores of query i become exp(score - best), 0 where its row does not see the position; what was gathered follows `best`.
static inline void soften(const Span *s, int i)
{
    const Attend *a = s->a;
    const int to = position_of(a, i) - s->start, from = a->window ? to - a->window + 1 : 0; // the lanes that the row sees
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int begin = POSITIONS * s->first, end = POSITIONS * s->last;
    __private float *p = s->p + i * SPAN;
    float16 most = (float16)(-INFINITY);
    for (int x = begin; x < end; x += 16) {
        float16 v = *(__private float16 *)(p + x) * a->scale;
        if (a->softcap > 0.0f)
            v = activate16(ACT_SOFTCAP, v, a->softcap);
        if (x + 15 > to || x < from)
            v = ((lane + x > to) | (lane + x < from)) ? (float16)(-INFINITY) : v;
        *(__private float16 *)(p + x) = v;
        most = max_16(most, v);
    }
    __private Gathered *state = s->state + i;
    const float best = state->best, own = max16(most), now = best > own ? best : own;
    const float base = now == -INFINITY ? 0.0f : now;
    float16 total = (float16)(0.0f);
    for (int x = begin; x < end; x += 16) {
        const float16 v = *(__private float16 *)(p + x);
        const float16 e = v == -INFINITY ? (float16)(0.0f) : exp16(v - base);
        *(__private float16 *)(p + x) = e;
        total += e;
    }
    state->best = now;
    if (best == now) {
        state->total += sum16(total);
        return;
    }
    const float shrink = best == -INFINITY ? 0.0f : exp16((float16)(best - base)).s0;
    state->total = state->total * shrink + sum16(total);
    const int vectors = padded16(a->value_width) / 16;
    for (int d = 0; d < vectors; d++)
        s->acc[i * vectors + d] *= shrink;
}

#if KV_TYPE != KV_F16

static inline __attribute__((always_inline)) void round_span(
    const Span *s, int i, const __private float *p, long at_scales, int first, int last)
{
    float16 w[2 * SPAN_BLOCKS];
    int16 most = (int16)(0); // bits of numbers that are not negative: they have their order, and what is none is above all
    _Pragma("unroll") for (int k = 0; k < 2 * SPAN_BLOCKS; k++)
    {
        if (k / 2 < first || k / 2 >= last)
            continue;
        const float16 e = *(const __private float16 *)(p + 16 * k);
        const float16 scale = load_half16(s->vt[k / 2] + at_scales + 32 * (k % 2));
        w[k] = e > 0.0f ? e * scale : (float16)(0.0f); // a scale that the row does not see may be no number
        const int16 bits = __builtin_astype(w[k], int16) & 0x7fffffff;
        most = most > bits ? most : bits;
    }
    const float largest = as_float(max_int16(most)), inverse = largest > 0.0f ? LARGEST_FACTOR / largest : 0.0f;
    int16 sum = (int16)(0);
    _Pragma("unroll") for (int k = 0; k < 2 * SPAN_BLOCKS; k++)
    {
        if (k / 2 < first || k / 2 >= last)
            continue;
        const int16 n = __builtin_astype(w[k] * inverse + ROUND_MAGIC, int16) - ROUND_MAGIC_BITS;
        sum += n;
        put_factors(n, s->weights + i * 2 * SPAN, SPAN, 16 * k);
    }
    s->weight_scales[i] = largest / LARGEST_FACTOR;
    s->weight_offsets[i] = CODE_ZERO * sum_int16(sum);
}

// The weights of query i for columns 32 g .. 32 g + 31 of the values, which lie `offset` bytes behind those of the first head.
static inline void round_weights(const Span *s, int i, int g, long offset)
{
    const long at_scales = offset + code_bytes(s->a->value_width) + 2 * POSITIONS * g;
    const __private float *p = s->p + i * SPAN;
    if (s->first == 0 && s->last == SPAN_BLOCKS) // the same without the questions
        round_span(s, i, p, at_scales, 0, SPAN_BLOCKS);
    else
        round_span(s, i, p, at_scales, s->first, s->last);
}

#endif
