// From the blocks of a GGUF file to the layout of layout.cl, one type at a time. The host defines what layout.cl wants,
// SOURCE_BYTES (of a block of the file), SOURCE_<type>, and for lattices T(grid), the quants of each point.

// Words of quants (four to a word, a byte each) from a 32-value block
#define EACH_WORD(VALUE)                                                                                               \
    _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                      \
        w[i] = VALUE;
#define NIBBLES(p)                                                                                                     \
    _Pragma("unroll") for (int i = 0; i < 4; i++) {                                                                    \
        const uint both = word_at((p) + 4 * i);                                                                        \
        w[i] = both & 0x0f0f0f0f;                                                                                      \
        w[i + 4] = (both >> 4) & 0x0f0f0f0f;                                                                           \
    }
#define FIFTH_BITS(word)                                                                                               \
    {                                                                                                                  \
        const uint bits = word;                                                                                        \
        _Pragma("unroll") for (int i = 0; i < 8; i++)                                                                  \
            w[i] |= bits_to_bytes(bits >> (4 * i)) << 4;                                                               \
    }

// The quants of 32-value block b of a block s of the file
static inline __attribute__((always_inline)) void T(words)(const __global uchar *s, int b, uint *w)
{
#if defined(SOURCE_Q4_0) || defined(SOURCE_IQ4_NL)
    NIBBLES(s + 2)
#elif defined(SOURCE_Q4_1)
    NIBBLES(s + 4)
#elif defined(SOURCE_Q5_0)
    NIBBLES(s + 6)
    FIFTH_BITS(word_at(s + 2))
#elif defined(SOURCE_Q5_1)
    NIBBLES(s + 8)
    FIFTH_BITS(word_at(s + 4))
#elif defined(SOURCE_Q8_0)
    EACH_WORD(word_at(s + 2 + 4 * i) ^ 0x80808080)
#elif defined(SOURCE_Q8_1)
    EACH_WORD(word_at(s + 4 + 4 * i) ^ 0x80808080)
#elif defined(SOURCE_Q2_K)
    EACH_WORD((word_at(s + 16 + 32 * (b / 4) + 4 * i) >> (2 * (b % 4))) & 0x03030303)
#elif defined(SOURCE_Q3_K)
    EACH_WORD(((word_at(s + 32 + 32 * (b / 4) + 4 * i) >> (2 * (b % 4))) & 0x03030303)
              | (((word_at(s + 4 * i) >> b) & 0x01010101) << 2))
#elif defined(SOURCE_Q4_K)
    EACH_WORD((word_at(s + 16 + 32 * (b / 2) + 4 * i) >> (4 * (b % 2))) & 0x0f0f0f0f)
#elif defined(SOURCE_Q5_K)
    EACH_WORD(((word_at(s + 48 + 32 * (b / 2) + 4 * i) >> (4 * (b % 2))) & 0x0f0f0f0f)
              | (((word_at(s + 16 + 4 * i) >> b) & 0x01010101) << 4))
#elif defined(SOURCE_Q6_K)
    const int n = b / 4, j = b % 4;
    EACH_WORD(((word_at(s + 64 * n + 32 * (j % 2) + 4 * i) >> (4 * (j / 2))) & 0x0f0f0f0f)
              | (((word_at(s + 128 + 32 * n + 4 * i) >> (2 * j)) & 0x03030303) << 4))
#elif defined(SOURCE_Q8_K)
    EACH_WORD(word_at(s + 4 + 32 * b + 4 * i) ^ 0x80808080)
#elif defined(SOURCE_IQ4_XS)
    NIBBLES(s + 8 + 16 * b)
#elif defined(SOURCE_MXFP4)
    NIBBLES(s + 1)
#elif defined(SOURCE_NVFP4)
    EACH_WORD((word_at(s + 4 + 16 * b + 8 * (i / 4) + 4 * (i % 2)) >> (4 * (i / 2 % 2))) & 0x0f0f0f0f)
#elif defined(SOURCE_TQ2_0)
    EACH_WORD((word_at(s + 32 * (b / 4) + 4 * i) >> (2 * (b % 4))) & 0x03030303)
#elif defined(SOURCE_TQ1_0)
    // 160 values are the digits of bytes 0 to 31, 80 those of bytes 32 to 47, and 16 of the last 4
    EACH_WORD(b < 5               ? ternary_digits(word_at(s + 4 * i), b)
              : b < 7 || i < 4    ? ternary_digits(word_at(s + 32 + 4 * (i % 4)), 2 * (b - 5) + i / 4)
                                  : ternary_digits(word_at(s + 48), i - 4))
#elif defined(SOURCE_Q1_0)
    EACH_WORD(bits_to_bytes(s[2 + 4 * b + i / 2] >> (4 * (i % 2))))
#elif defined(SOURCE_Q2_0)
    EACH_WORD(pairs_to_bytes(s[2 + 8 * b + i]))
#elif defined(SOURCE_IQ2_XXS)
    const uint signs = word_at(s + 6 + 8 * b);
    EACH_WORD(T(grid)[2 * s[2 + 8 * b + i / 2] + i % 2]
              ^ (7 * bits_to_bytes(even_signs(signs >> (7 * (i / 2))) >> (4 * (i % 2)))))
#elif defined(SOURCE_IQ2_XS)
    EACH_WORD(T(grid)[2 * (half_word_at(s + 2 + 8 * b + i / 2 * 2) & 511) + i % 2]
              ^ (7 * bits_to_bytes(even_signs(half_word_at(s + 2 + 8 * b + i / 2 * 2) >> 9) >> (4 * (i % 2)))))
#elif defined(SOURCE_IQ2_S)
    EACH_WORD(T(grid)[2 * (s[2 + 4 * b + i / 2] | (((s[66 + b] >> (i / 2 * 2)) & 3) << 8)) + i % 2]
              ^ (7 * bits_to_bytes(s[34 + 4 * b + i / 2] >> (4 * (i % 2)))))
#elif defined(SOURCE_IQ3_XXS)
    const uint signs = word_at(s + 66 + 4 * b);
    EACH_WORD(T(grid)[s[2 + 8 * b + i]]
              ^ (15 * bits_to_bytes(even_signs(signs >> (7 * (i / 2))) >> (4 * (i % 2)))))
#elif defined(SOURCE_IQ3_S)
    EACH_WORD(T(grid)[s[2 + 8 * b + i] | (((s[66 + b] >> i) & 1) << 8)]
              ^ (15 * bits_to_bytes(s[74 + 4 * b + i / 2] >> (4 * (i % 2)))))
#elif defined(SOURCE_IQ1_S)
    const uint upper = half_word_at(s + 34 + 2 * b);
    EACH_WORD(T(grid)[2 * (s[2 + 4 * b + i / 2] | (((upper >> (i / 2 * 3)) & 7) << 8)) + i % 2])
#elif defined(SOURCE_IQ1_M)
    // twice the point, plus 1 where an eighth is added
    const uint upper = half_word_at(s + 32 + 2 * b);
    EACH_WORD(2 * T(grid)[2 * (s[4 * b + i / 2] | (((upper >> (i / 2 * 4)) & 7) << 8)) + i % 2]
              + ((upper >> (i / 2 * 4)) & 8 ? 0 : 0x01010101))
#endif
}

// What belongs to the j-th part of a block of the file: its scale, as a byte, and its minimum
static inline int T(scale)(const __global uchar *s, int j)
{
#if defined(SOURCE_Q2_K)
    return s[j];
#elif defined(SOURCE_Q3_K)
    const __global uchar *c = s + 96;
    return ((j < 8 ? c[j] & 15 : c[j - 8] >> 4) | (((c[8 + j % 4] >> (2 * (j / 4))) & 3) << 4)) - 32;
#elif defined(SOURCE_Q4_K) || defined(SOURCE_Q5_K)
    // twelve bytes hold eight scales and eight minima of six bits each
    return j < 4 ? s[4 + j] & 63 : (s[8 + j] & 15) | ((s[j] >> 6) << 4);
#elif defined(SOURCE_Q6_K)
    return s[192 + j];
#elif defined(SOURCE_IQ4_XS)
    return (((s[4 + j / 2] >> (4 * (j % 2))) & 15) | (((half_word_at(s + 2) >> (2 * j)) & 3) << 4)) - 32;
#elif defined(SOURCE_MXFP4)
    return s[0];
#elif defined(SOURCE_NVFP4)
    return (s[j] & 127) == 127 ? 0 : s[j] & 127; // all ones is no number
#elif defined(SOURCE_IQ2_XXS)
    return 2 * (s[9 + 8 * j] >> 4) + 1;
#elif defined(SOURCE_IQ2_XS)
    return 2 * ((s[66 + j / 2] >> (4 * (j % 2))) & 15) + 1;
#elif defined(SOURCE_IQ2_S)
    return 2 * ((s[74 + j / 2] >> (4 * (j % 2))) & 15) + 1;
#elif defined(SOURCE_IQ3_XXS)
    return 2 * (s[69 + 4 * j] >> 4) + 1;
#elif defined(SOURCE_IQ3_S)
    return 2 * ((s[106 + j / 2] >> (4 * (j % 2))) & 15) + 1;
#elif defined(SOURCE_IQ1_S)
    return 8 * (2 * ((s[35 + 2 * j] >> 4) & 7) + 1);
#elif defined(SOURCE_IQ1_M)
    return 2 * ((half_word_at(s + 48 + j / 4 * 2) >> (3 * (j % 4))) & 7) + 1;
#else
    return 0;
#endif
}

static inline int T(minimum)(const __global uchar *s, int j)
{
#if defined(SOURCE_Q4_K) || defined(SOURCE_Q5_K)
    return j < 4 ? s[8 + j] & 63 : (s[8 + j] >> 4) | ((s[4 + j] >> 6) << 4);
#elif defined(SOURCE_IQ1_S)
    // points are -1, 0, 1 and stored plus 1; an eighth is added or, where the top bit is set, subtracted
    return (s[35 + 2 * j] >> 7 ? 9 : 7) * (2 * ((s[35 + 2 * j] >> 4) & 7) + 1);
#else
    return 0;
#endif
}

#if defined(SOURCE_Q2_K)
#define D_AT 80
#elif defined(SOURCE_Q3_K)
#define D_AT 108
#elif defined(SOURCE_Q6_K)
#define D_AT 208
#elif defined(SOURCE_TQ1_0)
#define D_AT 52
#elif defined(SOURCE_TQ2_0)
#define D_AT 64
#else
#define D_AT 0
#endif
#if defined(SOURCE_IQ1_S)
#define SECOND_D 0 // the factor of minima is d again
#else
#define SECOND_D 2
#endif

// The record of scales of one block of the file, for one lane.
static inline void T(record)(const __global uchar *s, int lane, __global uchar *r)
{
#if SCALES == S_D32
    ((__global uint *)r)[lane] = word_at(s);
#else
#if SCALES != S_D && SCALES != S_DM
    for (int j = 0; j < N_SUB; j++) {
        r[16 * j + lane] = (uchar)T(scale)(s, j);
        if (SCALES == S_KM)
            r[16 * (N_SUB + j) + lane] = (uchar)T(minimum)(s, j);
    }
#endif
#if SCALES != S_E8M0 && SCALES != S_UE4M3
    __global ushort *h = (__global ushort *)(r + RECORD_BYTES - (HAS_MINIMUM ? 64 : 32));
#if defined(SOURCE_IQ1_M)
    ushort d = 0; // a quarter in each of four words
    for (int j = 0; j < 4; j++)
        d |= (half_word_at(s + 48 + 2 * j) >> 12) << (4 * j);
    h[lane] = d;
#else
    h[lane] = half_word_at(s + D_AT);
#endif
    if (HAS_MINIMUM)
        h[16 + lane] = half_word_at(s + D_AT + SECOND_D);
#endif
#endif
}

// Block b of one row (a lane of the group), with its record of scales where one begins there.
static inline void T(repack_block)(const __global uchar *row, int k, int b, int lane, __global uchar *group)
{
    const __global uchar *s = row + (long)(b / (SUPER / 32)) * SOURCE_BYTES;
    __global uint *p = (__global uint *)(group + (long)b * BLOCK_BYTES);
    uint w[8];
    T(words)(s, b % (SUPER / 32), w);
    if (b % (SUPER / 32) == 0)
        T(record)(s, lane, group + (long)(k / 32) * BLOCK_BYTES + (long)(b / (SUPER / 32)) * RECORD_BYTES);
#if BITS == 8
    for (int i = 0; i < 8; i++)
        p[i * 16 + lane] = w[i];
#elif BITS >= 4
    for (int i = 0; i < 4; i++)
        p[i * 16 + lane] = (w[i] & 0x0f0f0f0f) | ((w[i + 4] & 0x0f0f0f0f) << 4);
#elif BITS >= 2
    uint pairs[2] = {0, 0};
    for (int i = 0; i < 8; i++)
        pairs[i / 4] |= (w[i] & 0x03030303) << (2 * (i % 4));
    p[lane] = pairs[0];
    p[16 + lane] = pairs[1];
#endif
#if BITS == 5 || BITS == 3 || BITS == 1
    uint bits = 0;
    for (int i = 0; i < 8; i++)
        bits |= ((w[i] >> (BITS - 1)) & 0x01010101) << i;
    p[16 * (BITS - 1) + lane] = bits;
#elif BITS == 6
    uint top[2] = {0, 0};
    for (int i = 0; i < 8; i++)
        top[i / 4] |= ((w[i] >> 4) & 0x03030303) << (2 * (i % 4));
    p[64 + lane] = top[0];
    p[80 + lane] = top[1];
#endif
}

// source: `rows` rows of the file from a row that is a multiple of 16; destination: where that group goes. One
// work-item has a group: right for CPUs.
__kernel void T(repack)(const __global uchar *source, int rows, int k, __global uchar *destination, long offset)
{
    const int g = get_global_id(0);
    const long row_bytes = (long)(k / SUPER) * SOURCE_BYTES, bytes = T(group_bytes)(k);
    __global uchar *group = destination + offset + g * bytes;
    if (16 * g + 16 > rows)
        for (long i = 0; i < bytes; i++)
            group[i] = 0; // rows that pad the last group come out as zeros
    for (int b = 0; b < k / 32; b++)
        for (int row = 16 * g; row < min(16 * g + 16, rows); row++)
            T(repack_block)(source + row * row_bytes, k, b, row % 16, group);
}

// The same with a work-item for each row's every block: right for GPUs. The last group is zeros before.
__kernel void T(repack_items)(const __global uchar *source, int rows, int k, __global uchar *destination, long offset)
{
    const int row = get_global_id(0), b = get_global_id(1);
    if (row < rows)
        T(repack_block)(source + row * ((long)(k / SUPER) * SOURCE_BYTES), k, b, row % 16,
                        destination + offset + row / 16 * T(group_bytes)(k));
}
