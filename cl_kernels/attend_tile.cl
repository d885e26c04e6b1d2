// A tile of rows and heads over its part of the cache, and the joining of segments.

// With partial == 0 the result goes to out. Otherwise the positions lie in one segment, and head h of row 0 leaves its
// sum, best and total at partial + h * (padded value width + 2), to be joined by combine_partials.
static void attend_tile(const Attend *a)
{
    const int head_width = a->head_width, queries = a->rows * a->heads;
    const int vectors = padded16(a->value_width) / 16, padded = 16 * vectors;
    if (a->partial && a->first >= a->last) { // outside of the window
        for (int i = 0; i < queries; i++)
            a->partial[i / a->heads * a->partial_stride + i % a->heads * (padded + 2) + padded] = -INFINITY;
        return;
    }
    float vf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    float16 acc[MAX_QUERIES * MAX_WIDTH / 16], sums[MAX_QUERIES * MAX_WIDTH / 16]; // of this segment, of those before
    Gathered state[MAX_QUERIES], before[MAX_QUERIES];
    int segments = 0; // behind this one
    for (int i = 0; i < queries; i++)
        state[i].best = before[i].best = -INFINITY, state[i].total = before[i].total = 0.0f;
    for (int i = 0; i < queries * vectors; i++)
        acc[i] = sums[i] = (float16)(0.0f);

    Query q[MAX_QUERIES];
#if KV_TYPE == KV_F16
    float kf[MAX_WIDTH * POSITIONS] __attribute__((aligned(64)));
    for (int i = 0; i < queries; i++)
        q[i] = a->q + (long)(i / a->heads) * a->q_stride + i % a->heads * head_width;
#else
    const int groups = padded32(head_width) / 32;
    short codes[MAX_QUERIES * MAX_WIDTH] __attribute__((aligned(64)));
    float scales[MAX_QUERIES * MAX_WIDTH / 32];
    int offsets[MAX_QUERIES * MAX_WIDTH / 32];
    for (int i = 0; i < queries; i++) {
        q[i].codes = codes + 32 * groups * i;
        q[i].scales = scales + groups * i;
        q[i].offsets = offsets + groups * i;
        quantise_query(a->q + (long)(i / a->heads) * a->q_stride + i % a->heads * head_width, head_width,
                       codes + 32 * groups * i, scales + groups * i, offsets + groups * i);
    }
#endif
    const long key_size = key_bytes(head_width), value_size = value_bytes(a->value_width);
    Block b;
    b.a = a;
    b.q = q;
    b.state = state;
    b.acc = acc;
    b.kf = b.vf = 0;

    for (int start = a->first; start < a->last; start += POSITIONS) {
        if (start > a->first && start % a->segment == 0) {
            segments++;
            for (int i = 0; i < queries; i++) {
                merge_segment(before + i, sums + i * vectors, state[i], acc + i * vectors, vectors);
                state[i].best = -INFINITY;
                state[i].total = 0.0f;
                for (int d = 0; d < vectors; d++)
                    acc[i * vectors + d] = (float16)(0.0f);
            }
        }
        const long block = (long)a->block_table[start / POSITIONS] * a->kv_heads + a->kv_head;
        b.start = start;
        b.written = min(POSITIONS, a->last - start); // what lies behind may be anything, even not a number
        b.kt = a->keys + block * key_size;
        b.vt = a->values + block * value_size;
        if (start + POSITIONS < a->last) { // the next block is asked for while this one is computed with
            const long next = (long)a->block_table[start / POSITIONS + 1] * a->kv_heads + a->kv_head;
            for (long i = 0; i < key_size; i += 64)
                FETCH(a->keys + next * key_size + i);
            for (long i = 0; i < value_size; i += 64)
                FETCH(a->values + next * value_size + i);
        }
        if (queries > DIRECT) {
#if KV_TYPE == KV_F16
            for (int i = 0; i < head_width * POSITIONS; i += 32) {
                *(float16 *)(kf + i) = load_half16(b.kt + 2 * i);
                *(float16 *)(kf + i + 16) = load_half16(b.kt + 2 * i + 32);
            }
            b.kf = kf;
#endif
            for (int x = 0; x < b.written; x++)
                for (int d = 0; d < padded; d += 16)
                    *(float16 *)(vf + x * padded + d) = value16(b.vt, a->value_width, x, d);
            b.vf = vf;
        }
        int j = 0;
        for (; j + DIRECT <= queries; j += DIRECT)
            attend_block_4(&b, j);
        switch (queries - j) {
        case 3:
            attend_block_3(&b, j);
            break;
        case 2:
            attend_block_2(&b, j);
            break;
        case 1:
            attend_block_1(&b, j);
        }
    }
    for (int i = 0; i < queries; i++) {
        const int row = i / a->heads, head = i % a->heads;
        const float16 *sum = acc + i * vectors;
        if (a->partial) {
            __global float *p = a->partial + row * a->partial_stride + (long)head * (padded + 2);
            for (int d = 0; d < vectors; d++)
                vstore16(sum[d], d, p);
            p[padded] = state[i].best;
            p[padded + 1] = state[i].total;
            continue;
        }
        if (segments) {
            merge_segment(before + i, sums + i * vectors, state[i], sum, vectors);
            state[i] = before[i];
            sum = sums + i * vectors;
        }
        finish_row(state[i], sum, a->value_width, a->sinks ? a->sinks + head : 0,
                   a->out + (long)row * a->out_stride + head * a->value_width);
    }
}

// Joins the partial results of one row and head: `splits` of them, `stride` floats apart.
static void combine_partials(const __global float *partial, int splits, long stride, int value_width,
                             const __global float *sink, __global float *out)
{
    const int vectors = padded16(value_width) / 16;
    float16 sum[MAX_WIDTH / 16], part_sum[MAX_WIDTH / 16];
    Gathered all, part;
    all.best = -INFINITY;
    all.total = 0.0f;
    for (int d = 0; d < vectors; d++)
        sum[d] = (float16)(0.0f);
    for (int s = 0; s < splits; s++, partial += stride) {
        part.best = partial[16 * vectors];
        part.total = partial[16 * vectors + 1];
        if (part.best == -INFINITY) // outside of the window
            continue;
        for (int d = 0; d < vectors; d++)
            part_sum[d] = load16(partial + 16 * d);
        merge_segment(&all, sum, part, part_sum, vectors);
    }
    finish_row(all, sum, value_width, sink, out);
}
