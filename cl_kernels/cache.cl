// The paged cache of keys and values. One block is 32 positions of all key/value heads of a layer; each head of a block
// lies together. The host defines KV_TYPE.
//
//   KV_F16   keys   [head_width][32]                   half precision, so that 32 scores grow side by side
//            values [32][padded value width]           padded to a multiple of 16 with zeros
//   KV_Q8_0  numbers of 8 bits with a scale in half precision for every 32 columns of a position, as ggml's type:
//            keys   [pairs of columns][32][2], then scales [groups of 32 columns][32]
//            values [32][columns],             then scales [groups of 32 columns][32]
//   KV_Q4_0  the same with numbers of 4 bits, 8 more than what they stand for:
//            keys   [four columns][32][2 bytes]: a byte's low half is column 0 or 1 of the four, its high half 2 or 3
//            values [32][groups][16 bytes]: byte i's low half is column i, its high half column i + 16
// Widths are padded to a multiple of 32 in the latter two; what lies in the padding does not matter. Keys of KV_Q4_0 are
// rotated before they are rounded, and queries with them (rotate32): products stay what they are, and the few columns that
// stand out in many models' keys no longer take the precision of the others.

#define KV_F16 0
#define KV_Q8_0 1
#define KV_Q4_0 2

#define POSITIONS 32

static inline int padded16(int width) { return (width + 15) / 16 * 16; }
static inline int padded32(int width) { return (width + 31) / 32 * 32; }

#if KV_TYPE == KV_F16
static inline long key_bytes(int width) { return 2L * POSITIONS * width; }
static inline long value_bytes(int width) { return 2L * POSITIONS * padded16(width); }
#else
#define CODE_BITS (KV_TYPE == KV_Q8_0 ? 8 : 4)
static inline long code_bytes(int width) { return (long)CODE_BITS * POSITIONS / 8 * padded32(width); }
static inline long key_bytes(int width) { return code_bytes(width) + 2L * padded32(width); }
static inline long value_bytes(int width) { return key_bytes(width); }
#endif

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

// Columns from .. from + 15 of a row of `width`, zeros behind its end
static inline float16 columns16(const __global float *x, int from, int width)
{
    if (from + 16 <= width)
        return load16(x + from);
    float part[16] __attribute__((aligned(64)));
    for (int i = 0; i < 16; i++)
        part[i] = from + i < width ? x[from + i] : 0.0f;
    return *(const float16 *)part;
}

#if KV_TYPE == KV_F16

static inline void store_keys(const __global float *k, int width, int position, __global uchar *head)
{
    __global ushort *to = (__global ushort *)head + position;
    for (int d = 0; d < width; d += 16) {
        const short16 bits = half16_bits(columns16(k, d, width));
        for (int i = 0; i < 16 && d + i < width; i++)
            to[(long)(d + i) * POSITIONS] = ((const ushort *)&bits)[i];
    }
}

static inline void store_values(const __global float *v, int width, int position, __global uchar *head)
{
    __global short *to = (__global short *)head + (long)position * padded16(width);
    for (int d = 0; d < width; d += 16)
        vstore16(half16_bits(columns16(v, d, width)), 0, to + d);
}

#else

// Columns from .. from + 31 of a row of `width`, zeros behind its end
static inline void columns32(const __global float *x, int from, int width, __private float *v)
{
    *(__private float16 *)v = columns16(x, from, width);
    *(__private float16 *)(v + 16) = from + 16 < width ? columns16(x, from + 16, width) : (float16)(0.0f);
}

// The Walsh-Hadamard transform of 32 numbers, by the root of 32: orthogonal, and its own inverse.
static inline void rotate32(__private float *v)
{
    for (int half_span = 1; half_span < 32; half_span *= 2)
        for (int i = 0; i < 32; i += 2 * half_span)
            for (int j = i; j < i + half_span; j++) {
                const float a = v[j], b = v[j + half_span];
                v[j] = a + b;
                v[j + half_span] = a - b;
            }
    for (int i = 0; i < 32; i++)
        v[i] *= 0.17677669529663687f;
}

// 32 numbers as whole ones, by ggml's rule for the type; returns their scale.
static inline float quantise32(const __private float *v, uchar *codes)
{
    float most = 0.0f; // the number farthest from 0
    float broken = 0.0f; // not a number where a column is none: then the scale is none either
    for (int i = 0; i < 32; i++) {
        broken += v[i] * 0.0f;
        if (fabs(v[i]) > fabs(most))
            most = v[i];
    }
#if KV_TYPE == KV_Q8_0
    const float scale = fabs(most) / 127.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int i = 0; i < 32; i++) // rounds to the nearest, halves away from 0
        codes[i] = (uchar)(char)(int)(v[i] * inverse + (v[i] < 0.0f ? -0.5f : 0.5f));
#else
    const float scale = most / -8.0f;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (int i = 0; i < 32; i++)
        codes[i] = (uchar)min(15, (int)(v[i] * inverse + 8.5f));
#endif
    return scale + broken;
}

static inline void store_keys(const __global float *k, int width, int position, __global uchar *head)
{
    __global half *scales = (__global half *)(head + code_bytes(width));
    for (int d = 0; d < width; d += 32) {
        uchar codes[32];
        float numbers[32] __attribute__((aligned(64)));
        columns32(k, d, width, numbers);
#if KV_TYPE == KV_Q4_0
        rotate32(numbers);
#endif
        vstore_half_rte(quantise32(numbers, codes), d / 32 * POSITIONS + position, scales);
#if KV_TYPE == KV_Q8_0
        for (int i = 0; i < 32; i++)
            head[((long)(d + i) / 2 * POSITIONS + position) * 2 + i % 2] = codes[i];
#else
        for (int i = 0; i < 32; i += 4)
            for (int j = 0; j < 2; j++)
                head[((long)(d + i) / 4 * POSITIONS + position) * 2 + j] = codes[i + j] | codes[i + 2 + j] << 4;
#endif
    }
}

static inline void store_values(const __global float *v, int width, int position, __global uchar *head)
{
    __global half *scales = (__global half *)(head + code_bytes(width));
    __global uchar *to = head + code_bytes(width) / POSITIONS * position;
    for (int d = 0; d < width; d += 32) {
        uchar codes[32];
        float numbers[32] __attribute__((aligned(64)));
        columns32(v, d, width, numbers);
        vstore_half_rte(quantise32(numbers, codes), d / 32 * POSITIONS + position, scales);
        for (int i = 0; i < 4 * CODE_BITS; i++)
            to[d * CODE_BITS / 8 + i] = CODE_BITS == 8 ? codes[i] : codes[i] | codes[i + 16] << 4;
    }
}

#endif

// Writes the keys and values of one row into slot `position` of physical block `block`.
static inline void store_kv_row(
    const __global float *k, const __global float *v, int kv_heads, int head_width, int value_width, int block,
    int position, __global uchar *keys, __global uchar *values)
{
    keys += (long)block * kv_heads * key_bytes(head_width);
    values += (long)block * kv_heads * value_bytes(value_width);
    for (int h = 0; h < kv_heads; h++) {
        store_keys(k + h * head_width, head_width, position, keys + h * key_bytes(head_width));
        store_values(v + h * value_width, value_width, position, values + h * value_bytes(value_width));
    }
}
