// The matrices of an adapter brought into the order and the blocks in which lora.cl reads them.

#define PACK_A 0     // float32 [rank][columns]
#define PACK_B 1     // float32 [rows][rank]
#define PACK_TABLE 2 // float32 [tokens][rank], an embedding's A

typedef struct {
    long from, to; // addresses
    int rows, columns, kind;
    int count; // of matrices one after the other, each for an expert
} LoraMatrix;

// Sixteen numbers, of which n are there.
static inline float16 some16(const __global float *p, int n)
{
    if (n >= 16)
        return load16(p);
    float16 x = (float16)(0.0f);
    for (int i = 0; i < n; i++)
        ((float *)&x)[i] = p[i];
    return x;
}

// The words of sixteen numbers in lane `lane`
static inline void store_words(float16 x, float inverse, int lane, __global uchar *words)
{
    const int16 q = __builtin_convertvector(x * inverse + (x < 0.0f ? (float16)(-0.5f) : (float16)(0.5f)), int16);
    const int4 packed = __builtin_astype(__builtin_convertvector(q + 128, uchar16), int4);
    _Pragma("unroll") for (int i = 0; i < 4; i++) *(__global int *)(words + 64 * i + 4 * lane) = packed[i];
}

// 16 or 32 numbers of a row of a matrix become those of lane `lane` of a block. The scale is rounded up to bf16, so no
// number exceeds 127.
static inline void pack_lane(const __global float *p, int n, int parts, int lane, __global uchar *block)
{
    const float16 x0 = some16(p, n), x1 = parts == 2 ? some16(p + 16, n - 16) : (float16)(0.0f);
    const float largest = max16(max_16(abs_16(x0), abs_16(x1)));
    const uint scale = largest < 1e-30f ? 0 : (as_uint(largest / 127.0f) + 0xffff) >> 16;
    const float inverse = scale ? 1.0f / as_float(scale << 16) : 0.0f;
    store_words(x0, inverse, lane, block);
    if (parts == 2)
        store_words(x1, inverse, lane, block + 256);
    ((__global ushort *)(block + 256 * parts))[lane] = scale;
}

__kernel void lora_pack(const __global LoraMatrix *matrices)
{
    const __global LoraMatrix *m = matrices + get_group_id(0);
    const __global float *from = (const __global float *)m->from;
    __global uchar *to = (__global uchar *)m->to;
    if (m->kind == PACK_TABLE) {
        const int ranks = (m->columns + 15) / 16;
        for (long token = 0; token < m->rows; token++)
            for (int j = 0; j < ranks; j++, to += 32) {
                const float16 x = some16(from + token * m->columns + 16 * j, m->columns - 16 * j);
                const uint16 bits = __builtin_astype(x, uint16);
                store_short16(__builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, short16), to);
            }
        return;
    }
    const int parts = m->kind == PACK_A ? 2 : 1, wide = 16 * parts;
    for (int i = 0; i < m->count; i++, from += (long)m->rows * m->columns)
        for (int first = 0; first < m->rows; first += 16)
            for (int column = 0; column < m->columns; column += wide, to += 256 * parts + 32)
                for (int lane = 0; lane < 16; lane++) {
                    const int n = first + lane < m->rows ? m->columns - column : 0;
                    pack_lane(from + (long)(first + lane) * m->columns + column, n, parts, lane, to);
                }
}
