// Flash attention over the paged cache of attention.cl on a GPU, for one shape of heads. The host defines
//   A(name)      name with the shape's suffix
//   HW, VW       numbers in a head's queries and keys, and in its values
//   SINGLE_HEADS query heads sharing keys that one work-group takes when a row is alone; up to 8
//   TILE_HEADS, TILE_QUERIES  the same for a tile of rows, and heads times rows of a tile: 16, 32 or 64
//   SINGLE_THREADS   work-items that take a row together, a multiple of 128
// Work-groups for tiles have 128 work-items. window: 0, or position p reads p - window + 1 .. p; softcap: 0 for none; sinks: a
// score for each head that takes part in its softmax, if there is an offset.

#define PADDED ((VW + 15) / 16 * 16)
#define THREADS 128

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
#define KEY_COLUMNS ((HW + KEY_PARTS - 1) / KEY_PARTS)
#define VALUE_LANES (PADDED / 2 > SINGLE_THREADS ? SINGLE_THREADS : PADDED / 2)
#define VALUE_STEPS ((PADDED / 2 + VALUE_LANES - 1) / VALUE_LANES)
#define MOST_PARTS (SINGLE_THREADS / VALUE_LANES)
#define VALUE_PARTS (VALUE_STEPS > 1 ? 1 : MOST_PARTS >= 8 ? 8 : MOST_PARTS >= 4 ? 4 : MOST_PARTS >= 2 ? 2 : 1)
#define PART_SPAN (SPAN / VALUE_PARTS)
#define PIECE_SPAN (PART_SPAN < 32 ? PART_SPAN : 32) // positions in one block of the cache
#define COLUMN(j) (2 * (lane + (j)*VALUE_LANES))
// Floats in local memory: queries, scores of each part of the columns or the parts of the result, 16 for each head.
#define SINGLE_SCORES (SINGLE_HEADS * SINGLE_THREADS)
#define SINGLE_PARTS ((VALUE_PARTS - 1) * SINGLE_HEADS * PADDED)
#define SINGLE_ROOM (SINGLE_SCORES > SINGLE_PARTS ? SINGLE_SCORES : SINGLE_PARTS)
#define SINGLE_FLOATS (SINGLE_HEADS * (HW + 16) + SINGLE_ROOM)

// Heads head .. head + SINGLE_HEADS - 1 of the row that `single` names: row, first position, last, partial slot or -1.
static inline void A(attend_row)(
    const __global int *in, const __global int *single, int head, const __global float *q, const __global uchar *keys,
    const __global uchar *values, __global float *out, const __global uchar *sinks, long sinks_at, int heads,
    int kv_heads, int window, float scale, float softcap, __global float *partials, __local float *space)
{
    __local float *qs = space, *part_of = qs + SINGLE_HEADS * HW, *scores = part_of + SINGLE_HEADS * 16;
    const int me = get_local_id(0), row = single[0], last = single[2], slot = single[3];
    const int seen_from = window ? max(0, in[in[IN_AT_POSITIONS] + row] - window + 1) : 0;
    const int first = max(single[1], seen_from / 32 * 32);
    const int kv_head = head / (heads / kv_heads), sequence = in[in[IN_AT_SEQUENCES] + row];
    const __global int *table = in + in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS];
    q += ((long)row * heads + head) * HW;
    for (int i = me; i < SINGLE_HEADS * HW; i += SINGLE_THREADS)
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
            const __global half *kt = (const __global half *)keys
                                      + ((long)table[position / 32] * kv_heads + kv_head) * HW * 32 + position % 32;
            const int from = key_part * KEY_COLUMNS, end = min(HW, from + KEY_COLUMNS);
            _Pragma("unroll 16") for (int d = from; d < end; d++)
            {
                const float k = vload_half(32 * d, kt);
                _Pragma("unroll") for (int h = 0; h < SINGLE_HEADS; h++) s[h] = fma(k, qs[h * HW + d], s[h]);
            }
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
            my_total *= exp(my_best - most);
            my_best = most;
            _Pragma("unroll") for (int i = 0; i < SPAN / 16; i++)
            {
                const float p = exp(mine[i] - most);
                my_total += p;
                scores[my_head * SPAN + me % 16 + 16 * i] = p;
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (value_part < VALUE_PARTS)
            for (int x = value_part * PART_SPAN; x < (value_part + 1) * PART_SPAN; x += PIECE_SPAN) {
                const int written = min(PIECE_SPAN, last - start - x); // what lies behind may be no number at all
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
                if (COLUMN(j) + 1 < columns)
                    to[COLUMN(j) + 1] = acc[h][j].y * factor;
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
    __local float space[SINGLE_FLOATS];
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
    const __global int *in, const __global StepOp *op, int tile, int nth, __global float *partials, __local float *space)
{
    A(attend_row)(in, in + in[IN_AT_SINGLES] + 4 * nth, tile * SINGLE_HEADS, OP_FLOATS(0), OP_BYTES(1), OP_BYTES(2),
                  OP_FLOATS(3), OP_BYTES(4), op->p[4] ? 0 : -1, op->heads, op->kv_heads, op->window, op->scale, op->cap,
                  partials, space);
}

static inline void A(step_combine)(
    const __global int *in, const __global StepOp *op, int item, int nth, const __global float *partials)
{
    A(join_column)(in + in[IN_AT_COMBINES] + 3 * nth, partials, OP_FLOATS(3), OP_BYTES(4), op->p[4] ? 0 : -1, op->heads,
                   item);
}

enum { A(STEP_ATTEND_FLOATS) = SINGLE_FLOATS };
#endif

// ---- a tile of rows: 16 by 8 work-items have PER_ITEM queries by 4 positions each for the scores, and by four columns
// out of every 32 for the values. Local memory holds 32 columns of queries and keys at a time, then the values.

#define PER_ITEM (TILE_QUERIES / 16)
#define V_ROWS (PADDED > 256 ? 16 : 32) // positions whose values are in local memory at a time
#define COLUMN_STEPS ((PADDED + 31) / 32)
#define QK_FLOATS (32 * TILE_QUERIES + 32 * 32)
#define V_FLOATS (V_ROWS * PADDED / 2)

__kernel __attribute__((reqd_work_group_size(THREADS, 1, 1))) void A(attend_tile)(
    const __global int *in, const __global uchar *q_buffer, long q_at, const __global uchar *keys,
    const __global uchar *values, __global uchar *out_buffer, long out_at, const __global uchar *sinks, long sinks_at,
    int heads, int kv_heads, int window, float scale, float softcap)
{
    __local float4 shared[(QK_FLOATS > V_FLOATS ? QK_FLOATS : V_FLOATS) / 4];
    __local float p_tile[32 * TILE_QUERIES] ALIGNED;
    __local float part_of[TILE_QUERIES * 8];
    __local float *q_tile = (__local float *)shared, *k_tile = q_tile + 32 * TILE_QUERIES;
    __local uint *v_words = (__local uint *)shared;
    const __local half *v_tile = (const __local half *)shared;
    const int me = get_local_id(0), mine = me / 8 * PER_ITEM, across = me % 8, head = get_group_id(0) * TILE_HEADS;
    const __global int *tile = in + in[IN_AT_TILES] + 4 * get_group_id(1); // first row, rows, its position, step to the next's
    const int row = tile[0], queries = tile[1] * TILE_HEADS, row_position = tile[2], row_step = tile[3];
    const int last = row_position + (tile[1] - 1) * row_step + 1;
    const int kv_head = head / (heads / kv_heads), sequence = in[in[IN_AT_SEQUENCES] + row];
    const __global int *table = in + in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS];
    const __global float *q = FLOATS_IN(q_buffer, q_at) + ((long)row * heads + head) * HW;
    float4 acc[PER_ITEM][COLUMN_STEPS];
    float best[PER_ITEM], total[PER_ITEM];
    _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
    {
        _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++) acc[i][j] = (float4)(0.0f);
        best[i] = -INFINITY;
        total[i] = 0.0f;
    }
    const int first = window ? max(0, row_position - window + 1) / 32 * 32 : 0;
    for (int start = first; start < last; start += 32) {
        const long block = (long)table[start / 32] * kv_heads + kv_head;
        const __global half *kt = (const __global half *)keys + block * HW * 32;
        float4 s[PER_ITEM];
        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) s[i] = (float4)(0.0f);
        for (int d0 = 0; d0 < HW; d0 += 32) {
            const int columns = min(32, HW - d0);
            for (int i = me; i < 32 * TILE_QUERIES; i += THREADS) {
                const int j = i % TILE_QUERIES, d = i / TILE_QUERIES;
                q_tile[i] = j < queries && d < columns
                                ? q[((long)(j / TILE_HEADS) * heads + j % TILE_HEADS) * HW + d0 + d]
                                : 0.0f;
            }
            for (int i = me; i < 32 * columns; i += THREADS)
                k_tile[i] = vload_half(32 * d0 + i, kt);
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int d = 0; d < columns; d++) {
                const float4 k = ((const __local float4 *)k_tile)[8 * d + across];
                _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) s[i] =
                    fma((float4)(q_tile[d * TILE_QUERIES + mine + i]), k, s[i]);
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
        const int4 position = start + 4 * across + (int4)(0, 1, 2, 3);
        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
        {
            const int at = row_position + (mine + i) / TILE_HEADS * row_step;
            s[i].x = A(score)(s[i].x, scale, softcap);
            s[i].y = A(score)(s[i].y, scale, softcap);
            s[i].z = A(score)(s[i].z, scale, softcap);
            s[i].w = A(score)(s[i].w, scale, softcap);
            s[i] = select(s[i], (float4)(-INFINITY), (position > at) | (position <= at - (window ? window : at + 1)));
            part_of[(mine + i) * 8 + across] = fmax(fmax(s[i].x, s[i].y), fmax(s[i].z, s[i].w));
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
        {
            float now = best[i];
            for (int j = 0; j < 8; j++)
                now = fmax(now, part_of[(mine + i) * 8 + j]);
            const float base = now == -INFINITY ? 0.0f : now; // later rows of the tile may see nothing so far
            const float shrink = exp(best[i] - base);
            const float4 p = exp(s[i] - base);
            best[i] = now;
            total[i] = fma(total[i], shrink, p.x + p.y + p.z + p.w);
            _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++) acc[i][j] *= shrink;
            p_tile[(4 * across) * TILE_QUERIES + mine + i] = p.x;
            p_tile[(4 * across + 1) * TILE_QUERIES + mine + i] = p.y;
            p_tile[(4 * across + 2) * TILE_QUERIES + mine + i] = p.z;
            p_tile[(4 * across + 3) * TILE_QUERIES + mine + i] = p.w;
        }
        const __global uint *vt = (const __global uint *)((const __global ushort *)values + block * 32 * PADDED);
        for (int x0 = 0; x0 < 32; x0 += V_ROWS) {
            for (int i = me; i < V_ROWS * PADDED / 2; i += THREADS) // behind `last` there may be no numbers at all
                v_words[i] = start + x0 + 2 * i / PADDED < last ? vt[x0 * PADDED / 2 + i] : 0;
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int x = 0; x < V_ROWS; x++) {
                float p[PER_ITEM];
                _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) p[i] = p_tile[(x0 + x) * TILE_QUERIES + mine + i];
                _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++)
                {
                    const int d = 32 * j + 4 * across;
                    if (d < PADDED) {
                        const float4 v = vload_half4(0, v_tile + x * PADDED + d);
                        _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) acc[i][j] =
                            fma((float4)(p[i]), v, acc[i][j]);
                    }
                }
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
    }
    _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++) part_of[(mine + i) * 8 + across] = total[i];
    barrier(CLK_LOCAL_MEM_FENCE);
    _Pragma("unroll") for (int i = 0; i < PER_ITEM; i++)
    {
        const int query = mine + i;
        float sum = 0.0f;
        for (int j = 0; j < 8; j++)
            sum += part_of[query * 8 + j];
        if (query < queries) {
            const float factor = A(mean_factor)(best[i], sum, sinks, sinks_at, head + query % TILE_HEADS);
            __global float *to = FLOATS(out_buffer, out_at)
                                 + ((long)(row + query / TILE_HEADS) * heads + head + query % TILE_HEADS) * VW;
            _Pragma("unroll") for (int j = 0; j < COLUMN_STEPS; j++)
            {
                const int d = 32 * j + 4 * across;
                if (d < VW)
                    to[d] = acc[i][j].x * factor;
                if (d + 1 < VW)
                    to[d + 1] = acc[i][j].y * factor;
                if (d + 2 < VW)
                    to[d + 2] = acc[i][j].z * factor;
                if (d + 3 < VW)
                    to[d + 3] = acc[i][j].w * factor;
            }
        }
    }
}

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
#undef V_ROWS
#undef PER_ITEM
#undef COLUMN_STEPS
#undef QK_FLOATS
#undef V_FLOATS
