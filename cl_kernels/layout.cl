// How weights lie in device memory, for one quantisation type at a time. The host puts these definitions before it:
//
//   T(name)      name with the type's suffix
//   BITS         bits of a quant: 2, 3, 4, 5, 6 or 8
//   SUPER        values per record of scales: 32, or 256 in k-quants
//   SUB          values per scale: 32 or 16
//   SCALES       what a record of scales holds: S_D, S_DM, S_K, S_KM, S_K4M, S_D32 (below)
//   OFFSET       what is subtracted from a quant before it is multiplied
//
// Sixteen rows lie together, a group. For each 32 values (a block) of a group there are eight words: word i holds, in
// lane r, the quants of row r at 4i .. 4i+3, a byte each. They are stored as bit planes of all lanes:
//   nibbles (256 bytes): plane i has word i in its low and word i+4 in its high nibbles
//   pairs   (128 bytes): plane 0 has words 0..3, plane 1 words 4..7, two bits each
//   bits     (64 bytes): bit i of each byte belongs to word i
// 8 bits are stored as they are. 5 = nibbles + bits, 6 = nibbles + pairs, 3 = pairs + bits. All blocks of a group come
// first, then its records of scales, then padding to 64 bytes.

#define S_D 0   // d[16] half
#define S_DM 1  // d[16] half, m[16] half: value = d * q + m
#define S_K 2   // scale[SUPER / SUB][16] int8, d[16] half: value = d * scale * q
#define S_KM 3  // scale[][16] uint8, min[][16] uint8, d[16], dmin[16] half: value = d * scale * q - dmin * min
#define S_K4M 4 // [][16] bytes: scale in the low, min in the high nibble; d[16], dmin[16] half
#define S_D32 5 // d[16] float

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
#endif

// The eight words of a block; WORD(p, i) reads plane i behind p, for all lanes or for one.
#define UNPACK(p, w, V)                                                                                                \
    {                                                                                                                  \
        UNPACK_BASE(p, w, V)                                                                                           \
        UNPACK_TOP(p, w, V)                                                                                            \
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

static inline long T(group_bytes)(int k)
{
    return ((long)(k / 32) * BLOCK_BYTES + (long)(k / SUPER) * RECORD_BYTES + 63) / 64 * 64;
}
