// Mixtures of experts: choosing, and sorting the chosen by expert so that each expert is one matrix product.

#define GATE_SOFTMAX 0
#define GATE_SIGMOID 1
#define GATE_CHOSEN_SOFTMAX 2

#define MAX_EXPERTS 1024

static inline float exp1(float x) { return exp16((float16)(x)).s0; }

// Of `wanted` values the largest that is not yet -inf; ties go to the lower number. Returns it and rules it out.
static inline int take_best(float *wanted, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (wanted[i] > wanted[best])
            best = i;
    wanted[best] = -INFINITY;
    return best;
}

static void softmax_row(float *x, int n)
{
    float most = x[0], sum = 0.0f;
    for (int i = 1; i < n; i++)
        most = max(most, x[i]);
    for (int i = 0; i < n; i++)
        sum += x[i] = exp1(x[i] - most);
    for (int i = 0; i < n; i++)
        x[i] /= sum;
}

// Leaves -inf in the groups that are not among the best by the sum of their two largest values.
static void keep_best_groups(float *wanted, int n, int groups, int groups_used)
{
    const int size = n / groups;
    float score[MAX_EXPERTS];
    for (int g = 0; g < groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (int i = g * size; i < (g + 1) * size; i++) {
            const float x = wanted[i];
            second = max(second, min(first, x));
            first = max(first, x);
        }
        score[g] = size > 1 ? first + second : first;
    }
    for (int i = 0; i < groups_used; i++)
        take_best(score, groups);
    for (int g = 0; g < groups; g++)
        if (score[g] != -INFINITY)
            for (int i = g * size; i < (g + 1) * size; i++)
                wanted[i] = -INFINITY;
}

// out: the numbers of the chosen experts as floats, best first, then their weights.
static void route_row(const __global float *logits, int n, int used, int gating, const __global float *bias, int groups,
                      int groups_used, int renormalise, float scale, __global float *out)
{
    float values[MAX_EXPERTS], wanted[MAX_EXPERTS], weights[MAX_EXPERTS];
    for (int i = 0; i < n; i++)
        values[i] = gating == GATE_SIGMOID ? 1.0f / (1.0f + exp1(-logits[i])) : logits[i];
    if (gating == GATE_SOFTMAX)
        softmax_row(values, n);
    for (int i = 0; i < n; i++)
        wanted[i] = values[i] + (bias ? bias[i] : 0.0f);
    if (groups > 1)
        keep_best_groups(wanted, n, groups, groups_used);
    float sum = 0.0f;
    for (int i = 0; i < used; i++) {
        const int best = take_best(wanted, n);
        out[i] = (float)best;
        weights[i] = values[best];
    }
    if (gating == GATE_CHOSEN_SOFTMAX)
        softmax_row(weights, used);
    for (int i = 0; i < used; i++)
        sum += weights[i];
    const float factor = renormalise ? scale / max(sum, 6.103515625e-5f) : scale;
    for (int i = 0; i < used; i++)
        out[used + i] = weights[i] * factor;
}

// The rows' choices sorted by expert: sorted[0] experts are in use; then their numbers [n], where each one's entries
// begin [n + 1], and the entries [rows * used], each row * used + slot.
#define SORTED_NUMBERS(s) ((s) + 1)
#define SORTED_BEGINS(s, n) ((s) + 1 + (n))
#define SORTED_ENTRIES(s, n) ((s) + 2 + 2 * (n))

static void sort_by_expert(const __global float *route, int rows, int n, int used, __global int *sorted)
{
    int count[MAX_EXPERTS], next[MAX_EXPERTS];
    for (int e = 0; e < n; e++)
        count[e] = 0;
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < used; s++)
            count[(int)route[r * 2 * used + s]]++;
    int in_use = 0, at = 0;
    for (int e = 0; e < n; e++) {
        next[e] = at;
        if (count[e]) {
            SORTED_NUMBERS(sorted)[in_use] = e;
            SORTED_BEGINS(sorted, n)[in_use++] = at;
            at += count[e];
        }
    }
    sorted[0] = in_use;
    SORTED_BEGINS(sorted, n)[in_use] = at;
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < used; s++)
            SORTED_ENTRIES(sorted, n)[next[(int)route[r * 2 * used + s]]++] = r * used + s;
}
