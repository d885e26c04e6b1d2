// LoRA on stacks of experts, on a GPU (simt_lora.cl): each expert has an A and a B of its own, one after the other where
// a matrix has its one. An entry is a row and one of its `used` experts; a work-group has one entry. Matrices of heads are
// the same where a row goes to each of them (every).

static inline int lora_expert_of(
    const __global uchar *sorted_buffer, long sorted_at, int every, int used, int entry)
{
    return every ? entry % used : ((const __global int *)(sorted_buffer + sorted_at))[SORTED_EXPERTS + entry];
}

// t: [slot][part][entry][rank], the entries of the unit's rows
static inline long lora_entry_t(const __global LoraUnit *unit, int slot_and_part, int used, int entry, int rank)
{
    return unit->t + ((long)slot_and_part * unit->rows * used + entry) * rank;
}

// The second dimension is for each unit, 16 of its ranks and LORA_ROWS * used entries; the first as in lora_down.
// shared: all entries of a row read the same row of x.
__kernel __attribute__((reqd_work_group_size(16, LORA_SLICES, 1))) void expert_lora_down(
    const __global int *in, int on_logits, const __global uchar *x_buffer, long x_at, int form, int k, int site,
    int used, int shared, int every, const __global uchar *sorted_buffer, long sorted_at, const __global uchar *adapters,
    __global float *t)
{
    __local float sums[LORA_SLICES * 16];
    const int lane = get_local_id(0), s = get_local_id(1), parts = (k + LORA_COLUMNS - 1) / LORA_COLUMNS;
    const int entry = get_group_id(1) % (LORA_ROWS * used), chunk = get_group_id(1) / (LORA_ROWS * used);
    const int part = get_group_id(0) % parts, most = in[IN_LORA_GROUPS + on_logits], from = 16 * (chunk % most);
    const __global LoraUnit *unit = LORA_UNITS(on_logits) + chunk / most;
    const __global LoraSite *here = LORA_SITE(unit, site + get_group_id(0) / parts);
    if (!here->a || from >= here->rank || entry >= unit->rows * used)
        return;
    const int of_step = unit->first * used + entry;
    const int expert = lora_expert_of(sorted_buffer, sorted_at, every, used, of_step);
    const __global uchar *a = LORA_PLACE(here->a) + 2L * k * ((long)here->rank * expert + from) + 2 * lane;
    const long stride = form == ROWS_FLOAT ? 4L * k : form == ROWS_HALF ? half_row_bytes(k) : prepared_bytes(k);
    const __global uchar *row = x_buffer + x_at + (shared ? of_step / used : of_step) * stride;
    float sum = 0.0f;
    for (int i = part * LORA_COLUMNS + s; i < min(k, (part + 1) * LORA_COLUMNS); i += LORA_SLICES) {
        const __global char *q = (const __global char *)row + i / 32 * 64 + i % 32;
        const float x = form == ROWS_FLOAT  ? ((const __global float *)row)[i]
                        : form == ROWS_HALF ? HALF_UNIT * load_half(row + 2 * half_place(i))
                                            : ((const __global float *)(row + 2 * (long)k))[i / 32]
                                                  * (float)(128 * q[0] + q[32]);
        sum = fma(load_half(a + 32L * i), x, sum);
    }
    sums[s * 16 + lane] = sum;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (s == 0) {
        for (int i = 1; i < LORA_SLICES; i++)
            sum += sums[i * 16 + lane];
        t[lora_entry_t(unit, get_group_id(0), used, entry, here->rank) + from + lane] = sum * (unit->strength * here->scale);
    }
}

// The second dimension is for each chunk and LORA_ROWS * used entries; n outputs of each expert, 64 to a work-group.
__kernel __attribute__((reqd_work_group_size(LORA_OUTPUTS, 1, 1))) void expert_lora_up(
    const __global int *in, int on_logits, int k, int n, int site, int slot, int used,
    int every, const __global uchar *sorted_buffer, long sorted_at, const __global uchar *adapters, const __global float *t,
    __global uchar *out, long out_at)
{
    __local float ts[16];
    const int lane = get_local_id(0), column = get_group_id(0) * LORA_OUTPUTS + lane;
    const int entry = get_group_id(1) % (LORA_ROWS * used), parts = (k + LORA_COLUMNS - 1) / LORA_COLUMNS;
    const __global int *chunk = in + in[IN_AT_LORA_CHUNKS + on_logits] + 2 * (get_group_id(1) / (LORA_ROWS * used));
    const __global LoraUnit *unit = LORA_UNITS(on_logits) + chunk[0];
    if (entry >= unit->rows * used)
        return;
    const int of_step = unit->first * used + entry;
    const int expert = lora_expert_of(sorted_buffer, sorted_at, every, used, of_step);
    __global float *y = FLOATS(out, out_at) + (long)of_step * n + min(column, n - 1);
    float result = *y;
    for (int u = 0; u < chunk[1]; u++, unit++) {
        const __global LoraSite *here = LORA_SITE(unit, site);
        if (!here->a)
            continue;
        const int rank = here->rank;
        const __global uchar *b = LORA_PLACE(here->b) + 2L * rank * ((long)n * expert + min(column, n - 1) / 16 * 16)
                                  + 2 * (lane % 16);
        float sum = 0.0f;
        for (int from = 0; from < rank; from += 16) {
            barrier(CLK_LOCAL_MEM_FENCE);
            if (lane < 16) {
                float added = 0.0f;
                for (int p = 0; p < parts; p++)
                    added += t[lora_entry_t(unit, slot * parts + p, used, entry, rank) + from + lane];
                ts[lane] = added;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
            _Pragma("unroll 4") for (int i = 0; i < 16; i++) sum = fma(load_half(b + 32 * (from + i)), ts[i], sum);
        }
        result += sum;
    }
    if (column < n)
        *y = result;
}
