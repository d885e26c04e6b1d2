// NVIDIA's tensor cores, from compute capability 8.0 on: what they are asked by inline assembly, and a twin in plain C that
// takes turns for the 32 work-items of a warp (REALM_TENSOR_TWIN: the tests, where there is no such card). All work-items
// of a work-group call these together. A kernel that uses them begins with TENSOR_SPACE.

#define MMA_SIDE 128
#define MMA_THREADS 256
#define BLOCK_TILE (64 * MMA_SIDE) // bytes of 32 columns of a tile's rows
#define MMA_PIECE(row, piece) ((row)*4 + ((piece) ^ (((row) >> 1) & 3)))

#ifndef REALM_TENSOR_TWIN

typedef uint LocalAddress; // in bytes
#define TENSOR_SPACE(threads)
#define UNROLLED _Pragma("unroll")

static inline LocalAddress local_address(const __local void *p) { return (uint)(ulong)p; }

// 16 bytes, by the hardware, while the program goes on
static inline void copy_to_local(LocalAddress to, const __global void *from)
{
    __asm__ volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}

// Or sixteen zeros, where there is nothing to copy.
static inline void copy_or_clear(LocalAddress to, const __global void *from, int copy)
{
    __asm__ volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(copy ? 16 : 0) : "memory");
}

static inline void end_copies(void) { __asm__ volatile("cp.async.commit_group;" : : : "memory"); }

// Until all copies are there.
static inline void wait_for_copies(void) { __asm__ volatile("cp.async.wait_group 0;" : : : "memory"); }

static inline void wait_for_copies_but_one(void) { __asm__ volatile("cp.async.wait_group 1;" : : : "memory"); }

// x of the work-item whose number differs by `distance`, 1 or 2
static inline float of_neighbour(float x, int distance)
{
    float r;
    __asm__ volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(r) : "f"(x), "r"(distance));
    return r;
}

#define LOAD_FRAGMENTS(NAME, WAY)                                                                                      \
    static inline uint4 NAME(LocalAddress address)                                                                     \
    {                                                                                                                  \
        uint4 r;                                                                                                       \
        __asm__ volatile("ldmatrix.sync.aligned.m8n8.x4" WAY ".shared.b16 {%0, %1, %2, %3}, [%4];"                     \
                         : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)                                                  \
                         : "r"(address)                                                                                \
                         : "memory");                                                                                  \
        return r;                                                                                                      \
    }

// Four matrices of 8 rows of 8 halves; work-item i of a warp says where row i % 8 of matrix i / 8 lies, and gets the two
// halves 2 * (i % 4) of row i / 4 of each matrix, or of each transposed matrix.
LOAD_FRAGMENTS(load_fragments, "")
LOAD_FRAGMENTS(load_fragments_transposed, ".trans")

// d += a (16 rows of 16) times b (16 of 8 columns)
static inline float4 mma_half(float4 d, uint4 a, uint b0, uint b1)
{
    __asm__("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
            : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
    return d;
}

static inline uint two_halves(float low, float high)
{
    uint r;
    __asm__("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// The first or second half of a word
static inline float half_of(uint two, int high)
{
    float r;
    if (high)
        __asm__("{ .reg .b16 low, high;\n mov.b32 {low, high}, %1;\n cvt.f32.f16 %0, high; }" : "=f"(r) : "r"(two));
    else
        __asm__("{ .reg .b16 low, high;\n mov.b32 {low, high}, %1;\n cvt.f32.f16 %0, low; }" : "=f"(r) : "r"(two));
    return r;
}

// scale * (quant - offset) + minimum for two neighbouring bytes of a word; `pick` says which. 0x6400 | q is the half
// 1024 + q.
#define FIRST_TWO 0x4140
#define LAST_TWO 0x4342
static inline uint weights_of(int quants, uint pick, uint offset, uint scale, uint minimum)
{
    uint r;
    __asm__("{ .reg .b32 t;\n prmt.b32 t, %1, 0x64646464, %2;\n sub.rn.f16x2 t, t, %3;\n"
            " fma.rn.f16x2 %0, t, %4, %5; }"
            : "=r"(r)
            : "r"(quants), "r"(pick), "r"(offset), "r"(scale), "r"(minimum));
    return r;
}

#else

typedef ulong LocalAddress;
#define TENSOR_SPACE(threads) __local TensorTwin tensor_space[threads];
#define UNROLLED // each barrier of an unrolled loop would cost the compiler dearly

typedef struct {
    ulong address;
    uint4 a;
    uint2 b;
    float x;
} TensorTwin;

static inline LocalAddress local_address(const __local void *p) { return (ulong)p; }

static inline void copy_or_clear(LocalAddress to, const __global void *from, int copy)
{
    *(__local uint4 *)to = copy ? *(const __global uint4 *)from : (uint4)(0);
}

static inline void copy_to_local(LocalAddress to, const __global void *from) { copy_or_clear(to, from, 1); }

static inline void end_copies(void) {}

static inline void wait_for_copies(void) {}

static inline void wait_for_copies_but_one(void) {}

// Without pointers to half, which are not for private memory of another type: a half's exponent is 112 less than a float's.
static inline float half_of(uint two, int high)
{
    const uint h = high ? two >> 16 : two & 0xffff;
    return as_float((h & 0x8000) << 16 | as_uint(as_float((h & 0x7fff) << 13) * 0x1p112f));
}

static inline uint to_half(float x)
{
    const uint bits = as_uint(fabs(x) * 0x1p-112f);
    return (as_uint(x) >> 16 & 0x8000) | ((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

static inline uint two_halves(float low, float high) { return to_half(low) | to_half(high) << 16; }

#define of_neighbour(x, distance) twin_of_neighbour(x, distance, tensor_space)
static inline float twin_of_neighbour(float x, int distance, __local TensorTwin *space)
{
    const int me = get_local_id(0);
    space[me].x = x;
    barrier(CLK_LOCAL_MEM_FENCE);
    const float result = space[me ^ distance].x;
    barrier(CLK_LOCAL_MEM_FENCE);
    return result;
}

#define load_fragments(address) twin_load(address, 0, tensor_space)
#define load_fragments_transposed(address) twin_load(address, 1, tensor_space)
static inline uint4 twin_load(LocalAddress address, int transposed, __local TensorTwin *space)
{
    const int me = get_local_id(0), lane = me % 32;
    uint r[4];
    space[me].address = address;
    barrier(CLK_LOCAL_MEM_FENCE);
    const __local TensorTwin *warp = space + (me - lane);
    for (int j = 0; j < 4; j++) {
        if (transposed) {
            const uint low = ((const __local ushort *)warp[8 * j + lane % 4 * 2].address)[lane / 4];
            const uint high = ((const __local ushort *)warp[8 * j + lane % 4 * 2 + 1].address)[lane / 4];
            r[j] = low | high << 16;
        } else {
            r[j] = ((const __local uint *)warp[8 * j + lane / 4].address)[lane % 4];
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return (uint4)(r[0], r[1], r[2], r[3]);
}

#define mma_half(d, a, b0, b1) twin_mma(d, a, b0, b1, tensor_space)
static inline float4 twin_mma(float4 d, uint4 a, uint b0, uint b1, __local TensorTwin *space)
{
    const int me = get_local_id(0), lane = me % 32;
    space[me].a = a;
    space[me].b = (uint2)(b0, b1);
    barrier(CLK_LOCAL_MEM_FENCE);
    const __local TensorTwin *warp = space + (me - lane), *rows = warp + lane / 4 * 4, *columns = warp + lane % 4 * 8;
    for (int i = 0; i < 4; i++) { // the pairs 2i of the first and of the last 8 that are summed
        const uint4 r = rows[i].a;
        const uint2 c = columns[i].b, next = columns[4 + i].b;
        for (int e = 0; e < 2; e++) {
            d.x += half_of(r.x, e) * half_of(c.x, e) + half_of(r.z, e) * half_of(c.y, e);
            d.y += half_of(r.x, e) * half_of(next.x, e) + half_of(r.z, e) * half_of(next.y, e);
            d.z += half_of(r.y, e) * half_of(c.x, e) + half_of(r.w, e) * half_of(c.y, e);
            d.w += half_of(r.y, e) * half_of(next.x, e) + half_of(r.w, e) * half_of(next.y, e);
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return d;
}

#define FIRST_TWO 0
#define LAST_TWO 2
static inline uint weights_of(int quants, uint pick, uint offset, uint scale, uint minimum)
{
    const uchar4 q = as_uchar4(quants);
    const float low = (pick ? q.z : q.x) + 1024.0f - half_of(offset, 0), high = (pick ? q.w : q.y) + 1024.0f - half_of(offset, 0);
    return two_halves(fma(low, half_of(scale, 0), half_of(minimum, 0)), fma(high, half_of(scale, 1), half_of(minimum, 1)));
}

#endif
