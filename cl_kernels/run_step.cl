// The step's kernel: work-groups take the chunks of step.cl and wait for each other.

// Spreads the chunks so that work-groups which take turns walk through adjacent ones, each in its own part of memory.
static inline int spread(int taken, int total, int workers)
{
    const int part = taken % workers;
    return part * (total / workers) + min(part, total % workers) + taken / workers;
}

// What a work-group that waits will probably read first in the next phase that reads much. It asks for it meanwhile: the
// memory has little to do.
typedef struct {
    int phase, part; // which phase, and which part of its chunks (see spread)
    int asked, lines; // cache lines: those asked for, and how many there are
    int per_block, blocks; // of attention: cache lines of a block's keys; blocks
    const __global uchar *from; // weights, or the keys of a head ...
    const __global uchar *values; // ... and its values, or 0
    const __global int *table; // its blocks
    long key_stride, value_stride; // bytes between blocks
} Coming;

#define COMING_BYTES (64 << 10)
#define COMING_PHASES 4 // it is looked for so far ahead

static void find_coming(Coming *to, const __global Op *ops, const __global int *phases, int n_phases, int phase,
                        const __global int *in, int part, int workers)
{
    const __global Op *op = 0;
    const int end = min(n_phases, phase + 1 + COMING_PHASES);
    for (phase++; phase < end; phase++) {
        op = ops + phases[2 * phase];
        if (op->kind == OP_MATMUL || op->kind == OP_ATTEND)
            break;
    }
    if (phase == to->phase && part == to->part)
        return;
    to->phase = phase;
    to->part = part;
    to->asked = to->lines = 0;
    if (phase == end)
        return;
    int total = 0;
    for (int i = 0; i < phases[2 * phase + 1]; i++)
        total += count_chunks(op + i, in);
    if (part >= total)
        return;
    int c = spread(part, total, workers);
    for (int n; c >= (n = count_chunks(op, in)); op++)
        c -= n;
    if (op->kind == OP_MATMUL) {
        to->from = BYTES(op->p[0]) + (long)c * op->chunk * op->out_stride;
        to->values = 0;
        to->lines = min(COMING_BYTES, min(op->chunk, (op->n + 15) / 16 - c * op->chunk) * op->out_stride) / 64;
        return;
    }
    const int together = heads_together(op, in), parts = op->heads / (op->chunk * together);
    const int kv_head = c % parts * op->chunk * together / (op->heads / op->kv_heads);
    const __global int *tile = in + in[IN_AT_TILES] + TILE_WORDS * (c / parts);
    const int first = op->window ? max(tile[3], tile[2] - op->window + 1) / POSITIONS : tile[3] / POSITIONS;
    to->blocks = (tile[4] + POSITIONS - 1) / POSITIONS - first;
    to->table = in + in[IN_AT_BLOCKS] + (long)in[in[IN_AT_SEQUENCES] + tile[0]] * in[IN_MAX_BLOCKS] + first;
    const long keys = key_bytes(op->head_width), values = value_bytes(op->value_width);
    to->key_stride = op->kv_heads * keys;
    to->value_stride = op->kv_heads * values;
    to->from = BYTES(op->p[1]) + kv_head * keys;
    to->values = BYTES(op->p[2]) + kv_head * values;
    to->per_block = together * min(keys, values) / 64;
    to->lines = min(COMING_BYTES / 64, 2 * to->blocks * to->per_block);
}

static inline void ask_for_coming(Coming *c)
{
    const int i = c->asked++;
    if (!c->values) {
        FETCH(c->from + 64L * i);
        return;
    }
    const int block = i / c->per_block, at = 64 * (i % c->per_block);
    if (block < c->blocks)
        FETCH(c->from + c->table[block] * c->key_stride + at);
    else
        FETCH(c->values + c->table[block - c->blocks] * c->value_stride + at);
}

// phases: pairs of first operation and number of operations. counters: two sets, used by turns, of 32 words a phase
// (taken, done, done for adapters); a step clears the set of the next.
__kernel void run_step(
    const __global Op *ops, const __global int *phases, int n_phases, const __global int *in, __global int *counters,
    int workers)
{
    const long words = 32L * n_phases;
    __global int *mine = counters + in[IN_PARITY] * words, *other = counters + (1 - in[IN_PARITY]) * words;
    Coming coming;
    coming.phase = -1;
    // whoever comes when the last phase has begun has nothing to do before it
    for (int phase = __atomic_load_n(mine + words - 32, __ATOMIC_ACQUIRE) ? n_phases - 1 : 0; phase < n_phases; phase++) {
        const __global Op *first = ops + phases[2 * phase];
        const int n_ops = phases[2 * phase + 1];
        int total = 0;
        for (int i = 0; i < n_ops; i++)
            total += count_chunks(first + i, in);
        __global int *taken = mine + 32 * phase, *done = taken + 16, *unused = other + 32 * phase;
        const LoraChunks lora = {first->kind == OP_LORA ? count_chunks(first, in) : 0, done + 1};
        int c, finished = 0;
        while ((c = __atomic_fetch_add(taken, 1, __ATOMIC_RELEASE)) < total) {
            if (c == 0)
                unused[0] = unused[16] = unused[17] = 0;
            if (c >= lora.total)
                c = lora.total + spread(c - lora.total, total - lora.total, workers);
            const __global Op *op = first;
            for (int n; c >= (n = count_chunks(op, in)); op++)
                c -= n;
            run_chunk(op, in, c, &lora);
            if (op->kind == OP_LORA)
                __atomic_fetch_add(lora.done, 1, __ATOMIC_RELEASE);
            finished++;
        }
        // once, not for each chunk: a counter that others change takes as long to come as half a kilobyte of weights
        if (finished)
            __atomic_fetch_add(done, finished, __ATOMIC_RELEASE);
        if (total == 0)
            unused[0] = unused[16] = unused[17] = 0;
        // what waits here asks for what comes next, adapters first
        const __global uchar *ahead = 0, *ahead_end = 0;
        if (phase + 1 < n_phases)
            lora_ahead(ops + phases[2 * phase + 2], in, &ahead, &ahead_end);
        for (int turns = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < total;) {
            if (ahead < ahead_end) {
                for (int i = 0; i < 4; i++, ahead += 64)
                    LORA_ASK(ahead);
                continue;
            }
            if (turns == 0)
                // of those who find nothing left the first is likely to come second in the next phase, and so on
                find_coming(&coming, ops, phases, n_phases, phase, in, (c - total + 1) % workers, workers);
            for (int i = 0; i < 4 && coming.asked < coming.lines; i++)
                ask_for_coming(&coming);
            relax(turns++);
        }
    }
}
