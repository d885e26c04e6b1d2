// Flash attention over the paged cache: online softmax, never a score matrix (arXiv 2205.14135), grouped heads.
//
// One block of the cache is 32 positions of all key/value heads of a layer, half precision:
//   keys   [block][kv head][head_width][32]         so that 32 scores grow side by side
//   values [block][kv head][32][padded value width]  padded to a multiple of 16 with zeros
// The host defines MAX_WIDTH, the widest head of the model, padded.
//
// A row's positions are cut into segments whose length depends on the row's own position alone (engine/backends/opencl/
// segments.py). Each starts an online softmax of its own, and merge_segment joins them in their order. So a row comes
// out bit for bit the same whether one tile walks through all of its segments or several work-groups take one each, and
// whichever other rows share its tile: a position that a row does not see changes none of its sums.

#define POSITIONS 32
#define MAX_QUERIES 32    // query vectors (rows times heads) of one tile

static inline int padded16(int width) { return (width + 15) / 16 * 16; }

static inline short16 half16_bits(float16 x)
{
    __private short16 bits;
#if defined(REALM_F16_AVX512)
    bits = __builtin_astype(__builtin_ia32_vcvtps2ph512_mask(__builtin_astype(x, v16sf), 0,
                                                             __builtin_astype((short16)(0), v16half), (ushort)0xffff), short16);
#else
    vstore_half16_rte(x, 0, (__private half *)&bits);
#endif
    return bits;
}

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

// Writes the keys and values of one row into slot `position` of physical block `block`.
static inline void store_kv_row(
    const __global float *k, const __global float *v, int kv_heads, int head_width, int value_width, int block,
    int position, __global ushort *keys, __global ushort *values)
{
    const int padded = padded16(value_width);
    for (int h = 0; h < kv_heads; h++, k += head_width, v += value_width) {
        __global ushort *kt = keys + ((long)block * kv_heads + h) * head_width * POSITIONS + position;
        __global ushort *vt = values + (((long)block * kv_heads + h) * POSITIONS + position) * padded;
        float part[16];
        for (int d = 0; d < head_width; d += 16) {
            for (int i = 0; i < 16; i++)
                part[i] = d + i < head_width ? k[d + i] : 0.0f;
            const short16 bits = half16_bits(vload16(0, part));
            for (int i = 0; i < 16 && d + i < head_width; i++)
                kt[(long)(d + i) * POSITIONS] = ((const ushort *)&bits)[i];
        }
        for (int d = 0; d < value_width; d += 16) {
            for (int i = 0; i < 16; i++)
                part[i] = d + i < value_width ? v[d + i] : 0.0f;
            vstore16(half16_bits(vload16(0, part)), 0, (__global short *)(vt + d));
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
    const __global ushort *keys, *values;
    const __global int *block_table;
    const __global float *sinks;     // of the first head, or 0
    __global float *out;             // of the first row and head
    __global float *partial;         // or 0; see below
    long partial_stride;             // floats between rows
} Attend;

// With partial == 0 the result goes to out. Otherwise the positions lie in one segment, and head h of row 0 leaves its
// sum, best and total at partial + h * (padded value width + 2), to be joined by combine_partials.
static void attend_tile(const Attend *a)
{
    const int padded = padded16(a->value_width), head_width = a->head_width, queries = a->rows * a->heads;
    float kf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float vf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float16 acc[MAX_QUERIES * MAX_WIDTH / 16], sums[MAX_QUERIES * MAX_WIDTH / 16]; // of this segment, of those before
    Gathered state[MAX_QUERIES], before[MAX_QUERIES];
    const int vectors = padded / 16;
    int segments = 0; // behind this one
    for (int i = 0; i < queries; i++)
        state[i].best = before[i].best = -INFINITY, state[i].total = before[i].total = 0.0f;
    for (int i = 0; i < queries * vectors; i++)
        acc[i] = sums[i] = (float16)(0.0f);
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

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
        const int written = min(POSITIONS, a->last - start); // what lies behind may be anything, even not a number
        const __global ushort *kt = a->keys + block * head_width * POSITIONS;
        const __global ushort *vt = a->values + block * POSITIONS * padded;
        // the next block is asked for while this one is computed with
        const long next = start + POSITIONS < a->last
                              ? (long)a->block_table[start / POSITIONS + 1] * a->kv_heads + a->kv_head : block;
        for (int i = 0; i < head_width * POSITIONS; i += 32) {
            FETCH(a->keys + next * head_width * POSITIONS + i);
            *(float16 *)(kf + i) = load_half16(kt + i);
            *(float16 *)(kf + i + 16) = load_half16(kt + i + 16);
        }
        for (int i = 0; i < padded * POSITIONS; i += 32) {
            FETCH(a->values + next * POSITIONS * padded + i);
            *(float16 *)(vf + i) = load_half16(vt + i);
            *(float16 *)(vf + i + 16) = load_half16(vt + i + 16);
        }

        for (int j = 0; j < queries; j += 4) {
            // queries j .. j+3; past the end the last one stands in and its result is dropped
            const __global float *qu[4];
            int at[4]; // position of the query's row
            for (int u = 0; u < 4; u++) {
                const int index = min(j + u, queries - 1), row = index / a->heads;
                at[u] = a->whole ? a->last - 1 : a->row_position + row;
                qu[u] = a->q + (long)row * a->q_stride + (index % a->heads) * head_width;
            }
            if (at[3] < start || (a->window && start + POSITIONS <= at[0] - a->window + 1))
                continue; // all of it lies in these rows' future, or before their window
            float16 s[4][2];
            for (int u = 0; u < 4; u++)
                s[u][0] = s[u][1] = (float16)(0.0f);
            for (int d = 0; d < head_width; d++) {
                const float16 k0 = *(const float16 *)(kf + d * POSITIONS);
                const float16 k1 = *(const float16 *)(kf + d * POSITIONS + 16);
                _Pragma("unroll") for (int u = 0; u < 4; u++)
                {
                    s[u][0] += k0 * qu[u][d];
                    s[u][1] += k1 * qu[u][d];
                }
            }
            float p[4][POSITIONS] __attribute__((aligned(64)));
            float shrink[4];
            for (int u = 0; u < 4; u++) {
                const int to = at[u] - start, from = a->window ? to - a->window + 1 : 0; // the lanes that the row sees
                float16 x = s[u][0] * a->scale, y = s[u][1] * a->scale;
                if (a->softcap > 0.0f) {
                    x = activate16(ACT_SOFTCAP, x, a->softcap);
                    y = activate16(ACT_SOFTCAP, y, a->softcap);
                }
                if (to < POSITIONS - 1 || from > 0) {
                    x = select(x, (float16)(-INFINITY), (lane > to) | (lane < from));
                    y = select(y, (float16)(-INFINITY), (lane + 16 > to) | (lane + 16 < from));
                }
                const int i = min(j + u, queries - 1);
                const float now = max(state[i].best, max16(max(x, y)));
                const float base = now == -INFINITY ? 0.0f : now;
                x = select(exp16(x - base), (float16)(0.0f), x == -INFINITY);
                y = select(exp16(y - base), (float16)(0.0f), y == -INFINITY);
                shrink[u] = state[i].best == -INFINITY ? 0.0f : exp16((float16)(state[i].best - base)).s0;
                *(float16 *)p[u] = x;
                *(float16 *)(p[u] + 16) = y;
                if (j + u < queries) {
                    state[i].total = state[i].total * shrink[u] + sum16(x + y);
                    state[i].best = now;
                }
            }
            const int valid = min(4, queries - j);
            for (int d = 0; d < padded; d += 32) {
                const int two = d + 16 < padded;
                float16 o[4][2];
                for (int u = 0; u < 4; u++) {
                    const float16 *from = acc + min(j + u, queries - 1) * vectors + d / 16;
                    o[u][0] = from[0] * shrink[u];
                    o[u][1] = two ? from[1] * shrink[u] : (float16)(0.0f);
                }
                for (int x = 0; x < written; x++) {
                    const float16 v0 = *(const float16 *)(vf + x * padded + d);
                    const float16 v1 = *(const float16 *)(vf + x * padded + (two ? d + 16 : d));
                    _Pragma("unroll") for (int u = 0; u < 4; u++)
                    {
                        o[u][0] += v0 * p[u][x];
                        o[u][1] += v1 * p[u][x];
                    }
                }
                for (int u = 0; u < valid; u++) {
                    acc[(j + u) * vectors + d / 16] = o[u][0];
                    if (two)
                        acc[(j + u) * vectors + d / 16 + 1] = o[u][1];
                }
            }
        }
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
