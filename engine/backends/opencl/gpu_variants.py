"""What the kernels for GPUs (cl_kernels/simt_*.cl) may use on a device: found by compiling and running it."""

from __future__ import annotations

from functools import cache

import numpy as np

from engine.backends.opencl.platforms import Device, Variant, first_lines
from engine.backends.opencl.source import read
from engine.errors import DeviceError

SIMT_DOT_VARIANTS = (
    Variant("dp4a", ("-DREALM_SIMT_DP4A",)),
    Variant("sudot4", ("-DREALM_SIMT_SUDOT4",)),
    Variant("sdot4", ("-DREALM_SIMT_SDOT4",)),
    Variant("integer-dot-product", ("-DREALM_SIMT_KHR", "-cl-std=CL3.0")),
    Variant("portable", ()),
)
"""Ways to multiply four signed bytes by four, best first."""

_VENDORS = {"dp4a": ("nvidia",), "sudot4": ("amd", "advanced micro"), "sdot4": ("amd", "advanced micro")}
"""Whose compilers are asked at all: inline assembly of another machine can take a compiler down."""

LOCAL_BYTES = 32 << 10
"""Local memory of a work-group that the kernels need at most."""

_PROBE = """
__kernel void probe(const __global int *a, const __global int *b, __global int *out)
{
    const int i = get_global_id(0);
    out[i] = dot4(i, a[i], b[i]);
}
"""


@cache
def dot_variant(device: Device) -> Variant:
    """The best variant that compiles on the device and computes what it should.

    Raises DeviceError, with each variant's reason, if none does, and where the device is too small for the kernels.
    """
    handle = device.handle
    if int(handle.max_work_group_size) < 128 or int(handle.local_mem_size) < LOCAL_BYTES:
        raise DeviceError(
            f"{handle.name.strip()} runs {handle.max_work_group_size} work-items together with "
            f"{handle.local_mem_size} bytes of local memory; Realm's kernels need 128 and {LOCAL_BYTES}.",
            "Choose another device.",
        )
    reasons = []
    maker = f"{handle.vendor} {handle.platform.vendor}".lower()
    for variant in SIMT_DOT_VARIANTS:
        vendors = _VENDORS.get(variant.name)
        if vendors and (device.is_cpu or not any(vendor in maker for vendor in vendors)):
            continue
        reason = _probe(device, variant)
        if not reason:
            return variant
        reasons.append(f"{variant.name}: {reason}")
    raise DeviceError(
        f"No variant of Realm's kernels works on {handle.name.strip()}. {'; '.join(reasons)}",
        "Update the OpenCL driver, or choose another device.",
    )


def _probe(device: Device, variant: Variant) -> str:
    """Compiles and runs the variant; returns what is wrong, or nothing."""
    import pyopencl as cl

    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (2, 64, 4), dtype=np.int8)
    got = np.zeros(64, np.int32)
    try:
        program = cl.Program(device.context, read("simt_common.cl") + _PROBE).build(
            list(variant.options),
            cache_dir=False,  # type: ignore[arg-type]
        )
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        buffers = [cl.Buffer(device.context, flags, hostbuf=x) for x in (a, b, got)]
        cl.Kernel(program, "probe")(device.queue, (64,), None, *buffers)
        cl.enqueue_copy(device.queue, got, buffers[2])
    except cl.Error as error:
        return first_lines(error)
    expected = np.arange(64) + (a.astype(int) * b).sum(1)
    return "" if np.array_equal(got, expected) else "it compiles but computes wrong results"


_MATRIX_PROBE = """
__kernel __attribute__((reqd_work_group_size(32, 1, 1))) void probe_matrices(
    const __global uint4 *x, const __global uint4 *w, __global float *out)
{
    __local uint4 tile[64];
    const int lane = get_local_id(0), matrix = lane / 8, line = lane % 8;
    tile[lane] = x[lane];
    tile[32 + lane] = w[lane];
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint4 rows = load_fragments(local_address(tile + (matrix % 2 * 8 + line) * 2 + matrix / 2));
    const uint4 columns = load_fragments(local_address(tile + 32 + (matrix / 2 * 8 + line) * 2 + matrix % 2));
    const float4 left = mma_half((float4)(0.0f), rows, columns.x, columns.y);
    const float4 right = mma_half((float4)(0.0f), rows, columns.z, columns.w);
    __global float *to = out + lane / 4 * 16 + lane % 4 * 2;
    to[0] = left.x, to[1] = left.y, to[128] = left.z, to[129] = left.w;
    to[8] = right.x, to[9] = right.y, to[136] = right.z, to[137] = right.w;
}
"""


@cache
def has_tensor_cores(device: Device) -> bool:
    """Whether the device multiplies matrices of halves as cl_kernels/simt_mma.cl asks: NVIDIA's from Ampere on."""
    import pyopencl as cl

    if device.is_cpu or "nvidia" not in f"{device.handle.vendor} {device.handle.platform.vendor}".lower():
        return False
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 9, (2, 16, 16)).astype(np.float16)
    got = np.zeros((16, 16), np.float32)
    try:
        source = read("simt_common.cl") + read("simt_tensor.cl") + _MATRIX_PROBE
        program = cl.Program(device.context, source).build([], cache_dir=False)  # type: ignore[arg-type]
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        buffers = [cl.Buffer(device.context, flags, hostbuf=a) for a in (x, w, got)]
        cl.Kernel(program, "probe_matrices")(device.queue, (32,), (32,), *buffers)
        cl.enqueue_copy(device.queue, got, buffers[2])
    except cl.Error:
        return False
    return np.array_equal(got, x.astype(np.float32) @ w.astype(np.float32).T)
