// Sixteen rows of floating-point weights, element by element.
__kernel void T(repack)(const __global uchar *source, int rows, int k, __global uchar *destination, long offset)
{
    const int g = get_global_id(0);
    const __global ELEMENT *from = (const __global ELEMENT *)source;
    __global ELEMENT *to = (__global ELEMENT *)(destination + offset + g * T(group_bytes)(k));
    for (int i = 0; i < k; i++)
        for (int lane = 0; lane < 16; lane++)
            to[(long)i * 16 + lane] = 16 * g + lane < rows ? from[(long)(16 * g + lane) * k + i] : (ELEMENT)0;
}
