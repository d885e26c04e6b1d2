// LoRA on stacks of experts: each expert has an A and a B of its own, one after the other where a matrix has its one. The
// t of a row are [slot][number of the expert among the row's]; a row's sums depend on nothing but itself, its experts and
// its adapters.

// An expert in use and what goes to it: entries, each row * used + number among the row's experts (experts.cl)
typedef struct {
    int expert, count, used;
    const __global int *entries;
} LoraEntries;

static inline int lora_has(const __global LoraUnit *unit, const __global LoraSite *site, int row)
{
    return site->a && row >= unit->first && row < unit->first + unit->rows;
}

static inline __global LoraT *lora_entry_t(const __global LoraUnit *unit, const __global LoraSite *site, int slot,
                                           int used, int entry)
{
    const long at = ((long)slot * used + entry % used) * unit->rows + entry / used - unit->first;
    return (__global LoraT *)unit->t + at * (site->rank / 16);
}

// The t of all units for one product and one expert; shared: all entries of a row read the same row of x.
static void lora_experts_down(const __global int *in, int at, int units, int site_number, int slot,
                              const LoraEntries *e, const __global char *x, long stride, int is_float, int k, int shared)
{
    for (int c = 0; c < units; c++) {
        const __global LoraUnit *unit = lora_units(in, at, c);
        const __global LoraSite *site = lora_site(unit, site_number);
        const int ranks = site->rank / 16;
        const long bytes = (long)LORA_DOWN_BYTES * lora_blocks(k); // of 16 ranks
        const __global uchar *a = (const __global uchar *)site->a + bytes * ranks * e->expert;
        const float scale = unit->strength * site->scale;
        for (int i = 0; i < e->count; i++) {
            const int entry = e->entries[i], row = entry / e->used;
            if (!lora_has(unit, site, row))
                continue;
            const __global char *from = x + (shared ? row : entry) * stride;
            __global LoraT *t = lora_entry_t(unit, site, slot, e->used, entry);
            for (int g = 0; g < ranks; g++)
                lora_round(lora_down16(a + bytes * g, from, is_float, k) * scale, t + g);
        }
    }
}

// Adds B t to groups first .. last-1 of 16 outputs each, in the entries of one expert that has n outputs.
static void lora_experts_up(const __global int *in, int at, int units, int site_number, int slot, const LoraEntries *e,
                            int first, int last, int n, __global float *out)
{
    for (int c = 0; c < units; c++) {
        const __global LoraUnit *unit = lora_units(in, at, c);
        const __global LoraSite *site = lora_site(unit, site_number);
        const int ranks = site->rank / 16;
        const __global uchar *b = (const __global uchar *)site->b + (long)LORA_UP_BYTES * ranks * (n / 16) * e->expert;
        for (int i = 0; i < e->count; i++) {
            const int entry = e->entries[i];
            if (!lora_has(unit, site, entry / e->used))
                continue;
            const __global LoraT *t = lora_entry_t(unit, site, slot, e->used, entry);
            for (int j = 0; j < ranks; j++)
                for (int g = first; g < last; g++)
                    lora_up16(b + LORA_UP_BYTES * ((long)ranks * g + j), t + j, 1.0f,
                              out + (long)entry * n + 16 * g, 16);
        }
    }
}
