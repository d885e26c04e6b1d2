// A tile's work on blocks of a cache of codes, for N query vectors at once; included as attend_block.cl is.

#if defined(REALM_F16_AVX512) || N < 3
#define VECTORS 2
#else
#define VECTORS 1
#endif

#if N * VECTORS * FACTOR_SUMS <= 8 // a product takes as long as seven others need to begin
#define CHAINS 2
#else
#define CHAINS 1
#endif

#define EACH_QUERY _Pragma("unroll") for (int u = 0; u < N; u++)
#define EACH_VECTOR _Pragma("unroll") for (int i = 0; i < VECTORS; i++)

// Scores of queries j .. j + N - 1 with the keys of `blocks` blocks of the span from block k on, those of block k + i at kt[i].
static inline __attribute__((always_inline)) void B(scores_of)(
    const Span *s, int j, int k, int blocks, const __global uchar *const *kt)
{
    const int head_width = s->a->head_width, factors = padded32(head_width), wide = blocks * VECTORS;
    const long at_scales = code_bytes(head_width);
    const __private Query *q = s->q + j;
    __private float *p = s->p + j * SPAN + POSITIONS * k;
    for (int part = 0; part < 2; part += VECTORS)
        for (int g = 0; 32 * g < head_width; g++) {
            int16 dot[N][2 * VECTORS][FACTOR_SUMS];
            EACH_QUERY _Pragma("unroll") for (int i = 0; i < 2 * VECTORS; i++)
            {
                dot[u][i][0] = (int16)(0);
                dot[u][i][FACTOR_SUMS - 1] = (int16)(-q[u].offsets[g]);
            }
            // not unrolled: registers would not suffice for all that would be loaded first
            _Pragma("nounroll") for (int e = 0; e < CODE_BITS; e++)
            {
                ask_ahead(s, LINES_OF_SCORES(N));
#if KV_TYPE == KV_Q8_0
                Four x[N];
                EACH_QUERY x[u] = four(q[u].factors, factors, 8 * g + e);
#else
                Four x[N], y[N];
                EACH_QUERY
                {
                    x[u] = four(q[u].factors, factors, 8 * g + 2 * e);
                    y[u] = four(q[u].factors, factors, 8 * g + 2 * e + 1);
                }
#endif
                _Pragma("unroll") for (int i = 0; i < wide; i++)
                {
                    const int at = ((g * CODE_BITS + e) * POSITIONS + 16 * (part + i % VECTORS)) * 4;
                    const int16 bytes = load_int16(kt[i / VECTORS] + at);
#if KV_TYPE == KV_Q8_0
                    const Codes codes = codes_of(bytes);
                    EACH_QUERY dot_codes(dot[u][i], FACTOR_SUMS, codes, x[u]);
#else
                    const Codes low = codes_of(bytes & 0x0f0f0f0f), high = codes_of((bytes >> 4) & 0x0f0f0f0f);
                    EACH_QUERY
                    {
                        dot_codes(dot[u][i], FACTOR_SUMS, low, x[u]);
                        dot_codes(dot[u][i], FACTOR_SUMS, high, y[u]);
                    }
#endif
                }
            }
            _Pragma("unroll") for (int i = 0; i < wide; i++)
            {
                const int lanes = 16 * (part + i % VECTORS);
                const long at = at_scales + 2 * (g * POSITIONS + lanes);
                const float16 scale = load_half16(kt[i / VECTORS] + at);
                EACH_QUERY
                {
                    __private float16 *sum = (__private float16 *)(p + u * SPAN + POSITIONS * (i / VECTORS) + lanes);
                    const float16 before = g ? *sum : (float16)(0.0f);
                    *sum = to_float(dot_total(dot[u][i], FACTOR_SUMS)) * (scale * q[u].scales[g]) + before;
                }
            }
        }
}

// As above, for one or two blocks.
static inline __attribute__((always_inline)) void B(scores)(
    const Span *s, int j, int k, int blocks, const __global uchar *const *kt)
{
#if N * FACTOR_SUMS <= 6 // whose sums for two blocks are as many as registers
    if (blocks == 2) {
        B(scores_of)(s, j, k, 2, kt);
        return;
    }
#endif
    for (int i = 0; i < blocks; i++)
        B(scores_of)(s, j, k + i, 1, kt + i);
}

// Adds columns 32 g .. 32 g + 31 of the values of the span, those of block k at vt[k], to what queries j .. j + N - 1 have
// gathered.
static inline __attribute__((always_inline)) void B(values)(
    const Span *s, int j, int g, const __global uchar *const *vt)
{
    const Attend *a = s->a;
    const int vectors = padded16(a->value_width) / 16, groups = padded32(a->value_width) / 32;
    const __private uchar *weights = s->weights + j * 2 * SPAN;
    // the blocks that one of the queries sees
    const int last = min(s->last, (position_of(a, j + N - 1) - s->start) / POSITIONS + 1);
    const int from = a->window ? position_of(a, j) - a->window + 1 - s->start : 0;
    const int first = max(s->first, max(from, 0) / POSITIONS);
    for (int part = 0; part < 2; part += VECTORS) {
        int16 dot[CHAINS][N][VECTORS][FACTOR_SUMS];
        _Pragma("unroll") for (int c = 0; c < CHAINS; c++)
            EACH_QUERY EACH_VECTOR _Pragma("unroll") for (int x = 0; x < FACTOR_SUMS; x++) dot[c][u][i][x] = (int16)(0);
        for (int k = first; k < last; k++) {
            const int quad = 16 * (k / 2) + QUAD(k % 2 * 2, 0);
            // not unrolled: registers would not suffice for all that would be loaded first
            _Pragma("nounroll") for (int j4 = 0; j4 < 4; j4++)
            {
                ask_ahead(s, LINES_OF_VALUES(N));
                _Pragma("unroll") for (int i16 = 0; i16 < 2; i16++)
                {
                    const int e = 4 * i16 + j4;
                    Four w[N];
                    EACH_QUERY w[u] = four(weights + u * 2 * SPAN, SPAN, quad + QUAD(i16, j4));
#if KV_TYPE == KV_Q4_0
                    const int16 bytes = load_int16(vt[k] + (e * groups + g) * 64);
#endif
                    EACH_VECTOR
                    {
#if KV_TYPE == KV_Q8_0
                        const int at = (e * groups + g) * 128 + 64 * (part + i);
                        const Codes codes = codes_of(load_int16(vt[k] + at));
#else
                        const Codes codes = codes_of(bytes & (part + i ? HIGH_CODES : LOW_CODES));
#endif
                        EACH_QUERY dot_codes(dot[i16 % CHAINS][u][i], FACTOR_SUMS, codes, w[u]);
                    }
                }
            }
        }
        EACH_QUERY EACH_VECTOR
            if (2 * g + part + i < vectors) {
                int16 sum = dot_total(dot[0][u][i], FACTOR_SUMS);
                if (CHAINS > 1)
                    sum += dot_total(dot[CHAINS - 1][u][i], FACTOR_SUMS);
                const float scale = s->weight_scales[j + u] * (KV_TYPE == KV_Q4_0 && part + i ? 0.0625f : 1.0f);
                s->acc[(j + u) * vectors + 2 * g + part + i] += to_float(sum) * scale;
            }
    }
}

#undef VECTORS
#undef CHAINS
#undef EACH_QUERY
#undef EACH_VECTOR
