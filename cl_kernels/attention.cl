// Flash attention over the paged cache: online softmax, never a score matrix (arXiv 2205.14135), grouped heads.
//
// One block of the cache is 32 positions of all key/value heads of a layer, half precision:
//   keys   [block][kv head][head_width][32]         so that 32 scores grow side by side
//   values [block][kv head][32][padded head width]  padded to a multiple of 16 with zeros

#define POSITIONS 32
#define MAX_QUERIES 32    // query vectors (rows times heads) of one tile
#define MAX_HEAD_WIDTH 256

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

// Rotates the heads of one row in place; table holds cos[half] and sin[half].
static inline void rotate_row(__global float *x, int heads, int head_width, const __global float *table, int half_width,
                              int interleaved)
{
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
    const __global float *k, const __global float *v, int kv_heads, int head_width, int block, int position,
    __global ushort *keys, __global ushort *values)
{
    const int padded = (head_width + 15) / 16 * 16;
    for (int h = 0; h < kv_heads; h++) {
        __global ushort *kt = keys + ((long)block * kv_heads + h) * head_width * POSITIONS + position;
        __global ushort *vt = values + (((long)block * kv_heads + h) * POSITIONS + position) * padded;
        for (int d = 0; d < head_width; d += 16) {
            float kd[16], vd[16];
            for (int i = 0; i < 16; i++) {
                const int in = d + i < head_width;
                kd[i] = in ? k[h * head_width + d + i] : 0.0f;
                vd[i] = in ? v[h * head_width + d + i] : 0.0f;
            }
            const short16 kh = half16_bits(vload16(0, kd));
            for (int i = 0; i < 16 && d + i < head_width; i++)
                kt[(long)(d + i) * POSITIONS] = ((const ushort *)&kh)[i];
            vstore16(half16_bits(vload16(0, vd)), 0, (__global short *)(vt + d));
        }
    }
}

// Query vectors of `rows` adjacent rows and `heads` adjacent heads that share the key/value head kv_head, against the
// positions first .. last-1 of their sequence; row r sees positions up to row_position + r. With partial == 0 the
// result goes to out; otherwise head h of row 0 leaves its unnormalised sum, maximum and total at
// partial + h * (padded + 2), to be joined by combine_partials.
static void attend_tile(
    const __global float *q, int q_stride, int rows, int row_position, int heads, int kv_head, int kv_heads,
    int head_width, float scale, const __global ushort *keys, const __global ushort *values,
    const __global int *block_table, int first, int last, __global float *out, __global float *partial)
{
    const int padded = (head_width + 15) / 16 * 16, queries = rows * heads;
    float kf[MAX_HEAD_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float vf[MAX_HEAD_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float acc[MAX_QUERIES * MAX_HEAD_WIDTH] __attribute__((aligned(64)));
    float best[MAX_QUERIES], total[MAX_QUERIES];
    for (int i = 0; i < queries; i++) {
        best[i] = -INFINITY;
        total[i] = 0.0f;
    }
    for (int i = 0; i < queries * padded; i += 16)
        *(float16 *)(acc + i) = (float16)(0.0f);
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);

    for (int start = first; start < last; start += POSITIONS) {
        const long block = block_table[start / POSITIONS];
        const int written = min(POSITIONS, last - start); // what lies behind may be anything, even not a number
        const __global ushort *kt = keys + (block * kv_heads + kv_head) * head_width * POSITIONS;
        const __global ushort *vt = values + (block * kv_heads + kv_head) * POSITIONS * padded;
        for (int i = 0; i < head_width * POSITIONS; i += 16)
            *(float16 *)(kf + i) = load_half16(kt + i);
        for (int i = 0; i < padded * POSITIONS; i += 16)
            *(float16 *)(vf + i) = load_half16(vt + i);

        for (int j = 0; j < queries; j += 4) {
            // queries j .. j+3; past the end the last one stands in and its result is dropped
            const __global float *qu[4];
            int row[4];
            for (int u = 0; u < 4; u++) {
                const int index = min(j + u, queries - 1);
                row[u] = index / heads;
                qu[u] = q + (long)row[u] * q_stride + (index % heads) * head_width;
            }
            if (row_position + row[3] < start)
                continue; // all of it lies in these rows' future
            float16 s[4][2];
            for (int u = 0; u < 4; u++)
                s[u][0] = s[u][1] = (float16)(0.0f);
            for (int d = 0; d < head_width; d++) {
                const float16 k0 = *(const float16 *)(kf + d * POSITIONS), k1 = *(const float16 *)(kf + d * POSITIONS + 16);
                _Pragma("unroll") for (int u = 0; u < 4; u++)
                {
                    s[u][0] += k0 * qu[u][d];
                    s[u][1] += k1 * qu[u][d];
                }
            }
            float p[4][POSITIONS] __attribute__((aligned(64)));
            float shrink[4];
            for (int u = 0; u < 4; u++) {
                const int seen = row_position + row[u] - start; // the last position that the row sees
                float16 a = s[u][0] * scale, b = s[u][1] * scale;
                if (seen < POSITIONS - 1) {
                    a = select(a, (float16)(-INFINITY), lane > seen);
                    b = select(b, (float16)(-INFINITY), lane + 16 > seen);
                }
                const int i = min(j + u, queries - 1);
                const float now = max(best[i], max16(max(a, b)));
                const float base = now == -INFINITY ? 0.0f : now;
                a = select(exp16(a - base), (float16)(0.0f), a == -INFINITY);
                b = select(exp16(b - base), (float16)(0.0f), b == -INFINITY);
                shrink[u] = best[i] == -INFINITY ? 0.0f : exp16((float16)(best[i] - base)).s0;
                *(float16 *)p[u] = a;
                *(float16 *)(p[u] + 16) = b;
                if (j + u < queries) {
                    total[i] = total[i] * shrink[u] + sum16(a + b);
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
        const float *a = acc + (long)i * padded;
        if (partial) {
            __global float *p = partial + (long)i * (padded + 2);
            for (int d = 0; d < padded; d++)
                p[d] = a[d];
            p[padded] = best[i];
            p[padded + 1] = total[i];
        } else {
            __global float *o = out + (long)(i / heads) * q_stride + (i % heads) * head_width;
            const float inverse = 1.0f / total[i];
            for (int d = 0; d < head_width; d++)
                o[d] = a[d] * inverse;
        }
    }
}

// Joins the partial results of one row: `splits` of them, each heads * (padded + 2) floats.
static void combine_partials(const __global float *partial, int splits, int heads, int head_width, __global float *out)
{
    const int padded = (head_width + 15) / 16 * 16, step = padded + 2;
    for (int h = 0; h < heads; h++) {
        float best = -INFINITY, total = 0.0f;
        for (int s = 0; s < splits; s++)
            best = max(best, partial[((long)s * heads + h) * step + padded]);
        for (int d = 0; d < head_width; d++)
            out[h * head_width + d] = 0.0f;
        for (int s = 0; s < splits; s++) {
            const __global float *p = partial + ((long)s * heads + h) * step;
            const float weight = exp16((float16)(p[padded] - best)).s0;
            total += weight * p[padded + 1];
            for (int d = 0; d < head_width; d++)
                out[h * head_width + d] += weight * p[d];
        }
        for (int d = 0; d < head_width; d++)
            out[h * head_width + d] /= total;
    }
}
