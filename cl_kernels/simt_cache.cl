// The cache of keys and values on a GPU. It lies as cache.cl says; the host defines KV_TYPE.
//
// Queries are written rotated: for half precision where they were (queries is q), else into rows of their own, in which a
// head has a multiple of 32 columns, zeros behind its own; keys and queries of KV_Q4_0 pass the transform of cache.cl.

#define KV_F16 0
#define KV_Q8_0 1
#define KV_Q4_0 2

#define STORE_ARGUMENTS                                                                                                \
    const __global int *in, const __global float *q, const __global float *k, const __global float *v,                 \
        __global uchar *keys, __global uchar *values, __global float *queries, int heads, int kv_heads,                \
        int head_width, int value_width, int rotated, int start, int interleaved, int table_index, int row, int item,  \
        int items, __local float *space

// Columns start .. start + rotated - 1 of a head are rotated. Work-item `item` of so many, a multiple of 32 of them in a
// work-group, with a float in `space` for each.
#if KV_TYPE == KV_F16

#define PAIR_COLUMN(i) (2 * (i)) // as below
#define PAIR_DISTANCE 1

static inline void store_row_of_keys(STORE_ARGUMENTS)
{
    const int half_width = rotated / 2, padded = (value_width + 15) / 16 * 16;
    const long cell = cell_of(in, row, in[in[IN_AT_POSITIONS] + row]), block = cell / 32;
    queries += (long)row * heads * head_width;
    k += (long)row * kv_heads * head_width;
    v += (long)row * kv_heads * value_width;
    const __global float *table = (const __global float *)(in + in[IN_AT_ROPE + table_index]) + (long)row * rotated;
    __global half *to_keys = (__global half *)keys + block * kv_heads * head_width * 32 + cell % 32;
    __global half *to_values = (__global half *)values + (block * kv_heads * 32 + cell % 32) * padded;
    const int pairs = (heads + kv_heads) * half_width, rest = head_width - rotated;
    for (int i = item; i < pairs; i += items) {
        const int h = i / half_width, j = i % half_width;
        const int a = start + (interleaved ? 2 * j : j), b = start + (interleaved ? 2 * j + 1 : j + half_width);
        const float c = table[j], s = table[half_width + j];
        if (h < heads) {
            __global float *head = queries + (long)h * head_width;
            const float x = head[a], y = head[b];
            head[a] = fma(x, c, -(y * s));
            head[b] = fma(x, s, y * c);
        } else {
            const __global float *head = k + (long)(h - heads) * head_width;
            const float x = head[a], y = head[b];
            __global half *to = to_keys + (long)(h - heads) * head_width * 32;
            vstore_half_rte(fma(x, c, -(y * s)), 32 * a, to);
            vstore_half_rte(fma(x, s, y * c), 32 * b, to);
        }
    }
    for (int i = item; i < kv_heads * rest; i += items) {
        const int h = i / rest, d = i % rest < start ? i % rest : i % rest + rotated;
        vstore_half_rte(k[(long)h * head_width + d], 32 * d, to_keys + (long)h * head_width * 32);
    }
    for (int i = item; i < kv_heads * padded; i += items) {
        const int h = i / padded, d = i % padded;
        vstore_half_rte(d < value_width ? v[(long)h * value_width + d] : 0.0f, d, to_values + (long)h * 32 * padded);
    }
}

#else

#define CODE_BITS (KV_TYPE == KV_Q8_0 ? 8 : 4)
#define PADDED_32(width) (((width) + 31) / 32 * 32)
#define CODE_BYTES(width) (CODE_BITS * 4L * PADDED_32(width)) // of 32 positions of a head
#define HEAD_BYTES(width) (CODE_BYTES(width) + 2L * PADDED_32(width))

// Numbers of a word of keys, columns of one position: four, or eight (the low halves of the bytes first).
#if KV_TYPE == KV_Q8_0
#define WORD_COLUMNS 4
#define LOW_NUMBERS(word) convert_float4(as_char4((word) ^ 0x80808080u))
#else
#define WORD_COLUMNS 8
#define LOW_NUMBERS(word) (convert_float4(as_uchar4((word)&0x0f0f0f0fu)) - 8.0f)
#define HIGH_NUMBERS(word) (convert_float4(as_uchar4((word) >> 4 & 0x0f0f0f0fu)) - 8.0f)
#endif

// Values are read in pairs of columns, four positions of each at a time: neighbours, or those whose numbers share bytes.
// Pair i of PADDED_32(width) / 2: its first column, and how far away the other is.
#if KV_TYPE == KV_Q8_0
#define PAIR_COLUMN(i) (2 * (i))
#define PAIR_DISTANCE 1
#define PAIR_OF_VALUES(codes, width, quad, i, a, b)                                                                    \
    {                                                                                                                  \
        const uint2 words = ((const __global uint2 *)(codes))[(quad) * (PADDED_32(width) / 2) + (i)];                  \
        a = LOW_NUMBERS(words.x), b = LOW_NUMBERS(words.y);                                                            \
    }
#else
#define PAIR_COLUMN(i) ((i) / 16 * 32 + (i) % 16)
#define PAIR_DISTANCE 16
#define PAIR_OF_VALUES(codes, width, quad, i, a, b)                                                                    \
    {                                                                                                                  \
        const uint word = ((const __global uint *)(codes))[(quad) * (PADDED_32(width) / 2) + (i)];                     \
        a = LOW_NUMBERS(word), b = HIGH_NUMBERS(word);                                                                 \
    }
#endif

// The scales of four positions from `position` on, none behind `last`, where they may be no numbers.
static inline float4 scales_of_four(const __global half *scales, int position, int last)
{
    const float4 four = vload_half4(0, scales + position % 32);
    return select((float4)(0.0f), four, position + (int4)(0, 1, 2, 3) < last);
}

// The transform of cache.cl, of 32 neighbours' numbers; all work-items of the group come here.
static inline float rotate_32(float x, __local float *space)
{
    const int me = get_local_id(0);
    for (int distance = 1; distance < 32; distance *= 2) {
        space[me] = x;
        barrier(CLK_LOCAL_MEM_FENCE);
        const float other = space[me ^ distance];
        x = me & distance ? other - x : other + x;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    return x * 0.17677669529663687f;
}

// A number's code, given 1 / scale.
static inline uint code_of(float x, float inverse)
{
#if KV_TYPE == KV_Q8_0
    return (uint)(convert_int_rtz(x * inverse + (x < 0.0f ? -0.5f : 0.5f)) + 128) & 255;
#else
    return (uint)min(convert_int_rtz(x * inverse + 8.5f), 15) & 15;
#endif
}

// 32 neighbours have 32 columns of a head.
static inline void store_row_of_keys(STORE_ARGUMENTS)
{
    const int me = get_local_id(0), lane = me % 32, half_width = rotated / 2;
    const int key_parts = PADDED_32(head_width) / 32, value_parts = PADDED_32(value_width) / 32;
    const int q_parts = heads * key_parts, k_parts = kv_heads * key_parts;
    const int parts = q_parts + k_parts + kv_heads * value_parts;
    const long cell = cell_of(in, row, in[in[IN_AT_POSITIONS] + row]), block = cell / 32;
    const int position = cell % 32;
    const __global float *table = (const __global float *)(in + in[IN_AT_ROPE + table_index]) + (long)row * rotated;
    for (int first = item - me; first < 32 * parts; first += items) {
        const int part = (first + me) / 32, is_value = part >= q_parts + k_parts, is_query = part < q_parts;
        const int of_kind = is_query ? part : is_value ? part - q_parts - k_parts : part - q_parts;
        const int per_head = is_value ? value_parts : key_parts, width = is_value ? value_width : head_width;
        const int h = of_kind / per_head, d = of_kind % per_head * 32 + lane, turn = d - start;
        const __global float *head = is_query ? q + ((long)row * heads + h) * head_width
                                              : (is_value ? v : k) + ((long)row * kv_heads + h) * width;
        float x = part < parts && d < width ? head[d] : 0.0f;
        if (part < parts && !is_value && turn >= 0 && turn < rotated) {
            const int second = interleaved ? turn % 2 : turn >= half_width;
            const int j = interleaved ? turn / 2 : turn % half_width, away = interleaved ? 1 : half_width;
            const float c = table[j], s = table[half_width + j];
            x = second ? fma(head[d - away], s, x * c) : fma(x, c, -(head[d + away] * s));
        }
#if KV_TYPE == KV_Q4_0
        const float turned = rotate_32(x, space);
        x = is_value ? x : turned;
#endif
        if (is_query)
            queries[((long)row * heads + h) * PADDED_32(head_width) + d] = x;
        space[me] = x;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (!is_query && part < parts) {
            __global uchar *to = (is_value ? values : keys) + (block * kv_heads + h) * HEAD_BYTES(width);
            __global half *scales = (__global half *)(to + CODE_BYTES(width));
            float farthest = 0.0f; // from 0, of several the first
            for (int i = 0; i < 32; i++) {
                const float other = space[me - lane + i];
                farthest = (as_int(other) & 0x7fffffff) > (as_int(farthest) & 0x7fffffff) ? other : farthest;
            }
            const float scale = KV_TYPE == KV_Q8_0 ? fabs(farthest) / 127.0f : farthest / -8.0f;
            const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
            if (lane == 0)
                vstore_half_rte(isfinite(farthest) ? scale : NAN, d / 32 * 32 + position, scales);
#if KV_TYPE == KV_Q8_0
            const int at = is_value ? (position / 4 * PADDED_32(width) + d) * 4 + position % 4
                                    : (d / 4 * 32 + position) * 4 + d % 4;
            to[at] = code_of(x, inverse);
#else
            const int distance = is_value ? 16 : 4;
            if ((lane & distance) == 0) {
                const int at = is_value ? (position / 4 * (PADDED_32(width) / 2) + d / 32 * 16 + lane) * 4 + position % 4
                                        : (d / 8 * 32 + position) * 4 + d % 4;
                to[at] = code_of(x, inverse) | code_of(space[me + distance], inverse) << 4;
            }
#endif
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}

#endif

#define STORE_ITEMS 64

__kernel __attribute__((reqd_work_group_size(STORE_ITEMS, 1, 1))) void store_keys_and_values(
    const __global int *in, const __global uchar *q_buffer, long q_at, const __global uchar *k_buffer, long k_at,
    const __global uchar *v_buffer, long v_at, __global uchar *keys, __global uchar *values, __global uchar *queries,
    long queries_at, int heads, int kv_heads, int head_width, int value_width, int rotated, int start, int interleaved,
    int table_index)
{
    __local float space[STORE_ITEMS];
    store_row_of_keys(in, FLOATS_IN(q_buffer, q_at), FLOATS_IN(k_buffer, k_at), FLOATS_IN(v_buffer, v_at), keys, values,
                      FLOATS(queries, queries_at), heads, kv_heads, head_width, value_width, rotated, start, interleaved,
                      table_index, get_global_id(1), get_global_id(0), get_global_size(0), space);
}
