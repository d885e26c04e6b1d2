// The largest logits of a row, on a CPU.

#define MOST_TOP 64

// What OP_TOP leaves for each row: whether all logits are numbers, then `count` ids and as many logits, the largest first
// and of equal ones the lowest id.
typedef struct {
    int finite;
    int ids[MOST_TOP];
    float logits[MOST_TOP];
} Top;

static void find_top(const __global float *logits, int n, int count, __global Top *top)
{
    float16 strange = (float16)(0.0f);
    float least = -INFINITY; // of those that are kept
    int kept = 0;
    count = min(count, n);
    for (int at = 0; at < n; at += 16) {
        const int here = min(16, n - at);
        float16 x = (float16)(0.0f);
        if (here == 16) {
            x = load16(logits + at);
        } else {
            for (int i = 0; i < here; i++)
                x[i] = logits[at + i];
        }
        strange += x - x; // of infinities and what is no number, no number
        if (kept == count && max16(x) <= least)
            continue;
        for (int i = 0; i < here; i++) {
            const float value = x[i];
            if (kept == count && !(value > least))
                continue;
            int place = kept < count ? kept++ : count - 1;
            for (; place > 0 && value > top->logits[place - 1]; place--) {
                top->logits[place] = top->logits[place - 1];
                top->ids[place] = top->ids[place - 1];
            }
            top->logits[place] = value;
            top->ids[place] = at + i;
            least = top->logits[kept - 1];
        }
    }
    top->finite = sum16(strange) == 0.0f;
}
