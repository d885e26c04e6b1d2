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
