// Attention over codes: whole numbers of the cache (cache.cl) times whole numbers, the queries and the weights of positions.

// Factors are whole numbers of 15 bits. Four of them are two words: with REALM_BYTES the bytes 128 a + b, a in one word and b
// in the other, otherwise int16 in the order 0, 2 and 1, 3. `count` of them are two arrays of bytes, or one of pairs of
// words. A query for keys of 4 bits is rounded to 8 bits where factors are bytes, which makes one product of two: what
// that loses is a tenth of what these keys have lost.
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

// 64 whole numbers as factors at .. at + 63. The four that begin with 16 i + 4 j are `four` number QUAD(i, j) behind at / 4.
#ifdef REALM_DOT_VNNI512
#define QUAD(i, j) (4 * (j) + (i)) // as packing leaves them
static inline __attribute__((always_inline)) void put_64(const __private int16 *n, __private uchar *factors, int count, int at)
{
    const v32hi low = __builtin_ia32_packssdw512(__builtin_astype(n[0], v16si), __builtin_astype(n[1], v16si));
    const v32hi high = __builtin_ia32_packssdw512(__builtin_astype(n[2], v16si), __builtin_astype(n[3], v16si));
    *(__private v64qi *)(factors + at) = __builtin_ia32_packsswb512(low >> 7, high >> 7);
    *(__private v64qi *)(factors + count + at) = __builtin_ia32_packsswb512(low & 127, high & 127);
}
#else
#define QUAD(i, j) (4 * (i) + (j))
static inline __attribute__((always_inline)) void put_64(const __private int16 *n, __private uchar *factors, int count, int at)
{
    for (int i = 0; i < 4; i++)
        put_factors(n[i], factors, count, at + 16 * i);
}
#endif

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

// Of bytes that hold two codes of 4 bits: the second one stays where it is, times 16
#define LOW_CODES 0x0f0f0f0f
#define HIGH_CODES ((int)0xf0f0f0f0)

// sums: `count` of them
static inline __attribute__((always_inline)) void dot_codes(__private int16 *sums, int count, Codes c, Four x)
{
#ifdef REALM_BYTES
    sums[0] = dot4(sums[0], c, x.a);
    if (count > 1)
        sums[1] = dot4(sums[1], c, x.b);
#else
    sums[0].lo = dot2(dot2(sums[0].lo, c.even.lo, x.a), c.odd.lo, x.b);
    sums[0].hi = dot2(dot2(sums[0].hi, c.even.hi, x.a), c.odd.hi, x.b);
#endif
}

static inline __attribute__((always_inline)) int16 dot_total(const __private int16 *sums, int count)
{
    return count > 1 ? (sums[0] << 7) + sums[1] : sums[0];
}

#define ROUND_MAGIC 12582912.0f    // x + this has x, rounded to the nearest whole number, in its lowest bits
#define ROUND_MAGIC_BITS 0x4b400000

// With codes of 4 bits and factors as bytes, queries and weights have 8 bits, which makes one product of two. What that
// loses is little beside what such keys and values have lost.
#if defined(REALM_BYTES) && KV_TYPE == KV_Q4_0
#define ONE_BYTE
#define FACTOR_SUMS 1
#define LARGEST_WHOLE 127.0f
// Weights are cut at what is whole after a part of one has been added, another one in each of sixteen lanes: so many weights
// that are small beside the largest keep their sum.
#define WEIGHT_MAGIC                                                                                                   \
    (49152.0f + 0.03125f * (float16)(1, 17, 9, 25, 5, 21, 13, 29, 3, 19, 11, 27, 7, 23, 15, 31)) // eight bits behind the point
#define WEIGHT_MAGIC_BITS 0x47400000
#else
#define FACTOR_SUMS SUMS
#define LARGEST_WHOLE LARGEST_FACTOR
#define WEIGHT_MAGIC ROUND_MAGIC
#define WEIGHT_MAGIC_BITS ROUND_MAGIC_BITS
#endif

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
        const float inverse = largest > 0.0f ? LARGEST_WHOLE / largest : 0.0f;
        const int16 low = __builtin_astype(a * inverse + ROUND_MAGIC, int16) - ROUND_MAGIC_BITS;
        const int16 high = __builtin_astype(b * inverse + ROUND_MAGIC, int16) - ROUND_MAGIC_BITS;
#ifdef ONE_BYTE
        *(__private uchar16_unaligned *)(factors + d) = __builtin_convertvector(low, uchar16);
        *(__private uchar16_unaligned *)(factors + d + 16) = __builtin_convertvector(high, uchar16);
#else
        put_factors(low, factors, padded32(width), d);
        put_factors(high, factors, padded32(width), d + 16);
#endif
        scales[d / 32] = largest / LARGEST_WHOLE;
        offsets[d / 32] = CODE_ZERO * sum_int16(low + high);
    }
}

// The largest scale of the values' columns 32 g .. 32 g + 31 in the span, no number where one of them is none. offset: bytes
// from the first head's values to this one's.
static inline float largest_scale(const Span *s, int g, long offset)
{
    const long at = offset + code_bytes(s->a->value_width) + 2 * POSITIONS * g;
    short16 most = (short16)(0); // bits of numbers that are not negative: they have their order, and what is none is above all
    _Pragma("unroll") for (int k = 0; k < SPAN_BLOCKS; k++)
    {
        const short16 a = load_short16(s->vt[k] + at) & (short)0x7fff, b = load_short16(s->vt[k] + at + 32) & (short)0x7fff;
        const short16 ab = a > b ? a : b;
        most = most > ab ? most : ab;
    }
    const short8 a = most.lo > most.hi ? most.lo : most.hi;
    const short4 b = a.lo > a.hi ? a.lo : a.hi;
    const short2 c = b.lo > b.hi ? b.lo : b.hi;
    const short bits = c.x > c.y ? c.x : c.y;
    return vload_half(0, (const __private half *)&bits);
}

#if defined(ONE_BYTE) && defined(REALM_DOT_VNNI512)
// As put_64, of numbers with eight bits behind the point, to whose bits WEIGHT_MAGIC_BITS are added; returns their sums.
static inline __attribute__((always_inline)) int16 put_bytes(const __private int16 *n, __private uchar *factors)
{
#ifdef __AVX512VBMI__
    // the second bytes, in the order in which packing leaves them
#define SECOND(i) 16 * i + 1, 16 * i + 5, 16 * i + 9, 16 * i + 13, 16 * i + 65, 16 * i + 69, 16 * i + 73, 16 * i + 77
#define NONE 0, 0, 0, 0, 0, 0, 0, 0
    const v64qi low = {SECOND(0), NONE, SECOND(1), NONE, SECOND(2), NONE, SECOND(3), NONE};
    const v64qi high = {NONE, SECOND(0), NONE, SECOND(1), NONE, SECOND(2), NONE, SECOND(3)};
#undef SECOND
#undef NONE
    const v64qi a = __builtin_ia32_vpermi2varqi512(__builtin_astype(n[0], v64qi), low, __builtin_astype(n[1], v64qi));
    const v64qi b = __builtin_ia32_vpermi2varqi512(__builtin_astype(n[2], v64qi), high, __builtin_astype(n[3], v64qi));
    const v64qi bytes = __builtin_ia32_selectb_512(0xff00ff00ff00ff00ul, b, a);
#else
    const int16 bits = (int16)(WEIGHT_MAGIC_BITS);
    const v32hi low = __builtin_ia32_packssdw512(__builtin_astype(n[0] - bits, v16si), __builtin_astype(n[1] - bits, v16si));
    const v32hi high = __builtin_ia32_packssdw512(__builtin_astype(n[2] - bits, v16si), __builtin_astype(n[3] - bits, v16si));
    const v64qi bytes = __builtin_ia32_packsswb512(low >> 8, high >> 8);
#endif
    *(__private v64qi *)factors = bytes;
    return __builtin_astype(__builtin_ia32_vpdpbusd512(__builtin_astype((int16)(0), v16si),
                                                       __builtin_astype((int16)(0x01010101), v16si),
                                                       __builtin_astype(bytes, v16si)),
                            int16);
}
#elif defined(ONE_BYTE)
static inline int16 put_bytes(const __private int16 *n, __private uchar *factors)
{
    int16 sum = (int16)(0);
    for (int i = 0; i < 4; i++) {
        const int16 whole = (n[i] - WEIGHT_MAGIC_BITS) >> 8;
        sum += whole;
        *(__private uchar16_unaligned *)(factors + 16 * i) = __builtin_convertvector(whole, uchar16);
    }
    return sum;
}
#endif

// The weights of query i for columns 32 g .. 32 g + 31 of the values, w + WEIGHT_MAGIC, as factors.
static inline __attribute__((always_inline)) void put_weights(const Span *s, int i, int g, const __private float16 *w, float scale)
{
    int16 sum = (int16)(0);
    _Pragma("unroll") for (int part = 0; part < SPAN / 64; part++)
    {
        int16 n[4];
        _Pragma("unroll") for (int k = 0; k < 4; k++) n[k] = __builtin_astype(w[4 * part + k], int16);
#ifdef ONE_BYTE
        sum += put_bytes(n, s->weights + i * 2 * SPAN + 64 * part);
#else
        _Pragma("unroll") for (int k = 0; k < 4; k++) sum += n[k] -= WEIGHT_MAGIC_BITS;
        put_64(n, s->weights + i * 2 * SPAN, SPAN, 64 * part);
#endif
    }
    s->weight_scales[i] = scale;
    s->offsets[i * (padded32(s->a->value_width) / 32) + g] += to_float(sum) * scale;
}

// Where the row does not see all of the span: a scale of which it sees nothing may be no number.
static inline void weigh_seen(const Span *s, int i, int g, const __global uchar *const *vt)
{
    const long at = code_bytes(s->a->value_width) + 2 * POSITIONS * g;
    float16 w[2 * SPAN_BLOCKS];
    int16 most = (int16)(0);
    for (int k = 0; k < 2 * SPAN_BLOCKS; k++) {
        w[k] = (float16)(0.0f);
        if (k / 2 < s->first || k / 2 >= s->last)
            continue;
        const float16 e = *(const __private float16 *)(s->p + i * SPAN + 16 * k);
        w[k] = e > 0.0f ? e * load_half16(vt[k / 2] + at + 32 * (k % 2)) : (float16)(0.0f);
        const int16 bits = __builtin_astype(w[k], int16) & 0x7fffffff;
        most = most > bits ? most : bits;
    }
    const float largest = as_float(max_int16(most)), inverse = largest > 0.0f ? LARGEST_WHOLE / largest : 0.0f;
    for (int k = 0; k < 2 * SPAN_BLOCKS; k++)
        w[k] = w[k] * inverse + WEIGHT_MAGIC;
    put_weights(s, i, g, w, s->shares[i] * (largest / LARGEST_WHOLE));
}

// The weights of a head's queries j .. j + queries - 1 for columns 32 g .. 32 g + 31 of the values: p times their scales.
static inline __attribute__((always_inline)) void weigh(
    const Span *s, int j, int queries, int g, const __global uchar *const *vt, float largest)
{
    const long at = code_bytes(s->a->value_width) + 2 * POSITIONS * g;
    float16 scales[2 * SPAN_BLOCKS], w[2 * SPAN_BLOCKS];
    int known = 0;
    for (int i = j; i < j + queries; i++) {
        ask_ahead(s, LINES_OF_WEIGHTS);
        if (!sees_all(s, i)) {
            weigh_seen(s, i, g, vt);
            continue;
        }
        if (!known) {
            const float inverse = largest > 0.0f ? LARGEST_WHOLE / largest : 0.0f;
            _Pragma("unroll") for (int k = 0; k < 2 * SPAN_BLOCKS; k++)
                scales[k] = load_half16(vt[k / 2] + at + 32 * (k % 2)) * inverse;
            known = 1;
        }
        _Pragma("unroll") for (int k = 0; k < 2 * SPAN_BLOCKS; k++)
            w[k] = *(const __private float16 *)(s->p + i * SPAN + 16 * k) * scales[k] + WEIGHT_MAGIC;
        put_weights(s, i, g, w, s->shares[i] * (largest / LARGEST_WHOLE));
    }
}
