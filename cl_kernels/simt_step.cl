// A whole step of one row as one kernel: launches cost more than the work between them. STEP_THREADS work-items to a
// work-group, and no more work-groups than run at once: each walks through the phases, takes its share of the places in
// them, and waits until all have done theirs. `in` has a word that counts who has come that far. A share is a worker's;
// there may be more of them than work-groups, which then have several (the tests, where one work-group runs at a time).

// Looks for who is still to come, some seconds at least. Should they not run at the same time after all, everybody goes
// on, and what comes out is wrong: the host compares a step with the kernels of longer ones before it trusts this.
#define MOST_LOOKS (1 << 23)

#define AHEAD_ROUNDS 2 // so many places of a product further on, weights are asked for
#define ASKERS 32 // work-items that ask for weights while the first one waits: these from number ASKERS on
#define ASKS(me) ((me) / ASKERS == 1)

// What was read ahead for a phase (gpu_step.py): the products of phase `phase` that come next, rounds first .. last - 1 of
// its places.
typedef struct {
    int phase, first, last, spare;
} StepAhead;

// NVIDIA's fences are written out: what others have written before they came is seen by all work-items after this.
static inline void arrive(volatile __global int *arrived)
{
#ifdef REALM_SIMT_DP4A
    __asm__ volatile("red.release.gpu.global.add.s32 [%0], 1;" : : "l"(arrived) : "memory");
#else
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    atomic_inc(arrived);
#endif
}

static inline void wait_for_all(volatile __global int *arrived, int target)
{
#ifdef REALM_SIMT_DP4A
    int now, looks = 0;
    do
        __asm__ volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
    while (now < target && looks++ < MOST_LOOKS);
    if (now < target)
        atomic_add(arrived, 1 << 30);
#else
    for (int looks = 0; atomic_add(arrived, 0) < target && looks < MOST_LOOKS; looks++)
        ;
    if (atomic_add(arrived, 0) < target)
        atomic_add(arrived, 1 << 30);
    mem_fence(CLK_GLOBAL_MEM_FENCE);
#endif
}

// Asks for the weights of a product's place, so that they come while there is nothing else to read. By ASKERS work-items.
static inline void ask_for_place(ulong weights, ulong end, int tile_bytes, int place)
{
    const ulong from = weights + (ulong)place * tile_bytes, to = min(from + tile_bytes, end);
    for (ulong line = from + get_local_id(0) % ASKERS * 128; line < to; line += ASKERS * 128) {
#ifdef REALM_SIMT_DP4A
        __asm__ volatile("prefetch.global.L2 [%0];" : : "l"(line));
#endif
    }
}

// What this work-group has of the phase that is read ahead now.
static inline void ask_ahead(
    const __global StepAhead *ahead, const __global StepOp *ops, const __global int *phases, int mine, int workers)
{
    for (int round = ahead->first; round < ahead->last; round++) {
        int place = mine + round * workers;
        for (int i = phases[ahead->phase]; i < phases[ahead->phase + 1]; i++) {
            if (place < ops[i].tiles) {
                ask_for_place(ops[i].p[1], ops[i].p[5], ops[i].tile_bytes, place);
                break;
            }
            place -= ops[i].tiles;
        }
    }
}

static inline void run_op(
    const __global int *in, OpPointer op, int tile, int nth, __global float *partials, __local float *space)
{
    const int me = get_local_id(0), item = tile * STEP_THREADS + me;
    switch (op->kind) {
    case OP_EMBED: {
        const int token = CHOSEN_ROW(op->table, 0) - op->start;
        if (item < op->n && token >= 0 && token < op->used)
            step_embed(op, token, item);
        break;
    }
    case OP_PREPARE:
        prepare_part(in, op->how, op->act, op->gather, 0, op->k, op->heads, op->used, op->epsilon, op->cap, OP_FLOATS(0),
                     OP_FLOATS(1), OP_FLOATS(4), OP_BYTES(2), OP_FLOATS(3), tile % op->n, tile / op->n, space,
                     (__local int *)space + STEP_THREADS);
        barrier(CLK_LOCAL_MEM_FENCE);
        break;
    case OP_MATVEC:
        step_matvec(op, tile, space);
        break;
    case OP_STORE_KV:
        store_row_of_keys(in, OP_FLOATS(0), OP_FLOATS(1), OP_FLOATS(2), OP_BYTES(3), OP_BYTES(4), OP_FLOATS(5),
                          op->heads, op->kv_heads, op->head_width, op->value_width, op->n, op->start, op->how, op->table,
                          0, item, op->tiles * STEP_THREADS, space);
        break;
    case OP_ATTEND:
        step_attend(in, op, tile, nth, partials, space);
        break;
    case OP_COMBINE:
        step_combine(in, op, item, nth, partials);
        break;
    case OP_ADD:
        if (item < op->k)
            OP_FLOATS(2)[item] = OP_FLOATS(0)[item] + OP_FLOATS(1)[item];
        break;
    case OP_COPY:
        if (item < op->heads * op->k)
            OP_FLOATS(1)[item / op->k * op->out_stride + op->table + item % op->k] =
                OP_FLOATS(0)[item / op->k % op->used * op->n + op->start + item % op->k];
        break;
    }
}

#define STEP_OPS 8 // of a phase at most
#define STEP_OP_WORDS (sizeof(StepOp) / 4)

// Operations first .. end - 1.
static inline void fetch_ops(__local StepOp *to, const __global StepOp *ops, int first, int end)
{
    for (int i = get_local_id(0); i < (end - first) * (int)STEP_OP_WORDS; i += STEP_THREADS)
        ((__local int *)to)[i] = ((const __global int *)(ops + first))[i];
}

__kernel __attribute__((reqd_work_group_size(STEP_THREADS, 1, 1))) void run_step(
    __global int *in, const __global StepOp *ops, const __global int *phases, const __global StepAhead *ahead,
    int n_phases, int workers, __global float *partials)
{
    __local float space[STEP_FLOATS] ALIGNED;
    __local StepOp fetched[2 * STEP_OPS];
    volatile __global int *arrived = in + IN_ARRIVED;
    const int me = get_local_id(0), together = get_num_groups(0);
    int target = 0, first = phases[0], end = phases[1];
    fetch_ops(fetched, ops, first, end);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int phase = 0; phase < n_phases; phase++) {
        __local StepOp *now = fetched + phase % 2 * STEP_OPS;
        int before = 0; // places of the phase's operations before this one
        for (int i = first; i < end; i++) {
            OpPointer op = now + (i - first);
            const int tiles = op->tiles, all = tiles * (op->times < 0 ? 1 : in[op->times]);
            for (int mine = get_group_id(0); mine < workers; mine += together)
                for (int place = (mine + workers - before % workers) % workers; place < all; place += workers) {
                    if (op->kind == OP_MATVEC && ASKS(me))
                        ask_for_place(op->p[1], op->p[5], op->tile_bytes, place + AHEAD_ROUNDS * workers);
                    run_op(in, op, place % tiles, place / tiles, partials, space);
                }
            before += all;
        }
        if (phase + 1 < n_phases) {
            const int waits = before && together > 1;
            barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
            target += waits ? together : 0;
            if (me == 0 && waits)
                arrive(arrived);
            if (ASKS(me))
                ask_ahead(ahead + phase, ops, phases, get_group_id(0), workers);
            first = end, end = phases[phase + 2];
            fetch_ops(fetched + (phase + 1) % 2 * STEP_OPS, ops, first, end);
            if (me == 0 && waits)
                wait_for_all(arrived, target);
            barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
        }
    }
}
