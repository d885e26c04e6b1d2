// LoRA adapters in a step: y += strength * scale * B(Ax) beside the product y = Wx, for the rows that have adapters.
//
// The first chunks of a phase compute t = strength * scale * Ax for all its products, which read the same rows; each
// product then adds B t to what it has written. A site is one product (or embedding table) of the program. An adapter is a table with an
// entry for each site, and a step's units say which adapter acts on which rows: at most LORA_ROWS adjacent ones, once
// for each adapter that acts on them. A row's sums depend on nothing but itself and its adapters.
//
// A and B are in half precision. A: for each 16 ranks the columns one after the other, 16 numbers each. B: for each 16
// rows the ranks one after the other, 16 numbers each. An embedding's A has a row for each token.

#define LORA_ROWS 8
#define LORA_COLUMNS 256 // activations that are expanded to float32 at a time

typedef struct {
    long a, b; // 0: the adapter leaves this site alone
    int rank;  // a multiple of 16
    float scale;
} LoraSite;

#define UNIT_WORDS 8
typedef struct {
    int first, rows;
    long table; // of LoraSite
    float strength;
    int unused;
    long t; // where its t begin
} LoraUnit;

static inline const __global LoraUnit *lora_units(const __global int *in, int at, int c)
{
    return (const __global LoraUnit *)(in + at) + c;
}

static inline const __global LoraSite *lora_site(const __global LoraUnit *unit, int site)
{
    return (const __global LoraSite *)unit->table + site;
}

#define LORA_FETCH 16384 // bytes that are asked for before they are used: an adapter lies in the order of its use
#ifdef __clang__
#define LORA_ASK(p) __builtin_prefetch((const __private void *)(size_t)(p), 0, 2)
#else
#define LORA_ASK(p)
#endif

// Columns `from` .. `from + n - 1` of a row of activations, float32 or prepared (prepare.cl), as float32.
static inline void lora_expand(const __global char *row, int is_float, int k, int from, int n, float16 *to)
{
    float *out = (float *)to;
    if (is_float) {
        const __global float *x = (const __global float *)row + from;
        for (int i = 0; i < n; i++)
            out[i] = x[i];
        return;
    }
    const __global float *scales = (const __global float *)(row + 2 * (long)k);
    for (int b = 0; b < n / 32; b++) {
        const __global char *q = row + (long)(from / 32 + b) * 64;
        const float scale = scales[from / 32 + b];
        for (int part = 0; part < 2; part++) {
#ifdef REALM_BYTES
            const int16 high = __builtin_convertvector(vload16(0, q + 16 * part), int16);
            const int16 low = __builtin_convertvector(vload16(0, q + 32 + 16 * part), int16);
            const int16 x = (high << 7) + low;
#else
            const short16 mixed = load_short16(q + 32 * part);
            const int16 x = __builtin_convertvector(mixed.s021346578a9bcedf, int16);
#endif
            to[2 * b + part] = scale * to_float(x);
        }
    }
}

// a times columns first .. last - 1 of a row x, for 16 ranks: four sums that take turns, so that additions do not wait
// for each other.
static float16 lora_down16(const __global uchar *a, const __global char *x, int is_float, int k, int first, int last)
{
    float16 expanded[LORA_COLUMNS / 16];
    float16 s0 = (float16)(0.0f), s1 = s0, s2 = s0, s3 = s0;
    for (int from = first; from < last; from += LORA_COLUMNS) {
        const int n = min(LORA_COLUMNS, last - from);
        lora_expand(x, is_float, k, from, n, expanded);
        const float *xs = (const float *)expanded;
        const __global uchar *w = a + 32L * from;
        int i = 0;
        for (; i + 4 <= n; i += 4, w += 128) {
            LORA_ASK(w + LORA_FETCH);
            LORA_ASK(w + LORA_FETCH + 64);
            s0 += load_half16(w) * xs[i];
            s1 += load_half16(w + 32) * xs[i + 1];
            s2 += load_half16(w + 64) * xs[i + 2];
            s3 += load_half16(w + 96) * xs[i + 3];
        }
        for (; i < n; i++, w += 32)
            s0 += load_half16(w) * xs[i];
    }
    return (s0 + s1) + (s2 + s3);
}

// A unit's t for a product are two sums, over the first and over the last half of the columns: [slot][row][2][rank].
// How many chunks share them: where there are few units, work-groups would stand idle.
static inline int lora_parts(int units, int slots, int rows) { return units * slots <= 3 && rows == 1 ? 2 : 1; }

// One unit's t for one of the products that read x; part: which half of the columns, where there are two parts.
static void lora_down(const __global LoraUnit *unit, const __global LoraSite *site, int slot, int part, int parts,
                      const __global char *x, long stride, int is_float, int k)
{
    if (!site->a)
        return;
    const float scale = unit->strength * site->scale;
    const int rank = site->rank, middle = min(k, (k + 63) / 64 * 32);
    __global float *t = (__global float *)unit->t + (long)slot * unit->rows * 2 * rank;
    const __global char *rows = x + unit->first * stride;
    for (int end = part; end < 2; end += parts)
        for (int g = 0; g < rank; g += 16) {
            const __global uchar *a = (const __global uchar *)site->a + 2L * k * g;
            for (int r = 0; r < unit->rows; r++)
                store16(lora_down16(a, rows + r * stride, is_float, k, end ? middle : 0, end ? k : middle) * scale,
                        t + (2L * r + end) * rank + g);
        }
}

// Adds factor * b t to 16 outputs, of which `columns` are there, for 16 ranks. b: their numbers.
static inline __attribute__((always_inline)) void lora_up16(
    const __global uchar *b, const float *t, float factor, __global float *out, int columns)
{
    float16 even = (float16)(0.0f), odd = (float16)(0.0f);
    _Pragma("unroll") for (int i = 0; i < 16; i += 2)
    {
        LORA_ASK(b + 32 * i + LORA_FETCH);
        even += load_half16(b + 32 * i) * t[i];
        odd += load_half16(b + 32 * i + 32) * t[i + 1];
    }
    const float16 sum = (even + odd) * factor;
    if (columns >= 16)
        store16(load16(out) + sum, out);
    else
        for (int i = 0; i < columns; i++)
            out[i] += ((const float *)&sum)[i];
}

// Asks for the beginning of what lora_up will read: meanwhile the product itself is computed.
static inline void lora_fetch(const __global int *in, int at, int units, int site_number, int first, int last)
{
    for (int c = 0; c < units; c++) {
        const __global LoraSite *site = lora_site(lora_units(in, at, c), site_number);
        const __global uchar *b = (const __global uchar *)site->b + 32L * site->rank * first;
        const long bytes = site->a ? min(32L * site->rank * (last - first), (long)LORA_FETCH) : 0;
        for (long i = 0; i < bytes; i += 64)
            FETCH(b + i);
    }
}

// Adds B t to groups first .. last-1 of 16 outputs each, in the rows of all units.
static void lora_up(const __global int *in, int at, int units, int site_number, int slot, int first, int last, int n,
                    float factor, __global float *out)
{
    for (int c = 0; c < units; c++) {
        const __global LoraUnit *unit = lora_units(in, at, c);
        const __global LoraSite *site = lora_site(unit, site_number);
        if (!site->a)
            continue;
        const int rank = site->rank;
        const __global float *t = (const __global float *)unit->t + (long)slot * unit->rows * 2 * rank;
        for (int r = 0; r < unit->rows; r++, t += 2 * rank)
            for (int from = 0; from < rank; from += 16) {
                const float16 sums = load16(t + from) + load16(t + rank + from);
                for (int g = first; g < last; g++)
                    lora_up16((const __global uchar *)site->b + 32L * ((long)rank * g + from), (const float *)&sums, factor,
                              out + (long)(unit->first + r) * n + 16 * g, n - 16 * g);
            }
    }
}

// Adds to a token's row of the embedding table what the adapters of the batch's row `row` have for it.
static void lora_embed(const __global int *in, int at, int units, int site_number, int row, int token, int k,
                       float factor, __global float *out)
{
    for (int c = 0; c < units; c++) {
        const __global LoraUnit *unit = lora_units(in, at, c);
        const __global LoraSite *site = lora_site(unit, site_number);
        if (!site->a || row < unit->first || row >= unit->first + unit->rows)
            continue;
        const int rank = site->rank;
        const __global uchar *a = (const __global uchar *)site->a + 2L * rank * token;
        for (int from = 0; from < rank; from += 16) {
            const float16 t = load_half16(a + 2 * from) * (unit->strength * site->scale);
            for (int g = 0; g < (k + 15) / 16; g++)
                lora_up16((const __global uchar *)site->b + 32L * ((long)rank * g + from), (const float *)&t, factor,
                          out + 16 * g, k - 16 * g);
        }
    }
}
