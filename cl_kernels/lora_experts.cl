// LoRA on stacks of experts: each expert has an A and a B of its own, one after the other where a matrix has its one. The
// t of a row are [slot][number of the expert among the row's]; a row's sums depend on nothing but itself, its experts and
// its adapters. Matrices of heads are the same where each row goes to all of them.

// An expert in use and what goes to it: entries, each row * used + number among the row's experts (experts.cl); of heads
// there are none, for each has one of each row
typedef struct {
    int expert, count, used;
    const __global int *entries;
} LoraEntries;

static inline int lora_entry(const LoraEntries *e, int i) { return e->entries ? e->entries[i] : i * e->used + e->expert; }

// One of these entries on which an adapter acts, with the adapter's matrices for the expert and where its t begin
typedef struct {
    const __global uchar *a, *b;
    __global LoraT *t;
    int row, entry, ranks; // groups of 16
    float scale;
} LoraEntry;

#define LORA_FOUND 32 // of them are found at a time

// A search for all of them: of a product with k inputs and n outputs, which is number `slot` of its phase. unit, entry: how
// far it is.
typedef struct {
    const __global int *in;
    int at_units, units, site, slot;
    LoraEntries e;
    int k, n, unit, entry;
} LoraSearch;

// Finds some more, those of a unit one after the other. Returns how many: fewer than LORA_FOUND are the last.
static int lora_find(LoraSearch *s, LoraEntry *found)
{
    const LoraEntries *e = &s->e;
    int count = 0;
    for (; s->unit < s->units; s->unit++, s->entry = 0) {
        const __global LoraUnit *unit = lora_units(s->in, s->at_units, s->unit);
        const __global LoraSite *site = lora_site(unit, s->site);
        if (!site->a)
            continue;
        const int ranks = site->rank / 16, first = unit->first * e->used, last = first + unit->rows * e->used;
        int i = s->entry, end = e->count; // entries are sorted: the unit's first one is in i .. end
        while (i < end) {
            const int middle = (i + end) / 2;
            if (lora_entry(e, middle) < first)
                i = middle + 1;
            else
                end = middle;
        }
        for (; i < e->count && lora_entry(e, i) < last; i++) {
            if (count == LORA_FOUND) {
                s->entry = i;
                return count;
            }
            LoraEntry *x = found + count++;
            x->entry = lora_entry(e, i);
            x->row = x->entry / e->used;
            x->ranks = ranks;
            x->scale = unit->strength * site->scale;
            x->a = (const __global uchar *)site->a + (long)LORA_DOWN_BYTES * lora_blocks(s->k) * ranks * e->expert;
            x->b = (const __global uchar *)site->b + (long)LORA_UP_BYTES * (s->n / 16) * ranks * e->expert;
            const long number = ((long)s->slot * e->used + x->entry % e->used) * unit->rows + x->row - unit->first;
            x->t = (__global LoraT *)unit->t + number * ranks;
        }
    }
    return count;
}

// The t of all units for one product and one expert; shared: all entries of a row read the same row of x.
static void lora_experts_down(LoraSearch *s, const __global char *x, long stride, int is_float, int shared)
{
    const long bytes = (long)LORA_DOWN_BYTES * lora_blocks(s->k); // of 16 ranks
    LoraEntry found[LORA_FOUND];
    for (int count = LORA_FOUND; count == LORA_FOUND;) {
        count = lora_find(s, found);
        for (int i = 0; i < count; i++) {
            const LoraEntry *now = found + i;
            const __global char *from = x + (shared ? now->row : now->entry) * stride;
            for (int g = 0; g < now->ranks; g++) {
                const __global uchar *a = now->a + bytes * g;
                // behind the last one nothing is asked for: what is there already costs nothing
                const __global uchar *next = g + 1 < now->ranks ? a + bytes : i + 1 < count ? now[1].a : a;
                lora_round(lora_down16(a, from, is_float, s->k, next) * now->scale, now->t + g);
            }
        }
    }
}

// Asks for what lora_experts_up will read of groups first .. last-1, as lora_fetch does.
static inline void lora_experts_fetch(const LoraEntry *found, int count, int first, int last)
{
    for (int i = 0; i < count; i++) {
        if (i && found[i].b == found[i - 1].b)
            continue;
        const __global uchar *b = found[i].b + (long)LORA_UP_BYTES * found[i].ranks * first;
        const int bytes = LORA_UP_BYTES * found[i].ranks * (last - first);
        for (int at = 0; at < bytes; at += 64)
            FETCH(b + at);
    }
}

// Adds B t to groups first .. last-1 of 16 outputs each, in some entries of one expert that has n outputs.
static inline void lora_experts_up(const LoraEntry *found, int count, int first, int last, int n, __global float *out)
{
    for (int i = 0; i < count; i++) {
        const LoraEntry *x = found + i;
        for (int j = 0; j < x->ranks; j++)
            for (int g = first; g < last; g++)
                lora_up16(x->b + LORA_UP_BYTES * ((long)x->ranks * g + j), x->t + j, 1.0f,
                          out + (long)x->entry * n + 16 * g, 16);
    }
}
