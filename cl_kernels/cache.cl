// The paged cache of keys and values. One block is 32 positions of all key/value heads of a layer; each head of a block
// lies together. The host defines KV_TYPE.
//
//   KV_F16   keys   [head_width][32]                   half precision, so that 32 scores grow side by side
//            values [32][padded value width]           padded to a multiple of 16 with zeros
//   KV_Q8_0  numbers of 8 bits, 128 more than what they stand for, with a scale in half precision for every 32 columns of
//            a position, as ggml's type. Four that a dot product adds up lie together:
//            keys   [columns / 4][32][4],           then scales [groups of 32 columns][32]
//            values [positions / 4][columns][4],    then scales [groups of 32 columns][32]
//   KV_Q4_0  the same with numbers of 4 bits, 8 more than what they stand for:
//            keys   [columns / 8][32][4 bytes]: byte i's low half is column i of the eight, its high half column i + 4
//            values [positions / 4][groups][16][4]: byte i's low half is column i of the group, its high half i + 16
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
#define CODE_ZERO (KV_TYPE == KV_Q8_0 ? 128 : 8)
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
        store_short16(half16_bits(columns16(v, d, width)), to + d);
}

#else

// Columns from .. from + 31 of a row of `width`, zeros behind its end
static inline void columns32(const __global float *x, int from, int width, __private float *v)
{
    *(__private float16 *)v = columns16(x, from, width);
    *(__private float16 *)(v + 16) = from + 16 < width ? columns16(x, from + 16, width) : (float16)(0.0f);
}

// The Walsh-Hadamard transform of 32 numbers, by the root of 32: orthogonal, and its own inverse.
static inline __attribute__((always_inline)) void rotate32(__private float *v)
{
    float16 a = *(const __private float16 *)v, b = *(const __private float16 *)(v + 16);
#define ROTATE(x, order, sign) x = x * sign + x.order // lanes whose bit is set: the other less this one
    const float16 s1 = (float16)(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
    const float16 s2 = (float16)(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
    const float16 s4 = (float16)(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
    const float16 s8 = (float16)(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
    ROTATE(a, s1032547698badcfe, s1);
    ROTATE(b, s1032547698badcfe, s1);
    ROTATE(a, s23016745ab89efcd, s2);
    ROTATE(b, s23016745ab89efcd, s2);
    ROTATE(a, s45670123cdef89ab, s4);
    ROTATE(b, s45670123cdef89ab, s4);
    ROTATE(a, s89abcdef01234567, s8);
    ROTATE(b, s89abcdef01234567, s8);
#undef ROTATE
    *(__private float16 *)v = (a + b) * 0.17677669529663687f;
    *(__private float16 *)(v + 16) = (a - b) * 0.17677669529663687f;
}

// 32 numbers as whole ones, by ggml's rule for the type; returns their scale: none where one of them is no number.
static inline float quantise32(const __private float *v, __private uchar *codes)
{
    const float16 a = *(const __private float16 *)v, b = *(const __private float16 *)(v + 16);
    const int16 bits_a = __builtin_astype(a, int16) & 0x7fffffff, bits_b = __builtin_astype(b, int16) & 0x7fffffff;
    const int most_bits = max_int16(bits_a > bits_b ? bits_a : bits_b);
    const float most = as_float(most_bits), broken = most_bits >= 0x7f800000 ? NAN : 0.0f;
#if KV_TYPE == KV_Q8_0
    const float scale = most / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    // to the nearest, halves away from 0
    const float16 half_a = a < 0.0f ? (float16)(-0.5f) : (float16)(0.5f), half_b = b < 0.0f ? (float16)(-0.5f) : (float16)(0.5f);
    const int16 low = __builtin_convertvector(a * inverse + half_a, int16) + 128;
    const int16 high = __builtin_convertvector(b * inverse + half_b, int16) + 128;
#else
    // the scale has the other sign than the number farthest from 0, of several the first
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int16 first_a = bits_a == most_bits ? 2 * (32 - lane) + (a < 0.0f ? 1 : 0) : 0;
    const int16 first_b = bits_b == most_bits ? 2 * (16 - lane) + (b < 0.0f ? 1 : 0) : 0;
    const float scale = (max_int16(first_a > first_b ? first_a : first_b) & 1 ? most : -most) / 8.0f;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    int16 low = __builtin_convertvector(a * inverse + 8.5f, int16);
    int16 high = __builtin_convertvector(b * inverse + 8.5f, int16);
    low = low < 15 ? low : 15;
    high = high < 15 ? high : 15;
#endif
    *(__private uchar16_unaligned *)codes = __builtin_convertvector(low, uchar16);
    *(__private uchar16_unaligned *)(codes + 16) = __builtin_convertvector(high, uchar16);
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
        for (int i = 0; i < 4 * CODE_BITS; i += 4)
            for (int j = 0; j < 4; j++) {
#if KV_TYPE == KV_Q8_0
                head[((long)(d + i) / 4 * POSITIONS + position) * 4 + j] = codes[i + j];
#else
                head[((long)(d / 2 + i) / 4 * POSITIONS + position) * 4 + j] = codes[2 * i + j] | codes[2 * i + 4 + j] << 4;
#endif
            }
    }
}

static inline void store_values(const __global float *v, int width, int position, __global uchar *head)
{
    __global half *scales = (__global half *)(head + code_bytes(width));
    __global uchar *to = head + code_bytes(width) / POSITIONS * (position / 4 * 4) + position % 4;
    for (int d = 0; d < width; d += 32) {
        uchar codes[32];
        float numbers[32] __attribute__((aligned(64)));
        columns32(v, d, width, numbers);
        vstore_half_rte(quantise32(numbers, codes), d / 32 * POSITIONS + position, scales);
        for (int i = 0; i < 4 * CODE_BITS; i++)
            to[4 * (d * CODE_BITS / 8 + i)] = CODE_BITS == 8 ? codes[i] : codes[i] | codes[i + 16] << 4;
    }
}

#endif

// Writes the keys and values of some heads of one row into slot `position` of a block, where these heads' begin at `keys` and
// `values`.
static inline void store_kv_heads(
    const __global float *k, const __global float *v, int heads, int head_width, int value_width, int position,
    __global uchar *keys, __global uchar *values)
{
    for (int h = 0; h < heads; h++) {
        store_keys(k + h * head_width, head_width, position, keys + h * key_bytes(head_width));
        store_values(v + h * value_width, value_width, position, values + h * value_bytes(value_width));
    }
}
