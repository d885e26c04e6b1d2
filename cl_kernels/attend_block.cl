// A tile's work on blocks of a cache of floats, for N query vectors at once. Included for each N up to DIRECT, which names it by
// B(name): a loop is only unrolled, and its sums only kept in registers, where its length stands there as a number.

// Times sixteen lanes that a query's sums have at once: as many as registers hold. Sixteen lanes are two of AVX2's sixteen
// registers and one of AVX-512's thirty-two.
#if defined(REALM_F16_AVX512) || N < 3
#define VECTORS 2
#else
#define VECTORS 1
#endif

// Few queries leave the processor waiting for sums: where it has registers for them, two blocks of keys go together, or four
// vectors of columns of the values.
#if N <= MOST_PAIRED
#define PAIRS
#endif

#define EACH_QUERY _Pragma("unroll") for (int u = 0; u < N; u++)
#define EACH_VECTOR _Pragma("unroll") for (int i = 0; i < VECTORS; i++)
#define EACH_OF(n) _Pragma("unroll") for (int i = 0; i < n; i++)

// Scores of queries j .. j + N - 1 with the keys kt of BLOCKS blocks of the span from block k on; kf: the keys of one block
// as floats, or 0. WIDE: times sixteen lanes at once, all of them if there is more than one block.
#define DEFINE_SCORES(NAME, BLOCKS, WIDE)                                                                              \
    static inline __attribute__((always_inline)) void B(NAME)(                                                         \
        const Span *s, int j, int k, const __global uchar *const *kt, const __private float *kf,                       \
        const __global uchar *const *ahead)                                                                            \
    {                                                                                                                  \
        const int head_width = s->a->head_width;                                                                       \
        const __private Query *q = s->q + j;                                                                           \
        for (int part = 0; part < 2 * BLOCKS; part += WIDE) {                                                          \
            float16 sum[N][WIDE];                                                                                      \
            EACH_QUERY EACH_OF(WIDE) sum[u][i] = (float16)(0.0f);                                                      \
            _Pragma("unroll 4") for (int d = 0; d < head_width; d++)                                                   \
            {                                                                                                          \
                float16 key[WIDE];                                                                                     \
                EACH_OF(WIDE)                                                                                          \
                {                                                                                                      \
                    const long at = (long)d * POSITIONS + 16 * (BLOCKS == 1 ? part + i : i % 2);                       \
                    key[i] = kf ? *(const __private float16 *)(kf + at) : load_half16(kt[i / 2] + 2 * at);             \
                    if (BLOCKS == 1 ? i == 0 && part == 0 : i % 2 == 0)                                                \
                        FETCH(ahead[i / 2] + 2 * POSITIONS * (long)d);                                                 \
                }                                                                                                      \
                EACH_QUERY                                                                                             \
                {                                                                                                      \
                    const float x = q[u][d];                                                                           \
                    EACH_OF(WIDE) sum[u][i] += key[i] * x;                                                             \
                }                                                                                                      \
            }                                                                                                          \
            EACH_QUERY EACH_OF(WIDE)                                                                                   \
                *(__private float16 *)(s->p + (j + u) * SPAN + POSITIONS * k + 16 * (part + i)) = sum[u][i];           \
        }                                                                                                              \
    }

DEFINE_SCORES(scores, 1, VECTORS)
#ifdef PAIRS
DEFINE_SCORES(scores_of_two, 2, 4)
#endif
#undef DEFINE_SCORES

// Adds sixteen times WIDE columns, from vector d on, of the values vt of block k, of whose positions `written` are there, to
// what queries j .. j + N - 1 have gathered; vf: these values as floats, or 0.
#define DEFINE_VALUES(NAME, WIDE)                                                                                      \
    static inline __attribute__((always_inline)) void B(NAME)(                                                         \
        const Span *s, int j, int k, int written, const __global uchar *vt, const __private float *vf,                 \
        const __global uchar *ahead, int d, int vectors)                                                               \
    {                                                                                                                  \
        const __private float *p = s->p + j * SPAN + POSITIONS * k;                                                    \
        __private float16 *acc = s->acc + j * vectors + d;                                                             \
        float16 o[N][WIDE];                                                                                            \
        EACH_QUERY EACH_OF(WIDE) o[u][i] = acc[u * vectors + i];                                                       \
        _Pragma("unroll 4") for (int x = 0; x < written; x++)                                                          \
        {                                                                                                              \
            const long at = 16 * ((long)x * vectors + d);                                                              \
            EACH_OF(WIDE)                                                                                              \
            {                                                                                                          \
                const long from = at + 16 * i;                                                                         \
                const float16 v = vf ? *(const __private float16 *)(vf + from) : load_half16(vt + 2 * from);           \
                if (i % 2 == 0 && (WIDE > 1 || d % 2 == 0))                                                            \
                    FETCH(ahead + 2 * from);                                                                           \
                EACH_QUERY o[u][i] += v * p[u * SPAN + x];                                                             \
            }                                                                                                          \
        }                                                                                                              \
        EACH_QUERY EACH_OF(WIDE) acc[u * vectors + i] = o[u][i];                                                       \
    }

DEFINE_VALUES(columns_1, 1)
#if VECTORS == 2
DEFINE_VALUES(columns_2, 2)
#endif
#ifdef PAIRS
DEFINE_VALUES(columns_4, 4)
#endif
#undef DEFINE_VALUES

static inline __attribute__((always_inline)) void B(values)(
    const Span *s, int j, int k, int written, const __global uchar *vt, const __private float *vf,
    const __global uchar *ahead)
{
    const int vectors = padded16(s->a->value_width) / 16;
    int d = 0;
#ifdef PAIRS
    for (; d + 4 <= vectors; d += 4)
        B(columns_4)(s, j, k, written, vt, vf, ahead, d, vectors);
#endif
#if VECTORS == 2
    for (; d + 2 <= vectors; d += 2)
        B(columns_2)(s, j, k, written, vt, vf, ahead, d, vectors);
#endif
    for (; d < vectors; d++)
        B(columns_1)(s, j, k, written, vt, vf, ahead, d, vectors);
}

#undef VECTORS
#undef PAIRS
#undef EACH_OF
#undef EACH_QUERY
#undef EACH_VECTOR
