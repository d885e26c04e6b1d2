// What the kernels for GPUs share. OpenCL C 1.2; half precision only in memory, no subgroups, at most 32 KB of local
// memory a work-group.
//
// The host defines one REALM_SIMT_* for the dot product of four signed bytes, or none for the portable twin; all give
// the same integers. Sums of floating-point numbers use fma() and a fixed order everywhere, and contraction is off, so
// that a row's result is bit for bit the same whichever kernel computes it and whatever stands beside it in the batch.
// Compilers for GPUs may contract all the same: where two products would be added, fma() says which one is rounded.

#pragma OPENCL FP_CONTRACT OFF

// acc + the sum over 4 signed bytes of a * b
static inline int dot4(int acc, int a, int b)
{
#if defined(REALM_SIMT_DP4A)
    int sum;
    __asm__("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(acc));
    return sum;
#elif defined(REALM_SIMT_SUDOT4)
    return __builtin_amdgcn_sudot4(true, a, true, b, acc, false);
#elif defined(REALM_SIMT_SDOT4)
    return __builtin_amdgcn_sdot4(a, b, acc, false);
#elif defined(REALM_SIMT_KHR)
    return acc + dot_4x8packed_ss_int(as_uint(a), as_uint(b));
#else
    acc += ((a << 24) >> 24) * ((b << 24) >> 24);
    acc += ((a << 16) >> 24) * ((b << 16) >> 24);
    acc += ((a << 8) >> 24) * ((b << 8) >> 24);
    acc += (a >> 24) * (b >> 24);
    return acc;
#endif
}

static inline float load_half(const __global void *p) { return vload_half(0, (const __global half *)p); }

static inline float load_bf16(const __global void *p)
{
    return as_float((uint)(*(const __global ushort *)p) << 16);
}

#define ALIGNED __attribute__((aligned(16))) // so that four neighbours are read at once

// The step's input: int32 words, the first of them (see gpu_batch.py)
#define IN_ROWS 0
#define IN_LOGIT_ROWS 1
#define IN_MAX_BLOCKS 2
#define IN_AT_TOKENS 3
#define IN_AT_POSITIONS 4
#define IN_AT_SEQUENCES 5
#define IN_AT_LOGIT_ROWS 6
#define IN_AT_TILES 7
#define IN_AT_SINGLES 8
#define IN_AT_COMBINES 9
#define IN_AT_BLOCKS 10
#define IN_AT_ROPE 11 // one word per rope table
// of adapters, each among the rows and among the logit rows (simt_lora.cl)
#define IN_AT_LORA_UNITS 16
#define IN_AT_LORA_CHUNKS 18
#define IN_LORA_GROUPS 20 // most times 16 ranks
// of steps that are one kernel (simt_step.cl): numbers of parts and of joins
#define IN_SINGLES 22
#define IN_COMBINES 23
#define IN_ARRIVED 32 // work-groups that have come, all phases together

// The row of a table that a row of the batch takes: its token's (index 0), its position's (1), or the first one (2)
#define CHOSEN_ROW(index, row) ((index) == 2 ? 0 : in[in[IN_AT_TOKENS + (index)] + (row)])

#define FLOATS(buffer, at) ((__global float *)((buffer) + (at)))
#define FLOATS_IN(buffer, at) ((const __global float *)((buffer) + (at)))

// Bytes of a prepared row of k activations, integers of 15 bits as in prepare.cl: for every 32 (a block) 32 high and 32
// low signed bytes of 128 * high + low; then, per block, float scale, float scale * sum of the integers, int sum of them,
// and then int sums of 16. Values are scale * integer.
#define LARGEST 16256 // 128 * 127
static inline long prepared_bytes(int k) { return (2 * (long)k + k / 32 * 12 + k / 16 * 4 + 63) / 64 * 64; }

// Rows of activations as halves of x / HALF_UNIT, which is what simt_mma.cl takes: the bytes of a row, and where it has
// value i. Of each four neighbours of 16 values, the first two lie in the first half of the 16 places, the others behind.
#define HALF_UNIT 16.0f
static inline int half_place(int i) { return i / 16 * 16 + i % 4 / 2 * 8 + i % 16 / 4 * 2 + i % 2; }
static inline long half_row_bytes(int k) { return (2 * (long)k + 63) / 64 * 64; }

// Where a buffer lies, for operations that are told so (simt_op.cl).
__kernel void address_of(const __global uchar *buffer, __global ulong *out) { out[0] = (ulong)buffer; }
