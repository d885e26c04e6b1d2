// Mixtures of experts on a GPU: choosing, and sorting the chosen by expert so that each expert is a few tiles of rows.
// experts.cl does the same for CPUs.

#define GATE_SOFTMAX 0
#define GATE_SIGMOID 1
#define GATE_CHOSEN_SOFTMAX 2

#define MAX_EXPERTS 1024
#define ROUTE_SIZE 128 // work-items of a work-group

// How many of n values come before number i, if the largest is first and ties go to the lower number.
static inline int rank_of(const __local float *values, int n, int i)
{
    const float mine = values[i];
    int rank = 0;
    for (int j = 0; j < n; j++)
        rank += values[j] > mine || (values[j] == mine && j < i);
    return rank;
}

// One row to a work-group. out: the numbers of the chosen experts as floats, best first, then their weights.
__kernel __attribute__((reqd_work_group_size(ROUTE_SIZE, 1, 1))) void route_rows(
    int n, int used, int gating, int groups, int groups_used, int renormalise, float scale,
    const __global uchar *logits_buffer, long logits_at, const __global uchar *bias_buffer, long bias_at,
    __global uchar *out_buffer, long out_at)
{
    __local float values[MAX_EXPERTS], wanted[MAX_EXPERTS], score[MAX_EXPERTS];
    const int lane = get_local_id(0), row = get_group_id(1);
    const __global float *logits = FLOATS_IN(logits_buffer, logits_at) + (long)row * n;
    __global float *out = FLOATS(out_buffer, out_at) + (long)row * 2 * used;
    for (int i = lane; i < n; i += ROUTE_SIZE)
        values[i] = gating == GATE_SIGMOID ? 1.0f / (1.0f + exp(-logits[i])) : logits[i];
    barrier(CLK_LOCAL_MEM_FENCE);
    if (gating == GATE_SOFTMAX) {
        float most = values[0], sum = 0.0f;
        for (int i = 1; i < n; i++)
            most = fmax(most, values[i]);
        for (int i = 0; i < n; i++)
            sum += exp(values[i] - most);
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int i = lane; i < n; i += ROUTE_SIZE)
            values[i] = exp(values[i] - most) / sum;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int i = lane; i < n; i += ROUTE_SIZE)
        wanted[i] = values[i] + (bias_at >= 0 ? FLOATS_IN(bias_buffer, bias_at)[i] : 0.0f);
    barrier(CLK_LOCAL_MEM_FENCE);
    if (groups > 1) { // only the groups with the largest sums of their two best stay
        const int size = n / groups;
        for (int g = lane; g < groups; g += ROUTE_SIZE) {
            float first = -INFINITY, second = -INFINITY;
            for (int i = g * size; i < (g + 1) * size; i++) {
                second = fmax(second, fmin(first, wanted[i]));
                first = fmax(first, wanted[i]);
            }
            score[g] = size > 1 ? first + second : first;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int i = lane; i < n; i += ROUTE_SIZE)
            if (rank_of(score, groups, i / size) >= groups_used)
                wanted[i] = -INFINITY;
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (int i = lane; i < n; i += ROUTE_SIZE) {
        const int rank = rank_of(wanted, n, i);
        if (rank < used) {
            out[rank] = (float)i;
            score[rank] = values[i];
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane == 0) {
        float sum = 0.0f;
        if (gating == GATE_CHOSEN_SOFTMAX) {
            const float most = score[0];
            for (int i = 0; i < used; i++)
                sum += score[i] = exp(score[i] - most);
            for (int i = 0; i < used; i++)
                score[i] /= sum;
            sum = 0.0f;
        }
        for (int i = 0; i < used; i++)
            sum += score[i];
        const float factor = renormalise ? scale / fmax(sum, 6.103515625e-5f) : scale;
        for (int i = 0; i < used; i++)
            out[used + i] = score[i] * factor;
    }
}

// The rows' choices: sorted[0] tiles, the expert of each entry (row * used + slot), the entries ordered by expert, then
// the tiles: expert, first of its entries, number of entries. tile_rows 0: tiles and order are not wanted. One
// work-group does it all. Offsets of the parts, for so many entries:
#define SORTED_EXPERTS 1
#define SORTED_ENTRIES(entries) (1 + (entries))
#define SORTED_TILES(entries) (1 + 2 * (entries))

__kernel __attribute__((reqd_work_group_size(ROUTE_SIZE, 1, 1))) void sort_entries(
    const __global int *in, int rows_word, int n, int used, int tile_rows, const __global uchar *route_buffer,
    long route_at, __global uchar *sorted_buffer, long sorted_at)
{
    __local int count[MAX_EXPERTS];
    const int lane = get_local_id(0), entries = in[rows_word] * used;
    const __global float *route = FLOATS_IN(route_buffer, route_at);
    __global int *sorted = (__global int *)(sorted_buffer + sorted_at);
    for (int e = lane; e < n; e += ROUTE_SIZE)
        count[e] = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int i = lane; i < entries; i += ROUTE_SIZE) {
        const int expert = (int)route[i / used * 2 * used + i % used];
        sorted[SORTED_EXPERTS + i] = expert;
        if (tile_rows)
            atomic_inc(&count[expert]);
    }
    if (tile_rows) {
        barrier(CLK_LOCAL_MEM_FENCE);
        if (lane == 0) {
            int at = 0, tiles = 0;
            for (int e = 0; e < n; e++) {
                const int of_expert = count[e];
                count[e] = at; // from here on: where its next entry goes
                for (int i = 0; i < of_expert; i += tile_rows, tiles++) {
                    sorted[SORTED_TILES(entries) + 3 * tiles] = e;
                    sorted[SORTED_TILES(entries) + 3 * tiles + 1] = at + i;
                    sorted[SORTED_TILES(entries) + 3 * tiles + 2] = min(tile_rows, of_expert - i);
                }
                at += of_expert;
            }
            sorted[0] = tiles;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int i = lane; i < entries; i += ROUTE_SIZE)
            sorted[SORTED_ENTRIES(entries) + atomic_inc(&count[(int)route[i / used * 2 * used + i % used]])] = i;
    }
}
