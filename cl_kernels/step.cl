// A whole step of the engine as one kernel, for CPUs: work-groups run the operations of a program phase by phase.
//
// The operations of a phase are cut into chunks. A work-group takes chunks of the current phase from a shared counter
// until there are none, then waits until those taken by others are done, and goes on to the next phase. Any number of
// work-groups may take part and each may join at any time: one that comes late finds the counters of the phases
// behind it exhausted. So nothing is assumed about how many of them the driver runs at once, and one alone suffices.

#define OP_EMBED 0
#define OP_PREPARE 1
#define OP_MATMUL 2
#define OP_STORE_KV 3
#define OP_ATTEND 4
#define OP_COMBINE 5
#define OP_ADD 6

typedef struct {
    int kind, type, logit_rows, n, k, chunk, heads, kv_heads, head_width, how, table, stride;
    float epsilon, scale;
    int unused[2];
    long p[8];
} Op;

// The step's input: int32 words, the first of them (see cpu_model.py)
#define IN_ROWS 0
#define IN_LOGIT_ROWS 1
#define IN_TILES 2
#define IN_COMBINES 3
#define IN_PARITY 4
#define IN_MAX_BLOCKS 5
#define IN_AT_TOKENS 6
#define IN_AT_POSITIONS 7
#define IN_AT_SEQUENCES 8
#define IN_AT_LOGIT_ROWS 9
#define IN_AT_TILES 10
#define IN_AT_COMBINES 11
#define IN_AT_BLOCKS 12
#define IN_AT_ROPE 13 // one word per rope table

#define TILE_WORDS 6 // first row, rows, first position of the row, first key, last key + 1, partial slot or -1
#define COMBINE_WORDS 3 // row, first partial slot, splits

#define FLOATS(x) ((__global float *)(x))
#define BYTES(x) ((__global uchar *)(x))

static int count_chunks(const __global Op *op, const __global int *in)
{
    const int rows = op->logit_rows ? in[IN_LOGIT_ROWS] : in[IN_ROWS];
    switch (op->kind) {
    case OP_MATMUL:
        return rows ? ((op->n + 15) / 16 + op->chunk - 1) / op->chunk : 0;
    case OP_ATTEND:
        return in[IN_TILES] * (op->heads / op->chunk);
    case OP_COMBINE:
        return in[IN_COMBINES];
    default:
        return rows;
    }
}

static void attend_chunk(const __global Op *op, const __global int *in, int c)
{
    // p: q, keys, values, out, partials; op->chunk heads share one key/value head
    const int parts = op->heads / op->chunk, part = c % parts;
    const __global int *tile = in + in[IN_AT_TILES] + TILE_WORDS * (c / parts);
    const int row = tile[0], padded = (op->head_width + 15) / 16 * 16, head = part * op->chunk;
    const int stride = op->heads * op->head_width;
    const int sequence = in[in[IN_AT_SEQUENCES] + row];
    attend_tile(FLOATS(op->p[0]) + (long)row * stride + head * op->head_width, stride, tile[1], tile[2], op->chunk,
                head / (op->heads / op->kv_heads), op->kv_heads, op->head_width, op->scale,
                (const __global ushort *)op->p[1], (const __global ushort *)op->p[2],
                in + in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS], tile[3], tile[4],
                FLOATS(op->p[3]) + (long)row * stride + head * op->head_width,
                tile[5] < 0 ? 0 : FLOATS(op->p[4]) + ((long)tile[5] * op->heads + head) * (padded + 2));
}

static void store_kv_chunk(const __global Op *op, const __global int *in, int row)
{
    // p: q, k, v, keys, values
    const int position = in[in[IN_AT_POSITIONS] + row], sequence = in[in[IN_AT_SEQUENCES] + row];
    const int block = in[in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS] + position / POSITIONS];
    __global float *q = FLOATS(op->p[0]) + (long)row * op->heads * op->head_width;
    __global float *k = FLOATS(op->p[1]) + (long)row * op->kv_heads * op->head_width;
    const __global float *v = FLOATS(op->p[2]) + (long)row * op->kv_heads * op->head_width;
    if (op->n) {
        const __global float *table = (const __global float *)(in + in[IN_AT_ROPE + op->table]) + (long)row * op->n;
        rotate_row(q, op->heads, op->head_width, table, op->n / 2, op->how);
        rotate_row(k, op->kv_heads, op->head_width, table, op->n / 2, op->how);
    }
    store_kv_row(k, v, op->kv_heads, op->head_width, block, position % POSITIONS, (__global ushort *)op->p[3],
                 (__global ushort *)op->p[4]);
}

static void run_chunk(const __global Op *op, const __global int *in, int c)
{
    const int rows = op->logit_rows ? in[IN_LOGIT_ROWS] : in[IN_ROWS];
    switch (op->kind) {
    case OP_EMBED: { // p: weights, out
        const int token = in[in[IN_AT_TOKENS] + c];
        embed_row(op->type, BYTES(op->p[0]), token, op->k, FLOATS(op->p[1]) + (long)c * op->k);
        break;
    }
    case OP_PREPARE: { // p: x, weight or up, int8 out, float out; how & 8: x is gathered by the logit rows
        const long from = (op->how & 8) ? in[in[IN_AT_LOGIT_ROWS] + c] : c;
        const int how = op->how & 7;
        prepare_row(how, FLOATS(op->p[0]) + from * op->k,
                    FLOATS(op->p[1]) + (how == PREPARE_SILU ? from * op->k : 0), op->k, op->epsilon,
                    op->p[2] ? (__global char *)(op->p[2] + c * prepared_bytes(op->k)) : 0,
                    op->p[3] ? FLOATS(op->p[3]) + (long)c * op->k : 0);
        break;
    }
    case OP_MATMUL: { // p: weights, x, out, bias, residual
        const int first = c * op->chunk;
        matmul_rows(op->type, BYTES(op->p[0]), first, min(first + op->chunk, (op->n + 15) / 16), op->n, op->k,
                    (const __global char *)op->p[1], rows, FLOATS(op->p[2]), op->n, FLOATS(op->p[3]), FLOATS(op->p[4]));
        break;
    }
    case OP_STORE_KV:
        store_kv_chunk(op, in, c);
        break;
    case OP_ATTEND:
        attend_chunk(op, in, c);
        break;
    case OP_COMBINE: { // p: partials, out
        const __global int *w = in + in[IN_AT_COMBINES] + COMBINE_WORDS * c;
        const int padded = (op->head_width + 15) / 16 * 16;
        combine_partials(FLOATS(op->p[0]) + (long)w[1] * op->heads * (padded + 2), w[2], op->heads, op->head_width,
                         FLOATS(op->p[1]) + (long)w[0] * op->heads * op->head_width);
        break;
    }
    case OP_ADD: { // p: a, b, out
        const long at = (long)c * op->k;
        for (int i = 0; i < op->k; i++)
            FLOATS(op->p[2])[at + i] = FLOATS(op->p[0])[at + i] + FLOATS(op->p[1])[at + i];
        break;
    }
    }
}

// phases: pairs of first operation and number of operations. counters: two sets, used by turns, of 32 words a phase
// (taken, done); a step clears the set of the next.
__kernel void run_step(
    const __global Op *ops, const __global int *phases, int n_phases, const __global int *in, __global int *counters)
{
    const long words = 32L * n_phases;
    __global int *mine = counters + in[IN_PARITY] * words, *other = counters + (1 - in[IN_PARITY]) * words;
    for (int phase = 0; phase < n_phases; phase++) {
        const __global Op *first = ops + phases[2 * phase];
        const int n_ops = phases[2 * phase + 1];
        int total = 0;
        for (int i = 0; i < n_ops; i++)
            total += count_chunks(first + i, in);
        __global int *taken = mine + 32 * phase, *done = taken + 16;
        int c;
        while ((c = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED)) < total) {
            if (c == 0)
                other[32 * phase] = other[32 * phase + 16] = 0;
            const __global Op *op = first;
            for (int n; c >= (n = count_chunks(op, in)); op++)
                c -= n;
            run_chunk(op, in, c);
            __atomic_fetch_add(done, 1, __ATOMIC_RELEASE);
        }
        if (total == 0)
            other[32 * phase] = other[32 * phase + 16] = 0;
        for (int turns = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < total; turns++)
            relax(turns);
    }
}
