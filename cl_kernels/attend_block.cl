// A tile's work on one block of the cache, for N query vectors at once. Included for each N up to DIRECT, which names it
// by B(name): a loop is only unrolled, and its sums only kept in registers, where its length stands there as a number.

// Times sixteen lanes that a query's sums have at once: as many as registers hold. Sixteen lanes are two of AVX2's sixteen
// registers and one of AVX-512's thirty-two.
#if defined(REALM_F16_AVX512) || N < 3
#define SPAN 2
#else
#define SPAN 1
#endif

#define EACH_QUERY _Pragma("unroll") for (int u = 0; u < N; u++)
#define EACH_SPAN _Pragma("unroll") for (int i = 0; i < SPAN; i++)

#if KV_TYPE == KV_F16

// s[u][i] = query u times the keys of positions 16 (part + i) .. + 15 of a block, for n queries. kt: the block's keys of
// this head; kf: the same as floats, or 0.
static inline __attribute__((always_inline)) void B(score_part)(
    const __private Query *q, const __global uchar *kt, const __private float *kf, int part, int head_width,
    float16 (*s)[SPAN])
{
    EACH_QUERY EACH_SPAN s[u][i] =
        (float16)(0.0f);
    _Pragma("unroll 4") for (int d = 0; d < head_width; d++) {
        float16 k[SPAN];
        EACH_SPAN
        {
            const int at = d * POSITIONS + 16 * (part + i);
            k[i] = kf ? *(const __private float16 *)(kf + at) : load_half16(kt + 2 * at);
        }
        EACH_QUERY
        {
            const float x = q[u][d];
            EACH_SPAN s[u][i] += k[i] * x;
        }
    }
}

#else

// As above, for n queries.
static inline __attribute__((always_inline)) void B(score_part)(
    const __private Query *q, const __global uchar *kt, const __private float *kf, int part, int head_width,
    float16 (*s)[SPAN])
{
    const __global half *scales = (const __global half *)(kt + code_bytes(head_width));
    EACH_QUERY EACH_SPAN s[u][i] =
        (float16)(0.0f);
    for (int g = 0; 32 * g < head_width; g++) {
        int16 acc[N][SPAN];
        EACH_QUERY EACH_SPAN acc[u][i] =
            (int16)(KV_TYPE == KV_Q4_0 ? -q[u].offsets[g] : 0);
        _Pragma("unroll 4") for (int e = 0; e < CODE_BITS * 2; e++) {
            const __global uchar *at = kt + (2 * CODE_BITS * g + e) * 2 * POSITIONS + 32 * part;
            EACH_SPAN
            {
                const uchar16 a = load_uchar16(at + 32 * i), b = load_uchar16(at + 32 * i + 16);
#if KV_TYPE == KV_Q8_0
                const short16 ka = __builtin_convertvector(__builtin_astype(a, char16), short16);
                const short16 kb = __builtin_convertvector(__builtin_astype(b, char16), short16);
                EACH_QUERY
                {
                    const int x = ((const __private int *)(q[u].codes + 32 * g))[e];
                    acc[u][i].lo = dot_pairs(acc[u][i].lo, ka, x);
                    acc[u][i].hi = dot_pairs(acc[u][i].hi, kb, x);
                }
#else
                const short16 ka = __builtin_convertvector(a & (uchar)15, short16);
                const short16 kb = __builtin_convertvector(b & (uchar)15, short16);
                const short16 ka2 = __builtin_convertvector(a >> (uchar)4, short16);
                const short16 kb2 = __builtin_convertvector(b >> (uchar)4, short16);
                EACH_QUERY
                {
                    const int x = ((const __private int *)(q[u].codes + 32 * g))[2 * e];
                    const int y = ((const __private int *)(q[u].codes + 32 * g))[2 * e + 1];
                    acc[u][i].lo = dot_pairs(dot_pairs(acc[u][i].lo, ka, x), ka2, y);
                    acc[u][i].hi = dot_pairs(dot_pairs(acc[u][i].hi, kb, x), kb2, y);
                }
#endif
            }
        }
        EACH_SPAN
        {
            const float16 scale = load_half16(scales + g * POSITIONS + 16 * (part + i));
            EACH_QUERY s[u][i] += to_float(acc[u][i]) * (scale * q[u].scales[g]);
        }
    }
}

#endif

static inline __attribute__((always_inline)) void B(attend_block)(const Block *b, int j)
{
    const Attend *a = b->a;
    const int vectors = padded16(a->value_width) / 16, start = b->start;
    int at[N]; // position of the query's row
    EACH_QUERY at[u] =
        a->whole ? a->last - 1 : a->row_position + (j + u) / a->heads;
    if (at[N - 1] < start || (a->window && start + POSITIONS <= at[0] - a->window + 1))
        return; // all of it lies in these rows' future, or before their window
    const int16 lane = (int16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    float p[N][POSITIONS] __attribute__((aligned(64)));
    for (int part = 0; part < 2; part += SPAN) {
        float16 s[N][SPAN];
        if (b->kf)
            B(score_part)(b->q + j, b->kt, b->kf, part, a->head_width, s);
        else
            B(score_part)(b->q + j, b->kt, 0, part, a->head_width, s);
        EACH_QUERY EACH_SPAN
            *(float16 *)(p[u] + 16 * (part + i)) = s[u][i];
    }
    float shrink[N];
    EACH_QUERY
    {
        const int to = at[u] - start, from = a->window ? to - a->window + 1 : 0; // the lanes that the row sees
        float16 x = *(float16 *)p[u] * a->scale, y = *(float16 *)(p[u] + 16) * a->scale;
        if (a->softcap > 0.0f) {
            x = activate16(ACT_SOFTCAP, x, a->softcap);
            y = activate16(ACT_SOFTCAP, y, a->softcap);
        }
        if (to < POSITIONS - 1 || from > 0) {
            x = ((lane > to) | (lane < from)) ? (float16)(-INFINITY) : x;
            y = ((lane + 16 > to) | (lane + 16 < from)) ? (float16)(-INFINITY) : y;
        }
        Gathered *state = b->state + j + u;
        const float best = state->best, most = max16(max_16(x, y)), now = best > most ? best : most;
        const float base = now == -INFINITY ? 0.0f : now;
        x = x == -INFINITY ? (float16)(0.0f) : exp16(x - base);
        y = y == -INFINITY ? (float16)(0.0f) : exp16(y - base);
        shrink[u] = best == now ? 1.0f : best == -INFINITY ? 0.0f : exp16((float16)(best - base)).s0;
        *(float16 *)p[u] = x;
        *(float16 *)(p[u] + 16) = y;
        state->total = state->total * shrink[u] + sum16(x + y);
        state->best = now;
    }
#if KV_TYPE == KV_F16
#define WEIGHT(u, x) p[u][x]
#else
#define WEIGHT(u, x) scaled[u][x]
    float scaled[N][POSITIONS] __attribute__((aligned(64))), offset[N];
    const __global half *scales = (const __global half *)(b->vt + code_bytes(a->value_width));
#endif
    for (int d = 0; d < 16 * vectors; d += 16 * SPAN) {
#if KV_TYPE != KV_F16
        if (d % 32 == 0) {
            float16 low = load_half16(scales + d), high = load_half16(scales + d + 16);
            if (b->written < POSITIONS) { // what lies behind may be no number at all
                low = lane >= b->written ? (float16)(0.0f) : low;
                high = lane + 16 >= b->written ? (float16)(0.0f) : high;
            }
            EACH_QUERY
            {
                const float16 x = *(const float16 *)p[u] * low, y = *(const float16 *)(p[u] + 16) * high;
                *(float16 *)scaled[u] = x;
                *(float16 *)(scaled[u] + 16) = y;
                offset[u] = KV_TYPE == KV_Q4_0 ? -8.0f * sum16(x + y) : 0.0f;
            }
        }
#endif
        const int more = SPAN == 2 && d + 16 < 16 * vectors ? 16 : 0;
        float16 o[N][SPAN];
        EACH_QUERY
        {
            const __private float16 *from = b->acc + (j + u) * vectors + d / 16;
            o[u][0] = from[0] * shrink[u];
            if (SPAN == 2)
                o[u][SPAN - 1] = from[more / 16] * shrink[u];
#if KV_TYPE == KV_Q4_0
            EACH_SPAN o[u][i] += offset[u];
#endif
        }
        if (b->vf)
            _Pragma("unroll 4") for (int x = 0; x < b->written; x++)
                EACH_SPAN
                {
                    const float16 v = *(const __private float16 *)(b->vf + x * 16 * vectors + d + i * more);
                    EACH_QUERY o[u][i] += v * WEIGHT(u, x);
                }
        else
            _Pragma("unroll 4") for (int x = 0; x < b->written; x++)
                EACH_SPAN
                {
                    const float16 v = value16(b->vt, a->value_width, x, d + i * more);
                    EACH_QUERY o[u][i] += v * WEIGHT(u, x);
                }
        EACH_QUERY
        {
            __private float16 *to = b->acc + (j + u) * vectors + d / 16;
            to[0] = o[u][0];
            if (more)
                to[1] = o[u][SPAN - 1];
        }
    }
#undef WEIGHT
}

#undef SPAN
#undef EACH_QUERY
#undef EACH_SPAN
