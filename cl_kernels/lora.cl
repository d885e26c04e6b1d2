// LoRA adapters in a step: y += strength * scale * B(Ax) beside the product y = Wx, for the rows that have adapters.
//
// The first chunks of a phase compute t = strength * scale * Ax for all its products, which read the same rows; each
// product then adds B t to what it has written. A site is one product (or embedding table) of the program. An adapter is
// a table with an entry for each site, and a step's units say which adapter acts on which rows: at most LORA_ROWS
// adjacent ones, once for each adapter that acts on them. A row's sums depend on nothing but itself and its adapters.
//
// A and B lie in blocks of bytes (lora_pack.cl writes them), 128 + q for the number scale * q. A block of A has 32
// columns of 16 ranks: eight words of each rank, as layout.cl has them, then each rank's scale in bf16. A block of B has
// 16 ranks of 16 rows: four words of each row, then each row's scale. A: for each 16 ranks the blocks one after the
// other, the last one filled up with zeros. B: for each 16 rows the blocks of their ranks. An embedding's A has for each
// token `rank` numbers in bf16.

#define LORA_ROWS 8
#define LORA_DOWN_BYTES 544 // of a block of A
#define LORA_UP_BYTES 288   // of B

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

#define LORA_FETCH 8     // blocks of A that are asked for before they are used
#define LORA_AHEAD 65536 // bytes of a lone adapter that are asked for while nothing else is to do
#ifdef __clang__
#define LORA_ASK(p) __builtin_prefetch((const __private void *)(size_t)(p), 0, 2)
#else
#define LORA_ASK(p)
#endif

// Sixteen numbers of a t, with 15 bits each in the form that prepare.cl has for activations
typedef struct {
    int numbers[8];
    float scale;
    int sum;
    int unused[6];
} LoraT;

static inline __attribute__((always_inline)) void lora_round(float16 t, __global LoraT *to)
{
    const float largest = max16(abs_16(t));
    const int16 numbers = nearest16(t * (largest > 0.0f ? (float)LARGEST / largest : 0.0f));
    store_part(numbers, 0, 1, (__global char *)to->numbers);
    to->scale = largest / (float)LARGEST;
    to->sum = sum_int16(numbers);
}

// `words` words of each of sixteen lanes times 4 * words numbers x, whose sum is `sum`
static inline __attribute__((always_inline)) int16 lora_dot(
    const __global uchar *w, int words, const __global int *x, int sum)
{
#ifdef REALM_BYTES
    int16 high = (int16)(0), low = (int16)(-128 * sum);
    _Pragma("unroll") for (int i = 0; i < words; i++)
    {
        const int16 word = load_int16(w + 64 * i);
        high = dot4(high, word, x[i]);
        low = dot4(low, word, x[words + i]);
    }
    return low + (high << 7);
#else
    int8 lo = (int8)(-128 * sum), hi = lo;
    _Pragma("unroll") for (int i = 0; i < words; i++)
    {
        const int16 word = load_int16(w + 64 * i), even = word & 0x00ff00ff, odd = (word >> 8) & 0x00ff00ff;
        lo = dot2(dot2(lo, even.lo, x[2 * i]), odd.lo, x[2 * i + 1]);
        hi = dot2(dot2(hi, even.hi, x[2 * i]), odd.hi, x[2 * i + 1]);
    }
    return (int16)(lo, hi);
#endif
}

static inline int lora_blocks(int k) { return (k + 31) / 32; }

// The same for numbers in float32, of which `columns` are there
static inline float16 lora_dot_float(const __global uchar *w, const __global float *x, int columns)
{
    float16 sum = (float16)(0.0f);
    for (int i = 0; i < min(32, columns); i++)
        sum += to_float(((load_int16(w + 64 * (i / 4)) >> (8 * (i % 4))) & 255) - 128) * x[i];
    return sum;
}

// a times a row x, for 16 ranks. x: k numbers, float32 or prepared (prepare.cl). next: what is read after a.
static float16 lora_down16(
    const __global uchar *a, const __global char *x, int is_float, int k, const __global uchar *next)
{
    const __global float *scales = (const __global float *)(x + 2 * (long)k);
    const __global int *sums = (const __global int *)(scales + k / 32 * 2);
    const int blocks = lora_blocks(k);
    float16 even = (float16)(0.0f), odd = even;
    for (int b = 0; b < blocks; b++) {
        const __global uchar *w = a + (long)LORA_DOWN_BYTES * b;
        const int ahead = b + LORA_FETCH;
        const __global uchar *later = ahead < blocks ? a + (long)LORA_DOWN_BYTES * ahead
                                                     : next + (long)LORA_DOWN_BYTES * (ahead - blocks);
        for (int i = 0; i < LORA_DOWN_BYTES; i += 64)
            LORA_ASK(later + i);
        const float16 scale = load_bf16_16(w + 512);
        float16 t;
        if (is_float)
            t = even + lora_dot_float(w, (const __global float *)x + 32 * b, k - 32 * b) * scale;
        else
            t = add_scaled(even, lora_dot(w, 8, (const __global int *)(x + 64 * b), sums[b]), scale, scales[b]);
        even = odd; // two sums that take turns
        odd = t;
    }
    return even + odd;
}

// Where a unit's t for row `row` of its own and a product begin: [slot][row][rank / 16]
static inline __global LoraT *lora_t(const __global LoraUnit *unit, const __global LoraSite *site, int slot, int row)
{
    return (__global LoraT *)unit->t + ((long)slot * unit->rows + row) * (site->rank / 16);
}

// One unit's t for one of the products that read x
static void lora_down(const __global LoraUnit *unit, const __global LoraSite *site, int slot,
                      const __global char *x, long stride, int is_float, int k)
{
    if (!site->a)
        return;
    const float scale = unit->strength * site->scale;
    const long bytes = (long)LORA_DOWN_BYTES * lora_blocks(k); // of 16 ranks
    for (int g = 0; g < site->rank / 16; g++) {
        const __global uchar *a = (const __global uchar *)site->a + bytes * g;
        for (int r = 0; r < unit->rows; r++)
            lora_round(lora_down16(a, x + (unit->first + r) * stride, is_float, k, a + bytes) * scale,
                       lora_t(unit, site, slot, r) + g);
    }
}

// Adds factor * b t to 16 outputs, of which `columns` are there.
static inline __attribute__((always_inline)) void lora_up16(
    const __global uchar *b, const __global LoraT *t, float factor, __global float *out, int columns)
{
    const float16 sum = to_float(lora_dot(b, 4, t->numbers, t->sum)) * (load_bf16_16(b + 256) * (t->scale * factor));
    if (columns >= 16)
        store16(load16(out) + sum, out);
    else
        for (int i = 0; i < columns; i++)
            out[i] += ((const float *)&sum)[i];
}

// Asks for what lora_up will read of some groups: meanwhile the products themselves are computed.
static inline void lora_fetch(const __global int *in, int at, int units, int site_number, int first, int last)
{
    for (int c = 0; c < units; c++) {
        const __global LoraSite *site = lora_site(lora_units(in, at, c), site_number);
        const long group = LORA_UP_BYTES * (site->rank / 16);
        const __global uchar *b = (const __global uchar *)site->b + group * first;
        const long bytes = site->a ? group * (last - first) : 0;
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
        const int ranks = site->rank / 16;
        for (int r = 0; r < unit->rows; r++)
            for (int j = 0; j < ranks; j++) {
                const __global LoraT *t = lora_t(unit, site, slot, r) + j;
                const __global uchar *b = (const __global uchar *)site->b + LORA_UP_BYTES * ((long)ranks * first + j);
                for (int g = first; g < last; g++, b += LORA_UP_BYTES * ranks)
                    lora_up16(b, t, factor, out + (long)(unit->first + r) * n + 16 * g, n - 16 * g);
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
        const int ranks = site->rank / 16;
        __global LoraT *t = lora_t(unit, site, 0, row - unit->first);
        for (int j = 0; j < ranks; j++) {
            const __global uchar *a = (const __global uchar *)site->a + 32 * ((long)ranks * token + j);
            lora_round(load_bf16_16(a) * (unit->strength * site->scale), t + j);
            for (int g = 0; g < (k + 15) / 16; g++) {
                const __global uchar *b = (const __global uchar *)site->b + LORA_UP_BYTES * ((long)ranks * g + j);
                lora_up16(b, t + j, factor, out + 16 * g, k - 16 * g);
            }
        }
    }
}
