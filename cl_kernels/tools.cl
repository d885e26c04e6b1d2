// What is asked of a CPU device beside steps.

// Where a buffer lies in the process's memory
__kernel void address_of(__global const uchar *b, __global long *out)
{
    *out = (long)b;
}

// Plain reading, by which bandwidth is measured
__kernel void read_all(__global const int16 *data, long n, __global int16 *out)
{
    const long i = get_global_id(0), groups = get_global_size(0);
    int16 a = 0, b = 0, c = 0, d = 0;
    for (long j = n / groups * i; j < (i + 1 == groups ? n : n / groups * (i + 1)); j++) {
        a ^= data[4 * j];
        b ^= data[4 * j + 1];
        c ^= data[4 * j + 2];
        d ^= data[4 * j + 3];
    }
    out[i] = a ^ b ^ c ^ d;
}
