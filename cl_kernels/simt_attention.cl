// Flash attention over the paged cache of simt_cache.cl on a GPU, for one shape of heads. The host defines
//   A(name)      name with the shape's suffix
//   HW, VW       numbers in a head's queries and keys, and in its values
//   SINGLE_HEADS query heads sharing keys that one work-group takes when a row is alone; up to 8
//   TILE_HEADS, TILE_QUERIES  the same for a tile of rows, and heads times rows of a tile: 16, 32 or 64 (simt_attend_tile.cl)
//   SINGLE_THREADS   work-items that take a row together, a multiple of 128
// window: 0, or position p reads p - window + 1 .. p; softcap: 0 for none; sinks: a
// score for each head that takes part in its softmax, if there is an offset.

#if KV_TYPE == KV_F16
#define PADDED ((VW + 15) / 16 * 16)
#define QUERY_WIDTH HW // as queries lie
#else
#define PADDED PADDED_32(VW)
#define QUERY_WIDTH PADDED_32(HW)
#endif

static inline float A(score)(float s, float scale, float softcap)
{
    s *= scale;
    return softcap > 0.0f ? softcap * tanh(s / softcap) : s;
}

// The factor of a sum of exp(score - best), given its total, that makes it a mean; with a sink if there is one.
static inline float A(mean_factor)(float best, float total, const __global uchar *sinks, long sinks_at, int head)
{
    if (sinks_at < 0)
        return 1.0f / total;
    const float sink = FLOATS_IN(sinks, sinks_at)[head], most = fmax(best, sink), f = exp(best - most);
    return f / fma(total, f, exp(sink - most));
}

// ---- one row, by SINGLE_THREADS work-items: for the scores each has a position and a part of the columns, for the values
// pairs of columns and a part of the positions. It goes by SPAN positions at a time.

#define SPAN 128
#define KEY_PARTS (SINGLE_THREADS / SPAN)
#define KEY_COLUMNS ((QUERY_WIDTH + KEY_PARTS - 1) / KEY_PARTS)
// Of quantised keys so many at a time, that have one scale, and a part has a multiple of them.
#define SCALE_COLUMNS (KEY_COLUMNS <= 8 ? 8 : KEY_COLUMNS <= 16 ? 16 : 32)
#define CODE_COLUMNS ((KEY_COLUMNS + SCALE_COLUMNS - 1) / SCALE_COLUMNS * SCALE_COLUMNS)
#define VALUE_LANES (PADDED / 2 > SINGLE_THREADS ? SINGLE_THREADS : PADDED / 2)
#define VALUE_STEPS ((PADDED / 2 + VALUE_LANES - 1) / VALUE_LANES)
#define MOST_PARTS (SINGLE_THREADS / VALUE_LANES)
#define VALUE_PARTS (VALUE_STEPS > 1 ? 1 : MOST_PARTS >= 8 ? 8 : MOST_PARTS >= 4 ? 4 : MOST_PARTS >= 2 ? 2 : 1)
#define PART_SPAN (SPAN / VALUE_PARTS)
#define PIECE_SPAN (PART_SPAN < 32 ? PART_SPAN : 32) // positions in one block of the cache
#define PAIR(j) (lane + (j)*VALUE_LANES)
#define COLUMN(j) PAIR_COLUMN(PAIR(j))
// Floats in local memory: queries, scores of each part of the columns or the parts of the result, 16 for each head.
#define SINGLE_SCORES (SINGLE_HEADS * SINGLE_THREADS)
#define SINGLE_PARTS ((VALUE_PARTS - 1) * SINGLE_HEADS * PADDED)
#define SINGLE_ROOM (SINGLE_SCORES > SINGLE_PARTS ? SINGLE_SCORES : SINGLE_PARTS)
#define SINGLE_FLOATS (SINGLE_HEADS * (QUERY_WIDTH + 16) + SINGLE_ROOM)

// sum + the four products of x with y, which is aligned
static inline float A(add_four)(float sum, float4 x, const __local float *y)
{
    const float4 four = *(const __local float4 *)y;
    return fma(x.w, four.w, fma(x.z, four.z, fma(x.y, four.y, fma(x.x, four.x, sum))));
}

// Heads head .. head + SINGLE_HEADS - 1 of the row that `single` names: row, first position, last, partial slot or -1.
static inline void A(attend_row)(
    const __global int *in, const __global int *single, int head, const __global float *q, const __global uchar *keys,
    const __global uchar *values, __global float *out, const __global uchar *sinks, long sinks_at, int heads,
    int kv_heads, int window, float scale, float softcap, __global float *partials, __local float *space)
{
    __local float *qs = space, *part_of = qs + SINGLE_HEADS * QUERY_WIDTH, *scores = part_of + SINGLE_HEADS * 16;
    const int me = get_local_id(0), row = single[0], last = single[2], slot = single[3];
    const int seen_from = window ? max(0, in[in[IN_AT_POSITIONS] + row] - window + 1) : 0;
    const int first = max(single[1], seen_from / 32 * 32);
    const int kv_head = head / (heads / kv_heads), sequence = in[in[IN_AT_SEQUENCES] + row];
    const __global int *table = in + in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS];
    q += ((long)row * heads + head) * QUERY_WIDTH;
    for (int i = me; i < SINGLE_HEADS * QUERY_WIDTH; i += SINGLE_THREADS)
        qs[i] = q[i];
    const int in_span = me % SPAN, key_part = me / SPAN, lane = me % VALUE_LANES, value_part = me / VALUE_LANES;
    const int my_head = me / 16 % SINGLE_HEADS, weighs = me < SINGLE_HEADS * 16; // 16 work-items turn a head's scores into weights
    float2 acc[SINGLE_HEADS][VALUE_STEPS];
    float best[SINGLE_HEADS], my_best = -INFINITY, my_total = 0.0f;
    _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++)
    {
        _Pragma("unroll") for (int j = 0; j < VALUE_STEPS; j++) acc[h][j] = (float2)(0.0f);
        best[h] = -INFINITY;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int start = first; start < last; start += SPAN) {
        const int position = start + in_span, seen = position < last && position >= seen_from;
        float s[SINGLE_HEADS];
        _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) s[h] = 0.0f;
        if (seen) {
#if KV_TYPE == KV_F16
            const __global half *kt = (const __global half *)keys
                                      + ((long)table[position / 32] * kv_heads + kv_head) * HW * 32 + position % 32;
            const int from = key_part * KEY_COLUMNS, end = min(HW, from + KEY_COLUMNS);
            _Pragma("unroll 16") for (int d = from; d < end; d++)
            {
                const float k = vload_half(32 * d, kt);
                _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) s[h] = fma(k, qs[h * HW + d], s[h]);
            }
#else
            const __global uchar *kt = keys + ((long)table[position / 32] * kv_heads + kv_head) * HEAD_BYTES(HW);
            const int from = key_part * CODE_COLUMNS, end = min(QUERY_WIDTH, from + CODE_COLUMNS);
            for (int first_column = from; first_column < end; first_column += SCALE_COLUMNS) {
                const float k_scale =
                    vload_half(first_column / 32 * 32 + position % 32, (const __global half *)(kt + CODE_BYTES(HW)));
                float sum[SINGLE_HEADS];
                _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) sum[h] = 0.0f;
                _Pragma("unroll") for (int i = 0; i < SCALE_COLUMNS; i += WORD_COLUMNS)
                {
                    const int d = first_column + i;
                    const uint word = ((const __global uint *)kt)[d / WORD_COLUMNS * 32 + position % 32];
                    const float4 k = LOW_NUMBERS(word);
                    _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) sum[h] =
                        A(add_four)(sum[h], k, qs + h * QUERY_WIDTH + d);
#if KV_TYPE == KV_Q4_0
                    const float4 k_behind = HIGH_NUMBERS(word);
                    _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) sum[h] =
                        A(add_four)(sum[h], k_behind, qs + h * QUERY_WIDTH + d + 4);
#endif
                }
                _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) s[h] = fma(sum[h], k_scale, s[h]);
            }
#endif
        }
        _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) scores[(key_part * SINGLE_HEADS + h) * SPAN + in_span] =
            s[h];
        barrier(CLK_LOCAL_MEM_FENCE);
        float mine[SPAN / 16], most = -INFINITY;
        if (weighs) {
            _Pragma("unroll") for (int i = 0; i < SPAN / 16; i++)
            {
                const int x = me % 16 + 16 * i;
                float sum = 0.0f;
                for (int part = 0; part < KEY_PARTS; part++)
                    sum += scores[(part * SINGLE_HEADS + my_head) * SPAN + x];
                mine[i] = start + x < last && start + x >= seen_from ? A(score)(sum, scale, softcap) : -INFINITY;
                most = fmax(most, mine[i]);
            }
            part_of[me] = most;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++)
        {
            float now = best[h]; // a number from the first round on: one of its positions is seen
            for (int i = 0; i < 16; i++)
                now = fmax(now, part_of[h * 16 + i]);
            const float shrink = exp(best[h] - now);
            _Pragma("unroll") for (int j = 0; j < VALUE_STEPS; j++) acc[h][j] *= shrink;
            best[h] = now;
        }
        if (weighs) {
            most = my_best;
            for (int i = 0; i < 16; i++)
                most = fmax(most, part_of[my_head * 16 + i]);
            const float shrink = exp(my_best - most);
            float sum = 0.0f;
            my_best = most;
            _Pragma("unroll") for (int i = 0; i < SPAN / 16; i++)
            {
                const float p = exp(mine[i] - most);
                sum += p;
                scores[my_head * SPAN + me % 16 + 16 * i] = p;
            }
            my_total = fma(my_total, shrink, sum);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (value_part < VALUE_PARTS)
            for (int x = value_part * PART_SPAN; x < (value_part + 1) * PART_SPAN; x += PIECE_SPAN) {
                const int written = min(PIECE_SPAN, last - start - x); // what lies behind may be no number at all
#if KV_TYPE == KV_F16
                if (written > 0) {
                    const __global half *vt =
                        (const __global half *)values
                        + (((long)table[(start + x) / 32] * kv_heads + kv_head) * 32 + (start + x) % 32) * PADDED;
                    _Pragma("unroll 8") for (int i = 0; i < written; i++)
                    {
                        _Pragma("unroll") for (int j = 0; j < VALUE_STEPS; j++)
                        {
                            const float2 v = vload_half2(0, vt + i * PADDED + min(COLUMN(j), PADDED - 2));
                            _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) acc[h][j] =
                                fma((float2)(scores[h * SPAN + x + i]), v, acc[h][j]);
                        }
                    }
                }
#else
                if (written > 0) {
                    const __global uchar *vt = values + ((long)table[(start + x) / 32] * kv_heads + kv_head) * HEAD_BYTES(VW);
                    _Pragma("unroll 2") for (int i = 0; i < written; i += 4)
                    {
                        const int at = start + x + i;
                        _Pragma("unroll") for (int j = 0; j < VALUE_STEPS; j++)
                        {
                            const int pair = min(PAIR(j), PADDED / 2 - 1);
                            const float4 scales = scales_of_four(
                                (const __global half *)(vt + CODE_BYTES(VW)) + PAIR_COLUMN(pair) / 32 * 32, at, last);
                            float4 a, b;
                            PAIR_OF_VALUES(vt, VW, at % 32 / 4, pair, a, b)
                            a *= scales, b *= scales;
                            _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++)
                            {
                                acc[h][j].x = A(add_four)(acc[h][j].x, a, scores + h * SPAN + x + i);
                                acc[h][j].y = A(add_four)(acc[h][j].y, b, scores + h * SPAN + x + i);
                            }
                        }
                    }
                }
#endif
            }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (weighs)
        part_of[me] = my_total;
    _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++)
    {
        if (value_part > 0 && value_part < VALUE_PARTS) { // then there is one step
            scores[((value_part - 1) * SINGLE_HEADS + h) * PADDED + 2 * lane] = acc[h][0].x;
            scores[((value_part - 1) * SINGLE_HEADS + h) * PADDED + 2 * lane + 1] = acc[h][0].y;
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (value_part == 0) {
        _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++)
        {
            for (int i = 0; i < VALUE_PARTS - 1; i++) {
                acc[h][0].x += scores[(i * SINGLE_HEADS + h) * PADDED + 2 * lane];
                acc[h][0].y += scores[(i * SINGLE_HEADS + h) * PADDED + 2 * lane + 1];
            }
            float sum = 0.0f;
            for (int i = 0; i < 16; i++)
                sum += part_of[h * 16 + i];
            const float factor = slot >= 0 ? 1.0f : A(mean_factor)(best[h], sum, sinks, sinks_at, head + h);
            const int columns = slot >= 0 ? PADDED : VW;
            __global float *to = slot >= 0 ? partials + ((long)slot * heads + head + h) * (PADDED + 2)
                                           : out + ((long)row * heads + head + h) * VW;
            _Pragma("unroll") for (int j = 0; j < VALUE_STEPS; j++)
            {
                if (COLUMN(j) < columns)
                    to[COLUMN(j)] = acc[h][j].x * factor;
                if (COLUMN(j) + PAIR_DISTANCE < columns)
                    to[COLUMN(j) + PAIR_DISTANCE] = acc[h][j].y * factor;
            }
            if (slot >= 0 && lane == 0) {
                to[PADDED] = best[h];
                to[PADDED + 1] = sum;
            }
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
}

__kernel __attribute__((reqd_work_group_size(SINGLE_THREADS, 1, 1))) void A(attend_single)(
    const __global int *in, const __global uchar *q_buffer, long q_at, const __global uchar *keys,
    const __global uchar *values, __global uchar *out_buffer, long out_at, const __global uchar *sinks, long sinks_at,
    int heads, int kv_heads, int window, float scale, float softcap, __global float *partials)
{
    __local float space[SINGLE_FLOATS] ALIGNED;
    A(attend_row)(in, in + in[IN_AT_SINGLES] + 4 * get_group_id(1), get_group_id(0) * SINGLE_HEADS,
                  FLOATS_IN(q_buffer, q_at), keys, values, FLOATS(out_buffer, out_at), sinks, sinks_at, heads, kv_heads,
                  window, scale, softcap, partials, space);
}

// Joins the partial results of one row: each work-item has one column. `combine`: row, first slot, splits.
static inline void A(join_column)(
    const __global int *combine, const __global float *partials, __global float *out, const __global uchar *sinks,
    long sinks_at, int heads, int column)
{
    const int h = column / VW, d = column % VW;
    if (h < heads) {
        const __global float *part = partials + ((long)combine[1] * heads + h) * (PADDED + 2);
        const long stride = (long)heads * (PADDED + 2);
        float best = -INFINITY, total = 0.0f, sum = 0.0f;
        for (int s = 0; s < combine[2]; s++)
            best = fmax(best, part[s * stride + PADDED]);
        for (int s = 0; s < combine[2]; s++) {
            const float weight = exp(part[s * stride + PADDED] - best); // parts outside of the window weigh nothing
            total = fma(weight, part[s * stride + PADDED + 1], total);
            sum = fma(weight, part[s * stride + d], sum);
        }
        out[(long)combine[0] * heads * VW + column] = sum * A(mean_factor)(best, total, sinks, sinks_at, h);
    }
}

__kernel void A(join_parts)(
    const __global int *in, const __global float *partials, __global uchar *out_buffer, long out_at,
    const __global uchar *sinks, long sinks_at, int heads)
{
    A(join_column)(in + in[IN_AT_COMBINES] + 3 * get_global_id(1), partials, FLOATS(out_buffer, out_at), sinks, sinks_at,
                   heads, get_global_id(0));
}

#ifdef STEP_THREADS
// Place `tile` of a lone row's heads; nth: of the parts (simt_op.cl). p: queries, keys, values, result, sinks.
static inline void A(step_attend)(
    const __global int *in, OpPointer op, int tile, int nth, __global float *partials, __local float *space)
{
    A(attend_row)(in, in + in[IN_AT_SINGLES] + 4 * nth, tile * SINGLE_HEADS, OP_FLOATS(0), OP_BYTES(1), OP_BYTES(2),
                  OP_FLOATS(3), OP_BYTES(4), op->p[4] ? 0 : -1, op->heads, op->kv_heads, op->window, op->scale, op->cap,
                  partials, space);
}

static inline void A(step_combine)(
    const __global int *in, OpPointer op, int item, int nth, const __global float *partials)
{
    A(join_column)(in + in[IN_AT_COMBINES] + 3 * nth, partials, OP_FLOATS(3), OP_BYTES(4), op->p[4] ? 0 : -1, op->heads,
                   item);
}

enum { A(STEP_ATTEND_FLOATS) = SINGLE_FLOATS };
#endif

#undef SPAN
#undef KEY_PARTS
#undef KEY_COLUMNS
#undef MOST_PARTS
#undef PART_SPAN
#undef PIECE_SPAN
#undef SINGLE_SCORES
#undef SINGLE_PARTS
#undef SINGLE_ROOM
#undef SINGLE_FLOATS
#undef VALUE_LANES
#undef VALUE_PARTS
#undef VALUE_STEPS
#undef COLUMN
#undef PAIR
#undef SCALE_COLUMNS
#undef CODE_COLUMNS
