// How weights lie in device memory, for one quantisation type at a time. The host puts these definitions before it:
//
//   T(name)      name with the type's suffix
//   BITS         bits of a quant: 1, 2, 3, 4, 5, 6 or 8
//   SUPER        values per record of scales: 32 to 256
//   SUB          values per scale: 32 or 16
//   SCALES       what a record of scales holds: S_* (below)
//   FACTOR       of all scales and minima, a power of two
//   CODES        what a quant stands for: C_* (below)
//   VALUES       for codes of 3 or 4 bits, where a table serves: sixteen bytes
//   OFFSET       what is subtracted from that number before it is multiplied; above 127 only where it is 128
//
// Sixteen rows lie together, a group. For each 32 values (a block) of a group there are eight words: word i holds, in
// lane r, the quants of row r at 4i .. 4i+3, a byte each. They are stored as bit planes of all lanes:
//   nibbles (256 bytes): plane i has word i in its low and word i+4 in its high nibbles
//   pairs   (128 bytes): plane 0 has words 0..3, plane 1 words 4..7, two bits each
//   bits     (64 bytes): bit i of each byte belongs to word i
// 8 bits are stored as they are. 5 = nibbles + bits, 6 = nibbles + pairs, 3 = pairs + bits, 1 = bits. All blocks of a group come
// first, then its records of scales, then padding to 64 bytes.

#define S_D 0   // d[16] half
#define S_DM 1  // d[16] half, m[16] half: value = d * q + m
#define S_K 2   // scale[SUPER / SUB][16] int8, d[16] half: value = d * scale * q
#define S_KM 3  // scale[][16] uint8, min[][16] uint8, d[16], dmin[16] half: value = d * scale * q - dmin * min
#define S_K4M 4 // [][16] bytes: scale in the low, min in the high nibble; d[16], dmin[16] half
#define S_D32 5 // d[16] float
#define S_E8M0 6   // e[SUPER / SUB][16] uint8: value = q * half of 2^(e - 127)
#define S_UE4M3 7  // f[SUPER / SUB][16] uint8: value = q * half of the float with 4 bits exponent, 3 bits mantissa

#define C_PLAIN 0   // q itself
#define C_TWICE 1   // 2q
#define C_SIX 2     // 17q + bit 1 of q: -43, -25, -8, 8, 25, 43 for 1 to 6, each plus 60
#define C_EIGHTHS 3 // 4q - 2 * bit 0 of q: -9, -7, -1, 1, 7, 9 for 0 to 5, each plus 9
#define C_TABLE 4   // VALUES[q]

#define BLOCK_BYTES (64 * BITS)
#define N_SUB (SUPER / SUB)

#if SCALES == S_D
#define RECORD_BYTES 32
#elif SCALES == S_DM
#define RECORD_BYTES 64
#elif SCALES == S_K
#define RECORD_BYTES (16 * N_SUB + 32)
#elif SCALES == S_KM
#define RECORD_BYTES (32 * N_SUB + 64)
#elif SCALES == S_K4M
#define RECORD_BYTES (16 * N_SUB + 64)
#elif SCALES == S_D32
#define RECORD_BYTES 64
#elif SCALES == S_E8M0 || SCALES == S_UE4M3
#define RECORD_BYTES (16 * N_SUB)
#endif

#if SCALES == S_DM || SCALES == S_KM || SCALES == S_K4M
#define HAS_MINIMUM 1
#else
#define HAS_MINIMUM 0
#endif

// The eight words of a block, OFFSET not yet subtracted; V(p, i) reads plane i behind p, for all lanes or for one.
#define UNPACK(p, w, V)                                                                                                \
    {                                                                                                                  \
        UNPACK_BASE(p, w, V)                                                                                           \
        UNPACK_TOP(p, w, V)                                                                                            \
        UNPACK_CODES(w)                                                                                                \
    }
#if BITS == 8
#define UNPACK_BASE(p, w, V)                                                                                           \
    _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                      \
        w[i] = V(p, i);
#elif BITS >= 4
#define UNPACK_BASE(p, w, V)                                                                                           \
    _Pragma("unroll") for (int i = 0; i < 4; i++) {                                                                    \
        w[i] = V(p, i) & 0x0f0f0f0f;                                                                                   \
        w[i + 4] = (V(p, i) >> 4) & 0x0f0f0f0f;                                                                        \
    }
#elif BITS == 1
#define UNPACK_BASE(p, w, V)                                                                                           \
    _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                      \
        w[i] = (V(p, 0) >> i) & 0x01010101;
#else
#define UNPACK_BASE(p, w, V)                                                                                           \
    _Pragma("unroll") for (int i = 0; i < 4; i++) {                                                                    \
        w[i] = (V(p, 0) >> (2 * i)) & 0x03030303;                                                                      \
        w[i + 4] = (V(p, 1) >> (2 * i)) & 0x03030303;                                                                  \
    }
#endif
#if BITS == 5
#define UNPACK_TOP(p, w, V)                                                                                            \
    _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                      \
        w[i] |= ((V(p, 4) >> i) & 0x01010101) << 4;
#elif BITS == 6
#define UNPACK_TOP(p, w, V)                                                                                            \
    _Pragma("unroll") for (int i = 0; i < 4; i++) {                                                                    \
        w[i] |= ((V(p, 4) >> (2 * i)) & 0x03030303) << 4;                                                              \
        w[i + 4] |= ((V(p, 5) >> (2 * i)) & 0x03030303) << 4;                                                          \
    }
#elif BITS == 3
#define UNPACK_TOP(p, w, V)                                                                                            \
    _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                      \
        w[i] |= ((V(p, 2) >> i) & 0x01010101) << 2;
#else
#define UNPACK_TOP(p, w, V)
#endif

// What four quants stand for, in sixteen lanes or in one.
#if CODES == C_TWICE
#define VALUE_OF(q) ((q) << 1)
#elif CODES == C_SIX
#define VALUE_OF(q) (((q) << 4) + (q) + (((q) >> 1) & 0x01010101))
#elif CODES == C_EIGHTHS
#define VALUE_OF(q) (((q) << 2) - (((q)&0x01010101) << 1))
#endif

#if CODES == C_PLAIN
#define UNPACK_CODES(w)
#else
#define UNPACK_CODES(w)                                                                                                \
    _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                      \
        w[i] = T(value_of)(w[i]);

#if CODES == C_TABLE
// Halving the table with each bit of the code, from the lowest on. EACH_BYTE: 255 for each 1 (times 255 would overflow).
#define EACH_BYTE(ones) (((ones) << 8) - (ones))
#define DEFINE_VALUE_OF(WORDS)                                                                                         \
    static inline __attribute__((overloadable, always_inline)) WORDS T(value_of)(WORDS q)                              \
    {                                                                                                                  \
        const uint values[16] = {VALUES};                                                                              \
        WORDS v[8];                                                                                                    \
        const WORDS bit_0 = EACH_BYTE(q & 0x01010101);                                                                   \
        _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                  \
            v[i] = (int)(values[2 * i] * 0x01010101)                                                                   \
                 ^ (bit_0 & (int)((values[2 * i] ^ values[2 * i + 1]) * 0x01010101));                                  \
        _Pragma("unroll") for (int b = 1; b < 4; b++) {                                                                \
            const WORDS bit = EACH_BYTE((q >> b) & 0x01010101);                                                          \
            _Pragma("unroll") for (int i = 0; i < (8 >> b); i++)                                                       \
                v[i] = v[2 * i] ^ (bit & (v[2 * i] ^ v[2 * i + 1]));                                                   \
        }                                                                                                              \
        return v[0];                                                                                                   \
    }
#else
#define DEFINE_VALUE_OF(WORDS)                                                                                         \
    static inline __attribute__((overloadable, always_inline)) WORDS T(value_of)(WORDS q) { return VALUE_OF(q); }
#endif

DEFINE_VALUE_OF(int)
#if defined(REALM_LOOK_UP) && defined(VALUES)
static inline __attribute__((overloadable, always_inline)) int16 T(value_of)(int16 q)
{
    return look_up(q, (uchar16)(VALUES));
}
#else
DEFINE_VALUE_OF(int16)
#endif
#undef DEFINE_VALUE_OF
#undef EACH_BYTE
#endif

// Scale and minimum of the 32 / SUB parts of a block, for one row of the group.
static inline void T(lane_scales)(const __global uchar *records, int block, int lane, float *scale, float *minimum)
{
    const __global uchar *r = records + (long)(block / (SUPER / 32)) * RECORD_BYTES;
    const int first = (block % (SUPER / 32)) * (32 / SUB);
    for (int j = 0; j < 32 / SUB; j++) {
        const int byte = r[16 * (first + j) + lane];
#if SCALES == S_D
        scale[j] = FACTOR * load_half(r + 2 * lane);
#elif SCALES == S_DM
        scale[j] = FACTOR * load_half(r + 2 * lane);
        minimum[j] = FACTOR * load_half(r + 32 + 2 * lane);
#elif SCALES == S_D32
        scale[j] = FACTOR * ((const __global float *)r)[lane];
#elif SCALES == S_K
        scale[j] = FACTOR * load_half(r + RECORD_BYTES - 32 + 2 * lane) * (float)(char)byte;
#elif SCALES == S_KM
        scale[j] = FACTOR * load_half(r + RECORD_BYTES - 64 + 2 * lane) * (float)byte;
        minimum[j] = -FACTOR * load_half(r + RECORD_BYTES - 32 + 2 * lane) * (float)r[16 * (N_SUB + first + j) + lane];
#elif SCALES == S_K4M
        scale[j] = FACTOR * load_half(r + RECORD_BYTES - 64 + 2 * lane) * (float)(byte & 15);
        minimum[j] = -FACTOR * load_half(r + RECORD_BYTES - 32 + 2 * lane) * (float)(byte >> 4);
#elif SCALES == S_E8M0
        scale[j] = as_float(max((byte - 1) * (1 << 23), (byte + 1) << 21)); // the second below 2: subnormal
#elif SCALES == S_UE4M3
        scale[j] = (float)((byte & 7) + (byte > 7 ? 8 : 0)) * as_float((max(byte >> 3, 1) + 116) << 23);
#endif
    }
}

static inline long T(group_bytes)(int k)
{
    return ((long)(k / 32) * BLOCK_BYTES + (long)(k / SUPER) * RECORD_BYTES + 63) / 64 * 64;
}
