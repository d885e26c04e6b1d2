// Operations on whole rows: norms, gates and the quantisation of their results, sums, copies.
// Buffers come as (buffer, byte offset); an offset below 0 says that there is none. PREPARE_SIZE work-items to a
// work-group. step.cl says what the operations do; these give the same.

#define PREPARE_COPY 0
#define PREPARE_RMS_NORM 1    // x / rms(x) * weight
#define PREPARE_LAYER_NORM 2  // (x - mean) / deviation * weight + bias
#define PREPARE_GATE 3        // gate(x, second)
#define PREPARE_SCALAR_GATE 4 // activate(x[0]) * second
#define PREPARE_ACTIVATE 5

#define ACT_SILU 1
#define ACT_GELU 2 // the approximation by tanh
#define ACT_SIGMOID 3
#define ACT_CLAMPED_SWIGLU 4
#define ACT_SOFTCAP 5

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

static inline float activate(int act, float x, float cap)
{
    switch (act) {
    case ACT_SILU:
        return x * sigmoid(x);
    case ACT_GELU:
        return 0.5f * x * (1.0f + tanh(0.79788456080286535588f * x * fma(0.044715f * x, x, 1.0f)));
    case ACT_SIGMOID:
        return sigmoid(x);
    case ACT_SOFTCAP:
        return cap * tanh(x / cap);
    default:
        return x;
    }
}

static inline float gate(int act, float x, float up)
{
    if (act == ACT_CLAMPED_SWIGLU) {
        x = fmin(x, 7.0f);
        return x * sigmoid(1.702f * x) * (clamp(up, -7.0f, 7.0f) + 1.0f);
    }
    return activate(act, x, 0.0f) * up;
}

// The sum of what the work-items of a group hold; `sums` has room for each of them.
static inline float sum_of_group(float mine, __local float *sums)
{
    const int lane = get_local_id(0);
    sums[lane] = mine;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int half_size = PREPARE_SIZE / 2; half_size > 0; half_size /= 2) {
        if (lane < half_size)
            sums[lane] += sums[lane + half_size];
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    const float sum = sums[0];
    barrier(CLK_LOCAL_MEM_FENCE);
    return sum;
}

static inline float largest_of_eight(const __local float *x)
{
    return fmax(fmax(fmax(x[0], x[1]), fmax(x[2], x[3])), fmax(fmax(x[4], x[5]), fmax(x[6], x[7])));
}

// One part of a row (or 4 * PREPARE_SIZE columns of it) to a work-group: as integers (as_half: as halves) in q, as float32
// in f. A row has `heads` parts of k columns; `used` parts of a norm's weight take turns. For a norm, each of a part's
// work-groups sums the whole part for itself: cheaper than another launch. across, c: the work-group's place in the
// row's part, and the part's number. There is no bias, q or f where they are 0.
static inline void prepare_part(
    const __global int *in, int how, int act, int gather, int as_half, int k, int heads, int used, float epsilon, float cap,
    const __global float *x, const __global float *second, const __global float *bias, __global uchar *q_out,
    __global float *f_out, int across, int c, __local float *reals, __local int *sums)
{
    const int lane = get_local_id(0), row = c / heads, part = c % heads;
    const long from = (gather ? in[in[IN_AT_LOGIT_ROWS] + row] : row) * (long)heads + part;
    const int is_norm = how == PREPARE_RMS_NORM || how == PREPARE_LAYER_NORM;
    const int is_gate = how == PREPARE_GATE || how == PREPARE_SCALAR_GATE;
    const long second_from = (is_gate ? from : part % used) * k;
    x += from * (how == PREPARE_SCALAR_GATE ? 1 : k);
    float mean = 0.0f, norm = 1.0f;
    if (is_norm) {
        float sum = 0.0f;
        if (how == PREPARE_LAYER_NORM) {
            for (int i = lane; i < k; i += PREPARE_SIZE)
                sum += x[i];
            mean = sum_of_group(sum, reals) / (float)k;
            sum = 0.0f;
        }
        for (int i = lane; i < k; i += PREPARE_SIZE)
            sum = fma(x[i] - mean, x[i] - mean, sum);
        norm = 1.0f / sqrt(sum_of_group(sum, reals) / (float)k + epsilon);
    }
    const int first = 4 * (across * PREPARE_SIZE + lane); // this work-item's four columns
    float v[4];
    _Pragma("unroll") for (int i = 0; i < 4; i++)
    {
        const int column = first + i;
        v[i] = 0.0f;
        if (column < k) {
            v[i] = x[how == PREPARE_SCALAR_GATE ? 0 : column];
            if (is_norm) {
                v[i] = bias ? fma((v[i] - mean) * norm, second[second_from + column], bias[second_from + column])
                            : (v[i] - mean) * norm * second[second_from + column];
            } else if (is_gate) {
                v[i] = gate(act, v[i], second[second_from + column]);
            } else if (how == PREPARE_ACTIVATE) {
                v[i] = activate(act, v[i], cap);
            }
            if (f_out)
                f_out[(long)c * k + column] = v[i];
        }
    }
    if (q_out && as_half) {
        __global half *out = (__global half *)(q_out + c * half_row_bytes(k));
        if (first < k)
            _Pragma("unroll") for (int i = 0; i < 4; i++)
                vstore_half_rte(clamp(v[i] * (1.0f / HALF_UNIT), -65504.0f, 65504.0f), half_place(first + i), out);
    } else if (q_out) {
        __global uchar *out = q_out + c * prepared_bytes(k);
        reals[lane] = fmax(fmax(fabs(v[0]), fabs(v[1])), fmax(fabs(v[2]), fabs(v[3])));
        barrier(CLK_LOCAL_MEM_FENCE);
        const float largest = largest_of_eight(reals + (lane & ~7)); // who have a block of 32 columns
        const float inverse = largest > 0.0f ? (float)LARGEST / largest : 0.0f;
        int q[4];
        _Pragma("unroll") for (int i = 0; i < 4; i++) q[i] = convert_int_rte(v[i] * inverse);
        sums[lane] = q[0] + q[1] + q[2] + q[3];
        if (first < k) {
            __global uchar *to = out + first / 32 * 64 + first % 32;
            const int4 all = (int4)(q[0], q[1], q[2], q[3]), high = (all + 64) >> 7;
            *(__global char4 *)to = convert_char4(high);
            *(__global char4 *)(to + 32) = convert_char4(all - (high << 7));
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        const int blocks = k / 32, block = across * (PREPARE_SIZE / 8) + lane, at = 8 * lane;
        if (lane < PREPARE_SIZE / 8 && block < blocks) {
            __global float *scales = (__global float *)(out + 2 * (long)k);
            __global int *totals = (__global int *)(scales + 2 * blocks);
            const float scale = largest_of_eight(reals + at) / (float)LARGEST;
            const int left = sums[at] + sums[at + 1] + sums[at + 2] + sums[at + 3];
            const int right = sums[at + 4] + sums[at + 5] + sums[at + 6] + sums[at + 7];
            scales[block] = scale;
            scales[blocks + block] = scale * (float)(left + right);
            totals[block] = left + right;
            totals[blocks + 2 * block] = left;
            totals[blocks + 2 * block + 1] = right;
        }
    }
}

__kernel __attribute__((reqd_work_group_size(PREPARE_SIZE, 1, 1))) void prepare_rows(
    const __global int *in, int how, int act, int gather, int as_half, int k, int heads, int used, float epsilon, float cap,
    const __global uchar *x_buffer, long x_at, const __global uchar *second_buffer, long second_at,
    const __global uchar *bias_buffer, long bias_at, __global uchar *q_buffer, long q_at, __global uchar *f_buffer,
    long f_at)
{
    __local float reals[PREPARE_SIZE];
    __local int sums[PREPARE_SIZE];
    prepare_part(in, how, act, gather, as_half, k, heads, used, epsilon, cap, FLOATS_IN(x_buffer, x_at),
                 FLOATS_IN(second_buffer, second_at), bias_at < 0 ? 0 : FLOATS_IN(bias_buffer, bias_at),
                 q_at < 0 ? 0 : q_buffer + q_at, f_at < 0 ? 0 : FLOATS(f_buffer, f_at), get_group_id(0),
                 get_group_id(1), reals, sums);
}

// Below, a work-item has a column and the second dimension counts rows.

__kernel void add_rows(
    int k, const __global uchar *a_buffer, long a_at, const __global uchar *b_buffer, long b_at,
    __global uchar *out_buffer, long out_at)
{
    const int i = get_global_id(0);
    const long at = (long)get_global_id(1) * k + i;
    if (i < k)
        FLOATS(out_buffer, out_at)[at] = FLOATS_IN(a_buffer, a_at)[at] + FLOATS_IN(b_buffer, b_at)[at];
}

// Columns start .. start + k - 1 of each of x's `used` parts of n columns become the columns from `to` on of each of
// out's `heads` parts of out_stride columns.
__kernel void copy_columns(
    int k, int heads, int used, int n, int start, int to, int out_stride, const __global uchar *x_buffer, long x_at,
    __global uchar *out_buffer, long out_at)
{
    const int i = get_global_id(0), h = i / k, column = i % k;
    const long row = get_global_id(1);
    if (h < heads)
        FLOATS(out_buffer, out_at)[(row * heads + h) * out_stride + to + column] =
            FLOATS_IN(x_buffer, x_at)[(row * used + h % used) * n + start + column];
}

__kernel void sum_experts(
    int k, int used, const __global uchar *x_buffer, long x_at, const __global uchar *route_buffer, long route_at,
    __global uchar *out_buffer, long out_at)
{
    const int i = get_global_id(0);
    const long row = get_global_id(1);
    const __global float *weights = FLOATS_IN(route_buffer, route_at) + row * 2 * used + used;
    const __global float *x = FLOATS_IN(x_buffer, x_at) + row * used * k + i;
    if (i < k) {
        float sum = 0.0f;
        for (int s = 0; s < used; s++)
            sum = fma(weights[s], x[(long)s * k], sum);
        FLOATS(out_buffer, out_at)[row * k + i] = sum;
    }
}

// Where the cache of the row's sequence has position `position`: the number of the cell.
static inline long cell_of(const __global int *in, int row, int position)
{
    const int sequence = in[in[IN_AT_SEQUENCES] + row];
    return (long)in[in[IN_AT_BLOCKS] + (long)sequence * in[IN_MAX_BLOCKS] + position / 32] * 32 + position % 32;
}

__kernel void store_float_row(
    const __global int *in, int k, const __global uchar *x_buffer, long x_at, __global uchar *cache)
{
    const int i = get_global_id(0), row = get_global_id(1);
    if (i < k)
        ((__global float *)cache)[cell_of(in, row, in[in[IN_AT_POSITIONS] + row]) * k + i] =
            FLOATS_IN(x_buffer, x_at)[(long)row * k + i];
}

__kernel void convolve_rows(
    const __global int *in, int k, int taps, const __global uchar *cache, const __global uchar *w_buffer, long w_at,
    __global uchar *out_buffer, long out_at)
{
    const int i = get_global_id(0), row = get_global_id(1), position = in[in[IN_AT_POSITIONS] + row];
    if (i < k) {
        float sum = 0.0f;
        for (int j = max(0, taps - 1 - position); j < taps; j++)
            sum = fma(FLOATS_IN(w_buffer, w_at)[(long)i * taps + j],
                      ((const __global float *)cache)[cell_of(in, row, position - (taps - 1) + j) * k + i], sum);
        FLOATS(out_buffer, out_at)[(long)row * k + i] = sum;
    }
}

// Reads n 16-byte words; what it measures is how fast.
__kernel void read_all(const __global int4 *data, long n, __global int4 *out)
{
    int4 sum = (int4)(0);
    for (long i = get_global_id(0); i < n; i += get_global_size(0))
        sum ^= data[i];
    if (sum.x == 0x5ca1ab1e && sum.y == 0x0ddba11)
        out[0] = sum; // practically never, but the compiler cannot know
}
