// NVIDIA's tensor cores, from compute capability 8.0 on, in inline assembly.

#define MMA_SIDE 128
#define MMA_THREADS 256
#define MMA_STAGES 4
#define MMA_PIECE(row, piece) ((row)*4 + ((piece) ^ (((row) >> 1) & 3)))
#define MMA_UNSCALE 0.25f // 16 / 64

static inline uint local_address(const __local void *p) { return (uint)(ulong)p; }

// 16 bytes, by the hardware, while the program goes on
static inline void copy_to_local(uint to, const __global void *from)
{
    __asm__ volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}

// Or sixteen zeros, where there is nothing to copy.
static inline void copy_or_clear(uint to, const __global void *from, int copy)
{
    __asm__ volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(copy ? 16 : 0) : "memory");
}

static inline void end_copies(void) { __asm__ volatile("cp.async.commit_group;" : : : "memory"); }

// Until all but the last MMA_STAGES - 2 groups of copies are there.
static inline void wait_for_copies(void) { __asm__ volatile("cp.async.wait_group 2;" : : : "memory"); }

static inline void wait_for_copies_but_one(void) { __asm__ volatile("cp.async.wait_group 1;" : : : "memory"); }

static inline float of_neighbour(float x, int distance)
{
    float r;
    __asm__ volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(r) : "f"(x), "r"(distance));
    return r;
}

static inline uint4 load_fragments_transposed(uint address)
{
    uint4 r;
    __asm__ volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                     : "r"(address)
                     : "memory");
    return r;
}

static inline uint4 load_fragments(uint address)
{
    uint4 r;
    __asm__ volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                     : "r"(address)
                     : "memory");
    return r;
}

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

// scale * (quant - offset) + minimum for two neighbouring bytes of a word; `pick` says which. 0x6400 | q is the half
// 1024 + q.
static inline uint weights_of(int quants, uint pick, uint offset, uint scale, uint minimum)
{
    uint r;
    __asm__("{ .reg .b32 t;\n prmt.b32 t, %1, 0x64646464, %2;\n sub.rn.f16x2 t, t, %3;\n"
            " fma.rn.f16x2 %0, t, %4, %5; }"
            : "=r"(r)
            : "r"(quants), "r"(pick), "r"(offset), "r"(scale), "r"(minimum));
    return r;
}
