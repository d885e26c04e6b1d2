// The largest logits of rows on a GPU: of parts of a row first, then of what the parts have left.
//
// A logit and its id are one number that sorts as wanted: the largest first, of equal ones the lowest id. What is no
// finite number sorts before all others and so is seen in the end.

#define MOST_TOP 64
#define TOP_PART 2048
#define TOP_THREADS 256
#define NOT_FINITE (~0UL)

// What is left for each row; the struct Top of top.cl.
typedef struct {
    int finite;
    int ids[MOST_TOP];
    float logits[MOST_TOP];
} Top;

static inline ulong top_key(float logit, int id)
{
    const uint bits = as_uint(logit + 0.0f); // of two zeros none is larger
    return isfinite(logit) ? (ulong)(bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u)) << 32 | (uint)~id : NOT_FINITE;
}

// Sorts TOP_PART keys, descending.
static inline void sort_keys(__local ulong *keys)
{
    const int me = get_local_id(0);
    for (int size = 2; size <= TOP_PART; size *= 2)
        for (int distance = size / 2; distance > 0; distance /= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            for (int i = me; i < TOP_PART / 2; i += TOP_THREADS) {
                const int a = i / distance * 2 * distance + i % distance, b = a + distance;
                const ulong x = keys[a], y = keys[b];
                if ((x < y) == ((a & size) == 0)) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
        }
    barrier(CLK_LOCAL_MEM_FENCE);
}

// A work-group has a part of a row of `width` logits, of which the first n count; `left` has MOST_TOP keys for each part.
__kernel __attribute__((reqd_work_group_size(TOP_THREADS, 1, 1))) void top_of_parts(
    const __global float *logits, int width, int n, __global ulong *left)
{
    __local ulong keys[TOP_PART];
    const int me = get_local_id(0), part = get_group_id(0), row = get_group_id(1);
    const __global float *from = logits + (long)row * width;
    for (int i = me; i < TOP_PART; i += TOP_THREADS) {
        const int id = part * TOP_PART + i;
        keys[i] = id < n ? top_key(from[id], id) : 0;
    }
    sort_keys(keys);
    if (me < MOST_TOP)
        left[((long)row * get_num_groups(0) + part) * MOST_TOP + me] = keys[me];
}

__kernel __attribute__((reqd_work_group_size(TOP_THREADS, 1, 1))) void top_of_rows(
    const __global ulong *left, int parts, __global Top *out)
{
    __local ulong keys[TOP_PART];
    const int me = get_local_id(0), row = get_group_id(0), all = parts * MOST_TOP;
    left += (long)row * all;
    for (int i = me; i < MOST_TOP; i += TOP_THREADS)
        keys[i] = 0;
    for (int first = 0; first < all; first += TOP_PART - MOST_TOP) { // beside the largest so far
        for (int i = me; i < TOP_PART - MOST_TOP; i += TOP_THREADS)
            keys[MOST_TOP + i] = first + i < all ? left[first + i] : 0;
        sort_keys(keys);
    }
    if (me < MOST_TOP) {
        const uint bits = (uint)(keys[me] >> 32);
        out[row].ids[me] = ~(uint)keys[me];
        out[row].logits[me] = as_float(bits >> 31 ? bits ^ 0x80000000u : ~bits);
        if (me == 0)
            out[row].finite = keys[0] != NOT_FINITE;
    }
}
