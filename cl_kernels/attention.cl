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

#define LOG2E 1.44269504f

// What a row and head have gathered: the sum of 2^(score - best) times value, not yet divided by `total`, the sum of
// 2^(score - best), scores being in units of log2. best is -INFINITY and the rest 0 while nothing was seen.
typedef struct {
    float best, total;
} Gathered;

// Adds a segment's result to that of the segments before it. The first, added to nothing, stays as it is. factor:
// 2^-(difference between the two's best).
static inline __attribute__((always_inline)) void merge_by(
    __private Gathered *all, __private float16 *sum, Gathered part, const __private float16 *part_sum, int vectors, float factor)
{
    if (part.best > all->best) {
        all->best = part.best;
        all->total = all->total * factor + part.total;
        for (int d = 0; d < vectors; d++)
            sum[d] = sum[d] * factor + part_sum[d];
    } else if (part.best != -INFINITY) {
        all->total = part.total * factor + all->total;
        for (int d = 0; d < vectors; d++)
            sum[d] = part_sum[d] * factor + sum[d];
    }
}

static inline __attribute__((always_inline)) float one_exp2(float x) { return exp2_16((float16)(x)).s0; }

static inline __attribute__((always_inline)) void merge_segment(
    __private Gathered *all, __private float16 *sum, Gathered part, const __private float16 *part_sum, int vectors)
{
    merge_by(all, sum, part, part_sum, vectors, one_exp2(-fabs(all->best - part.best)));
}

// Writes the mean of the values: the sum by its total, to which a sink, if there is one, adds its share.
static inline __attribute__((always_inline)) void finish_row(
    Gathered all, const __private float16 *sum, int value_width, const __global float *sink, __global float *out)
{
    const float at = sink ? sink[0] * LOG2E : -INFINITY, most = all.best > at ? all.best : at;
    const float weight = one_exp2(all.best - most);
    const float total = all.total * weight + (sink ? one_exp2(at - most) : 0.0f);
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
    const __global int *next_table;  // of the row that probably follows here, from what it reads first on, or 0;
    int next_blocks;                 // it reads so many blocks
    const __global float *sinks;     // of the first head, or 0
    __global float *out;             // of the first row and head
    __global float *partial;         // or 0; see below
    long partial_stride;             // floats between rows
} Attend;

#if KV_TYPE == KV_F16
typedef const __global float *Query;
#else
// A query as factors, a scale for each 32 columns, and what the codes' zero adds to their products.
typedef struct {
    const __private uchar *factors;
    const __private float *scales;
    const __private int *offsets;
} Query;
#endif

// Blocks whose scores pass through one softmax: a segment is a whole number of such spans.
#define SPAN_BLOCKS 4
#define FETCH_AHEAD (32 << 10) // bytes of the cache that are asked for before they are used
#define SPAN (SPAN_BLOCKS * POSITIONS)

#if KV_TYPE == KV_Q4_0
#define ROUGH_WEIGHTS 1 // they have 8 bits
#else
#define ROUGH_WEIGHTS 0
#endif

#if KV_TYPE != KV_F16
// What the next span reads is asked for a little at a time, wherever this one computes: so the memory always has something
// to do, and never more than the processor can wait for.
typedef struct {
    int piece;                      // of the next span: keys of its blocks, then their values
    const __global uchar *at, *end; // what is left of the piece
    long more;                      // all bits, or none where there is nothing left to ask for
    const __global uchar *begins[2 * SPAN_BLOCKS + 1], *ends[2 * SPAN_BLOCKS + 1];
} SpanAhead;
#endif

// A tile's work on one span.
typedef struct {
    const Attend *a;
    int start;                              // its first position
    int first, last;                        // the blocks of it that the tile reads: first .. last - 1
    const __global uchar *kt[SPAN_BLOCKS], *vt[SPAN_BLOCKS]; // the first head's keys and values in them
    const __private Query *q;
    __private Gathered *state;
    __private float16 *acc;                 // [queries][padded value width]
    __private float *p;                     // [queries][SPAN]: scores, then 2^(score - the largest)
    __private float16 *totals;              // [queries]: the state's total, sixteen lanes of it
#if KV_TYPE != KV_F16
    __private float *shares;                // [queries]: what p is to be multiplied with: 2^(the span's largest - best)
    __private float16 *offsets;             // [queries][groups of values]: what the codes' zero has added to acc, sixteen lanes
    __private uchar *weights;               // [queries] factors: p times the scale of the values' group
    __private float *weight_scales;         // [queries]
    __private SpanAhead *ahead;                // what to ask for
#endif
} Span;

// The blocks that come after this span's, and the head: whoever has a segment of some heads goes on with that of the next
// heads, and then with the next segment.
static inline void go_on(const Span *s, int *block, int *head)
{
    const Attend *a = s->a;
    const int ends = a->partial && s->start + SPAN >= a->last, more = *head + a->together < a->kv_heads;
    if (ends)
        *head = more ? *head + a->together : 0;
    if (!ends || !more)
        *block += SPAN_BLOCKS;
}

#if KV_TYPE == KV_F16

// What is used a->fetch blocks of keys or values after the keys (or values) of block k of the span, be it by the next row:
// those of `head` there, or `own`, which is being used, where nothing more comes. It is asked for bit by bit while these are
// used, all heads of a block after one another: the processor then goes on in the order of addresses by itself.
static inline const __global uchar *ahead_of(const Span *s, int k, int values, int head, const __global uchar *own)
{
    const Attend *a = s->a;
    const __global int *table = a->block_table + s->start / POSITIONS + s->first;
    int n = s->last - s->first, after = n * values + k - s->first + a->fetch, first = a->kv_head;
    if (after >= 2 * n) {
        int block = s->start / POSITIONS;
        after -= 2 * n;
        go_on(s, &block, &first);
        table = a->block_table + block;
        n = (a->end + POSITIONS - 1) / POSITIONS - block;
        if (n <= 0 && a->next_table) {
            table = a->next_table;
            n = a->next_blocks;
        }
        n = min(SPAN_BLOCKS, n);
        if (after >= 2 * n)
            return own;
    }
    const long at = (long)table[after % n] * a->kv_heads + first + head;
    return after >= n ? a->values + at * value_bytes(a->value_width) : a->keys + at * key_bytes(a->head_width);
}

#else

#ifdef REALM_F16_AVX512
#define MOST_BLOCKS 2 // whose keys are multiplied together
#else
#define MOST_BLOCKS 1
#endif

// Finds where the pieces of the span after this one lie.
static inline void look_ahead(const Span *s)
{
    const Attend *a = s->a;
    __private SpanAhead *x = s->ahead;
    int block = s->start / POSITIONS, first = a->kv_head, pieces = 0;
    go_on(s, &block, &first);
    const int blocks = min(SPAN_BLOCKS, (a->end + POSITIONS - 1) / POSITIONS - block);
    for (int values = 0; values < 2; values++)
        for (int k = 0; k < blocks; k++, pieces++) {
            const long at = (long)a->block_table[block + k] * a->kv_heads + first;
            const long size = values ? value_bytes(a->value_width) : key_bytes(a->head_width);
            x->begins[pieces] = (values ? a->values : a->keys) + at * size;
            x->ends[pieces] = x->begins[pieces] + a->together * size;
        }
    x->begins[pieces] = a->keys;
    x->ends[pieces] = 0;
    x->piece = 0;
    x->more = -1;
    x->at = x->end = a->keys;
}

// Asks for some more cache lines; what is asked for behind a piece's end does no harm.
static inline __attribute__((always_inline)) void ask_ahead(const Span *s, int lines)
{
    __private SpanAhead *x = s->ahead;
    const __global uchar *at = x->at;
    if (at >= x->end && x->more) {
        const int piece = x->piece++;
        at = x->begins[piece];
        x->end = x->ends[piece];
        x->more = x->end ? -1 : 0;
    }
#define ASK(i) (lines > i ? FETCH(at + 64 * i) : (void)0)
    ASK(0), ASK(1), ASK(2), ASK(3), ASK(4), ASK(5), ASK(6), ASK(7), ASK(8), ASK(9), ASK(10), ASK(11); // a loop stays one
#undef ASK
    x->at = at + (64 * lines & x->more);
}

// Lines to ask for at a time: so many that a span's are asked for in the course of one by a single head's query too.
#if KV_TYPE == KV_Q4_0
#define LINES_OF_SCORES(n) ((n) < 3 ? 4 : 3)
#define LINES_OF_VALUES(n) ((n) < 3 ? 2 : 1)
#define LINES_OF_EXPONENTIALS 12
#define LINES_OF_WEIGHTS 5
#else
#define LINES_OF_SCORES(n) 4
#define LINES_OF_VALUES(n) ((n) < 3 ? 4 : 2)
#define LINES_OF_EXPONENTIALS 12
#define LINES_OF_WEIGHTS 8
#endif

#endif

// Where query i's row stands.
static inline __attribute__((always_inline)) int position_of(const Attend *a, int i)
{
    return a->whole ? a->last - 1 : a->row_position + i % (a->rows * a->heads) / a->heads;
}

// Whether query i's row sees all positions of the span.
static inline __attribute__((always_inline)) int sees_all(const Span *s, int i)
{
    const Attend *a = s->a;
    const int to = position_of(a, i) - s->start;
    return to >= SPAN - 1 && (!a->window || to < a->window);
}

// The largest score of query i in the span, in units of log2. They stay as they are where the row sees all of the span and
// nothing caps them; elsewhere they too are brought into these units, those of hidden positions to -INFINITY.
static inline float largest_score(const Span *s, int i, int plain)
{
    const Attend *a = s->a;
    __private float *p = s->p + i * SPAN;
    float16 most = (float16)(-INFINITY);
    if (plain) {
        _Pragma("unroll") for (int x = 0; x < SPAN; x += 16) most = max_16(most, *(const __private float16 *)(p + x));
        return max16(most) * (a->scale * LOG2E);
    }
    const int to = position_of(a, i) - s->start, from = a->window ? to - a->window + 1 : 0; // the lanes that the row sees
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int x = POSITIONS * s->first; x < POSITIONS * s->last; x += 16) {
        float16 v = *(__private float16 *)(p + x) * a->scale;
        if (a->softcap > 0.0f)
            v = activate16(ACT_SOFTCAP, v, a->softcap);
        v = ((lane + x > to) | (lane + x < from)) ? (float16)(-INFINITY) : v * LOG2E;
        *(__private float16 *)(p + x) = v;
        most = max_16(most, v);
    }
    return max16(most);
}

// Scores become 2^(score - largest), 0 where a row does not see the position, and what was gathered follows the largest. That
// is the largest so far, or, with codes, the largest of the span: then `shares` says what is missing.
static inline void soften(const Span *s, int queries)
{
    const Attend *a = s->a;
    const int vectors = padded16(a->value_width) / 16;
    float own[MAX_QUERIES];
    float shrink[MAX_QUERIES] __attribute__((aligned(64)));
    float share[MAX_QUERIES] __attribute__((aligned(64)));
    for (int i = 0; i < queries; i++) {
        own[i] = largest_score(s, i, a->softcap <= 0.0f && sees_all(s, i));
        const float best = s->state[i].best, now = best > own[i] ? best : own[i], base = now == -INFINITY ? 0.0f : now;
        s->state[i].best = now;
        shrink[i] = best - base;
        share[i] = own[i] - base;
    }
    for (int i = 0; i < queries; i += 16) {
        *(__private float16 *)(shrink + i) = exp2_16(*(const __private float16 *)(shrink + i));
        *(__private float16 *)(share + i) = exp2_16(*(const __private float16 *)(share + i));
    }
    for (int i = 0; i < queries; i++) {
#if KV_TYPE != KV_F16
        ask_ahead(s, LINES_OF_EXPONENTIALS);
#endif
        __private float *p = s->p + i * SPAN;
        float16 total = (float16)(0.0f);
#if KV_TYPE == KV_F16
        const float base = s->state[i].best == -INFINITY ? 0.0f : s->state[i].best;
#else
        const float base = own[i] == -INFINITY ? 0.0f : own[i];
#endif
        if (a->softcap <= 0.0f && sees_all(s, i)) {
            const float steepness = a->scale * LOG2E;
            _Pragma("unroll") for (int x = 0; x < SPAN; x += 16)
            {
                const float16 e = exp2_by(*(const __private float16 *)(p + x) * steepness - base, ROUGH_WEIGHTS);
                *(__private float16 *)(p + x) = e;
                total += e;
            }
        } else {
            for (int x = POSITIONS * s->first; x < POSITIONS * s->last; x += 16) {
                const float16 v = *(const __private float16 *)(p + x);
                const float16 e = v == -INFINITY ? (float16)(0.0f) : exp2_by(v - base, ROUGH_WEIGHTS);
                *(__private float16 *)(p + x) = e;
                total += e;
            }
        }
        if (shrink[i] != 1.0f) {
            s->totals[i] *= shrink[i];
            for (int d = 0; d < vectors; d++)
                s->acc[i * vectors + d] *= shrink[i];
        }
#if KV_TYPE == KV_F16
        s->totals[i] += total;
#else
        if (shrink[i] != 1.0f)
            for (int g = 0; 2 * g < vectors; g++)
                s->offsets[i * ((vectors + 1) / 2) + g] *= shrink[i];
        s->totals[i] += total * share[i];
        s->shares[i] = share[i];
#endif
    }
}
