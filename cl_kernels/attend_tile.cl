// A tile of rows and heads over its part of the cache, and the joining of segments.

// A call for queries j .. j + DIRECT - 1 of a head, or as many as there are
#define BATCH_CASE(n, name, ...)                                                                                       \
    case n:                                                                                                            \
        name##_##n(s, j, __VA_ARGS__);                                                                                 \
        break;
#if DIRECT == 8
#define MORE_CASES(name, ...)                                                                                          \
    BATCH_CASE(4, name, __VA_ARGS__)                                                                                   \
    BATCH_CASE(5, name, __VA_ARGS__)                                                                                   \
    BATCH_CASE(6, name, __VA_ARGS__)                                                                                   \
    BATCH_CASE(7, name, __VA_ARGS__)
#define BATCH_OF_MOST(name) name##_8
#else
#define MORE_CASES(name, ...)
#define BATCH_OF_MOST(name) name##_4
#endif
#define EACH_BATCH(name, ...)                                                                                          \
    for (int j = head * queries, end = j + queries; j < end; j += DIRECT)                                              \
        switch (end - j) {                                                                                             \
        BATCH_CASE(1, name, __VA_ARGS__)                                                                               \
        BATCH_CASE(2, name, __VA_ARGS__)                                                                               \
        BATCH_CASE(3, name, __VA_ARGS__)                                                                               \
        MORE_CASES(name, __VA_ARGS__)                                                                                  \
        default:                                                                                                       \
            BATCH_OF_MOST(name)(s, j, __VA_ARGS__);                                                                    \
        }

#if KV_TYPE == KV_F16

// Scores of a head's queries with blocks k .. k + n - 1, whose keys lie in kt: n is 2 only if there are few queries.
static inline void score_directly(const Span *s, int head, int queries, int k, int n, const __global uchar *const *kt,
                                  const __global uchar *const *ahead)
{
#if MOST_PAIRED
    const int j = head * queries;
    if (n == 2) {
        switch (queries) {
        case 1:
            scores_of_two_1(s, j, k, kt, 0, ahead);
            break;
        case 2:
            scores_of_two_2(s, j, k, kt, 0, ahead);
            break;
        default:
            scores_of_two_3(s, j, k, kt, 0, ahead);
        }
        return;
    }
#endif
    EACH_BATCH(scores, k, kt, 0, ahead)
}

#endif

static inline void attend_span(const Span *s)
{
    const Attend *a = s->a;
    const int queries = a->rows * a->heads, heads = a->together;
    const long key_size = key_bytes(a->head_width), value_size = value_bytes(a->value_width);
#if KV_TYPE == KV_F16
    float floats[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    for (int k = s->first, n; k < s->last; k += n) {
        n = queries <= MOST_PAIRED && k + 1 < s->last ? 2 : 1;
        for (int head = 0; head < heads; head++) {
            const __global uchar *kt[2], *ahead[2];
            for (int i = 0; i < n; i++) {
                kt[i] = s->kt[k + i] + head * key_size;
                ahead[i] = ahead_of(s, k + i, 0, head, kt[i]);
            }
            if (queries <= DIRECT) {
                score_directly(s, head, queries, k, n, kt, ahead);
                continue;
            }
            for (int i = 0; i < a->head_width * POSITIONS; i += 16)
                *(float16 *)(floats + i) = load_half16(kt[0] + 2 * i);
            EACH_BATCH(scores, k, kt, floats, ahead)
        }
    }
    soften(s, heads * queries);
    const int padded = padded16(a->value_width);
    for (int k = s->first; k < s->last; k++)
        for (int head = 0; head < heads; head++) {
            const __global uchar *vt = s->vt[k] + head * value_size, *ahead = ahead_of(s, k, 1, head, vt);
            const int written = min(POSITIONS, a->last - s->start - POSITIONS * k); // what lies behind may be no number
            if (queries <= DIRECT) {
                EACH_BATCH(values, k, written, vt, 0, ahead)
                continue;
            }
            for (int i = 0; i < written * padded; i += 16)
                *(float16 *)(floats + i) = load_half16(vt + 2 * i);
            EACH_BATCH(values, k, written, vt, floats, ahead)
        }
#else
    float largest[MAX_QUERIES * MAX_WIDTH / 32]; // [heads][groups of values]: scales in the span
    const int groups = padded32(a->value_width) / 32;
    if (s->first == 0 && s->last == SPAN_BLOCKS) // if not, no row sees all of it
        for (int head = 0; head < heads; head++)
            for (int g = 0; g < groups; g++)
                largest[head * groups + g] = largest_scale(s, g, head * value_size);
    for (int k = s->first, n; k < s->last; k += n) {
        n = min(MOST_BLOCKS, s->last - k);
        for (int head = 0; head < heads; head++) {
            const __global uchar *kt[2];
            for (int i = 0; i < n; i++)
                kt[i] = s->kt[k + i] + head * key_size;
            EACH_BATCH(scores, k, n, kt)
        }
    }
    soften(s, heads * queries);
    for (int head = 0; head < heads; head++) {
        const __global uchar *vt[SPAN_BLOCKS];
        for (int k = s->first; k < s->last; k++)
            vt[k] = s->vt[k] + head * value_size;
        for (int g = 0; g < groups; g++) {
            weigh(s, head * queries, queries, g, vt, largest[head * groups + g]);
            EACH_BATCH(values, g, vt)
        }
    }
#endif
}

// At the end of a segment: totals and sums come together.
static inline void settle(const Span *s, int queries)
{
    const int vectors = padded16(s->a->value_width) / 16;
    for (int i = 0; i < queries; i++) {
        s->state[i].total = sum16(s->totals[i]);
#if KV_TYPE != KV_F16
        const int groups = (vectors + 1) / 2;
        for (int d = 0; d < vectors; d++)
            s->acc[i * vectors + d] -= CODE_ZERO * sum16(s->offsets[i * groups + d / 2]);
#endif
    }
}

// With partial == 0 the result goes to out. Otherwise the positions lie in one segment, and head h of row 0 leaves its
// sum, best and total at partial + h * (padded value width + 2), to be joined by combine_partials.
static void attend_tile(const Attend *a)
{
    const int head_width = a->head_width, queries = a->rows * a->heads, all = a->together * queries;
    const int vectors = padded16(a->value_width) / 16, padded = 16 * vectors;
    if (a->partial && a->first >= a->last) { // outside of the window
        for (int r = 0; r < a->rows; r++)
            for (int h = 0; h < a->together * a->heads; h++)
                a->partial[r * a->partial_stride + h * (padded + 2) + padded] = -INFINITY;
        return;
    }
    float16 acc[MAX_QUERIES * MAX_WIDTH / 16], sums[MAX_QUERIES * MAX_WIDTH / 16]; // of this segment, of those before
    float p[MAX_QUERIES * SPAN] __attribute__((aligned(64)));
    Gathered state[MAX_QUERIES], before[MAX_QUERIES];
    float16 totals[MAX_QUERIES];
    int segments = 0; // behind this one
    for (int i = 0; i < all; i++) {
        state[i].best = before[i].best = -INFINITY, before[i].total = 0.0f;
        totals[i] = (float16)(0.0f);
    }
    for (int i = 0; i < all * vectors; i++)
        acc[i] = sums[i] = (float16)(0.0f);

    Query q[MAX_QUERIES];
    Span s;
    s.a = a;
    s.q = q;
    s.state = state;
    s.acc = acc;
    s.p = p;
    s.totals = totals;
#if KV_TYPE != KV_F16
    const int groups = padded32(head_width) / 32;
    uchar factors[MAX_QUERIES * MAX_WIDTH * 2] __attribute__((aligned(64)));
    float scales[MAX_QUERIES * MAX_WIDTH / 32];
    int offsets[MAX_QUERIES * MAX_WIDTH / 32];
    uchar weights[MAX_QUERIES * SPAN * 2] __attribute__((aligned(64)));
    float weight_scales[MAX_QUERIES];
    float shares[MAX_QUERIES];
    float16 offsets_sums[MAX_QUERIES * MAX_WIDTH / 32];
    s.weights = weights;
    s.weight_scales = weight_scales;
    s.shares = shares;
    SpanAhead ahead;
    s.ahead = &ahead;
    s.offsets = offsets_sums;
    for (int i = 0; i < all * ((vectors + 1) / 2); i++)
        offsets_sums[i] = (float16)(0.0f);
#endif
    for (int i = 0; i < all; i++) {
        const int row = i % queries / a->heads, head = i / queries * a->heads + i % a->heads;
        const __global float *x = a->q + (long)row * a->q_stride + head * head_width;
#if KV_TYPE == KV_F16
        q[i] = x;
#else
        q[i].factors = factors + 64 * groups * i;
        q[i].scales = scales + groups * i;
        q[i].offsets = offsets + groups * i;
        quantise_query(x, head_width, factors + 64 * groups * i, scales + groups * i, offsets + groups * i);
#endif
    }

    for (int start = a->first / SPAN * SPAN; start < a->last; start += SPAN) {
        if (start > a->first && start % a->segment == 0) {
            segments++;
            settle(&s, all);
            for (int i = 0; i < all; i++) {
                merge_segment(before + i, sums + i * vectors, state[i], acc + i * vectors, vectors);
                state[i].best = -INFINITY;
                totals[i] = (float16)(0.0f);
                for (int d = 0; d < vectors; d++)
                    acc[i * vectors + d] = (float16)(0.0f);
#if KV_TYPE != KV_F16
                for (int g = 0; 2 * g < vectors; g++)
                    offsets_sums[i * ((vectors + 1) / 2) + g] = (float16)(0.0f);
#endif
            }
        }
        s.start = start;
#if KV_TYPE != KV_F16
        look_ahead(&s);
#endif
        s.first = max(0, a->first - start) / POSITIONS;
        s.last = min(SPAN_BLOCKS, (a->last - start + POSITIONS - 1) / POSITIONS);
        for (int k = s.first; k < s.last; k++) {
            const long block = (long)a->block_table[start / POSITIONS + k] * a->kv_heads + a->kv_head;
            s.kt[k] = a->keys + block * key_bytes(head_width);
            s.vt[k] = a->values + block * value_bytes(a->value_width);
        }
        attend_span(&s);
    }
    settle(&s, all);
    for (int i = 0; i < all; i++) {
        const int row = i % queries / a->heads, head = i / queries * a->heads + i % a->heads;
        const float16 *sum = acc + i * vectors;
        if (a->partial) {
            __global float *to = a->partial + row * a->partial_stride + (long)head * (padded + 2);
            for (int d = 0; d < vectors; d++)
                store16(sum[d], to + 16 * d);
            to[padded] = state[i].best;
            to[padded + 1] = state[i].total;
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
    for (int first = 0; first < splits; first += 16) { // factors of sixteen at once: they are what takes time
        const int count = min(16, splits - first);
        float factors[16] __attribute__((aligned(64)));
        float best = all.best;
        *(float16 *)factors = (float16)(0.0f);
        for (int s = 0; s < count; s++) {
            const float own = partial[s * stride + 16 * vectors];
            factors[s] = -fabs(best - own);
            best = own > best ? own : best;
        }
        *(float16 *)factors = exp2_16(*(float16 *)factors);
        for (int s = 0; s < count; s++, partial += stride) {
            part.best = partial[16 * vectors];
            part.total = partial[16 * vectors + 1];
            for (int d = 0; d < vectors; d++)
                part_sum[d] = load16(partial + 16 * d);
            merge_by(&all, sum, part, part_sum, vectors, factors[s]);
        }
    }
    finish_row(all, sum, value_width, sink, out);
}
