"""What the kernels for GPUs (cl_kernels/simt_*.cl) may use on a device: found by compiling and running it."""

from __future__ import annotations

import os
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
    __local uint4 tile[96];
    TENSOR_SPACE(32)
    const int lane = get_local_id(0), matrix = lane / 8, line = lane % 8;
    const LocalAddress x_tile = local_address(tile), w_tile = local_address(tile + 32), none = local_address(tile + 64);
    copy_to_local(x_tile + 16 * lane, x + lane);
    copy_or_clear(w_tile + 16 * lane, w + lane, 1);
    copy_or_clear(none + 16 * lane, w + lane, 0);
    end_copies();
    end_copies();
    wait_for_copies_but_one();
    barrier(CLK_LOCAL_MEM_FENCE);
    const uint4 rows = load_fragments(x_tile + 16 * ((matrix % 2 * 8 + line) * 2 + matrix / 2));
    const uint4 columns = load_fragments(w_tile + 16 * ((matrix / 2 * 8 + line) * 2 + matrix % 2));
    const uint4 turned = load_fragments_transposed(w_tile + 16 * ((matrix % 2 * 8 + line) * 2 + matrix / 2));
    const uint4 zeros = load_fragments(none + 16 * lane);
    float4 d[4];
    d[0] = mma_half((float4)(of_neighbour((float)lane, 1)), rows, columns.x, columns.y);
    d[1] = mma_half((float4)(of_neighbour((float)lane, 2)), rows, columns.z, columns.w);
    d[2] = mma_half((float4)(0.0f), rows, turned.x, turned.y);
    d[3] = mma_half(mma_half((float4)(0.0f), rows, turned.z, turned.w), zeros, columns.x, columns.y);
    for (int j = 0; j < 4; j++) {
        __global float *to = out + lane / 4 * 32 + 8 * j + lane % 4 * 2;
        to[0] = d[j].x, to[1] = d[j].y, to[256] = d[j].z, to[257] = d[j].w;
    }
}
"""
"""x times w transposed, with the number of a neighbour added, and x times w: through all that simt_tensor.cl asks."""


def _probe_tensors(device: Device, variant: Variant) -> bool:
    """Whether the device computes what simt_tensor.cl means."""
    import pyopencl as cl

    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 9, (2, 16, 16)).astype(np.float16)
    got = np.zeros((16, 32), np.float32)
    try:
        source = read("simt_common.cl") + read("simt_tensor.cl") + _MATRIX_PROBE
        program = cl.Program(device.context, source).build(
            list(variant.options),
            cache_dir=False,  # type: ignore[arg-type]
        )
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
        buffers = [cl.Buffer(device.context, flags, hostbuf=a) for a in (x, w, got)]
        cl.Kernel(program, "probe_matrices")(device.queue, (32,), (32,), *buffers)
        cl.enqueue_copy(device.queue, got, buffers[2])
    except cl.Error:
        return False
    x, w = x.astype(np.float32), w.astype(np.float32)
    lanes = np.repeat(np.arange(32).reshape(8, 4), 2, axis=1)  # who has the two values of a tile's row and columns
    expected = np.concatenate([x @ w.T, x @ w], axis=1)
    expected[:, :8] += np.tile(lanes ^ 1, (2, 1))
    expected[:, 8:16] += np.tile(lanes ^ 2, (2, 1))
    return np.array_equal(got, expected)


TENSOR_CORES = Variant("tensor-cores", ())
# as it is written: PoCL 3.0 loses private arrays that live across so many barriers when it optimises
TENSOR_TWIN = Variant("tensor-twin", ("-DREALM_TENSOR_TWIN", "-cl-opt-disable"))


def tensor_variant(device: Device) -> Variant | None:
    """How products of many rows go through matrices of halves (cl_kernels/simt_tensor.cl), or None where they do not.

    The environment variable REALM_TENSOR_TWIN asks for the twin in plain C on CPUs, which is how it is tested.
    """
    if device.is_cpu:
        return TENSOR_TWIN if os.environ.get("REALM_TENSOR_TWIN") else None
    return TENSOR_CORES if _has_tensor_cores(device) else None


@cache
def _has_tensor_cores(device: Device) -> bool:
    """Whether the device multiplies matrices of halves as it is asked to: NVIDIA's from Ampere on."""
    return device.is_nvidia and _probe_tensors(device, TENSOR_CORES)
