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

// The same with a work-item for each row's every element: right for GPUs. The last group is zeros before.
__kernel void T(repack_items)(const __global uchar *source, int rows, int k, __global uchar *destination, long offset)
{
    const int row = get_global_id(0), i = get_global_id(1);
    if (row < rows)
        ((__global ELEMENT *)(destination + offset + row / 16 * T(group_bytes)(k)))[(long)i * 16 + row % 16] =
            ((const __global ELEMENT *)source)[(long)row * k + i];
}
