// The step's kernel: work-groups take the chunks of step.cl and wait for each other.

// The chunks of a phase are cut into parts, each with a counter of its own. A work-group takes those of one part, which lie
// together in memory, and then of the others: so its processor has what it has asked for ahead, and hardly ever waits for
// a counter that another has just changed.
static inline int begin_of(int part, int total, int parts)
{
    return part * (total / parts) + min(part, total % parts);
}

static void run_numbered(const __global Op *op, const __global int *in, int c, const LoraChunks *lora)
{
    for (int n; c >= (n = count_chunks(op, in)); op++)
        c -= n;
    run_chunk(op, in, c, lora);
}

// What a work-group that waits will probably read first in the next phase that reads much. It asks for it meanwhile: the
// memory has little to do.
typedef struct {
    int phase;
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
                        const __global int *in, int slot, int parts)
{
    const __global Op *op = 0;
    int n_ops = 0;
    const int end = min(n_phases, phase + 1 + COMING_PHASES);
    for (phase++; phase < end; phase++) {
        op = ops + phases[2 * phase];
        n_ops = phases[2 * phase + 1];
        if (op->kind == OP_LORA) { // its chunks are taken before those of the products
            op++;
            n_ops--;
        }
        if (op->kind == OP_MATMUL || op->kind == OP_ATTEND)
            break;
    }
    if (phase == to->phase)
        return;
    to->phase = phase;
    to->asked = to->lines = 0;
    if (phase == end)
        return;
    int total = 0;
    for (int i = 0; i < n_ops; i++)
        total += count_chunks(op + i, in);
    const int part = slot % parts;
    int c = begin_of(part, total, parts) + slot / parts;
    if (c >= begin_of(part + 1, total, parts))
        return;
    for (int n; c >= (n = count_chunks(op, in)); op++)
        c -= n;
    if (op->kind == OP_MATMUL) {
        to->from = BYTES(op->p[0]) + (long)c * op->chunk * op->out_stride;
        to->values = 0;
        to->lines = min(COMING_BYTES, min(op->chunk, (op->n + 15) / 16 - c * op->chunk) * op->out_stride) / 64;
        return;
    }
    const int together = heads_together(op, in), across = op->heads / (op->chunk * together);
    const int kv_head = c % across * op->chunk * together / (op->heads / op->kv_heads);
    const __global int *tile = in + in[IN_AT_TILES] + TILE_WORDS * (c / across);
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

// What the next phase with adapters begins with, or 0
static const __global Op *next_lora(const __global Op *ops, const __global int *phases, int n_phases, int phase)
{
    for (int i = phase + 1; i < min(n_phases, phase + 1 + COMING_PHASES); i++)
        if (ops[phases[2 * i]].kind == OP_LORA)
            return ops + phases[2 * i];
    return 0;
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

// phases: pairs of first operation and number of operations. counters: two sets, used by turns; a step clears the set of the
// next. A set has for each phase a line of 16 words for each part (chunks taken) and one more (chunks done, those of
// adapters done, those of adapters taken), and a last line (work-groups that have come, whether the last phase has begun).
__kernel void run_step(
    const __global Op *ops, const __global int *phases, int n_phases, const __global int *in, __global int *counters,
    int parts)
{
    const int words = 16 * (parts + 1), set = words * n_phases + 16;
    __global int *mine = counters + in[IN_PARITY] * set, *other = counters + (1 - in[IN_PARITY]) * set;
    __global int *came = mine + set - 16, *ending = came + 1;
    const int slot = __atomic_fetch_add(came, 1, __ATOMIC_RELAXED);
    if (slot == 0)
        other[set - 16] = other[set - 15] = 0;
    Coming coming;
    coming.phase = -1;
    LoraAhead ahead = {0, 0, 0, 0};
    // who comes when the last phase has begun has nothing to do before it; the first one goes everywhere, for it clears
    int phase = slot && __atomic_load_n(ending, __ATOMIC_ACQUIRE) ? n_phases - 1 : 0;
    for (; phase < n_phases; phase++) {
        const __global Op *first = ops + phases[2 * phase];
        const int n_ops = phases[2 * phase + 1];
        int total = 0, finished = 0;
        for (int i = 0; i < n_ops; i++)
            total += count_chunks(first + i, in);
        __global int *taken = mine + words * phase, *done = taken + 16 * parts, *unused = other + words * phase;
        const LoraChunks lora = {first->kind == OP_LORA ? count_chunks(first, in) : 0, done + 1};
        if (slot == 0) {
            for (int i = 0; i <= parts; i++)
                unused[16 * i] = 0;
            unused[16 * parts + 1] = unused[16 * parts + 2] = 0;
        }
        if (phase == n_phases - 1)
            __atomic_store_n(ending, 1, __ATOMIC_RELEASE);
        for (int c; lora.total && (c = __atomic_fetch_add(done + 2, 1, __ATOMIC_RELAXED)) < lora.total; finished++) {
            run_numbered(first, in, c, &lora);
            __atomic_fetch_add(lora.done, 1, __ATOMIC_RELEASE);
        }
        for (int i = 0; i < parts; i++) {
            const int part = (slot + i) % parts, begin = begin_of(part, total - lora.total, parts);
            const int end = begin_of(part + 1, total - lora.total, parts);
            __global int *next = taken + 16 * part;
            if (begin == end || (i && __atomic_load_n(next, __ATOMIC_RELAXED) >= end - begin))
                continue;
            for (int c; (c = begin + __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < end; finished++)
                run_numbered(first, in, lora.total + c, &lora);
        }
        if (finished)
            __atomic_fetch_add(done, finished, __ATOMIC_RELEASE);
        // what waits here asks for what comes next, adapters first
        const __global Op *next = next_lora(ops, phases, n_phases, phase);
        for (int turns = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < total;) {
            if (next && lora_ask(&ahead, next, in))
                continue;
            if (turns == 0)
                find_coming(&coming, ops, phases, n_phases, phase, in, slot, parts);
            for (int i = 0; i < 4 && coming.asked < coming.lines; i++)
                ask_for_coming(&coming);
            relax(turns++);
        }
    }
}
