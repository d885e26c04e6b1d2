// Flash attention over the paged cache: online softmax, never a score matrix (arXiv 2205.14135), grouped heads.
//
// One block of the cache is 32 positions of all key/value heads of a layer, half precision:
//   keys   [block][kv head][head_width][32]         so that 32 scores grow side by side
//   values [block][kv head][32][padded value width]  padded to a multiple of 16 with zeros
// The host defines MAX_WIDTH, the widest head of the model, padded.

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

// Attention of some rows and some query heads that share a key/value head.
typedef struct {
    const __global float *q;         // of the first row and head
    int q_stride, out_stride;        // floats between rows
    int rows, heads;                 // rows * heads <= MAX_QUERIES
    int row_position;                // position of the first row in its sequence; the others follow
    int first, last;                 // key positions first .. last-1; first is a multiple of 32
    int kv_head, kv_heads, head_width, value_width;
    float scale, softcap;            // softcap 0: none
    int window;                      // 0: none; else position p reads p - window + 1 .. p
    const __global ushort *keys, *values;
    const __global int *block_table;
    const __global float *sinks;     // of the first head, or 0
    __global float *out;             // of the first row and head
    __global float *partial;         // or 0; see below
} Attend;

// With partial == 0 the result goes to out. Otherwise head h of row 0 leaves its unnormalised sum, its maximum and its
// total at partial + h * (padded value width + 2), to be joined by combine_partials.
static void attend_tile(const Attend *a)
{
    const int padded = padded16(a->value_width), head_width = a->head_width, queries = a->rows * a->heads;
    float kf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float vf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float acc[MAX_QUERIES * MAX_WIDTH] __attribute__((aligned(64)));
    float best[MAX_QUERIES], total[MAX_QUERIES];
    for (int i = 0; i < queries; i++) {
        best[i] = -INFINITY;
        total[i] = 0.0f;
    }
    for (int i = 0; i < queries * padded; i += 16)
        *(float16 *)(acc + i) = (float16)(0.0f);
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    for (int start = a->first; start < a->last; start += POSITIONS) {
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
                at[u] = a->row_position + row;
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
                const float now = max(best[i], max16(max(x, y)));
                const float base = now == -INFINITY ? 0.0f : now;
                x = select(exp16(x - base), (float16)(0.0f), x == -INFINITY);
                y = select(exp16(y - base), (float16)(0.0f), y == -INFINITY);
                shrink[u] = best[i] == -INFINITY ? 0.0f : exp16((float16)(best[i] - base)).s0;
                *(float16 *)p[u] = x;
                *(float16 *)(p[u] + 16) = y;
                if (j + u < queries) {
                    total[i] = total[i] * shrink[u] + sum16(x + y);
                    best[i] = now;
                }
            }
            const int valid = min(4, queries - j);
            for (int d = 0; d < padded; d += 32) {
                const int two = d + 16 < padded;
                float16 o[4][2];
                for (int u = 0; u < 4; u++) {
                    const float *from = acc + (long)min(j + u, queries - 1) * padded + d;
                    o[u][0] = *(const float16 *)from * shrink[u];
                    o[u][1] = two ? *(const float16 *)(from + 16) * shrink[u] : (float16)(0.0f);
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
                    *(float16 *)(acc + (long)(j + u) * padded + d) = o[u][0];
                    if (two)
                        *(float16 *)(acc + (long)(j + u) * padded + d + 16) = o[u][1];
                }
            }
        }
    }
    for (int i = 0; i < queries; i++) {
        const float *from = acc + (long)i * padded;
        if (a->partial) {
            __global float *p = a->partial + (long)i * (padded + 2);
            for (int d = 0; d < padded; d += 16)
                vstore16(*(const float16 *)(from + d), 0, p + d);
            p[padded] = best[i];
            p[padded + 1] = total[i];
        } else {
            __global float *o = a->out + (long)(i / a->heads) * a->out_stride + (i % a->heads) * a->value_width;
            const float sink = a->sinks ? a->sinks[i % a->heads] : -INFINITY;
            const float most = max(best[i], sink), weight = exp16((float16)(best[i] - most)).s0;
            const float sum = total[i] * weight + (a->sinks ? exp16((float16)(sink - most)).s0 : 0.0f);
            int d = 0;
            for (; d + 16 <= a->value_width; d += 16)
                vstore16(*(const float16 *)(from + d) * (weight / sum), 0, o + d);
            for (; d < a->value_width; d++)
                o[d] = from[d] * (weight / sum);
        }
    }
}

// Joins the partial results of one row: `splits` of them, each heads * (padded value width + 2) floats.
static void combine_partials(const __global float *partial, int splits, int heads, int value_width,
                             const __global float *sinks, __global float *out)
{
    const int padded = padded16(value_width), step = padded + 2;
    for (int h = 0; h < heads; h++, out += value_width) {
        float best = sinks ? sinks[h] : -INFINITY;
        for (int s = 0; s < splits; s++)
            best = max(best, partial[((long)s * heads + h) * step + padded]);
        float total = sinks ? exp16((float16)(sinks[h] - best)).s0 : 0.0f;
        float16 sum[MAX_WIDTH / 16];
        for (int d = 0; d < padded / 16; d++)
            sum[d] = (float16)(0.0f);
        for (int s = 0; s < splits; s++) {
            const __global float *p = partial + ((long)s * heads + h) * step;
            const float weight = exp16((float16)(p[padded] - best)).s0;
            total += weight * p[padded + 1];
            for (int d = 0; d < padded / 16; d++)
                sum[d] += weight * load16(p + 16 * d);
        }
        for (int d = 0; d < value_width; d++)
            out[d] = ((const float *)sum)[d] / total;
    }
}
