// Rows of activations: normalised, gated, and brought into the form that a matrix product reads.
//
// A prepared row for quantised weights holds k integers of 15 bits, 128 * high + low: for every 32 (a block) 32 high and
// 32 low signed bytes. Then, per block, float scale, float scale * sum of the integers and their int sum, and then int
// sums of 16, then what panel_pairs.cl takes off. Values are scale * integer.

static inline __attribute__((always_inline)) long prepared_bytes(int k)
{
    return (2 * (long)k + k / 32 * 16 + k / 16 * 4 + 63) / 64 * 64;
}

#define LARGEST 16256 // 128 * 127

// What is added to the weights of even words where they are multiplied in pairs, and taken off those of odd ones
#define PAIR_BIAS 64

static inline __attribute__((always_inline)) int sum_int16(int16 v)
{
    const int8 a = v.lo + v.hi;
    const int4 b = a.lo + a.hi;
    const int2 c = b.lo + b.hi;
    return c.x + c.y;
}

// Sixteen numbers of 15 bits, part `part` of a block of `parts` such parts.
static inline __attribute__((always_inline)) void store_part(int16 a, int part, int parts, __global char *block)
{
#ifdef REALM_BYTES
    const int16 high = (a + 64) >> 7;
    store_char16(__builtin_convertvector(high, char16), block + 16 * part);
    store_char16(__builtin_convertvector(a - (high << 7), char16), block + 16 * (parts + part));
#else
    store_short16(__builtin_convertvector(a, short16).s021346578a9bcedf, block + 32 * part);
#endif
}

static inline __attribute__((always_inline)) int16 nearest16(float16 x)
{
    // adding it leaves the nearest integer in the lowest bits
    return __builtin_astype(x + 12582912.0f, int16) - 0x4b400000;
}

#ifdef REALM_DOT_VNNI512
static inline __attribute__((always_inline)) int16 sum_of_bytes(v64qi u, v64qi s, int16 acc)
{
    return __builtin_astype(__builtin_ia32_vpdpbusd512(__builtin_astype(acc, v16si), __builtin_astype(u, v16si),
                                                       __builtin_astype(s, v16si)),
                            int16);
}

// store_part of both parts of a block, and sums: of the first, of the second, of what pairs take off where there are pairs
static inline __attribute__((always_inline)) int4 store_block(int16 a, int16 b, __global char *block)
{
    const v32hi words = __builtin_ia32_packssdw512(__builtin_astype(a, v16si), __builtin_astype(b, v16si));
    const v32hi high = (words + (short)64) >> 7;
    // lanes of packing, each with 4 high bytes of either part and then 4 low ones, in the order of prepared rows
    const int16 bytes = __builtin_astype(__builtin_ia32_packsswb512(high, words - (high << 7)), int16)
                            .s048c159d26ae37bf;
    *(__global int16_unaligned *)block = bytes;
    const v64qi x = __builtin_astype(bytes, v64qi);
    const int16 fours = sum_of_bytes(__builtin_astype((int16)(0x01010101), v64qi), x, (int16)(0));
    int16 all = (int16)((fours.lo << 7) + fours.hi, (int8)(0));
#ifdef REALM_PAIRS
    // (odd + PAIR_BIAS) (even - PAIR_BIAS), of which four have 4 PAIR_BIAS^2 too little
    const int16 mask = (int16)(0, 0, 0, 0, 0, 0, 0, 0, -1, 0, -1, 0, -1, 0, -1, 0);
    const int16 odd = __builtin_astype(x + (char)PAIR_BIAS, int16).s1032547698badcfe & mask;
    all += sum_of_bytes(__builtin_astype(odd, v64qi), x - (char)PAIR_BIAS, 4 * PAIR_BIAS * PAIR_BIAS & mask);
#endif
    all += all.s23016745ab89efcd;
    all += all.s1032547698badcfe;
    return (int4)(all.s0, all.s4, all.s8 + all.sc, 0);
}
#else
static inline int4 store_block(int16 a, int16 b, __global char *block)
{
    store_part(a, 0, 2, block);
    store_part(b, 1, 2, block);
    int pairs = 0;
#ifdef REALM_PAIRS
    const int16 low_a = a - ((a + 64) >> 7 << 7), low_b = b - ((b + 64) >> 7 << 7);
    const int16 even = (int16)(low_a.s012389ab, low_b.s012389ab), odd = (int16)(low_a.s4567cdef, low_b.s4567cdef);
    pairs = sum_int16(even * odd + PAIR_BIAS * (even - odd));
#endif
    return (int4)(sum_int16(a), sum_int16(b), pairs, 0);
}
#endif

static inline __attribute__((always_inline)) void quantise_block(
    float16 lo, float16 hi, int block, int k, __global char *row)
{
    const int blocks = k / 32;
    __global float *scales = (__global float *)(row + 2 * (long)k);
    __global int *sums = (__global int *)(scales + 2 * blocks);
    const float largest = max16(max_16(abs_16(lo), abs_16(hi)));
    const float scale = largest / (float)LARGEST;
    const float inverse = largest > 0.0f ? (float)LARGEST / largest : 0.0f;
    const int4 sum = store_block(nearest16(lo * inverse), nearest16(hi * inverse), row + block * 64);
#ifdef REALM_PAIRS
    sums[3 * blocks + block] = sum.z;
#endif
    scales[block] = scale;
    scales[blocks + block] = scale * (float)(sum.x + sum.y);
    sums[block] = sum.x + sum.y;
    sums[blocks + 2 * block] = sum.x;
    sums[blocks + 2 * block + 1] = sum.y;
}

// e^x only grows useful between -87 and 88, and exp16 keeps to that.
static inline __attribute__((always_inline)) float16 tanh16(float16 x)
{
    return 1.0f - 2.0f / (exp16(2.0f * x) + 1.0f);
}

static inline __attribute__((always_inline)) float16 sigmoid16(float16 x) { return 1.0f / (1.0f + exp16(-x)); }

// Activations, numbered as in lowering.py
#define ACT_IDENTITY 0
#define ACT_SILU 1
#define ACT_GELU 2 // the approximation by tanh
#define ACT_SIGMOID 3
#define ACT_CLAMPED_SWIGLU 4 // gpt-oss; needs `up`
#define ACT_SOFTCAP 5        // cap * tanh(x / cap)

static inline __attribute__((always_inline)) float16 activate16(int act, float16 x, float cap)
{
    switch (act) {
    case ACT_SILU:
        return x * sigmoid16(x);
    case ACT_GELU:
        return 0.5f * x * (1.0f + tanh16(0.79788456080286535588f * x * (1.0f + 0.044715f * x * x)));
    case ACT_SIGMOID:
        return sigmoid16(x);
    case ACT_SOFTCAP:
        return cap * tanh16(x / cap);
    default:
        return x;
    }
}

static inline __attribute__((always_inline)) float16 gate16(int act, float16 gate, float16 up)
{
    if (act == ACT_CLAMPED_SWIGLU) {
        gate = min_16(gate, (float16)(7.0f));
        up = max_16(min_16(up, (float16)(7.0f)), (float16)(-7.0f));
        return gate * sigmoid16(1.702f * gate) * (up + 1.0f);
    }
    return activate16(act, gate, 0.0f) * up;
}

#define PREPARE_COPY 0
#define PREPARE_RMS_NORM 1   // x / rms(x) * weight
#define PREPARE_LAYER_NORM 2 // (x - mean) / deviation * weight + bias
#define PREPARE_GATE 3       // gate(x, second)
#define PREPARE_SCALAR_GATE 4 // activate(x[0]) * second
#define PREPARE_ACTIVATE 5

// What a row is made of: see PREPARE_*. `second` is the row of `up`, or the weight of a norm.
typedef struct {
    int how, act, k;
    float epsilon, cap;
    const __global float *x, *second, *bias;
} Row;

static inline float sum_of_squares(const __global float *x, int k, float mean)
{
    float16 even = (float16)(0.0f), odd = (float16)(0.0f);
    int i = 0;
    for (; i + 32 <= k; i += 32) {
        const float16 a = load16(x + i) - mean, b = load16(x + i + 16) - mean;
        even += a * a;
        odd += b * b;
    }
    float sum = sum16(even + odd);
    for (; i < k; i++)
        sum += (x[i] - mean) * (x[i] - mean);
    return sum;
}

static inline float sum_of(const __global float *x, int k)
{
    float16 sum16s = (float16)(0.0f);
    int i = 0;
    for (; i + 16 <= k; i += 16)
        sum16s += load16(x + i);
    float sum = sum16(sum16s);
    for (; i < k; i++)
        sum += x[i];
    return sum;
}

// mean and 1 / deviation (or 1 / rms, with mean 0) of a row that is normalised
static inline float2 norm_of(const Row *r)
{
    if (r->how != PREPARE_RMS_NORM && r->how != PREPARE_LAYER_NORM)
        return (float2)(0.0f, 1.0f);
    const float mean = r->how == PREPARE_LAYER_NORM ? sum_of(r->x, r->k) / (float)r->k : 0.0f;
    return (float2)(mean, 1.0f / sqrt(sum_of_squares(r->x, r->k, mean) / (float)r->k + r->epsilon));
}

static inline __attribute__((always_inline)) float16 row16(const Row *r, float2 norm, float16 x, float16 second, float16 bias)
{
    switch (r->how) {
    case PREPARE_RMS_NORM:
        return x * norm.y * second;
    case PREPARE_LAYER_NORM:
        return (x - norm.x) * norm.y * second + bias;
    case PREPARE_GATE:
    case PREPARE_SCALAR_GATE:
        return gate16(r->act, x, second);
    case PREPARE_ACTIVATE:
        return activate16(r->act, x, r->cap);
    default:
        return x;
    }
}

static inline __attribute__((always_inline)) float16 row16_at(const Row *r, float2 norm, int i)
{
    const float16 x = r->how == PREPARE_SCALAR_GATE ? (float16)(r->x[0]) : load16(r->x + i);
    return row16(r, norm, x, r->second ? load16(r->second + i) : (float16)(0.0f),
                 r->bias ? load16(r->bias + i) : (float16)(0.0f));
}

// Writes columns first .. last - 1 of the row as int8 (unless q is 0) and as float32 (unless f is 0). They are whole blocks of
// 32 where q is wanted; first is a multiple of 32.
static inline void prepare_row(const Row *r, int first, int last, __global char *q, __global float *f)
{
    const float2 norm = norm_of(r);
    int i = first;
    for (; i + 32 <= last; i += 32) {
        const float16 lo = row16_at(r, norm, i), hi = row16_at(r, norm, i + 16);
        if (q)
            quantise_block(lo, hi, i / 32, r->k, q);
        if (f) {
            store16(lo, f + i);
            store16(hi, f + i + 16);
        }
    }
    for (; i < last; i++)
        f[i] = row16(r, norm, (float16)(r->x[r->how == PREPARE_SCALAR_GATE ? 0 : i]),
                     (float16)(r->second ? r->second[i] : 0.0f), (float16)(r->bias ? r->bias[i] : 0.0f)).s0;
}

// A matrix product: which rows go in and where results go.
typedef struct {
    int n, k, rows;
    float scale;
    const __global char *x;
    long x_stride; // bytes between rows of x
    __global float *out;
    const __global float *bias, *residual; // bias of all n outputs; residual lies like out
    int out_stride, column_base;           // floats between rows of out; the weights' row that is output 0
    int heads, head;                       // row t of x is row t * heads + head: each head has its own matrix
    const __global int *entries;           // for experts: row * used + slot, instead of 0, 1, 2 ...
    int used, shared;                      // shared: all slots of a row read the same row of x
} Product;

static inline __attribute__((always_inline)) const __global char *product_input(const Product *p, int t)
{
    const int i = p->entries ? (p->shared ? p->entries[t] / p->used : p->entries[t]) : t * p->heads + p->head;
    return p->x + i * p->x_stride;
}

// 16 results of a product: bias, scale and residual applied, outputs beyond n left out.
static inline __attribute__((always_inline)) void product_output(const Product *p, int t, int weight_row, float16 v)
{
    const int column = weight_row - p->column_base;
    const long at = (long)(p->entries ? p->entries[t] : t) * p->out_stride;
    __global float *out = p->out + at;
    const __global float *residual = p->residual ? p->residual + at : 0;
    if (column + 16 <= p->n) {
        if (p->bias)
            v += load16(p->bias + column);
        v *= p->scale;
        if (residual)
            v += load16(residual + column);
        store16(v, out + column);
    } else {
        for (int i = 0; column + i < p->n; i++)
            out[column + i] = (((const float *)&v)[i] + (p->bias ? p->bias[column + i] : 0.0f)) * p->scale
                              + (residual ? residual[column + i] : 0.0f);
    }
}
