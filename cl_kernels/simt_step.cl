// A whole step of one row as one kernel: launches cost more than the work between them. STEP_THREADS work-items to a
// work-group, and no more work-groups than run at once: each walks through the phases, takes its share of the places in
// them, and waits until all have done theirs. `in` has a word that counts who has come that far.

// Looks for who is still to come, some seconds at least. Should they not run at the same time after all, everybody goes
// on, and what comes out is wrong: the host compares a step with the kernels of longer ones before it trusts this.
#define MOST_LOOKS (1 << 23)

// NVIDIA's fences are written out: what others have written before they came is seen by all work-items after this.
static inline void wait_for_all(volatile __global int *arrived, int target)
{
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
    if (get_local_id(0) == 0) {
#ifdef REALM_SIMT_DP4A
        int now, looks = 0;
        __asm__ volatile("red.release.gpu.global.add.s32 [%0], 1;" : : "l"(arrived) : "memory");
        do
            __asm__ volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
        while (now < target && looks++ < MOST_LOOKS);
        if (now < target)
            atomic_add(arrived, 1 << 30);
#else
        mem_fence(CLK_GLOBAL_MEM_FENCE);
        atomic_inc(arrived);
        for (int looks = 0; atomic_add(arrived, 0) < target && looks < MOST_LOOKS; looks++)
            ;
        if (atomic_add(arrived, 0) < target)
            atomic_add(arrived, 1 << 30);
        mem_fence(CLK_GLOBAL_MEM_FENCE);
#endif
    }
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
}

static inline void run_op(
    const __global int *in, const __global StepOp *op, int tile, int nth, __global float *partials, __local float *space)
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

__kernel __attribute__((reqd_work_group_size(STEP_THREADS, 1, 1))) void run_step(
    const __global int *in, volatile __global int *arrived, const __global StepOp *ops, const __global int *phases,
    int n_phases, __global float *partials)
{
    __local float space[STEP_FLOATS] ALIGNED;
    const int mine = get_group_id(0), workers = get_num_groups(0);
    int target = 0;
    for (int phase = 0; phase < n_phases; phase++) {
        int before = 0; // places of the phase's operations before this one
        for (int i = phases[phase]; i < phases[phase + 1]; i++) {
            const __global StepOp *op = ops + i;
            const int tiles = op->tiles, all = tiles * (op->times < 0 ? 1 : in[op->times]);
            for (int place = (mine + workers - before % workers) % workers; place < all; place += workers)
                run_op(in, op, place % tiles, place / tiles, partials, space);
            before += all;
        }
        if (before && workers > 1) {
            target += workers;
            wait_for_all(arrived, target);
        }
    }
}
