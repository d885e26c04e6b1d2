// A tile's work on blocks of the cache, for N query vectors at once. Included for each N up to DIRECT, which names it by
// B(name): a loop is only unrolled, and its sums only kept in registers, where its length stands there as a number.

// Times sixteen lanes that a query's sums have at once: as many as registers hold. Sixteen lanes are two of AVX2's sixteen
// registers and one of AVX-512's thirty-two.
#if defined(REALM_F16_AVX512) || N < 3
#define VECTORS 2
#else
#define VECTORS 1
#endif

#define EACH_QUERY _Pragma("unroll") for (int u = 0; u < N; u++)
#define EACH_VECTOR _Pragma("unroll") for (int i = 0; i < VECTORS; i++)

#if KV_TYPE == KV_F16

// Scores of queries j .. j + N - 1 with the keys kt of block k of the span; kf: these keys as floats, or 0.
static inline __attribute__((always_inline)) void B(scores)(
    const Span *s, int j, int k, const __global uchar *kt, const __private float *kf, const __global uchar *ahead)
{
    const int head_width = s->a->head_width;
    const __private Query *q = s->q + j;
    for (int part = 0; part < 2; part += VECTORS) {
        float16 sum[N][VECTORS];
        EACH_QUERY EACH_VECTOR sum[u][i] =
            (float16)(0.0f);
        _Pragma("unroll 4") for (int d = 0; d < head_width; d++) {
            float16 key[VECTORS];
            if (part == 0)
                FETCH(ahead + 2 * POSITIONS * d);
            EACH_VECTOR
            {
                const int at = d * POSITIONS + 16 * (part + i);
                key[i] = kf ? *(const __private float16 *)(kf + at) : load_half16(kt + 2 * at);
            }
            EACH_QUERY
            {
                const float x = q[u][d];
                EACH_VECTOR sum[u][i] += key[i] * x;
            }
        }
        EACH_QUERY EACH_VECTOR
            *(__private float16 *)(s->p + (j + u) * SPAN + POSITIONS * k + 16 * (part + i)) = sum[u][i];
    }
}

// Adds the values vt of block k, of whose positions `written` are there, to what queries j .. j + N - 1 have gathered; vf:
// these values as floats, or 0.
static inline __attribute__((always_inline)) void B(values)(
    const Span *s, int j, int k, int written, const __global uchar *vt, const __private float *vf,
    const __global uchar *ahead)
{
    const int vectors = padded16(s->a->value_width) / 16;
    const __private float *p = s->p + j * SPAN + POSITIONS * k;
    for (int d = 0; d < vectors; d += VECTORS) {
        const int more = VECTORS == 2 && d + 1 < vectors;
        __private float16 *acc = s->acc + j * vectors + d;
        float16 o[N][VECTORS];
        EACH_QUERY EACH_VECTOR o[u][i] =
            acc[u * vectors + i * more];
        _Pragma("unroll 4") for (int x = 0; x < written; x++)
        {
            if (d % 2 == 0)
                FETCH(ahead + 32 * (x * vectors + d));
            EACH_VECTOR
            {
                const int at = 16 * (x * vectors + d + i * more);
                const float16 v = vf ? *(const __private float16 *)(vf + at) : load_half16(vt + 2 * at);
                EACH_QUERY o[u][i] += v * p[u * SPAN + x];
            }
        }
        EACH_QUERY
        {
            acc[u * vectors] = o[u][0];
            if (more)
                acc[u * vectors + 1] = o[u][VECTORS - 1];
        }
    }
}

#else

// As above.
static inline __attribute__((always_inline)) void B(scores)(
    const Span *s, int j, int k, const __global uchar *kt, const __global uchar *ahead)
{
    const int head_width = s->a->head_width, factors = padded32(head_width);
    const __global uchar *scales = kt + code_bytes(head_width);
    const __private Query *q = s->q + j;
    for (int part = 0; part < 2; part += VECTORS) {
        float16 sum[N][VECTORS];
        EACH_QUERY EACH_VECTOR sum[u][i] =
            (float16)(0.0f);
        for (int g = 0; 32 * g < head_width; g++) {
            int16 dot[N][VECTORS][SUMS];
            EACH_QUERY EACH_VECTOR
            {
                dot[u][i][0] = (int16)(0);
                dot[u][i][SUMS - 1] = (int16)(-q[u].offsets[g]);
            }
            _Pragma("unroll") for (int e = 0; e < CODE_BITS; e++) EACH_VECTOR
            {
                const int at = ((g * CODE_BITS + e) * POSITIONS + 16 * (part + i)) * 4;
                const int16 bytes = load_int16(kt + at);
                FETCH(ahead + at);
#if KV_TYPE == KV_Q8_0
                const Codes codes = codes_of(bytes);
                EACH_QUERY dot_codes(dot[u][i], codes, four(q[u].factors, factors, 8 * g + e));
#else
                const Codes low = codes_of(bytes & 0x0f0f0f0f), high = codes_of((bytes >> 4) & 0x0f0f0f0f);
                EACH_QUERY
                {
                    dot_codes(dot[u][i], low, four(q[u].factors, factors, 8 * g + 2 * e));
                    dot_codes(dot[u][i], high, four(q[u].factors, factors, 8 * g + 2 * e + 1));
                }
#endif
            }
            EACH_VECTOR
            {
                const int at = 2 * (g * POSITIONS + 16 * (part + i));
                const float16 scale = load_half16(scales + at);
                if (part + i == 0)
                    FETCH(ahead + (scales - kt) + at);
                EACH_QUERY sum[u][i] += to_float(dot_total(dot[u][i])) * (scale * q[u].scales[g]);
            }
        }
        EACH_QUERY EACH_VECTOR
            *(__private float16 *)(s->p + (j + u) * SPAN + POSITIONS * k + 16 * (part + i)) = sum[u][i];
    }
}

// Adds columns 32 g .. 32 g + 31 of the values of the span, to what queries j .. j + N - 1 have gathered.
static inline __attribute__((always_inline)) void B(values)(const Span *s, int j, int g, int head)
{
    const int vectors = padded16(s->a->value_width) / 16, groups = padded32(s->a->value_width) / 32;
    const __private uchar *weights = s->weights + j * 2 * SPAN;
    for (int part = 0; part < 2; part += VECTORS) {
        int16 dot[N][VECTORS][SUMS];
        EACH_QUERY EACH_VECTOR
        {
            dot[u][i][0] = (int16)(0);
            dot[u][i][SUMS - 1] = (int16)(-s->weight_offsets[j + u]);
        }
        for (int k = s->first; k < s->last; k++) {
            if (unseen(s->a, j, N, s->start + POSITIONS * k, s->start + POSITIONS * (k + 1)))
                continue;
            const __global uchar *vt = s->vt[k] + head * value_bytes(s->a->value_width);
            const __global uchar *ahead = ahead_of(s, k, 1, head, vt);
            FETCH(ahead + code_bytes(s->a->value_width) + 2 * POSITIONS * g);
            _Pragma("unroll 2") for (int e = 0; e < POSITIONS / 4; e++)
            {
                Four w[N];
                EACH_QUERY w[u] = four(weights + u * 2 * SPAN, SPAN, POSITIONS / 4 * k + e);
#if KV_TYPE == KV_Q4_0
                const int16 bytes = load_int16(vt + (e * groups + g) * 64);
                FETCH(ahead + (e * groups + g) * 64);
#endif
                EACH_VECTOR
                {
#if KV_TYPE == KV_Q8_0
                    const int at = (e * groups + g) * 128 + 64 * (part + i);
                    const Codes codes = codes_of(load_int16(vt + at));
                    FETCH(ahead + at);
#else
                    const Codes codes = codes_of((part + i ? bytes >> 4 : bytes) & 0x0f0f0f0f);
#endif
                    EACH_QUERY dot_codes(dot[u][i], codes, w[u]);
                }
            }
        }
        EACH_QUERY EACH_VECTOR
            if (2 * g + part + i < vectors)
                s->acc[(j + u) * vectors + 2 * g + part + i] += to_float(dot_total(dot[u][i])) * s->weight_scales[j + u];
    }
}

#endif

#undef VECTORS
#undef EACH_QUERY
#undef EACH_VECTOR
