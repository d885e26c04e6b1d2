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

// Sixteen lanes are two registers of AVX2, where four queries keep eight sums at once, and one of AVX-512, where they
// keep eight with twice as many lanes.
#ifdef REALM_F16_AVX512
#define SPAN 2
#else
#define SPAN 1
#endif

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
    const float best = max(all->best, part.best), base = best == -INFINITY ? 0.0f : best;
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
    const float at = sink ? sink[0] : -INFINITY, most = max(all.best, at);
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

// s[u][i] = query u times the keys of positions 16 (part + i) .. + 15 of a block, for n queries. kt: the block's keys of
// this head; kf: the same as floats, or 0.
static inline __attribute__((always_inline)) void score_part(
    int n, const __private Query *q, const __global uchar *kt, const __private float *kf, int part, int head_width,
    float16 (*s)[SPAN])
{
    _Pragma("unroll") for (int u = 0; u < n; u++) _Pragma("unroll") for (int i = 0; i < SPAN; i++) s[u][i] =
        (float16)(0.0f);
    for (int d = 0; d < head_width; d++) {
        float16 k[SPAN];
        _Pragma("unroll") for (int i = 0; i < SPAN; i++)
        {
            const int at = d * POSITIONS + 16 * (part + i);
            k[i] = kf ? *(const __private float16 *)(kf + at) : load_half16(kt + 2 * at);
        }
        _Pragma("unroll") for (int u = 0; u < n; u++)
        {
            const float x = q[u][d];
            _Pragma("unroll") for (int i = 0; i < SPAN; i++) s[u][i] += k[i] * x;
        }
    }
}

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
        const float16 a = columns16(q, d, width);
        const float16 b = d + 16 < width ? columns16(q, d + 16, width) : (float16)(0.0f);
        const float largest = max16(max(fabs(a), fabs(b)));
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

// As above, for n queries.
static inline __attribute__((always_inline)) void score_part(
    int n, const __private Query *q, const __global uchar *kt, const __private float *kf, int part, int head_width,
    float16 (*s)[SPAN])
{
    const __global half *scales = (const __global half *)(kt + code_bytes(head_width));
    _Pragma("unroll") for (int u = 0; u < n; u++) _Pragma("unroll") for (int i = 0; i < SPAN; i++) s[u][i] =
        (float16)(0.0f);
    for (int g = 0; 32 * g < head_width; g++) {
        int16 acc[DIRECT][SPAN];
        _Pragma("unroll") for (int u = 0; u < n; u++) _Pragma("unroll") for (int i = 0; i < SPAN; i++) acc[u][i] =
            (int16)(KV_TYPE == KV_Q4_0 ? -q[u].offsets[g] : 0);
        for (int e = 0; e < CODE_BITS * 2; e++) {
            const __global uchar *at = kt + (2 * CODE_BITS * g + e) * 2 * POSITIONS + 32 * part;
            _Pragma("unroll") for (int i = 0; i < SPAN; i++)
            {
                const uchar16 a = load_uchar16(at + 32 * i), b = load_uchar16(at + 32 * i + 16);
#if KV_TYPE == KV_Q8_0
                const short16 ka = __builtin_convertvector(__builtin_astype(a, char16), short16);
                const short16 kb = __builtin_convertvector(__builtin_astype(b, char16), short16);
                _Pragma("unroll") for (int u = 0; u < n; u++)
                {
                    const int x = ((const __private int *)(q[u].codes + 32 * g))[e];
                    acc[u][i].lo = dot_pairs(acc[u][i].lo, ka, x);
                    acc[u][i].hi = dot_pairs(acc[u][i].hi, kb, x);
                }
#else
                const short16 ka = __builtin_convertvector(a & (uchar)15, short16);
                const short16 kb = __builtin_convertvector(b & (uchar)15, short16);
                const short16 ka2 = __builtin_convertvector(a >> (uchar)4, short16);
                const short16 kb2 = __builtin_convertvector(b >> (uchar)4, short16);
                _Pragma("unroll") for (int u = 0; u < n; u++)
                {
                    const int x = ((const __private int *)(q[u].codes + 32 * g))[2 * e];
                    const int y = ((const __private int *)(q[u].codes + 32 * g))[2 * e + 1];
                    acc[u][i].lo = dot_pairs(dot_pairs(acc[u][i].lo, ka, x), ka2, y);
                    acc[u][i].hi = dot_pairs(dot_pairs(acc[u][i].hi, kb, x), kb2, y);
                }
#endif
            }
        }
        _Pragma("unroll") for (int i = 0; i < SPAN; i++)
        {
            const float16 scale = load_half16(scales + g * POSITIONS + 16 * (part + i));
            _Pragma("unroll") for (int u = 0; u < n; u++) s[u][i] += to_float(acc[u][i]) * (scale * q[u].scales[g]);
        }
    }
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

static inline __attribute__((always_inline)) void attend_block(const Block *b, int j, int n)
{
    const Attend *a = b->a;
    const int vectors = padded16(a->value_width) / 16, start = b->start;
    int at[DIRECT]; // position of the query's row
    _Pragma("unroll") for (int u = 0; u < n; u++) at[u] =
        a->whole ? a->last - 1 : a->row_position + (j + u) / a->heads;
    if (at[n - 1] < start || (a->window && start + POSITIONS <= at[0] - a->window + 1))
        return; // all of it lies in these rows' future, or before their window
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    float p[DIRECT][POSITIONS] __attribute__((aligned(64)));
    for (int part = 0; part < 2; part += SPAN) {
        float16 s[DIRECT][SPAN];
        if (b->kf)
            score_part(n, b->q + j, b->kt, b->kf, part, a->head_width, s);
        else
            score_part(n, b->q + j, b->kt, 0, part, a->head_width, s);
        _Pragma("unroll") for (int u = 0; u < n; u++) _Pragma("unroll") for (int i = 0; i < SPAN; i++)
            *(float16 *)(p[u] + 16 * (part + i)) = s[u][i];
    }
    float shrink[DIRECT];
    _Pragma("unroll") for (int u = 0; u < n; u++)
    {
        const int to = at[u] - start, from = a->window ? to - a->window + 1 : 0; // the lanes that the row sees
        float16 x = *(float16 *)p[u] * a->scale, y = *(float16 *)(p[u] + 16) * a->scale;
        if (a->softcap > 0.0f) {
            x = activate16(ACT_SOFTCAP, x, a->softcap);
            y = activate16(ACT_SOFTCAP, y, a->softcap);
        }
        if (to < POSITIONS - 1 || from > 0) {
            x = select(x, (float16)(-INFINITY), (lane > to) | (lane < from));
            y = select(y, (float16)(-INFINITY), (lane + 16 > to) | (lane + 16 < from));
        }
        Gathered *state = b->state + j + u;
        const float best = state->best, now = max(best, max16(max(x, y)));
        const float base = now == -INFINITY ? 0.0f : now;
        x = select(exp16(x - base), (float16)(0.0f), x == -INFINITY);
        y = select(exp16(y - base), (float16)(0.0f), y == -INFINITY);
        shrink[u] = best == now ? 1.0f : best == -INFINITY ? 0.0f : exp16((float16)(best - base)).s0;
        *(float16 *)p[u] = x;
        *(float16 *)(p[u] + 16) = y;
        state->total = state->total * shrink[u] + sum16(x + y);
        state->best = now;
    }
#if KV_TYPE == KV_F16
#define WEIGHT(u, x) p[u][x]
#else
#define WEIGHT(u, x) scaled[u][x]
    float scaled[DIRECT][POSITIONS] __attribute__((aligned(64))), offset[DIRECT];
    const __global half *scales = (const __global half *)(b->vt + code_bytes(a->value_width));
#endif
    for (int d = 0; d < 16 * vectors; d += 16 * SPAN) {
#if KV_TYPE != KV_F16
        if (d % 32 == 0) {
            float16 low = load_half16(scales + d), high = load_half16(scales + d + 16);
            if (b->written < POSITIONS) { // what lies behind may be no number at all
                low = select(low, (float16)(0.0f), lane >= b->written);
                high = select(high, (float16)(0.0f), lane + 16 >= b->written);
            }
            _Pragma("unroll") for (int u = 0; u < n; u++)
            {
                const float16 x = *(const float16 *)p[u] * low, y = *(const float16 *)(p[u] + 16) * high;
                *(float16 *)scaled[u] = x;
                *(float16 *)(scaled[u] + 16) = y;
                offset[u] = KV_TYPE == KV_Q4_0 ? -8.0f * sum16(x + y) : 0.0f;
            }
        }
#endif
        const int more = SPAN == 2 && d + 16 < 16 * vectors ? 16 : 0;
        float16 o[DIRECT][SPAN];
        _Pragma("unroll") for (int u = 0; u < n; u++)
        {
            const __private float16 *from = b->acc + (j + u) * vectors + d / 16;
            o[u][0] = from[0] * shrink[u];
            if (SPAN == 2)
                o[u][SPAN - 1] = from[more / 16] * shrink[u];
#if KV_TYPE == KV_Q4_0
            _Pragma("unroll") for (int i = 0; i < SPAN; i++) o[u][i] += offset[u];
#endif
        }
        for (int x = 0; x < b->written; x++) {
            float16 v[SPAN];
            _Pragma("unroll") for (int i = 0; i < SPAN; i++)
            {
                const int column = d + (i ? more : 0);
                v[i] = b->vf ? *(const __private float16 *)(b->vf + x * 16 * vectors + column)
                             : value16(b->vt, a->value_width, x, column);
            }
            _Pragma("unroll") for (int u = 0; u < n; u++) _Pragma("unroll") for (int i = 0; i < SPAN; i++) o[u][i] +=
                v[i] * WEIGHT(u, x);
        }
        _Pragma("unroll") for (int u = 0; u < n; u++)
        {
            __private float16 *to = b->acc + (j + u) * vectors + d / 16;
            to[0] = o[u][0];
            if (more)
                to[1] = o[u][SPAN - 1];
        }
    }
#undef WEIGHT
}

// With partial == 0 the result goes to out. Otherwise the positions lie in one segment, and head h of row 0 leaves its
// sum, best and total at partial + h * (padded value width + 2), to be joined by combine_partials.
static void attend_tile(const Attend *a)
{
    const int head_width = a->head_width, queries = a->rows * a->heads;
    const int vectors = padded16(a->value_width) / 16, padded = 16 * vectors;
    if (a->partial && a->first >= a->last) { // outside of the window
        for (int i = 0; i < queries; i++)
            a->partial[i / a->heads * a->partial_stride + i % a->heads * (padded + 2) + padded] = -INFINITY;
        return;
    }
    float vf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float16 acc[MAX_QUERIES * MAX_WIDTH / 16], sums[MAX_QUERIES * MAX_WIDTH / 16]; // of this segment, of those before
    Gathered state[MAX_QUERIES], before[MAX_QUERIES];
    int segments = 0; // behind this one
    for (int i = 0; i < queries; i++)
        state[i].best = before[i].best = -INFINITY, state[i].total = before[i].total = 0.0f;
    for (int i = 0; i < queries * vectors; i++)
        acc[i] = sums[i] = (float16)(0.0f);

    Query q[MAX_QUERIES];
#if KV_TYPE == KV_F16
    float kf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    for (int i = 0; i < queries; i++)
        q[i] = a->q + (long)(i / a->heads) * a->q_stride + i % a->heads * head_width;
#else
    const int groups = padded32(head_width) / 32;
    short codes[MAX_QUERIES * MAX_WIDTH] __attribute__((aligned(64)));
    float scales[MAX_QUERIES * MAX_WIDTH / 32];
    int offsets[MAX_QUERIES * MAX_WIDTH / 32];
    for (int i = 0; i < queries; i++) {
        q[i].codes = codes + 32 * groups * i;
        q[i].scales = scales + groups * i;
        q[i].offsets = offsets + groups * i;
        quantise_query(a->q + (long)(i / a->heads) * a->q_stride + i % a->heads * head_width, head_width,
                       codes + 32 * groups * i, scales + groups * i, offsets + groups * i);
    }
#endif
    const long key_size = key_bytes(head_width), value_size = value_bytes(a->value_width);
    Block b;
    b.a = a;
    b.q = q;
    b.state = state;
    b.acc = acc;
    b.kf = b.vf = 0;

    for (int start = a->first; start < a->last; start += POSITIONS) {
        if (start > a->first && start % a->segment == 0) {
            segments++;
            for (int i = 0; i < queries; i++) {
                merge_segment(before + i, sums + i * vectors, state[i], acc + i * vectors, vectors);
                state[i].best = -INFINITY;
                state[i].total = 0.0f;
                for (int d = 0; d < vectors; d++)
                    acc[i * vectors + d] = (float16)(0.0f);
            }
        }
        const long block = (long)a->block_table[start / POSITIONS] * a->kv_heads + a->kv_head;
        b.start = start;
        b.written = min(POSITIONS, a->last - start); // what lies behind may be anything, even not a number
        b.kt = a->keys + block * key_size;
        b.vt = a->values + block * value_size;
        if (start + POSITIONS < a->last) { // the next block is asked for while this one is computed with
            const long next = (long)a->block_table[start / POSITIONS + 1] * a->kv_heads + a->kv_head;
            for (long i = 0; i < key_size; i += 64)
                FETCH(a->keys + next * key_size + i);
            for (long i = 0; i < value_size; i += 64)
                FETCH(a->values + next * value_size + i);
        }
        if (queries > DIRECT) {
#if KV_TYPE == KV_F16
            for (int i = 0; i < head_width * POSITIONS; i += 32) {
                *(float16 *)(kf + i) = load_half16(b.kt + 2 * i);
                *(float16 *)(kf + i + 16) = load_half16(b.kt + 2 * i + 32);
            }
            b.kf = kf;
#endif
            for (int x = 0; x < b.written; x++)
                for (int d = 0; d < padded; d += 16)
                    *(float16 *)(vf + x * padded + d) = value16(b.vt, a->value_width, x, d);
            b.vf = vf;
            int j = 0;
            for (; j + DIRECT <= queries; j += DIRECT)
                attend_block(&b, j, DIRECT);
            for (; j < queries; j++)
                attend_block(&b, j, 1);
        } else if (queries == 4)
            attend_block(&b, 0, 4);
        else if (queries == 3)
            attend_block(&b, 0, 3);
        else if (queries == 2)
            attend_block(&b, 0, 2);
        else
            attend_block(&b, 0, 1);
    }
    for (int i = 0; i < queries; i++) {
        const int row = i / a->heads, head = i % a->heads;
        const float16 *sum = acc + i * vectors;
        if (a->partial) {
            __global float *p = a->partial + row * a->partial_stride + (long)head * (padded + 2);
            for (int d = 0; d < vectors; d++)
                vstore16(sum[d], d, p);
            p[padded] = state[i].best;
            p[padded + 1] = state[i].total;
            continue;
        }
        if (segments) {
            merge_segment(before + i, sums + i * vectors, state[i], sum, vectors);
            state[i] = before[i];
            sum = sums + i * vectors;
        }
        finish_row(state[i], sum, a->value_width, a->sinks ? a->sinks + head : 0,
                   a->out + (long)row * a->out_stride + head * a->value_width);
    }
}

// Joins the partial results of one row and head: `splits` of them, `stride` floats apart.
static void combine_partials(const __global float *partial, int splits, long stride, int value_width,
                             const __global float *sink, __global float *out)
{
    const int vectors = padded16(value_width) / 16;
    float16 sum[MAX_WIDTH / 16], part_sum[MAX_WIDTH / 16];
    Gathered all, part;
    all.best = -INFINITY;
    all.total = 0.0f;
    for (int d = 0; d < vectors; d++)
        sum[d] = (float16)(0.0f);
    for (int s = 0; s < splits; s++, partial += stride) {
        part.best = partial[16 * vectors];
        part.total = partial[16 * vectors + 1];
        if (part.best == -INFINITY) // outside of the window
            continue;
        for (int d = 0; d < vectors; d++)
            part_sum[d] = load16(partial + 16 * d);
        merge_segment(&all, sum, part, part_sum, vectors);
    }
    finish_row(all, sum, value_width, sink, out);
}
