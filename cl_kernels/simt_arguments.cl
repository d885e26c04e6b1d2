// The arguments of a matrix product on a GPU: up to three matrices of one type that read the same rows, as Q, K and V
// do, or rows of one that lie in different buffers. Each has its weights, its number of outputs, where they go and how long
// a row is there, and the offsets of its bias and residual (below 0: none). `slice`: 32-value blocks in each slice of a row. heads: above 1, the one matrix is a stack of so many, each
// for its own part of the rows. experts: n0 outputs of each of so many, for the entries in `sorted` (simt_experts.cl);
// shared: all entries of a row read the same row of x.

#define MATRIX_ARGUMENTS(N)                                                                                            \
    const __global uchar *weights##N, long weights_at##N, int n##N, int stride##N, __global uchar *out##N, long out_at##N, \
        const __global uchar *bias##N, long bias_at##N, long residual_at##N

#define PRODUCT_ARGUMENTS                                                                                              \
    const __global int *in, int rows_word, const __global uchar *x_buffer, long x_at, int k, int slice, int heads,     \
        float output_scale, int used, int shared, const __global uchar *sorted_buffer, long sorted_at,                 \
        const __global uchar *residual_buffer, MATRIX_ARGUMENTS(0), MATRIX_ARGUMENTS(1), MATRIX_ARGUMENTS(2)

// Finds the matrix and its part for work-group `part` when a work-group has `columns` outputs.
#define CHOOSE_MATRIX(part, columns)                                                                                   \
    const __global uchar *weights = weights0 + weights_at0, *bias_buffer = bias0;                                      \
    __global uchar *out_buffer = out0;                                                                                 \
    long out_at = out_at0, bias_at = bias_at0, residual_at = residual_at0;                                             \
    int n = n0, stride = stride0;                                                                                                        \
    if (heads == 1 && part >= (n + (columns)-1) / (columns)) {                                                         \
        part -= (n + (columns)-1) / (columns);                                                                         \
        weights = weights1 + weights_at1, bias_buffer = bias1, out_buffer = out1;                                      \
        out_at = out_at1, bias_at = bias_at1, residual_at = residual_at1, n = n1, stride = stride1;                    \
        if (part >= (n + (columns)-1) / (columns)) {                                                                   \
            part -= (n + (columns)-1) / (columns);                                                                     \
            weights = weights2 + weights_at2, bias_buffer = bias2, out_buffer = out2;                                  \
            out_at = out_at2, bias_at = bias_at2, residual_at = residual_at2, n = n2, stride = stride2;                \
        }                                                                                                              \
    }

#define STORE_OUTPUT(value, row, column)                                                                               \
    {                                                                                                                  \
        float stored = value;                                                                                          \
        if (bias_at >= 0)                                                                                              \
            stored += FLOATS_IN(bias_buffer, bias_at)[bias_base + (column)];                                           \
        stored = residual_at < 0                                                                                       \
                     ? stored * output_scale                                                                           \
                     : fma(stored, output_scale, FLOATS_IN(residual_buffer, residual_at)[(long)(row) * stride + (column)]); \
        FLOATS(out_buffer, out_at)[(long)(row) * stride + (column)] = stored;                                          \
    }

#define STORE_FOUR(value, row, column, limit)                                                                          \
    {                                                                                                                  \
        if ((column) < (limit))                                                                                        \
            STORE_OUTPUT((value).x, row, column)                                                                       \
        if ((column) + 1 < (limit))                                                                                    \
            STORE_OUTPUT((value).y, row, (column) + 1)                                                                 \
        if ((column) + 2 < (limit))                                                                                    \
            STORE_OUTPUT((value).z, row, (column) + 2)                                                                 \
        if ((column) + 3 < (limit))                                                                                    \
            STORE_OUTPUT((value).w, row, (column) + 3)                                                                 \
    }

// A column of a tile in local memory for one work-item's rows: four neighbours in one instruction. (Compilers do not put
// them together themselves across inline assembly.)
#define READ_1(TYPE, to, from) to[0] = *(from);
#define READ_4(TYPE, to, from)                                                                                         \
    {                                                                                                                  \
        const TYPE##4 four = *(const __local TYPE##4 *)(from);                                                         \
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;                                                \
    }

#define MOST_SLICES 32 // of a row of weights: work-items that share its length in a matrix-vector product
#define TILE_COLUMNS 64

// What a matrix-vector kernel works on. EXPERTS: one entry, of the second dimension; else the batch's rows.
#define MATVEC_ROWS(EXPERTS)                                                                                           \
    int group = get_group_id(0);                                                                                       \
    const int lane = get_local_id(0), items = get_local_size(1), slices = ((k + 31) / 32 + slice - 1) / slice;         \
    CHOOSE_MATRIX(group, 16)                                                                                           \
    const __global int *sorted = (const __global int *)(sorted_buffer + (EXPERTS ? sorted_at : 0));                    \
    const int first_row = EXPERTS ? get_group_id(1) : 0, rows = EXPERTS ? 1 : in[rows_word];                           \
    const int expert = EXPERTS ? sorted[SORTED_EXPERTS + first_row] : 0, groups = (n + 15) / 16;                       \
    const int head = heads > 1 ? group / (groups / heads) : 0;                                                         \
    const long bias_base = (long)expert * n;                                                                           \
    const __global uchar *base = weights + ((long)expert * groups + group) * T(group_bytes)(k);

#define MATVEC_INPUT(EXPERTS, t)                                                                                       \
    (EXPERTS ? (shared ? first_row / used : first_row) : min(t, rows - 1) * heads + head)

// Keeps slice `s` of each row.
#define MATVEC_KEEP(ROWS) _Pragma("unroll") for (int t = 0; t < ROWS; t++) sums[(s * ROWS + t) * 16 + lane] = acc[t];

// Adds the slices' sums of each row, in their order, and stores the results.
#define MATVEC_FINISH(ROWS)                                                                                            \
    barrier(CLK_LOCAL_MEM_FENCE);                                                                                      \
    const int column = 16 * group + lane;                                                                              \
    for (int t = get_local_id(1); t < min(ROWS, rows); t += items) {                                                   \
        float result = 0.0f;                                                                                           \
        for (int i = 0; i < slices; i++)                                                                               \
            result += sums[(i * ROWS + t) * 16 + lane];                                                                \
        if (column < n)                                                                                                \
            STORE_OUTPUT(result, first_row + t, column)                                                                \
    }

// What a tiled kernel works on. EXPERTS: tile get_group_id(1) of those in `sorted`; else that tile of the batch's rows.
#define MATMUL_ROWS(EXPERTS)                                                                                           \
    int part = get_group_id(0);                                                                                        \
    const int tx = get_local_id(0), ty = get_local_id(1), me = ty * 16 + tx;                                           \
    CHOOSE_MATRIX(part, TILE_COLUMNS)                                                                                  \
    const __global int *sorted = (const __global int *)(sorted_buffer + (EXPERTS ? sorted_at : 0));                    \
    const int entries = EXPERTS ? in[rows_word] * used : 0, is_tile = !EXPERTS || (int)get_group_id(1) < sorted[0];    \
    const __global int *tile = sorted + SORTED_TILES(entries) + 3 * get_group_id(1);                                   \
    const int expert = EXPERTS && is_tile ? tile[0] : 0;                                                               \
    const int first_row = EXPERTS ? (is_tile ? tile[1] : 0) : get_group_id(1) * TILE_ROWS;                             \
    const int end_row = EXPERTS ? (is_tile ? first_row + tile[2] : 0) : in[rows_word];                                 \
    const int groups = (n + 15) / 16, per_head = n / heads, head_parts = (per_head + TILE_COLUMNS - 1) / TILE_COLUMNS; \
    const int head = heads > 1 ? part / head_parts : 0;                                                                \
    const int first_column = head * per_head + (part - head * head_parts) * TILE_COLUMNS;                              \
    const int end_column = (head + 1) * per_head;                                                                      \
    const long bias_base = (long)expert * n, bytes = T(group_bytes)(k);                                                \
    weights += expert * groups * bytes;

#define MATMUL_ENTRY(t) sorted[SORTED_ENTRIES(entries) + (t)]
#define MATMUL_INPUT(EXPERTS, t)                                                                                       \
    (EXPERTS ? MATMUL_ENTRY(min(t, end_row - 1)) / (shared ? used : 1) : min(t, end_row - 1) * heads + head)
#define MATMUL_OUTPUT(EXPERTS, t) (EXPERTS ? MATMUL_ENTRY(t) : (t))
