// Matrix products of many rows on NVIDIA's tensor cores, of one quantisation type, after layout.cl and simt_matmul.cl.
//
// Weights become halves of 16 times their values, in the registers where the tensor cores want them: the order of the
// values that are summed is free, so a work-item takes the two words of four values that it finds in one place. Rows of
// activations are halves of a 16th of their values, in the same order (simt_rows.cl), copied to local memory some
// blocks ahead. Both have 11 bits then, weights from 4e-6 to 4,000, and their products are added in float32. A work-group of
// eight warps has MMA_SIDE rows times MMA_SIDE columns; each warp 64 rows and 32 columns.
//
// Sums here are not those of simt_matmul.cl to the bit: the tensor cores' own order of addition is not known.

#define PARTS (32 / SUB)

// Words i and i + 4 of a block for one lane (layout.cl), from the RAW_WORDS words that have their bits.
#if BITS == 8
#define RAW_WORDS 2
#define RAW_PLANE(j, i) ((j)*4 + (i))
#define RAW_LOW(r, i) (r[0])
#define RAW_HIGH(r, i) (r[1])
#elif BITS >= 4
#define RAW_WORDS (BITS - 3)
#define RAW_PLANE(j, i) ((j) == 0 ? (i) : 3 + (j))
#if BITS == 4
#define RAW_LOW(r, i) (r[0] & 0x0f0f0f0f)
#define RAW_HIGH(r, i) ((r[0] >> 4) & 0x0f0f0f0f)
#elif BITS == 5
#define RAW_LOW(r, i) ((r[0] & 0x0f0f0f0f) | ((r[1] >> (i)) & 0x01010101) << 4)
#define RAW_HIGH(r, i) (((r[0] >> 4) & 0x0f0f0f0f) | ((r[1] >> ((i) + 4)) & 0x01010101) << 4)
#else
#define RAW_LOW(r, i) ((r[0] & 0x0f0f0f0f) | ((r[1] >> (2 * (i))) & 0x03030303) << 4)
#define RAW_HIGH(r, i) (((r[0] >> 4) & 0x0f0f0f0f) | ((r[2] >> (2 * (i))) & 0x03030303) << 4)
#endif
#elif BITS == 1
#define RAW_WORDS 1
#define RAW_PLANE(j, i) 0
#define RAW_LOW(r, i) ((r[0] >> (i)) & 0x01010101)
#define RAW_HIGH(r, i) ((r[0] >> ((i) + 4)) & 0x01010101)
#else
#define RAW_WORDS BITS
#define RAW_PLANE(j, i) (j)
#if BITS == 2
#define RAW_LOW(r, i) ((r[0] >> (2 * (i))) & 0x03030303)
#define RAW_HIGH(r, i) ((r[1] >> (2 * (i))) & 0x03030303)
#else
#define RAW_LOW(r, i) (((r[0] >> (2 * (i))) & 0x03030303) | ((r[2] >> (i)) & 0x01010101) << 2)
#define RAW_HIGH(r, i) (((r[1] >> (2 * (i))) & 0x03030303) | ((r[2] >> ((i) + 4)) & 0x01010101) << 2)
#endif
#endif

#if CODES == C_PLAIN
#define CODE_VALUES(w) (w)
#else
#define CODE_VALUES(w) T(value_of)(w)
#endif

#define COPY_ROWS(b)                                                                                                   \
    if ((b) < blocks) {                                                                                                \
        const LocalAddress to = tile_at + (b) % MMA_STAGES * (64 * MMA_SIDE);                                                  \
        copy_to_local(to + 16 * MMA_PIECE(me / 4, me % 4), x_0 + 4 * (b));                                             \
        copy_to_local(to + 16 * MMA_PIECE(me / 4 + 64, me % 4), x_1 + 4 * (b));                                        \
    }                                                                                                                  \
    end_copies();

#define FETCH_WEIGHTS(b)                                                                                               \
    UNROLLED for (int i = 0; i < 2; i++)                                                                      \
    {                                                                                                                  \
        const __global int *planes = (const __global int *)(base[i] + (long)(b)*BLOCK_BYTES) + lane / 4;               \
        UNROLLED for (int h = 0; h < 2; h++)                                                                  \
        {                                                                                                              \
            UNROLLED for (int j = 0; j < RAW_WORDS; j++) raw[i][h][j] =                                       \
                planes[16 * RAW_PLANE(j, lane % 4) + 8 * h];                                                           \
            T(lane_scales)(base[i] + (long)blocks * BLOCK_BYTES, b, lane / 4 + 8 * h, scale[i][h], minimum[i][h]);     \
        }                                                                                                              \
    }

__kernel __attribute__((reqd_work_group_size(MMA_THREADS, 1, 1))) void T(matmul_mma)(PRODUCT_ARGUMENTS)
{
    __local uint4 tile[MMA_STAGES * 4 * MMA_SIDE];
    TENSOR_SPACE(MMA_THREADS)
    int part = get_group_id(0);
    CHOOSE_MATRIX(part, MMA_SIDE)
    const int me = get_local_id(0), warp = me / 32, lane = me % 32, end_row = in[rows_word], blocks = k / 32;
    const int groups = (n + 15) / 16, per_head = n / heads, head_parts = (per_head + MMA_SIDE - 1) / MMA_SIDE;
    const int head = heads > 1 ? part / head_parts : 0;
    const int first_column = head * per_head + (part - head * head_parts) * MMA_SIDE + warp % 4 * 32;
    const int end_column = (head + 1) * per_head, first_row = get_group_id(1) * MMA_SIDE;
    const long bias_base = 0, row_bytes = half_row_bytes(k);
    const __global uchar *base[2];
    UNROLLED for (int i = 0; i < 2; i++) base[i] =
        weights + min(first_column / 16 + i, groups - 1) * T(group_bytes)(k);
    const __global uchar *x = x_buffer + x_at + me % 4 * 16;
    const __global uint4 *x_0 =
        (const __global uint4 *)(x + ((long)min(first_row + me / 4, end_row - 1) * heads + head) * row_bytes);
    const __global uint4 *x_1 =
        (const __global uint4 *)(x + ((long)min(first_row + me / 4 + 64, end_row - 1) * heads + head) * row_bytes);
    const LocalAddress tile_at = local_address(tile);
    const uint offset = two_halves(1024.0f + (OFFSET), 1024.0f + (OFFSET));
    const int matrix = lane / 8, my_row = warp / 4 * 64 + matrix / 2 * 8 + lane % 8;
    float4 acc[2][8];
    UNROLLED for (int i = 0; i < 2; i++) UNROLLED for (int j = 0; j < 8; j++) acc[i][j] =
        (float4)(0.0f);
    int raw[2][2][RAW_WORDS];
    float scale[2][2][PARTS], minimum[2][2][PARTS];
    for (int b = 0; b < MMA_STAGES - 1; b++) {
        COPY_ROWS(b)
    }
    FETCH_WEIGHTS(0)
    for (int b = 0; b < blocks; b++) {
        wait_for_copies();
        barrier(CLK_LOCAL_MEM_FENCE);
        COPY_ROWS(b + MMA_STAGES - 1)
        uint4 w[2][2];
        UNROLLED for (int i = 0; i < 2; i++)
        {
            uint pairs[2][2][2];
            UNROLLED for (int h = 0; h < 2; h++)
            {
                const int low = CODE_VALUES(RAW_LOW(raw[i][h], lane % 4)), high = CODE_VALUES(RAW_HIGH(raw[i][h], lane % 4));
                UNROLLED for (int step = 0; step < 2; step++)
                {
                    const float s = HALF_UNIT * scale[i][h][step * (PARTS - 1)];
                    const float m = HAS_MINIMUM ? HALF_UNIT * minimum[i][h][step * (PARTS - 1)] : 0.0f;
                    const uint two_s = two_halves(s, s), two_m = two_halves(m, m);
                    pairs[step][h][0] = weights_of(step ? high : low, FIRST_TWO, offset, two_s, two_m);
                    pairs[step][h][1] = weights_of(step ? high : low, LAST_TWO, offset, two_s, two_m);
                }
            }
            UNROLLED for (int step = 0; step < 2; step++) w[i][step] =
                (uint4)(pairs[step][0][0], pairs[step][1][0], pairs[step][0][1], pairs[step][1][1]);
        }
        if (b + 1 < blocks) {
            FETCH_WEIGHTS(b + 1)
        }
        const LocalAddress from = tile_at + b % MMA_STAGES * (64 * MMA_SIDE);
        UNROLLED for (int step = 0; step < 2; step++)
        {
            UNROLLED for (int j = 0; j < 4; j++)
            {
                const uint4 rows = load_fragments(from + 16 * MMA_PIECE(my_row + 16 * j, 2 * step + matrix % 2));
                UNROLLED for (int i = 0; i < 2; i++)
                {
                    acc[i][2 * j] = mma_half(acc[i][2 * j], w[i][step], rows.x, rows.y);
                    acc[i][2 * j + 1] = mma_half(acc[i][2 * j + 1], w[i][step], rows.z, rows.w);
                }
            }
        }
    }
    UNROLLED for (int j = 0; j < 8; j++) UNROLLED for (int next = 0; next < 2; next++)
    {
        const int row = first_row + warp / 4 * 64 + 8 * j + lane % 4 * 2 + next;
        if (row < end_row) {
            UNROLLED for (int i = 0; i < 2; i++) UNROLLED for (int h = 0; h < 2; h++)
            {
                const int column = first_column + 16 * i + 8 * h + lane / 4;
                const float sum = h ? (next ? acc[i][j].w : acc[i][j].z) : (next ? acc[i][j].y : acc[i][j].x);
                if (column < end_column)
                    STORE_OUTPUT(sum, row, column)
            }
        }
    }
}

#undef PARTS
#undef RAW_WORDS
#undef RAW_PLANE
#undef RAW_LOW
#undef RAW_HIGH
#undef CODE_VALUES
#undef COPY_ROWS
#undef FETCH_WEIGHTS
