// What a step of one row is made of when one kernel runs all of it (simt_step.cl).

#define OP_EMBED 0
#define OP_PREPARE 1
#define OP_MATVEC 2
#define OP_STORE_KV 3
#define OP_ATTEND 4
#define OP_COMBINE 5
#define OP_ADD 6
#define OP_COPY 7

// Fields as of the kernels that do the same for more rows. tiles: how many work-groups can share it, per entry of
// `times` (the word of the input that counts them, or -1 for once). type: of weights, or shape of heads, as numbered by
// the host. A table of embeddings has its rows from `start` on here, `used` of them. p: addresses, 0 for none; of a product they are x, weights, out, bias, residual.
typedef struct {
    int kind, type, tiles, times;
    int n, k, heads, kv_heads, head_width, value_width, how, act, gather, used, table, start, window, slices, slice;
    int out_stride;
    float epsilon, cap, scale;
    int spare;
    ulong p[8];
} StepOp;

#define OP_FLOATS(i) ((__global float *)(op->p[i]))
#define OP_BYTES(i) ((__global uchar *)(op->p[i]))

// A product's row: its `result` for one column.
static inline void store_result(const __global StepOp *op, int column, float result)
{
    if (op->p[3])
        result += OP_FLOATS(3)[column];
    result *= op->scale;
    if (op->p[4])
        result += OP_FLOATS(4)[column];
    OP_FLOATS(2)[column] = result;
}

// A product of one row is what comes between these: acc[0] is the sum of slice `s` of 16-row group `group`, for the
// work-group's place `tile` (simt_arguments.cl). `sums` has a float for each work-item.
#define BEGIN_STEP_MATVEC                                                                                              \
    const int k = op->k, slices = op->slices, slice = op->slice, heads = op->heads, groups = (op->n + 15) / 16;        \
    const int me = get_local_id(0), lane = me % 16, s = me / 16 % slices, team = me / 16 / slices;                     \
    const int group = tile * (STEP_THREADS / 16 / slices) + team, rows = 1, first_row = 0, used = 1, shared = 0;    \
    const int head = heads > 1 ? group / (groups / heads) : 0;                                                         \
    float acc[1];                                                                                                      \
    acc[0] = 0.0f;                                                                                                     \
    if (group < groups) {                                                                                              \
        const __global uchar *base = OP_BYTES(1) + group * T(group_bytes)(k);

#define END_STEP_MATVEC                                                                                                \
    }                                                                                                                  \
    sums[me] = acc[0];                                                                                                 \
    barrier(CLK_LOCAL_MEM_FENCE);                                                                                      \
    if (s == 0 && 16 * group + lane < op->n) {                                                                         \
        float result = 0.0f;                                                                                           \
        for (int i = 0; i < slices; i++)                                                                               \
            result += sums[(team * slices + i) * 16 + lane];                                                              \
        store_result(op, 16 * group + lane, result);                                                                   \
    }                                                                                                                  \
    barrier(CLK_LOCAL_MEM_FENCE);
