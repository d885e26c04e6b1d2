"""What a device's arithmetic can do at most: products in registers, with nothing read from memory."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from engine.backends.opencl.platforms import Device, devices
from engine.backends.opencl.source import read
from engine.errors import DeviceError

_CHAINS = 10
"""Sums that grow side by side, as many as hide the latency of one product."""

_CPU = f"""
__kernel void peak_integer(__global const int *in, int turns, __global int *out)
{{
    const int i = get_global_id(0);
    int x = in[0];
#ifdef REALM_BYTES
    int16 w[2] = {{vload16(0, in), vload16(1, in)}}, acc[{_CHAINS}], sum = 0;
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = 0;
    for (int turn = 0; turn < turns; turn++, x += 3)
        _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = dot4(acc[c], w[c % 2], x);
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) sum += acc[c];
    out[i] = sum_int16(sum);
#else
    int8 w[2] = {{vload8(0, in), vload8(1, in)}}, acc[{_CHAINS}], sum = 0;
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = 0;
    for (int turn = 0; turn < turns; turn++, x += 3)
        _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = dot2(acc[c], w[c % 2], x);
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) sum += acc[c];
    out[i] = sum_int16((int16)(sum, sum));
#endif
}}

__kernel void peak_float(__global const float *in, int turns, __global float *out)
{{
    const int i = get_global_id(0);
    float x = in[0];
    float8 w[2] = {{vload8(0, in), vload8(1, in)}}, acc[{_CHAINS}], sum = 0.0f;
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = 0.0f;
    for (int turn = 0; turn < turns; turn++, x += 0.5f)
        _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] += w[c % 2] * x;
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) sum += acc[c];
    out[i] = sum16((float16)(sum, sum));
}}
"""

_GPU = f"""
__kernel void peak_integer(__global const int *in, int turns, __global int *out)
{{
    const int i = get_global_id(0);
    int x = in[i % 16], w[2] = {{in[0], in[1]}}, acc[{_CHAINS}], sum = 0;
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = c;
    for (int turn = 0; turn < turns; turn++, x += 3)
        _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = dot4(acc[c], w[c % 2], x);
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) sum += acc[c];
    out[i] = sum;
}}

__kernel void peak_float(__global const float *in, int turns, __global float *out)
{{
    const int i = get_global_id(0);
    float x = in[i % 16], w[2] = {{in[0], in[1]}}, acc[{_CHAINS}], sum = 0.0f;
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = c;
    for (int turn = 0; turn < turns; turn++, x += 0.5f)
        _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) acc[c] = fma(w[c % 2], x, acc[c]);
    _Pragma("unroll") for (int c = 0; c < {_CHAINS}; c++) sum += acc[c];
    out[i] = sum;
}}
"""


def peak_multiply_adds(device_id: str) -> dict[str, float]:
    """Multiply-adds per second: "integer" as products of quantised weights make them, "float" in float32.

    On CPUs an integer multiply-add is one with an activation of 15 bits. Raises DeviceError.
    """
    import pyopencl as cl

    device = next(d for d in devices() if f"opencl:{d.index}" == device_id)
    try:
        return _on_gpu(device) if device.executor == "simt" else _on_cpu(device)
    except cl.Error as error:
        raise DeviceError(f"The OpenCL device failed: {error}.", "Update the driver.") from error


def _on_cpu(device: Device) -> dict[str, float]:
    program = device.build("\n".join((read("common.cl"), read("prepare.cl"), _CPU)))
    per_product = 32 if "avx512-vnni" in (v.name for v in device.variants) else 16
    return {
        "integer": _rate(device, program, "peak_integer", device.workers) * per_product,
        "float": _rate(device, program, "peak_float", device.workers) * 8,
    }


def _on_gpu(device: Device) -> dict[str, float]:
    from engine.backends.opencl.gpu_variants import dot_variant

    program = device.build("\n".join((read("simt_common.cl"), _GPU)), list(dot_variant(device).options))
    items = 2048 * device.workers
    return {
        "integer": _rate(device, program, "peak_integer", items) * 4,
        "float": _rate(device, program, "peak_float", items),
    }


def _rate(device: Device, program: Any, name: str, items: int) -> float:
    """Products per second of all work-items together, the best of some runs of about ten milliseconds."""
    import pyopencl as cl

    flags = cl.mem_flags
    source = np.arange(1, 33, dtype=np.float32 if name == "peak_float" else np.int32)
    source_buffer = cl.Buffer(device.context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=source)
    out = cl.Buffer(device.context, flags.WRITE_ONLY, 4 * items)
    kernel = cl.Kernel(program, name)
    local = (1,) if device.is_cpu else None

    def run(turns: int) -> float:
        kernel.set_args(source_buffer, np.int32(turns), out)
        began = time.perf_counter()
        cl.enqueue_nd_range_kernel(device.queue, kernel, (items,), local)
        device.queue.finish()
        return time.perf_counter() - began

    turns = 1 << 8
    run(turns)  # compiles
    while min(run(turns) for _ in range(3)) < 0.01 and turns < 1 << 28:
        turns *= 2
    return turns * _CHAINS * items / min(run(turns) for _ in range(10))
