// Matrix products of one quantisation type (see layout.cl): 16 rows of weights times a few rows of activations.
//
// An activation row of k values holds 15-bit integers, 128 * high + low, as two signed bytes each: for every 32 values
// the 32 high and then the 32 low bytes. Then, per 32 values, float scale, float scale * sum and int sum, and int sum
// per 16 values (prepare.cl writes it). Two integer products cost little where memory is what is waited for, and come
// out as exact as float32 activations would.

#define WORDS16(p, i) (((const __global int16 *)(p))[i])

// lane_scales() for all sixteen rows
static inline __attribute__((always_inline)) void T(scales)(
    const __global uchar *records, int block, float16 *scale, float16 *minimum)
{
    const __global uchar *r = records + (long)(block / (SUPER / 32)) * RECORD_BYTES;
    const int first = (block % (SUPER / 32)) * (32 / SUB);
#if SCALES == S_D
    scale[0] = FACTOR * load_half16(r);
#elif SCALES == S_DM
    scale[0] = FACTOR * load_half16(r);
    minimum[0] = FACTOR * load_half16(r + 32);
#elif SCALES == S_D32
    scale[0] = FACTOR * load16((const __global float *)r);
#elif SCALES == S_E8M0
    const int16 e = __builtin_convertvector(load_uchar16(r + 16 * first), int16);
    // below 2, where the number is subnormal, the second is larger
    scale[0] = __builtin_astype(max((e - 1) << 23, (e + 1) << 21), float16);
#elif SCALES == S_UE4M3
    for (int j = 0; j < 32 / SUB; j++) {
        // half precision has the same fields with more bits, and another bias
        const short16 h = __builtin_convertvector(load_uchar16(r + 16 * (first + j)), short16) << (short16)(7);
        scale[j] = 128.0f * half16_to_float(h);
    }
#else
    const float16 d = FACTOR * load_half16(r + RECORD_BYTES - (SCALES == S_K ? 32 : 64));
#if SCALES != S_K
    const float16 dmin = FACTOR * load_half16(r + RECORD_BYTES - 32);
#endif
    for (int j = 0; j < 32 / SUB; j++) {
#if SCALES == S_K
        scale[j] = d * to_float(__builtin_convertvector(__builtin_astype(load_uchar16(r + 16 * (first + j)), char16), int16));
#elif SCALES == S_KM
        scale[j] = d * to_float(__builtin_convertvector(load_uchar16(r + 16 * (first + j)), int16));
        minimum[j] = -dmin * to_float(__builtin_convertvector(load_uchar16(r + 16 * (N_SUB + first + j)), int16));
#else
        const int16 both = __builtin_convertvector(load_uchar16(r + 16 * (first + j)), int16);
        scale[j] = d * to_float(both & 15);
        minimum[j] = -dmin * to_float(both >> 4);
#endif
    }
#endif
}

#define FETCH_BLOCKS (FETCH_BYTES / BLOCK_BYTES)

static inline __attribute__((always_inline)) void T(fetch)(
    const __global uchar *block, const __global uchar *records, int number)
{
    _Pragma("unroll") for (int i = 0; i < BLOCK_BYTES; i += 64) FETCH(block + i);
    if (number % (SUPER / 32) == 0)
        _Pragma("unroll") for (int i = 0; i < RECORD_BYTES; i += 64)
            FETCH(records + (long)(number / (SUPER / 32)) * RECORD_BYTES + i);
}

// acc[t] = 16 rows of the group times activation row x[t]
#define DEFINE_DOT(NAME, TILE)                                                                                         \
    static inline __attribute__((always_inline)) void T(NAME)(                                                         \
        const __global uchar *group, int k, const __global char *const *x, float16 *acc)                               \
    {                                                                                                                  \
        const int blocks = k / 32;                                                                                     \
        const __global uchar *records = group + (long)blocks * BLOCK_BYTES;                                            \
        int ahead_block = FETCH_BLOCKS % blocks;                                                                       \
        const __global uchar *ahead = group + FETCH_BLOCKS / blocks * T(group_bytes)(k);                               \
        for (int t = 0; t < TILE; t++)                                                                                 \
            acc[t] = (float16)(0.0f);                                                                                  \
        for (int b = 0; b < blocks; b++) {                                                                             \
            int16 w[8];                                                                                                \
            UNPACK(group + (long)b * BLOCK_BYTES, w, WORDS16)                                                          \
            if (TILE == 1) {                                                                                           \
                T(fetch)(ahead + (long)ahead_block * BLOCK_BYTES, ahead + (long)blocks * BLOCK_BYTES, ahead_block);    \
                if (++ahead_block == blocks) {                                                                         \
                    ahead_block = 0;                                                                                   \
                    ahead += T(group_bytes)(k);                                                                        \
                }                                                                                                      \
            }                                                                                                          \
            float16 scale[32 / SUB], minimum[32 / SUB];                                                                \
            T(scales)(records, b, scale, minimum);                                                                     \
            _Pragma("unroll") for (int t = 0; t < TILE; t++)                                                           \
            {                                                                                                          \
                const __global char *row = x[t];                                                                       \
                const __global int *q = (const __global int *)(row + b * 64);                                          \
                const __global float *x_scale = (const __global float *)(row + 2 * (long)k);                           \
                const __global float *x_sum = x_scale + blocks;                                                        \
                const __global int *q_sum = (const __global int *)(x_sum + blocks);                                    \
                _Pragma("unroll") for (int j = 0; j < 32 / SUB; j++)                                                   \
                {                                                                                                      \
                    const int total = SUB == 32 ? q_sum[b] : q_sum[blocks + 2 * b + j];                                \
                    int16 high = (int16)(0), low = OFFSET ? (int16)(-(OFFSET) * total) : (int16)(0);                   \
                    _Pragma("unroll") for (int i = 0; i < SUB / 4; i++)                                                \
                    {                                                                                                  \
                        high = dot4(high, w[j * (SUB / 4) + i], q[j * (SUB / 4) + i]);                                 \
                        low = dot4(low, w[j * (SUB / 4) + i], q[8 + j * (SUB / 4) + i]);                               \
                    }                                                                                                  \
                    acc[t] += to_float(low + (high << 7)) * (scale[j] * x_scale[b]);                                   \
                    if (HAS_MINIMUM)                                                                                   \
                        acc[t] += minimum[j] * (SUB == 32 ? x_sum[b] : x_scale[b] * (float)total);                     \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

DEFINE_DOT(dot_1, 1)
DEFINE_DOT(dot_4, 4)
DEFINE_DOT(dot_8, 8)
#undef DEFINE_DOT

#define WORD_OF_LANE(p, i) (((const __global int *)(p))[(i) * 16 + lane])

// One row of weights as float32, for embeddings.
static inline void T(expand_row)(const __global uchar *weights, int row, int k, __global float *out)
{
    const __global uchar *group = weights + (row / 16) * T(group_bytes)(k);
    const int lane = row % 16;
    const __global uchar *records = group + (long)(k / 32) * BLOCK_BYTES;
    for (int b = 0; b < k / 32; b++) {
        int w[8];
        UNPACK(group + (long)b * BLOCK_BYTES, w, WORD_OF_LANE)
        float scale[32 / SUB], minimum[32 / SUB];
        T(lane_scales)(records, b, lane, scale, minimum);
        for (int i = 0; i < 32; i++) {
            const int q = (w[i / 4] >> (8 * (i % 4))) & 0xff;
            out[b * 32 + i] = scale[i / SUB] * (float)(q - (OFFSET)) + (HAS_MINIMUM ? minimum[i / SUB] : 0.0f);
        }
    }
}
