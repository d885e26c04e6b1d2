// A whole step of the engine as one kernel, for CPUs: work-groups run the operations of a program phase by phase.
//
// The operations of a phase are cut into chunks. A work-group takes chunks of the current phase from shared counters
// until there are none, then waits until those taken by others are done, and goes on to the next phase. Any number of
// work-groups may take part and each may join at any time: one that comes late finds the counters of the phases
// behind it exhausted. So nothing is assumed about how many of them the driver runs at once, and one alone suffices.

#define OP_EMBED 0
#define OP_PREPARE 1
#define OP_MATMUL 2
#define OP_STORE_KV 3
#define OP_ATTEND 4
#define OP_COMBINE 5
#define OP_ADD 6
#define OP_COPY 7
#define OP_ROUTE 8
#define OP_SORT 9
#define OP_EXPERTS 10
#define OP_EXPERT_SUM 11
#define OP_STORE_ROW 12
#define OP_CONVOLVE 13
#define OP_LORA 14
#define OP_TOP 15

// What the fields mean is said where an operation reads them; lowering.py fills them in.
typedef struct {
    int kind, type, logit_rows, n, k, chunk, heads, kv_heads, head_width, value_width, how, act, gather, table, start;
    int window, experts, used, shared, renormalise, groups, groups_used, out_stride, whole, site, bounds;
    float epsilon, scale, cap;
    long p[8];
} Op;

// The step's input: int32 words, the first of them (see cpu_model.py)
#define IN_ROWS 0
#define IN_LOGIT_ROWS 1
#define IN_TILES 2
#define IN_COMBINES 3
#define IN_PARITY 4
#define IN_MAX_BLOCKS 5
#define IN_AT_TOKENS 6
#define IN_AT_POSITIONS 7
#define IN_AT_SEQUENCES 8
#define IN_AT_LOGIT_ROWS 9
#define IN_AT_TILES 10
#define IN_AT_COMBINES 11
#define IN_AT_BLOCKS 12
#define IN_AT_ROPE 13 // one word per rope table
#define IN_LORA_UNITS 16 // among the rows, and among the logit rows
#define IN_LOGIT_LORA_UNITS 17
#define IN_AT_LORA_UNITS 18
#define IN_AT_LOGIT_LORA_UNITS 19
#define IN_TOGETHER 20 // whether the tiles of attention have one row each and more than one key/value head
#define IN_TOP 21 // how many of the largest logits are wanted, 0: none
#define IN_TOP_OF 22 // among so many

// segments.py says what they are: first row, rows, position of the first row, first key, last key + 1, positions of a
// segment, partial slot of the first row or -1, slots between rows
#define TILE_WORDS 8
#define COMBINE_WORDS 3 // row, first partial slot, splits

#define FLOATS(x) ((__global float *)(x))
#define BYTES(x) ((__global uchar *)(x))

#define LORA_UNITS(op) in[(op)->logit_rows ? IN_LOGIT_LORA_UNITS : IN_LORA_UNITS]
#define AT_LORA_UNITS(op) in[(op)->logit_rows ? IN_AT_LOGIT_LORA_UNITS : IN_AT_LORA_UNITS]

// Key/value heads of a tile of attention
static inline int heads_together(const __global Op *op, const __global int *in)
{
    return in[IN_TOGETHER] ? op->used : 1;
}

#define FEW_ROWS 8 // a step of so many shares out what is a chunk of its own for each of more

// Groups of key/value heads whose keys and values a chunk stores
static inline int store_parts(const __global Op *op, int rows)
{
    const int heads = op->kv_heads;
    return rows > FEW_ROWS ? 1 : heads % 4 == 0 ? 4 : heads % 3 == 0 ? 3 : heads % 2 == 0 ? 2 : 1;
}

// Pieces that a row is prepared in: a norm must see all of it
static inline int pieces(const __global Op *op, int rows)
{
    const int norm = op->how == PREPARE_RMS_NORM || op->how == PREPARE_LAYER_NORM;
    return norm || rows > FEW_ROWS || op->heads > 1 ? 1 : max(1, op->k / 768);
}

// Chunks for each unit's t: many units keep all work-groups busy with one
static inline int lora_pieces(int units, const __global Op *op) { return units < 4 ? op->used : 1; }

static int count_chunks(const __global Op *op, const __global int *in)
{
    const int rows = op->logit_rows ? in[IN_LOGIT_ROWS] : in[IN_ROWS];
    switch (op->kind) {
    case OP_MATMUL:
        return rows ? ((op->n + 15) / 16 + op->chunk - 1) / op->chunk : 0;
    case OP_ATTEND:
        return in[IN_TILES] * (op->heads / (op->chunk * heads_together(op, in)));
    case OP_COMBINE:
        return in[IN_COMBINES] * ((op->heads + op->chunk - 1) / op->chunk);
    case OP_SORT:
        return rows ? 1 : 0;
    case OP_EXPERTS: // as many chunks for each expert in use
        return rows ? *(const __global int *)op->p[5] * ((op->n / 16 + op->chunk - 1) / op->chunk) : 0;
    case OP_PREPARE:
        return rows * op->heads * pieces(op, rows);
    case OP_STORE_KV:
        return rows * store_parts(op, rows);
    case OP_LORA: // for a stack: for each expert in use, for each head
        if (op->experts || op->heads > 1)
            return rows && LORA_UNITS(op) ? (op->experts ? *(const __global int *)op->p[1] : op->heads) * op->used : 0;
        return LORA_UNITS(op) * lora_pieces(LORA_UNITS(op), op);
    case OP_TOP:
        return in[IN_TOP] ? rows : 0;
    default:
        return rows;
    }
}

// Where the cache of the row's sequence has position `position`: the number of the cell.
static inline long cell_of(const __global int *in, int row, int position)
{
    const int sequence = in[in[IN_AT_SEQUENCES] + row];
    return (long)in[in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS] + position / POSITIONS] * POSITIONS
           + position % POSITIONS;
}

// p: q, keys, values, out, partials, sinks; `chunk` query heads share a key/value head in a tile, which takes `used` of
// these heads where it has one row
static void attend_chunk(const __global Op *op, const __global int *in, int c)
{
    const int together = heads_together(op, in), heads = op->chunk * together, parts = op->heads / heads;
    const int head = c % parts * heads;
    const __global int *tile = in + in[IN_AT_TILES] + TILE_WORDS * (c / parts);
    const int row = tile[0], position = tile[2];
    Attend a;
    a.q_stride = op->heads * op->head_width;
    a.out_stride = op->heads * op->value_width;
    a.q = FLOATS(op->p[0]) + (long)row * a.q_stride + head * op->head_width;
    a.rows = tile[1];
    a.heads = op->chunk;
    a.together = together;
    a.row_position = position;
    a.whole = op->whole;
    a.first = tile[3];
    a.last = tile[4];
    a.segment = tile[5];
    a.end = op->whole ? a.last : position + a.rows;
    a.fetch = min(2 * SPAN_BLOCKS, 1 + (int)(FETCH_AHEAD / (together * key_bytes(op->head_width))));
    if (op->window) // blocks that no row of the tile sees any more
        a.first = min(a.last, max(a.first, max(0, position - op->window + 1) / POSITIONS * POSITIONS));
    a.kv_head = head / (op->heads / op->kv_heads);
    a.kv_heads = op->kv_heads;
    a.head_width = op->head_width;
    a.value_width = op->value_width;
    a.scale = op->scale;
    a.softcap = op->cap;
    a.window = op->window;
    a.keys = BYTES(op->p[1]);
    a.values = BYTES(op->p[2]);
    a.block_table = in + in[IN_AT_BLOCKS] + (long)in[in[IN_AT_SEQUENCES] + row] * in[IN_MAX_BLOCKS];
    a.next_table = 0;
    if (together > 1 && parts == 1 && c + 1 < in[IN_TILES]) {
        const __global int *next = tile + TILE_WORDS;
        const int begin = (op->window ? max(next[3], next[2] - op->window + 1) : next[3]) / POSITIONS;
        a.next_table = in + in[IN_AT_BLOCKS] + (long)in[in[IN_AT_SEQUENCES] + next[0]] * in[IN_MAX_BLOCKS] + begin;
        a.next_blocks = (next[4] + POSITIONS - 1) / POSITIONS - begin;
    }
    a.sinks = op->p[5] ? FLOATS(op->p[5]) + head : 0;
    a.out = FLOATS(op->p[3]) + (long)row * a.out_stride + head * op->value_width;
    const int partial_floats = padded16(op->value_width) + 2; // of a slot, for each head
    a.partial = tile[6] < 0 ? 0 : FLOATS(op->p[4]) + ((long)tile[6] * op->heads + head) * partial_floats;
    a.partial_stride = (long)tile[7] * op->heads * partial_floats;
    attend_tile(&a);
}

// p: q, k, v, keys, values; n: rotated columns, from `start` on, by rope table `table`
static void store_kv_chunk(const __global Op *op, const __global int *in, int rows, int c)
{
    const int parts = store_parts(op, rows), row = c / parts, part = c % parts;
    const int heads = op->heads / parts, kv_heads = op->kv_heads / parts;
    const long cell = cell_of(in, row, in[in[IN_AT_POSITIONS] + row]), head = (long)row * op->kv_heads + part * kv_heads;
    const long block = cell / POSITIONS * op->kv_heads + part * kv_heads;
    __global float *q = FLOATS(op->p[0]) + ((long)row * op->heads + part * heads) * op->head_width;
    __global float *k = FLOATS(op->p[1]) + head * op->head_width;
    if (op->n) {
        const __global float *table = (const __global float *)(in + in[IN_AT_ROPE + op->table]) + (long)row * op->n;
        rotate_row(q, heads, op->head_width, op->start, table, op->n / 2, op->how);
        rotate_row(k, kv_heads, op->head_width, op->start, table, op->n / 2, op->how);
    }
    store_kv_heads(k, FLOATS(op->p[2]) + head * op->value_width, kv_heads, op->head_width, op->value_width,
                   cell % POSITIONS, BYTES(op->p[3]) + block * key_bytes(op->head_width),
                   BYTES(op->p[4]) + block * value_bytes(op->value_width));
}

// p: x, second (of op->used parts), int8 out, float out, bias; `heads` parts of k columns in each row
static void prepare_chunk(const __global Op *op, const __global int *in, int rows, int c)
{
    const int n = pieces(op, rows), piece = c % n, first = op->k / 32 * piece / n * 32;
    const int last = piece + 1 < n ? op->k / 32 * (piece + 1) / n * 32 : op->k;
    c /= n;
    const int row = c / op->heads, part = c % op->heads;
    const long from = (op->gather ? in[in[IN_AT_LOGIT_ROWS] + row] : row) * op->heads + part;
    Row r;
    r.how = op->how;
    r.act = op->act;
    r.k = op->k;
    r.epsilon = op->epsilon;
    r.cap = op->cap;
    r.x = FLOATS(op->p[0]) + from * (op->how == PREPARE_SCALAR_GATE ? 1 : op->k);
    const int gate = op->how == PREPARE_GATE || op->how == PREPARE_SCALAR_GATE;
    const long at = (gate ? from : part % op->used) * op->k;
    r.second = op->p[1] ? FLOATS(op->p[1]) + at : 0;
    r.bias = op->p[4] ? FLOATS(op->p[4]) + at : 0;
    prepare_row(&r, first, last, op->p[2] ? (__global char *)(op->p[2] + c * prepared_bytes(op->k)) : 0,
                op->p[3] ? FLOATS(op->p[3]) + (long)c * op->k : 0);
}

// A search for what adapters do in the `which`-th expert in use; used: experts of a row
static LoraSearch lora_search(const __global Op *op, const __global int *in, const __global int *sorted, int which,
                              int used, int site, int slot)
{
    const int begin = SORTED_BEGINS(sorted, op->experts)[which];
    LoraSearch s = {in, AT_LORA_UNITS(op), LORA_UNITS(op), site, slot};
    s.e.expert = SORTED_NUMBERS(sorted)[which];
    s.e.count = SORTED_BEGINS(sorted, op->experts)[which + 1] - begin;
    s.e.used = used;
    s.e.entries = SORTED_ENTRIES(sorted, op->experts) + begin;
    s.k = op->k;
    s.n = op->n;
    return s;
}

// The same of a head; rows: of the step
static LoraSearch lora_search_head(const __global Op *op, const __global int *in, int rows, int head)
{
    LoraSearch s = {in, AT_LORA_UNITS(op), LORA_UNITS(op), op->site, 0};
    s.e.expert = head;
    s.e.count = rows;
    s.e.used = op->heads;
    s.e.entries = 0;
    s.k = op->k;
    s.n = op->n / op->heads;
    return s;
}

// p: x, sorted; the `used` products of the next phase, sites from `site` on, read rows of k numbers from it; how: as
// float32; experts, shared: as for them; groups_used: the experts of a row
static void lora_chunk(const __global Op *op, const __global int *in, int rows, int c)
{
    const long stride = op->how ? 4L * op->k : prepared_bytes(op->k);
    const __global char *x = (const __global char *)op->p[0];
    if (op->experts) {
        const int slot = c % op->used, which = c / op->used;
        LoraSearch s = lora_search(op, in, (const __global int *)op->p[1], which, op->groups_used, op->site + slot, slot);
        lora_experts_down(&s, x, stride, op->how, op->shared);
        return;
    }
    if (op->heads > 1) {
        LoraSearch s = lora_search_head(op, in, rows, c);
        lora_experts_down(&s, x, stride, op->how, 0);
        return;
    }
    const int at = AT_LORA_UNITS(op), units = LORA_UNITS(op);
    const int pieces = lora_pieces(units, op), slots = op->used / pieces, first = c % pieces * slots;
    const __global LoraUnit *unit = lora_units(in, at, c / pieces);
    for (int slot = first; slot < first + slots; slot++)
        lora_down(unit, lora_site(unit, op->site + slot), slot, x, stride, op->how, op->k);
}

// The adapters' chunks of a phase, which its other chunks add the results of: how many there are, and how many are done.
// They are taken first, so whoever waits for them waits for someone who is at it.
typedef struct {
    int total;
    __global int *done;
} LoraChunks;

static void wait_for_lora(const LoraChunks *lora)
{
    for (int turns = 0; lora->total && __atomic_load_n(lora->done, __ATOMIC_ACQUIRE) < lora->total; turns++)
        relax(turns);
}

// Bytes of an adapter's matrices A for the products after `op`, where all have the rank of this site
static inline long lora_down_bytes(const __global Op *op, const __global LoraSite *site)
{
    return (long)LORA_DOWN_BYTES * lora_blocks(op->k) * (site->rank / 16) * op->used;
}

// What work-groups that wait ask for: adapters of the next phase with such, which begins with `op`. A lone adapter is
// asked for beyond what that phase needs, since it lies in the order in which it is used.
typedef struct {
    const __global Op *op;
    int unit; // the next one
    const __global uchar *at, *end;
} LoraAhead;

// Asks for some of it. 0: there is nothing more, or nobody knows yet which experts it will be.
static int lora_ask(LoraAhead *ahead, const __global Op *op, const __global int *in)
{
    const int units = op->experts ? 0 : LORA_UNITS(op);
    if (ahead->op != op) {
        ahead->op = op;
        ahead->unit = 0;
        ahead->end = 0;
    }
    while (ahead->at >= ahead->end) {
        if (ahead->unit == units)
            return 0;
        const __global LoraSite *site = lora_site(lora_units(in, AT_LORA_UNITS(op), ahead->unit++), op->site);
        const __global uchar *from = (const __global uchar *)site->a;
        ahead->end = from + (units > 1 ? lora_down_bytes(op, site) : from ? LORA_AHEAD : 0);
        if (units > 1 || ahead->at < from || ahead->at > ahead->end)
            ahead->at = from;
    }
    for (int i = 0; i < 4; i++, ahead->at += 64)
        LORA_ASK(ahead->at);
    return 1;
}

// Adds B t to groups first .. end-1 of the outputs of all heads.
static void lora_heads_up(const __global Op *op, const __global int *in, int rows, int first, int end)
{
    const int per_head = op->n / op->heads / 16;
    for (int last; first < end; first = last) {
        const int head = first / per_head, before = head * per_head;
        last = min(end, before + per_head);
        LoraSearch search = lora_search_head(op, in, rows, head);
        LoraEntry found[LORA_FOUND];
        for (int count = LORA_FOUND; count == LORA_FOUND;) {
            count = lora_find(&search, found);
            lora_experts_up(found, count, first - before, last - before, search.n, FLOATS(op->p[2]));
        }
    }
}

static Product product_of(const __global Op *op, int rows)
{
    Product p;
    p.n = p.out_stride = op->n;
    p.k = op->k;
    p.rows = rows;
    p.scale = op->scale;
    p.x = (const __global char *)op->p[1];
    p.x_stride = op->how ? 4L * op->k : prepared_bytes(op->k);
    p.out = FLOATS(op->p[2]);
    p.bias = FLOATS(op->p[3]);
    p.residual = FLOATS(op->p[4]);
    p.column_base = 0;
    p.heads = op->heads;
    p.entries = 0;
    p.head = 0;
    return p;
}

#ifdef REALM_BOUNDS
// Whether a product's results, of which the largest are looked for, are bounds at first
static inline int gives_bounds(const __global Op *op, const __global int *in)
{
    const int rows = in[IN_LOGIT_ROWS];
    return op->bounds && in[IN_TOP] && in[IN_TOP] <= BOUND_MOST && rows >= BOUND_LEAST && rows <= BOUND_ROWS
           && !in[IN_LOGIT_LORA_UNITS];
}
#endif

// p: weights, x, out, bias, residual; n outputs in all, of `heads` matrices; out_stride: bytes of a group of weights; how: x is
// float32; start: which of the phase's products it is
static void matmul_chunk(const __global Op *op, const __global int *in, int rows, int c, const LoraChunks *lora)
{
    Product p = product_of(op, rows);
    const int groups = (op->n + 15) / 16, per_head = groups / op->heads, end = min((c + 1) * op->chunk, groups);
    const int units = op->site >= 0 ? LORA_UNITS(op) : 0;
    const int step = units && rows <= LORA_ROWS ? 2 : groups; // groups for which B is asked for at a time
#ifdef REALM_BOUNDS
    if (gives_bounds(op, in)) {
        bound_rows(BYTES(op->p[0]), c * op->chunk, end, &p);
        return;
    }
#endif
    for (int first = c * op->chunk; first < end;) {
        p.head = first / per_head;
        const int last = min(min(end, first + step), (p.head + 1) * per_head);
        if (step < groups)
            lora_fetch(in, AT_LORA_UNITS(op), units, op->site, first, last);
        matmul_rows(op->type, BYTES(op->p[0]), first, last, &p);
        first = last;
    }
    if (!units)
        return;
    wait_for_lora(lora);
    if (op->heads > 1)
        lora_heads_up(op, in, rows, c * op->chunk, end);
    else
        lora_up(in, AT_LORA_UNITS(op), units, op->site, op->start, c * op->chunk, end, op->n, op->scale,
                FLOATS(op->p[2]));
}

// p: weights, x, out, bias, -, sorted; n outputs of each of `experts` matrices; start: which of the phase's products
static void experts_chunk(const __global Op *op, const __global int *in, int c, const LoraChunks *lora)
{
    const __global int *sorted = (const __global int *)op->p[5];
    const int groups = op->n / 16, chunks = (groups + op->chunk - 1) / op->chunk, which = c / chunks;
    const int expert = SORTED_NUMBERS(sorted)[which];
    const int begin = SORTED_BEGINS(sorted, op->experts)[which];
    Product p;
    p.n = p.out_stride = op->n;
    p.k = op->k;
    p.rows = SORTED_BEGINS(sorted, op->experts)[which + 1] - begin;
    p.scale = 1.0f;
    p.x = (const __global char *)op->p[1];
    p.x_stride = op->how ? 4L * op->k : prepared_bytes(op->k);
    p.out = FLOATS(op->p[2]);
    p.bias = op->p[3] ? FLOATS(op->p[3]) + (long)expert * op->n : 0;
    p.residual = 0;
    p.column_base = expert * op->n;
    p.heads = 1;
    p.head = 0;
    p.entries = SORTED_ENTRIES(sorted, op->experts) + begin;
    p.used = op->used;
    p.shared = op->shared;
    const int begin_group = c % chunks * op->chunk, end = min(begin_group + op->chunk, groups);
    LoraSearch search = lora_search(op, in, sorted, which, op->used, op->site, op->start);
    LoraEntry found[LORA_FOUND];
    int count = lora_find(&search, found);
    const int step = count && p.rows <= LORA_ROWS ? 2 : groups; // as in matmul_chunk
    for (int first = begin_group; first < end; first += step) {
        const int last = min(end, first + step);
        if (step < groups)
            lora_experts_fetch(found, count, first, last);
        matmul_rows(op->type, BYTES(op->p[0]), expert * groups + first, expert * groups + last, &p);
    }
    wait_for_lora(lora);
    for (; count; count = count == LORA_FOUND ? lora_find(&search, found) : 0)
        lora_experts_up(found, count, begin_group, end, op->n, p.out);
}

static void run_chunk(const __global Op *op, const __global int *in, int c, const LoraChunks *lora)
{
    const int rows = op->logit_rows ? in[IN_LOGIT_ROWS] : in[IN_ROWS];
    switch (op->kind) {
    case OP_EMBED: { // p: weights, out; table: the row is the token's (0), its position's (1) or the first one (2)
        __global float *out = FLOATS(op->p[1]) + (long)c * op->k;
        embed_row(op->type, BYTES(op->p[0]), op->table == 2 ? 0 : in[in[IN_AT_TOKENS + op->table] + c], op->k, out);
        if (op->scale != 1.0f)
            for (int i = 0; i < op->k; i++)
                out[i] *= op->scale;
        if (op->site >= 0 && in[IN_LORA_UNITS])
            lora_embed(in, in[IN_AT_LORA_UNITS], in[IN_LORA_UNITS], op->site, c, in[in[IN_AT_TOKENS] + c], op->k,
                       op->scale, out);
        break;
    }
    case OP_PREPARE:
        prepare_chunk(op, in, rows, c);
        break;
    case OP_MATMUL:
        matmul_chunk(op, in, rows, c, lora);
        break;
    case OP_LORA:
        lora_chunk(op, in, rows, c);
        break;
    case OP_TOP: // p: logits, out; bounds: the operation before is the product, whose results may be bounds
#ifdef REALM_BOUNDS
        if (gives_bounds(op, in)) {
            const Product p = product_of(op - 1, rows);
            find_top_of_bounds(BYTES(op[-1].p[0]), &p, c, in[IN_TOP_OF], in[IN_TOP], (__global Top *)op->p[1] + c);
            break;
        }
#endif
        find_top(FLOATS(op->p[0]) + (long)c * op->k, in[IN_TOP_OF], in[IN_TOP], (__global Top *)op->p[1] + c);
        break;
    case OP_STORE_KV:
        store_kv_chunk(op, in, rows, c);
        break;
    case OP_ATTEND:
        attend_chunk(op, in, c);
        break;
    case OP_COMBINE: { // p: partials, out, sinks; `chunk` heads
        const int parts = (op->heads + op->chunk - 1) / op->chunk, first = c % parts * op->chunk;
        const __global int *w = in + in[IN_AT_COMBINES] + COMBINE_WORDS * (c / parts);
        const int floats = padded16(op->value_width) + 2;
        for (int head = first; head < min(op->heads, first + op->chunk); head++)
            combine_partials(FLOATS(op->p[0]) + ((long)w[1] * op->heads + head) * floats, w[2], (long)op->heads * floats,
                             op->value_width, op->p[2] ? FLOATS(op->p[2]) + head : 0,
                             FLOATS(op->p[1]) + ((long)w[0] * op->heads + head) * op->value_width);
        break;
    }
    case OP_ADD: { // p: a, b, out
        const long at = (long)c * op->k;
        for (int i = 0; i < op->k; i++)
            FLOATS(op->p[2])[at + i] = FLOATS(op->p[0])[at + i] + FLOATS(op->p[1])[at + i];
        break;
    }
    case OP_COPY: { // p: x, out; columns start .. start + k - 1 of each of x's `used` parts of n columns become the
                    // columns from `table` on of each of out's `heads` parts of out_stride columns
        for (int h = 0; h < op->heads; h++) {
            const __global float *from = FLOATS(op->p[0]) + ((long)c * op->used + h % op->used) * op->n + op->start;
            __global float *to = FLOATS(op->p[1]) + ((long)c * op->heads + h) * op->out_stride + op->table;
            for (int i = 0; i < op->k; i++)
                to[i] = from[i];
        }
        break;
    }
    case OP_ROUTE: // p: logits, out, bias
        route_row(FLOATS(op->p[0]) + (long)c * op->experts, op->experts, op->used, op->how, FLOATS(op->p[2]),
                  op->groups, op->groups_used, op->renormalise, op->scale, FLOATS(op->p[1]) + (long)c * 2 * op->used);
        break;
    case OP_SORT: // p: route, sorted
        sort_by_expert(FLOATS(op->p[0]), rows, op->experts, op->used, (__global int *)op->p[1]);
        break;
    case OP_EXPERTS:
        experts_chunk(op, in, c, lora);
        break;
    case OP_EXPERT_SUM: { // p: x, route, out
        const __global float *route = FLOATS(op->p[1]) + (long)c * 2 * op->used + op->used;
        for (int i = 0; i < op->k; i++) {
            float sum = 0.0f;
            for (int s = 0; s < op->used; s++)
                sum += route[s] * FLOATS(op->p[0])[((long)c * op->used + s) * op->k + i];
            FLOATS(op->p[2])[(long)c * op->k + i] = sum;
        }
        break;
    }
    case OP_STORE_ROW: { // p: x, cache of float32 rows
        __global float *to = FLOATS(op->p[1]) + cell_of(in, c, in[in[IN_AT_POSITIONS] + c]) * op->k;
        for (int i = 0; i < op->k; i++)
            to[i] = FLOATS(op->p[0])[(long)c * op->k + i];
        break;
    }
    case OP_CONVOLVE: { // p: cache, weight [k][n taps], out
        const int position = in[in[IN_AT_POSITIONS] + c];
        __global float *out = FLOATS(op->p[2]) + (long)c * op->k;
        for (int i = 0; i < op->k; i++)
            out[i] = 0.0f;
        for (int j = max(0, op->n - 1 - position); j < op->n; j++) {
            const __global float *x = FLOATS(op->p[0]) + cell_of(in, c, position - (op->n - 1) + j) * op->k;
            for (int i = 0; i < op->k; i++)
                out[i] += FLOATS(op->p[1])[(long)i * op->n + j] * x[i];
        }
        break;
    }
    }
}
