// From the blocks of a GGUF file to the layout of layout.cl, one type at a time: each work-item takes the same 32
// (or 256) values of sixteen rows. The host defines T, BITS, SUPER, SUB, SCALES, OFFSET, SOURCE_BYTES (of a block of
// the file) and SOURCE_<type>.

static inline int T(scale_of)(const __global uchar *s, int j, int minimum)
{
    // the twelve bytes that hold eight scales and eight minima of six bits each in Q4_K and Q5_K
    if (j < 4)
        return s[j + 4 * minimum] & 63;
    return minimum ? (s[j + 4] >> 4) | ((s[j] >> 6) << 4) : (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4);
}

// Quant l (0..31) of 32-value block b of the source block.
static inline int T(quant)(const __global uchar *s, int b, int l)
{
#if defined(SOURCE_Q4_0)
    return l < 16 ? s[2 + l] & 15 : s[2 + l - 16] >> 4;
#elif defined(SOURCE_Q4_1)
    return l < 16 ? s[4 + l] & 15 : s[4 + l - 16] >> 4;
#elif defined(SOURCE_Q5_0)
    return (l < 16 ? s[6 + l] & 15 : s[6 + l - 16] >> 4) | (((s[2 + l / 8] >> (l % 8)) & 1) << 4);
#elif defined(SOURCE_Q5_1)
    return (l < 16 ? s[8 + l] & 15 : s[8 + l - 16] >> 4) | (((s[4 + l / 8] >> (l % 8)) & 1) << 4);
#elif defined(SOURCE_Q8_0)
    return (char)s[2 + l] + 128;
#elif defined(SOURCE_Q8_1)
    return (char)s[4 + l] + 128;
#elif defined(SOURCE_Q2_K)
    return (s[16 + 32 * (b / 4) + l] >> (2 * (b % 4))) & 3;
#elif defined(SOURCE_Q3_K)
    return ((s[32 + 32 * (b / 4) + l] >> (2 * (b % 4))) & 3) | (((s[l] >> b) & 1) << 2);
#elif defined(SOURCE_Q4_K)
    return (s[16 + 32 * (b / 2) + l] >> (4 * (b % 2))) & 15;
#elif defined(SOURCE_Q5_K)
    return ((s[48 + 32 * (b / 2) + l] >> (4 * (b % 2))) & 15) | (((s[16 + l] >> b) & 1) << 4);
#elif defined(SOURCE_Q6_K)
    const int n = b / 4, j = b % 4;
    return ((s[64 * n + 32 * (j % 2) + l] >> (4 * (j / 2))) & 15) | (((s[128 + 32 * n + l] >> (2 * j)) & 3) << 4);
#elif defined(SOURCE_Q8_K)
    return (char)s[4 + 32 * b + l] + 128;
#endif
}

#if SCALES == S_D || SCALES == S_K
#define HALF_BYTES 32 // of d, or of d and its companion, at the end of a record
#else
#define HALF_BYTES 64
#endif

// The record of scales of one source block, for one lane.
static inline void T(record)(const __global uchar *s, int lane, __global uchar *r)
{
    __global ushort *h = (__global ushort *)(r + RECORD_BYTES - HALF_BYTES);
#if SCALES == S_D
    h[lane] = *(const __global ushort *)s;
#elif SCALES == S_DM
    h[lane] = *(const __global ushort *)s;
    h[16 + lane] = *(const __global ushort *)(s + 2);
#elif SCALES == S_D32
    ((__global uint *)r)[lane] = *(const __global uint *)s;
#elif defined(SOURCE_Q2_K)
    for (int j = 0; j < 16; j++)
        r[16 * j + lane] = s[j];
    h[lane] = *(const __global ushort *)(s + 80);
    h[16 + lane] = *(const __global ushort *)(s + 82);
#elif defined(SOURCE_Q3_K)
    const __global uchar *c = s + 96;
    for (int j = 0; j < 16; j++) {
        const int low = j < 8 ? c[j] & 15 : c[j - 8] >> 4;
        r[16 * j + lane] = (uchar)((low | (((c[8 + j % 4] >> (2 * (j / 4))) & 3) << 4)) - 32);
    }
    h[lane] = *(const __global ushort *)(s + 108);
#elif defined(SOURCE_Q6_K)
    for (int j = 0; j < 16; j++)
        r[16 * j + lane] = s[192 + j];
    h[lane] = *(const __global ushort *)(s + 208);
#else
    for (int j = 0; j < 8; j++) {
        r[16 * j + lane] = (uchar)T(scale_of)(s + 4, j, 0);
        r[128 + 16 * j + lane] = (uchar)T(scale_of)(s + 4, j, 1);
    }
    h[lane] = *(const __global ushort *)s;
    h[16 + lane] = *(const __global ushort *)(s + 2);
#endif
}

// source: `rows` rows of the file from a row that is a multiple of 16; destination: where that group goes.
__kernel void T(repack)(const __global uchar *source, int rows, int k, __global uchar *destination, long offset)
{
    const int g = get_global_id(0), blocks = k / 32;
    const long row_bytes = (long)(k / SUPER) * SOURCE_BYTES;
    __global uchar *group = destination + offset + g * T(group_bytes)(k);
    __global uchar *records = group + (long)blocks * BLOCK_BYTES;
    if (16 * g + 16 > rows)
        for (int i = 0; i < k / SUPER * RECORD_BYTES; i++)
            records[i] = 0; // rows that pad the last group come out as zeros
    for (int b = 0; b < blocks; b++) {
        uint w[8][16];
        for (int lane = 0; lane < 16; lane++) {
            const int row = 16 * g + lane;
            const __global uchar *s = source + row * row_bytes + (long)(b / (SUPER / 32)) * SOURCE_BYTES;
            for (int i = 0; i < 8; i++) {
                uint word = 0;
                if (row < rows)
                    for (int j = 0; j < 4; j++)
                        word |= (uint)T(quant)(s, b % (SUPER / 32), 4 * i + j) << (8 * j);
                w[i][lane] = word;
            }
            if (row < rows && b % (SUPER / 32) == 0)
                T(record)(s, lane, records + (long)(b / (SUPER / 32)) * RECORD_BYTES);
        }
        __global uint *p = (__global uint *)(group + (long)b * BLOCK_BYTES);
        for (int lane = 0; lane < 16; lane++) {
#if BITS == 8
            for (int i = 0; i < 8; i++)
                p[i * 16 + lane] = w[i][lane];
#elif BITS >= 4
            for (int i = 0; i < 4; i++)
                p[i * 16 + lane] = (w[i][lane] & 0x0f0f0f0f) | ((w[i + 4][lane] & 0x0f0f0f0f) << 4);
#else
            uint pairs[2] = {0, 0};
            for (int i = 0; i < 8; i++)
                pairs[i / 4] |= (w[i][lane] & 0x03030303) << (2 * (i % 4));
            p[lane] = pairs[0];
            p[16 + lane] = pairs[1];
#endif
#if BITS == 5 || BITS == 3
            uint bits = 0;
            for (int i = 0; i < 8; i++)
                bits |= ((w[i][lane] >> (BITS - 1)) & 0x01010101) << i;
            p[(BITS == 5 ? 64 : 32) + lane] = bits;
#elif BITS == 6
            uint top[2] = {0, 0};
            for (int i = 0; i < 8; i++)
                top[i / 4] |= ((w[i][lane] >> 4) & 0x03030303) << (2 * (i % 4));
            p[64 + lane] = top[0];
            p[80 + lane] = top[1];
#endif
        }
    }
}
