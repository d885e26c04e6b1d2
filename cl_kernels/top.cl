// The largest logits of a row, on a CPU.

#define MOST_TOP 64

// What OP_TOP leaves for each row: whether all logits are numbers, then `count` ids and as many logits, the largest first
// and of equal ones the lowest id.
typedef struct {
    int finite;
    int ids[MOST_TOP];
    float logits[MOST_TOP];
} Top;

// Adds a logit to the `kept` ones, of which there may be `count`; what comes later goes behind its equals.
static inline int keep(__global Top *top, int kept, int count, float value, int id)
{
    int place = kept < count ? kept++ : count - 1;
    for (; place > 0 && value > top->logits[place - 1]; place--) {
        top->logits[place] = top->logits[place - 1];
        top->ids[place] = top->ids[place - 1];
    }
    top->logits[place] = value;
    top->ids[place] = id;
    return kept;
}

#define AT_ONCE 64

// The largest of AT_ONCE logits; adds what is no number if one of them is none
static inline float most_of(const __global float *logits, float16 *strange)
{
    const float16 a = load16(logits), b = load16(logits + 16), c = load16(logits + 32), d = load16(logits + 48);
    *strange += ((a - a) + (b - b)) + ((c - c) + (d - d)); // of infinities and what is no number, no number
    return max16(max_16(max_16(a, b), max_16(c, d)));
}

static void find_top(const __global float *logits, int n, int count, __global Top *top)
{
    float16 strange = (float16)(0.0f);
    float least = -INFINITY; // of those that are kept
    int kept = 0;
    count = min(count, n);
    for (int at = 0; at < n; at += AT_ONCE) {
        const int here = min(AT_ONCE, n - at);
        if (here == AT_ONCE && most_of(logits + at, &strange) <= least && kept == count)
            continue;
        for (int i = at; i < at + here; i++) {
            if (here < AT_ONCE)
                strange += logits[i] - logits[i];
            if (kept == count && !(logits[i] > least))
                continue;
            kept = keep(top, kept, count, logits[i], i);
            least = top->logits[kept - 1];
        }
    }
    top->finite = sum16(strange) == 0.0f;
}

#ifdef REALM_BOUNDS
#define MOST_BOUNDED (1 << 19) // results

// The same where p->out has upper bounds of the logits (bounds.cl), of the product p with `weights`. Computes those that may
// be among the largest: first the groups whose bounds are, then whatever has a bound above what was found there.
static void find_top_of_bounds(const __global uchar *weights, const Product *p, int row, int n, int count,
                               __global Top *top)
{
    __global float *logits = p->out + (long)row * p->out_stride;
    uint known[MOST_BOUNDED / 512]; // a bit for each group
    const int groups = (n + 15) / 16;
    for (int i = 0; i < (groups + 31) / 32; i++)
        known[i] = 0;
    count = min(count, n);
    find_top(logits, n, count, top);
    int finite = top->finite;
    for (int i = 0; i < count; i++) {
        const int group = top->ids[i] / 16;
        if (!(known[group / 32] >> group % 32 & 1))
            exact_group(weights, group, p, row);
        known[group / 32] |= 1u << group % 32;
    }
    float16 strange = (float16)(0.0f);
    float least = -INFINITY;
    for (int all = 0; finite && all < 2; all++) {
        int kept = 0;
        for (int group = 0; group < groups; group++) {
            const __global float *own = logits + 16 * group;
            const int here = min(16, n - 16 * group), is_known = known[group / 32] >> group % 32 & 1;
            if (!is_known && !all)
                continue;
            if (all && group % 4 == 0 && n - 16 * group >= AT_ONCE && most_of(own, &strange) < least) {
                group += 3;
                continue;
            }
            if (!is_known) {
                if (here == 16 && max16(load16(own)) < least)
                    continue;
                exact_group(weights, group, p, row);
            }
            for (int i = 0; i < here; i++) {
                finite &= own[i] - own[i] == 0.0f;
                if (kept < count || own[i] > top->logits[kept - 1])
                    kept = keep(top, kept, count, own[i], 16 * group + i);
            }
        }
        least = top->logits[kept - 1];
    }
    top->finite = finite;
}
#endif
