// Small pieces from which repack.cl makes quants.

typedef uint uint_unaligned __attribute__((aligned(1)));
typedef ushort ushort_unaligned __attribute__((aligned(1)));

static inline uint word_at(const __global uchar *s) { return *(const __global uint_unaligned *)s; }

static inline ushort half_word_at(const __global uchar *s) { return *(const __global ushort_unaligned *)s; }

// The lowest four bits, a byte each
static inline uint bits_to_bytes(uint bits) { return ((bits & 15) * 0x00204081) & 0x01010101; }

// Four times two bits, a byte each
static inline uint pairs_to_bytes(uint pairs) { return (pairs | pairs << 6 | pairs << 12 | pairs << 18) & 0x03030303; }

// Seven bits of signs, and the eighth that makes their number even
static inline uint even_signs(uint signs) { return (signs & 127) | ((popcount(signs & 127) & 1) << 7); }

// Digit n of four bytes, each of which is five digits as a fraction of 243, scaled to 256: multiplied by a power of 3
// it drops the digits before, and the next is what overflows when it is multiplied by 3 once more.
static inline uint ternary_digits(uint bytes, int n)
{
    const uint power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81;
    const uint even = ((bytes & 0x00ff00ff) * power) & 0x00ff00ff;
    const uint odd = (((bytes >> 8) & 0x00ff00ff) * power) & 0x00ff00ff;
    return (((even * 3) >> 8) & 0x00ff00ff) | ((odd * 3) & 0xff00ff00);
}
