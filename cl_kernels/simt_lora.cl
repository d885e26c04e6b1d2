// LoRA adapters in a step on a GPU: y += strength * scale * B(Ax) beside the product y = Wx, for the rows that have
// adapters; lora.cl says what sites and units are. A and B are in half precision. A: for each 16 ranks the columns one
// after the other, 16 numbers each. B: for each 16 rows the ranks one after the other, 16 numbers each. An embedding's A
// has a row for each token.
//
// All adapters lie in one buffer, where places count in lines of 64 bytes from its start. lora_down computes t for the
// products that read the same rows, one part of LORA_COLUMNS columns to a work-group; lora_up adds up the parts and adds
// B t to what the products have written. It goes by chunks: the units of different adapters for the same rows, which are
// added in their order. Rows without adapters are not touched, and a row's sums depend on nothing beside it.

#define LORA_ROWS 8
#define ROWS_INTEGER 0 // what the rows of a product are
#define ROWS_FLOAT 1
#define ROWS_HALF 2
#define LORA_SLICES 8 // work-items that share a part; one for each row, when their sums are added
#define LORA_COLUMNS 512
#define LORA_OUTPUTS 64 // of lora_up and lora_embed, to a work-group

typedef struct {
    int a, b; // a is 0: the adapter leaves this site alone
    int rank; // a multiple of 16
    float scale;
} LoraSite;

typedef struct {
    int first, rows;
    int table; // of LoraSite
    int t;     // where its t begin: [slot][part][row][rank]
    float strength;
} LoraUnit;

#define LORA_UNITS(on_logits) ((const __global LoraUnit *)(in + in[IN_AT_LORA_UNITS + (on_logits)]))
#define LORA_PLACE(line) (adapters + 64L * (line))
#define LORA_SITE(unit, number) ((const __global LoraSite *)LORA_PLACE((unit)->table) + (number))

// A work-group of the second dimension has a unit and 16 of its ranks; of the first, one of `slots` products and a part.
__kernel __attribute__((reqd_work_group_size(16, LORA_SLICES, 1))) void lora_down(
    const __global int *in, int on_logits, const __global uchar *x_buffer, long x_at, int form, int k, int site,
    int slots, const __global uchar *adapters, __global float *t)
{
    __local float sums[LORA_ROWS * LORA_SLICES * 16];
    const int lane = get_local_id(0), s = get_local_id(1), parts = (k + LORA_COLUMNS - 1) / LORA_COLUMNS;
    const int slot = get_group_id(0) / parts, part = get_group_id(0) % parts, most = in[IN_LORA_GROUPS + on_logits];
    const __global LoraUnit *unit = LORA_UNITS(on_logits) + get_group_id(1) / most;
    const int from = 16 * (get_group_id(1) % most), rows = unit->rows;
    const __global LoraSite *here = LORA_SITE(unit, site + slot);
    if (!here->a || from >= here->rank)
        return;
    const __global uchar *a = LORA_PLACE(here->a) + 2L * k * from + 2 * lane;
    const long stride = form == ROWS_FLOAT ? 4L * k : form == ROWS_HALF ? half_row_bytes(k) : prepared_bytes(k);
    const __global uchar *x = x_buffer + x_at + unit->first * stride;
    float acc[LORA_ROWS];
    _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++) acc[r] = 0.0f;
    const int end = min(k, (part + 1) * LORA_COLUMNS);
    for (int i = part * LORA_COLUMNS + s; i < end; i += LORA_SLICES) {
        const float w = load_half(a + 32L * i);
        _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++)
        {
            if (r < rows) {
                const __global uchar *row = x + r * stride;
                const __global char *q = (const __global char *)row + i / 32 * 64 + i % 32;
                const float value = form == ROWS_FLOAT  ? ((const __global float *)row)[i]
                                    : form == ROWS_HALF ? HALF_UNIT * load_half(row + 2 * half_place(i))
                                                        : ((const __global float *)(row + 2 * (long)k))[i / 32]
                                                              * (float)(128 * q[0] + q[32]);
                acc[r] = fma(w, value, acc[r]);
            }
        }
    }
    _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++) sums[(r * LORA_SLICES + s) * 16 + lane] = acc[r];
    barrier(CLK_LOCAL_MEM_FENCE);
    if (s < rows) {
        float sum = 0.0f;
        for (int i = 0; i < LORA_SLICES; i++)
            sum += sums[(s * LORA_SLICES + i) * 16 + lane];
        const long at = unit->t + (((long)slot * parts + part) * rows + s) * here->rank + from + lane;
        t[at] = sum * (unit->strength * here->scale);
    }
}

// What lora_up and lora_embed begin and end with: a work-item's column in the rows of its chunk.
#define LORA_BEGIN(on_logits)                                                                                          \
    const int lane = get_local_id(0), column = part * LORA_OUTPUTS + lane;                                             \
    const __global int *chunk = in + in[IN_AT_LORA_CHUNKS + (on_logits)] + 2 * get_group_id(1);                        \
    const __global LoraUnit *unit = LORA_UNITS(on_logits) + chunk[0];                                                  \
    const int rows = unit->rows;                                                                                       \
    const long first = unit->first;                                                                                    \
    const long in_b = 32L * min(column / 16, (n - 1) / 16); /* for each rank */                                        \
    __global float *y = FLOATS(out, out_at) + first * n + min(column, n - 1);                                          \
    float result[LORA_ROWS];                                                                                           \
    _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++) result[r] = r < rows ? y[(long)r * n] : 0.0f;

#define LORA_END                                                                                                       \
    _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++)                                                              \
    {                                                                                                                  \
        if (r < rows && column < n)                                                                                    \
            y[(long)r * n] = result[r];                                                                                \
    }

#define LORA_MATRIX(N) int n##N, int site##N, int slot##N, __global uchar *out##N, long out_at##N

// Up to three products of a phase, as in simt_arguments.cl: n outputs each, the sites' numbers, which t is theirs.
__kernel __attribute__((reqd_work_group_size(LORA_OUTPUTS, 1, 1))) void lora_up(
    const __global int *in, int on_logits, int k, float factor, const __global uchar *adapters, const __global float *t,
    LORA_MATRIX(0), LORA_MATRIX(1), LORA_MATRIX(2))
{
    __local float ts[16 * LORA_ROWS];
    int part = get_group_id(0), n = n0, site = site0, slot = slot0;
    __global uchar *out = out0;
    long out_at = out_at0;
    if (part >= (n + LORA_OUTPUTS - 1) / LORA_OUTPUTS) {
        part -= (n + LORA_OUTPUTS - 1) / LORA_OUTPUTS;
        n = n1, site = site1, slot = slot1, out = out1, out_at = out_at1;
        if (part >= (n + LORA_OUTPUTS - 1) / LORA_OUTPUTS) {
            part -= (n + LORA_OUTPUTS - 1) / LORA_OUTPUTS;
            n = n2, site = site2, slot = slot2, out = out2, out_at = out_at2;
        }
    }
    const int parts = (k + LORA_COLUMNS - 1) / LORA_COLUMNS;
    LORA_BEGIN(on_logits)
    for (int u = 0; u < chunk[1]; u++, unit++) {
        const __global LoraSite *here = LORA_SITE(unit, site);
        if (!here->a)
            continue;
        const int rank = here->rank;
        const __global uchar *b = LORA_PLACE(here->b) + in_b * rank + 2 * (lane % 16);
        const __global float *mine = t + unit->t + (long)slot * parts * rows * rank;
        float sum[LORA_ROWS];
        _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++) sum[r] = 0.0f;
        for (int from = 0; from < rank; from += 16) {
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int i = lane; i < 16 * rows; i += LORA_OUTPUTS) {
                float added = 0.0f;
                for (int p = 0; p < parts; p++)
                    added += mine[((long)p * rows + i / 16) * rank + from + i % 16];
                ts[i] = added;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            _Pragma("unroll 4") for (int i = 0; i < 16; i++)
            {
                const float w = load_half(b + 32 * (from + i));
                _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++)
                {
                    if (r < rows)
                        sum[r] = fma(w, ts[16 * r + i], sum[r]);
                }
            }
        }
        _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++) result[r] = fma(sum[r], factor, result[r]);
    }
    LORA_END
}

// For the rows of a table that the tokens name, n numbers each: there A has a row for each token.
__kernel __attribute__((reqd_work_group_size(LORA_OUTPUTS, 1, 1))) void lora_embed(
    const __global int *in, int n, int site, float factor, const __global uchar *adapters, __global uchar *out,
    long out_at)
{
    const int part = get_group_id(0);
    LORA_BEGIN(0)
    for (int u = 0; u < chunk[1]; u++, unit++) {
        const __global LoraSite *here = LORA_SITE(unit, site);
        if (!here->a)
            continue;
        const int rank = here->rank;
        const __global uchar *b = LORA_PLACE(here->b) + in_b * rank + 2 * (lane % 16);
        const float strength = unit->strength * here->scale * factor;
        _Pragma("unroll") for (int r = 0; r < LORA_ROWS; r++)
        {
            if (r < rows) {
                const __global uchar *a = LORA_PLACE(here->a) + 2L * rank * in[in[IN_AT_TOKENS] + first + r];
                float sum = 0.0f;
                for (int i = 0; i < rank; i++)
                    sum = fma(load_half(b + 32 * i), load_half(a + 2 * i), sum);
                result[r] = fma(sum, strength, result[r]);
            }
        }
    }
    LORA_END
}
