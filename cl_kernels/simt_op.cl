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
// the host. A table of embeddings has its rows from `start` on here, `used` of them. p: addresses, 0 for none; of a product
// they are x, weights, out, bias, residual, the weights' end. tile_bytes: of a product, weights of a place.
typedef struct {
    int kind, type, tiles, times;
    int n, k, heads, kv_heads, head_width, value_width, how, act, gather, used, table, start, window, slices, slice;
    int out_stride;
    float epsilon, cap, scale;
    int tile_bytes;
    ulong p[8];
} StepOp;

// Operations lie in local memory while they run.
typedef const __local StepOp *OpPointer;

#define OP_FLOATS(i) ((__global float *)(op->p[i]))
#define OP_BYTES(i) ((__global uchar *)(op->p[i]))

// A product's row: its `result` for one column.
static inline void store_result(OpPointer op, int column, float result)
{
    if (op->p[3])
        result += OP_FLOATS(3)[column];
    OP_FLOATS(2)[column] = op->p[4] ? fma(result, op->scale, OP_FLOATS(4)[column]) : result * op->scale;
}

// A product of one row is what comes between these: acc[0] and acc[1] are the sums of slice `s` of two neighbouring 16-row
// groups, which read the same activations, for the work-group's place `tile`. `sums` has two floats for each work-item.
#define BEGIN_STEP_MATVEC                                                                                              \
    const int k = op->k, slices = op->slices, slice = op->slice, groups = (op->n + 15) / 16;                           \
    const int me = get_local_id(0), lane = me % 16, s = me / 16 % slices, team = me / 16 / slices;                     \
    const int group = 2 * (tile * (STEP_THREADS / 16 / slices) + team);                                                \
    const int head = op->heads > 1 ? group / (groups / op->heads) : 0;                                                 \
    float acc[2];                                                                                                      \
    acc[0] = acc[1] = 0.0f;                                                                                            \
    if (group < groups) {                                                                                              \
        const __global uchar *base[2];                                                                                 \
        base[0] = OP_BYTES(1) + group * T(group_bytes)(k);                                                             \
        base[1] = OP_BYTES(1) + min(group + 1, groups - 1) * T(group_bytes)(k);

#define END_STEP_MATVEC                                                                                                \
    }                                                                                                                  \
    sums[me] = acc[0];                                                                                                 \
    sums[STEP_THREADS + me] = acc[1];                                                                                  \
    barrier(CLK_LOCAL_MEM_FENCE);                                                                                      \
    for (int i = s; i < 2; i += slices) {                                                                              \
        if (16 * (group + i) + lane < op->n) {                                                                         \
            const __local float *of_slices = sums + i * STEP_THREADS + team * slices * 16 + lane;                      \
            float result = 0.0f;                                                                                       \
            _Pragma("unroll 8") for (int j = 0; j < slices; j++) result += of_slices[16 * j];                          \
            store_result(op, 16 * (group + i) + lane, result);                                                         \
        }                                                                                                              \
    }                                                                                                                  \
    barrier(CLK_LOCAL_MEM_FENCE);
