// Rows of activations: normalised, gated, and brought into the form that a matrix product reads.
//
// A prepared row for quantised weights holds, for k values: int8 q[k], then per 32 values (a block) float scale,
// float scale * sum of q, int sum of q, then int sum of q per 16 values. Values are scale * q, |q| <= 127.

static inline __attribute__((always_inline)) long prepared_bytes(int k)
{
    return ((long)k + k / 32 * 12 + k / 16 * 4 + 63) / 64 * 64;
}

static inline __attribute__((always_inline)) int sum_int16(int16 v)
{
    const int8 a = v.lo + v.hi;
    const int4 b = a.lo + a.hi;
    const int2 c = b.lo + b.hi;
    return c.x + c.y;
}

static inline __attribute__((always_inline)) void quantise_block(
    float16 lo, float16 hi, int block, int k, __global char *row)
{
    const int blocks = k / 32;
    __global float *scales = (__global float *)(row + k);
    __global int *sums = (__global int *)(scales + 2 * blocks);
    const float largest = max16(max(fabs(lo), fabs(hi)));
    const float scale = largest / 127.0f;
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    const float16 magic = (float16)(12582912.0f); // adding and subtracting it rounds to the nearest integer
    const int16 a = __builtin_convertvector((lo * inverse + magic) - magic, int16);
    const int16 b = __builtin_convertvector((hi * inverse + magic) - magic, int16);
    vstore16(__builtin_convertvector(a, char16), 0, row + block * 32);
    vstore16(__builtin_convertvector(b, char16), 0, row + block * 32 + 16);
    const int sum_a = sum_int16(a), sum_b = sum_int16(b);
    scales[block] = scale;
    scales[blocks + block] = scale * (float)(sum_a + sum_b);
    sums[block] = sum_a + sum_b;
    sums[blocks + 2 * block] = sum_a;
    sums[blocks + 2 * block + 1] = sum_b;
}

#define PREPARE_COPY 0 // x
#define PREPARE_NORM 1 // x / rms(x) * weight
#define PREPARE_SILU 2 // silu(x) * weight, where weight is the row of `up`

static inline float inverse_rms(const __global float *x, int k, float epsilon)
{
    float16 even = (float16)(0.0f), odd = (float16)(0.0f);
    int i = 0;
    for (; i + 32 <= k; i += 32) {
        const float16 a = load16(x + i), b = load16(x + i + 16);
        even += a * a;
        odd += b * b;
    }
    float sum = sum16(even + odd);
    for (; i < k; i++)
        sum += x[i] * x[i];
    return 1.0f / sqrt(sum / (float)k + epsilon);
}

static inline __attribute__((always_inline)) float16 prepare_16(int how, float16 x, float16 w, float norm)
{
    if (how == PREPARE_NORM)
        return x * norm * w;
    if (how == PREPARE_SILU)
        return x / (1.0f + exp16(-x)) * w;
    return x;
}

// Writes the row as int8 (unless q is 0) and as float32 (unless f is 0). k is a multiple of 32 where q is wanted.
static inline void prepare_row(
    int how, const __global float *x, const __global float *weight, int k, float epsilon, __global char *q,
    __global float *f)
{
    const float norm = how == PREPARE_NORM ? inverse_rms(x, k, epsilon) : 0.0f;
    int i = 0;
    for (; i + 32 <= k; i += 32) {
        float16 lo = load16(x + i), hi = load16(x + i + 16);
        if (how != PREPARE_COPY) {
            lo = prepare_16(how, lo, load16(weight + i), norm);
            hi = prepare_16(how, hi, load16(weight + i + 16), norm);
        }
        if (q)
            quantise_block(lo, hi, i / 32, k, q);
        if (f) {
            vstore16(lo, 0, f + i);
            vstore16(hi, 0, f + i + 16);
        }
    }
    for (; i < k; i++)
        f[i] = prepare_16(how, (float16)(x[i]), (float16)(how == PREPARE_COPY ? 0.0f : weight[i]), norm).s0;
}

// 16 results of a matrix product: bias and residual added, columns beyond n left out.
static inline __attribute__((always_inline)) void store_outputs(
    float16 v, int column, int n, __global float *out, const __global float *bias, const __global float *residual)
{
    if (column + 16 <= n) {
        if (bias)
            v += load16(bias + column);
        if (residual)
            v += load16(residual + column);
        vstore16(v, 0, out + column);
    } else {
        for (int i = 0; column + i < n; i++)
            out[column + i] = ((const float *)&v)[i] + (bias ? bias[column + i] : 0.0f)
                              + (residual ? residual[column + i] : 0.0f);
    }
}
