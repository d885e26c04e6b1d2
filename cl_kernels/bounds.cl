// Upper bounds of a product's results, at half the price: only the largest logits are wanted, so most need not be known.
//
// The product with the high bytes of activations alone misses sum (w l), l being the low ones, which is at most |w| |l|
// (Cauchy and Schwarz). Results that may be among the largest are then computed as always (find_top_of_bounds in top.cl):
// that pays for few of them. For a type without minima, whose T(name) this file uses.

#ifdef REALM_BYTES
#define REALM_BOUNDS
#define BOUND_ROWS 16
#define BOUND_LEAST 12 // rows; fewer wait for memory
#define BOUND_MOST 4  // of the largest are wanted
#define BOUND_BLOCKS 256 // of 32 columns, at most

// sums: of the high bytes of each part of each block. Returns |l|, and what rounding may add.
static float high_sums(const __global char *x, int blocks, int *sums)
{
    const __global float *scales = (const __global float *)(x + 64L * blocks);
    float squares = 0.0f, most = 0.0f;
    for (int b = 0; b < blocks; b++) {
        const int16 bytes = load_int16(x + 64 * b), fours = dot4_each((int16)(0), (int16)(0x01010101), bytes);
        const int8 low = dot4_each((int16)(0), add_bytes(bytes, (int16)(0x40404040)), bytes).hi - 64 * fours.hi;
        const int4 a = PARTS == 1 ? fours.lo.lo + fours.lo.hi : fours.lo.lo, c = fours.lo.hi, l = low.lo + low.hi;
        sums[PARTS * b] = a.x + a.y + a.z + a.w;
        if (PARTS == 2)
            sums[PARTS * b + PARTS - 1] = c.x + c.y + c.z + c.w;
        squares += scales[b] * scales[b] * (float)(l.x + l.y + l.z + l.w);
        most += scales[b] * scales[b] * (32 * 64 * 64);
    }
    return sqrt(squares) + sqrt(most) * (1e-4f * PARTS * blocks);
}

// |w| of the rows of a group
static inline float16 norms(const __global uchar *group, int blocks)
{
    const __global uchar *records = group + (long)blocks * BLOCK_BYTES;
    float16 squares = (float16)(0.0f);
    for (int b = 0; b < blocks; b++) {
        int16 w[8];
        float16 scale[PARTS], minimum[PARTS];
        UNPACK(group + (long)b * BLOCK_BYTES, w, WORDS16)
        T(scales)(records, b, scale, minimum);
        _Pragma("unroll") for (int j = 0; j < PARTS; j++)
        {
            int16 sum = (int16)(0), with = (int16)(0); // of w - OFFSET, and of w (w - OFFSET)
            _Pragma("unroll") for (int i = j * (SUB / 4); i < (j + 1) * (SUB / 4); i++)
            {
                const int16 own = add_bytes(w[i], (int16)((int)((256 - (OFFSET)) % 256 * 0x01010101u)));
                sum = dot4_each(sum, (int16)(0x01010101), own);
                with = dot4_each(with, w[i], own);
            }
            squares += to_float(with - (OFFSET)*sum) * (scale[j] * scale[j]);
        }
    }
    return sqrt(squares);
}

// Four rows times two groups
static inline __attribute__((always_inline)) void high_products(
    const __global uchar *const *group, int k, const __global char *const *x, int (*sums)[PARTS * BOUND_BLOCKS],
    float16 (*acc)[4], const __global uchar *ahead, int share)
{
    const int blocks = k / 32;
    _Pragma("unroll") for (int t = 0; t < 4; t++) acc[0][t] = acc[1][t] = (float16)(0.0f);
    for (int b = 0; b < blocks; b++, ahead += share) {
        int16 w[2][8];
        float16 scale[2][PARTS], minimum[2][PARTS];
        for (int i = 0; i < share; i += 64)
            FETCH(ahead + i);
        _Pragma("unroll") for (int g = 0; g < 2; g++)
        {
            UNPACK(group[g] + (long)b * BLOCK_BYTES, w[g], WORDS16)
            T(scales)(group[g] + (long)blocks * BLOCK_BYTES, b, scale[g], minimum[g]);
        }
        _Pragma("unroll") for (int j = 0; j < PARTS; j++)
        {
            int16 high[2][4];
            _Pragma("unroll") for (int t = 0; t < 4; t++) high[0][t] = high[1][t]
                = (int16)(-(OFFSET)*sums[t][PARTS * b + j]);
            _Pragma("unroll") for (int i = j * (SUB / 4); i < (j + 1) * (SUB / 4); i++)
                _Pragma("unroll") for (int t = 0; t < 4; t++)
            {
                const int q = ((const __global int *)(x[t] + b * 64))[i];
                high[0][t] = dot4(high[0][t], w[0][i], q);
                high[1][t] = dot4(high[1][t], w[1][i], q);
            }
            _Pragma("unroll") for (int t = 0; t < 4; t++)
            {
                const float x_scale = ((const __global float *)(x[t] + 2 * (long)k))[b];
                acc[0][t] = add_scaled(acc[0][t], high[0][t] << 7, scale[0][j], x_scale);
                acc[1][t] = add_scaled(acc[1][t], high[1][t] << 7, scale[1][j], x_scale);
            }
        }
    }
}

// Like matmul_rows, for at most BOUND_ROWS rows and neither bias nor residual
static void bound_rows(const __global uchar *weights, int first, int last, const Product *p)
{
    const long bytes = T(group_bytes)(p->k);
    const int blocks = p->k / 32, turns = (p->rows + 3) / 4, share = 2 * bytes / (turns * blocks) + 1;
    int sums[BOUND_ROWS][PARTS * BOUND_BLOCKS];
    float low[BOUND_ROWS];
    const __global char *x[BOUND_ROWS];
    for (int t = 0; t < 4 * turns; t++) {
        x[t] = product_input(p, min(t, p->rows - 1));
        low[t] = high_sums(x[t], blocks, sums[t]);
        if (p->scale < 0.0f)
            low[t] = -low[t];
    }
    for (int g = first; g < last; g += 2) {
        const int count = min(2, last - g);
        const __global uchar *group[2] = {weights + g * bytes, weights + (g + count - 1) * bytes};
        const __global uchar *ahead = weights + (g + 2) * bytes;
        float16 norm[2], acc[2][4];
        for (int u = 0; u < count; u++)
            norm[u] = norms(group[u], blocks);
        for (int t = 0; t < 4 * turns; t += 4, ahead += blocks * share) {
            high_products(group, p->k, x + t, sums + t, acc, ahead, share);
            for (int u = 0; u < count; u++)
                for (int v = 0; v < 4 && t + v < p->rows; v++)
                    product_output(p, t + v, 16 * (g + u), acc[u][v] + norm[u] * low[t + v]);
        }
    }
}

// The results themselves of a row and a group
static void exact_group(const __global uchar *weights, int group, const Product *p, int t)
{
    const __global char *x = product_input(p, t);
    float16 acc[1];
    T(dot_1)(weights + group * T(group_bytes)(p->k), p->k, &x, acc);
    product_output(p, t, 16 * group, acc[0]);
}
#endif
