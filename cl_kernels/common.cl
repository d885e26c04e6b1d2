// What every kernel shares: vector arithmetic and its variants.
//
// The host defines one REALM_DOT_* for the integer dot product and, where the CPU has them, REALM_F16_* for
// conversions. Without any of them the code below is plain OpenCL C.

#pragma OPENCL FP_CONTRACT ON

#ifdef REALM_DOT_VNNI512
typedef int v16si __attribute__((vector_size(64)));
typedef char v64qi __attribute__((vector_size(64)));
typedef short v32hi __attribute__((vector_size(64)));
#endif
#if defined(REALM_DOT_AVX2) || defined(REALM_DOT_AVX_VNNI)
typedef char v32qi __attribute__((vector_size(32)));
typedef short v16hi __attribute__((vector_size(32)));
typedef int v8si __attribute__((vector_size(32)));
#endif
#ifdef REALM_F16_AVX512
typedef short v16half __attribute__((vector_size(32)));
typedef float v16sf __attribute__((vector_size(64)));
#endif
#ifdef REALM_F16_F16C
typedef short v8half __attribute__((vector_size(16)));
typedef float v8sf __attribute__((vector_size(32)));
#endif

// A single row of activations waits for memory: weights are asked for this many bytes before they are used. The
// processor does so by itself only within a page.
#define FETCH_BYTES 8192

// Asks for the cache line at p, which need not exist.
#ifdef __clang__
#define FETCH(p) __builtin_prefetch((const __private void *)(size_t)(p))
#else
#define FETCH(p) (void)(p)
#endif

// Integer products. Activations have 15 bits (prepare.cl), which two forms hold:
//   REALM_BYTES: two signed bytes each, for dot4. Two products of bytes are one of 15 bits.
//   otherwise: int16, for dot2. On AVX2 a product of int16 takes half the time of one of bytes, of which it would
//   need two, and nothing saturates.
#if defined(REALM_DOT_VNNI512) && !defined(REALM_BYTES)
#define REALM_BYTES
#endif
#ifdef REALM_BYTES

// acc[lane] += sum over 4 bytes of (unsigned byte of w[lane]) * (signed byte of x[lane])
static inline __attribute__((always_inline)) int16 dot4_each(int16 acc, int16 w, int16 x)
{
#ifdef REALM_DOT_VNNI512
    return __builtin_astype(
        __builtin_ia32_vpdpbusd512(__builtin_astype(acc, v16si), __builtin_astype(w, v16si),
                                   __builtin_astype(x, v16si)),
        int16);
#else
    acc += (w & 0xff) * ((x << 24) >> 24);
    acc += ((w >> 8) & 0xff) * ((x << 16) >> 24);
    acc += ((w >> 16) & 0xff) * ((x << 8) >> 24);
    return acc + ((w >> 24) & 0xff) * (x >> 24);
#endif
}

// The same with one word for all lanes
static inline __attribute__((always_inline)) int16 dot4(int16 acc, int16 w, int x)
{
    return dot4_each(acc, w, (int16)(x));
}

// Sums of bytes, each modulo 256
static inline __attribute__((always_inline)) int16 add_bytes(int16 a, int16 b)
{
#ifdef REALM_DOT_VNNI512
    return __builtin_astype(__builtin_astype(a, v64qi) + __builtin_astype(b, v64qi), int16);
#else
    return ((a & 0x7f7f7f7f) + (b & 0x7f7f7f7f)) ^ ((a ^ b) & (int)0x80808080);
#endif
}

#else

// acc[lane] += sum over 2 of (int16 of w[lane]) * (int16 of x), for eight lanes
static inline __attribute__((always_inline)) int8 dot2(int8 acc, int8 w, int x)
{
#if defined(REALM_DOT_AVX_VNNI)
    return __builtin_astype(
        __builtin_ia32_vpdpwssd256(__builtin_astype(acc, v8si), __builtin_astype(w, v8si),
                                   __builtin_astype((int8)(x), v8si)),
        int8);
#elif defined(REALM_DOT_AVX2)
    return acc + __builtin_astype(__builtin_ia32_pmaddwd256(__builtin_astype(w, v16hi),
                                                            __builtin_astype((int8)(x), v16hi)),
                                  int8);
#else
    return acc + ((w << 16) >> 16) * ((x << 16) >> 16) + (w >> 16) * (x >> 16);
#endif
}
#endif

// table[code] for four codes a lane, each below 16
#if defined(REALM_DOT_VNNI512)
#define REALM_LOOK_UP
static inline __attribute__((always_inline)) int16 look_up(int16 codes, uchar16 table)
{
    const int4 t = __builtin_astype(table, int4);
    return __builtin_astype(__builtin_ia32_pshufb512(__builtin_astype((int16)(t, t, t, t), v64qi),
                                                     __builtin_astype(codes, v64qi)),
                            int16);
}
#elif defined(REALM_DOT_AVX2) || defined(REALM_DOT_AVX_VNNI)
#define REALM_LOOK_UP
static inline __attribute__((always_inline)) int16 look_up(int16 codes, uchar16 table)
{
    const int4 t = __builtin_astype(table, int4);
    const v32qi both = __builtin_astype((int8)(t, t), v32qi);
    int16 values;
    values.lo = __builtin_astype(__builtin_ia32_pshufb256(both, __builtin_astype(codes.lo, v32qi)), int8);
    values.hi = __builtin_astype(__builtin_ia32_pshufb256(both, __builtin_astype(codes.hi, v32qi)), int8);
    return values;
}
#endif

static inline __attribute__((always_inline)) float16 to_float(int16 x)
{
    return __builtin_convertvector(x, float16);
}

// What a product adds up in float32, always in these two steps: acc + sum * scales, and acc + minimum * activations' sum
static inline __attribute__((always_inline)) float16 add_scaled(float16 acc, int16 sum, float16 scale, float x_scale)
{
    return acc + to_float(sum) * (scale * x_scale);
}

static inline __attribute__((always_inline)) float16 add_minimum(float16 acc, float16 minimum, float x_sum)
{
    return acc + minimum * x_sum;
}

// One instruction each; PoCL makes several of vload16 and vstore16, or calls a function.
typedef float float16_unaligned __attribute__((ext_vector_type(16), aligned(4)));
typedef short short16_unaligned __attribute__((ext_vector_type(16), aligned(2)));
typedef uchar uchar16_unaligned __attribute__((ext_vector_type(16), aligned(1)));

static inline __attribute__((always_inline)) float16 load16(const __global float *p)
{
    return *(const __global float16_unaligned *)p;
}

typedef float float8_unaligned __attribute__((ext_vector_type(8), aligned(4)));

static inline __attribute__((always_inline)) float8 load8(const __global float *p)
{
    return *(const __global float8_unaligned *)p;
}

static inline __attribute__((always_inline)) void store16(float16 x, __global float *p)
{
    *(__global float16_unaligned *)p = x;
}

static inline __attribute__((always_inline)) short16 load_short16(const __global void *p)
{
    return *(const __global short16_unaligned *)p;
}

typedef int int16_unaligned __attribute__((ext_vector_type(16), aligned(4)));

static inline __attribute__((always_inline)) int16 load_int16(const __global void *p)
{
    return *(const __global int16_unaligned *)p;
}

static inline __attribute__((always_inline)) void store_char16(char16 x, __global char *p)
{
    *(__global uchar16_unaligned *)p = __builtin_astype(x, uchar16);
}

static inline __attribute__((always_inline)) void store_short16(short16 x, __global void *p)
{
    *(__global short16_unaligned *)p = x;
}

static inline __attribute__((always_inline)) uchar16 load_uchar16(const __global uchar *p)
{
    return *(const __global uchar16_unaligned *)p;
}

// The same for what PoCL's min, max and fabs of vectors do; the second argument is the result where the first is no number
static inline __attribute__((always_inline)) float16 min_16(float16 a, float16 b) { return a < b ? a : b; }
static inline __attribute__((always_inline)) float16 max_16(float16 a, float16 b) { return a > b ? a : b; }
static inline __attribute__((always_inline)) float16 abs_16(float16 x)
{
    return __builtin_astype(__builtin_astype(x, int16) & 0x7fffffff, float16);
}

// Sixteen numbers in half precision, given as their bits
static inline __attribute__((always_inline)) float16 half16_to_float(short16 h)
{
#if defined(REALM_F16_AVX512)
    return __builtin_astype(__builtin_ia32_vcvtph2ps512_mask(__builtin_astype(h, v16half), __builtin_astype((float16)(0.0f), v16sf), (ushort)0xffff, 4), float16);
#elif defined(REALM_F16_F16C)
    float16 r;
    r.lo = __builtin_astype(__builtin_ia32_vcvtph2ps256(__builtin_astype(h.lo, v8half)), float8);
    r.hi = __builtin_astype(__builtin_ia32_vcvtph2ps256(__builtin_astype(h.hi, v8half)), float8);
    return r;
#else
    return vload_half16(0, (const half *)&h);
#endif
}

static inline __attribute__((always_inline)) float16 load_half16(const __global void *p)
{
#if defined(REALM_F16_AVX512) || defined(REALM_F16_F16C)
    return half16_to_float(load_short16(p));
#else
    return vload_half16(0, (const __global half *)p);
#endif
}

static inline __attribute__((always_inline)) void store_half16(float16 x, __global void *p)
{
#if defined(REALM_F16_AVX512)
    const v16half h = __builtin_ia32_vcvtps2ph512_mask(__builtin_astype(x, v16sf), 0, __builtin_astype((short16)(0), v16half), (ushort)0xffff);
    *(__global short16_unaligned *)p = __builtin_astype(h, short16);
#elif defined(REALM_F16_F16C)
    *(__global short16_unaligned *)p = (short16)(
        __builtin_astype(__builtin_ia32_vcvtps2ph256(__builtin_astype(x.lo, v8sf), 0), short8),
        __builtin_astype(__builtin_ia32_vcvtps2ph256(__builtin_astype(x.hi, v8sf), 0), short8));
#else
    vstore_half16_rte(x, 0, (__global half *)p);
#endif
}

static inline float load_half(const __global void *p) { return vload_half(0, (const __global half *)p); }

static inline float load_bf16(const __global void *p)
{
    return as_float((uint)(*(const __global ushort *)p) << 16);
}

static inline __attribute__((always_inline)) float16 load_bf16_16(const __global void *p)
{
    return __builtin_astype(__builtin_convertvector(__builtin_astype(load_short16(p), ushort16), uint16) << 16, float16);
}

// p * 2^n for whole numbers n from -126 to 127
static inline __attribute__((always_inline)) float16 times_power(float16 p, float16 n)
{
#ifdef REALM_F16_AVX512
    return __builtin_astype(__builtin_ia32_scalefps512_mask(__builtin_astype(p, v16sf), __builtin_astype(n, v16sf),
                                                            __builtin_astype(p, v16sf), (ushort)0xffff, 4),
                            float16);
#else
    return p * __builtin_astype((__builtin_convertvector(n, int16) + 127) << 23, float16);
#endif
}

// e^x, relative error below 2e-7; anything under -87 gives a number below 2e-38
static inline __attribute__((always_inline)) float16 exp16(float16 x)
{
    x = max_16(min_16(x, (float16)(88.0f)), (float16)(-87.0f));
    const float16 magic = (float16)(12582912.0f);
    const float16 n = (x * 1.44269504f + magic) - magic;
    const float16 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float16 p = (float16)(1.3888889e-3f);
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return times_power(p, n);
}

// 2^x, relative error below 2e-7, or 8e-5 where it may be rough; anything under -126 gives a number below 2e-38. x is at
// most 127.
static inline __attribute__((always_inline)) float16 exp2_by(float16 x, int rough)
{
#ifdef REALM_F16_AVX512
    const float16 r = __builtin_astype(
        __builtin_ia32_reduceps512_mask(__builtin_astype(x, v16sf), 1, __builtin_astype((float16)(0.0f), v16sf), (ushort)0xffff, 4),
        float16); // x less the whole number below it
#else
    x = x < -126.0f ? (float16)(-126.0f) : x;
    const float16 t = (x - 0.5f) + 12582912.0f; // has that whole number in its lowest bits
    const float16 r = x - (t - 12582912.0f);
#endif
    float16 p;
    if (rough) {
        p = (float16)(7.802453711e-02f);
        p = p * r + 2.260671992e-01f;
        p = p * r + 6.958334891e-01f;
        p = p * r + 9.999252276e-01f;
    } else {
        p = (float16)(1.867130174e-3f);
        p = p * r + 9.017030032e-3f;
        p = p * r + 5.579991339e-2f;
        p = p * r + 2.401644500e-1f;
        p = p * r + 6.931513118e-1f;
        p = p * r + 1.0f;
    }
#ifdef REALM_F16_AVX512
    return __builtin_astype(__builtin_ia32_scalefps512_mask(__builtin_astype(p, v16sf), __builtin_astype(x, v16sf),
                                                            __builtin_astype(p, v16sf), (ushort)0xffff, 4),
                            float16);
#else
    return __builtin_astype(__builtin_astype(p, int16) + (__builtin_astype(t, int16) << 23), float16);
#endif
}

static inline __attribute__((always_inline)) float16 exp2_16(float16 x) { return exp2_by(x, 0); }

static inline __attribute__((always_inline)) float sum16(float16 v)
{
    const float8 a = v.lo + v.hi;
    const float4 b = a.lo + a.hi;
    const float2 c = b.lo + b.hi;
    return c.x + c.y;
}

static inline __attribute__((always_inline)) float max16(float16 v)
{
    const float8 a = v.lo > v.hi ? v.lo : v.hi;
    const float4 b = a.lo > a.hi ? a.lo : a.hi;
    const float2 c = b.lo > b.hi ? b.lo : b.hi;
    return c.x > c.y ? c.x : c.y;
}

static inline __attribute__((always_inline)) int max_int16(int16 v)
{
    const int8 a = v.lo > v.hi ? v.lo : v.hi;
    const int4 b = a.lo > a.hi ? a.lo : a.hi;
    const int2 c = b.lo > b.hi ? b.lo : b.hi;
    return c.x > c.y ? c.x : c.y;
}
