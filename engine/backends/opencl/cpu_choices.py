"""What is chosen by measuring on a processor: one of two ways to the same integers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from engine.backends.opencl.source import panels_source, read

if TYPE_CHECKING:
    from engine.backends.opencl.platforms import Device

GAIN = 0.97
"""Pairs are chosen where they take this part of the time, or less: less may be chance."""

ROWS, WORDS = 8, 512
"""Rows of activations, and their columns: as many as a panel has."""

TURNS, RUNS = 1000, 7

_RACE = f"""
__kernel void race(int pairs, __global const char *zeros, __global float *out)
{{
    Panel panel[2] = {{0}};
    float16 acc[2 * PANEL_ROWS];
    int less[{ROWS} * PANEL_BLOCKS];
    const __global char *x[{ROWS}];
    const Ahead ahead = {{(const __global uchar *)zeros, 0, 0}};
    for (int t = 0; t < 2 * PANEL_ROWS; t++)
        acc[t] = (float16)(0.0f);
    for (int t = 0; t < {ROWS} * PANEL_BLOCKS; t++)
        less[t] = 0;
    for (int t = 0; t < {ROWS}; t++)
        x[t] = zeros;
    for (int turn = 0; turn < {TURNS}; turn++) {{
        if (pairs)
            multiply_panels_pairs_0(panel, 2, 0, PANEL_BLOCKS, {WORDS}, less, x, {ROWS}, acc, &ahead);
        else
            multiply_panels_1_0(panel, 2, 0, PANEL_BLOCKS, {WORDS}, less, x, {ROWS}, acc, &ahead);
    }}
    vstore16(acc[0] + acc[PANEL_ROWS], 0, out);
}}
"""
"""Two panels times some rows, of which all is 0: neither way's time depends on numbers."""


def race_source() -> str:
    return "\n".join((read("common.cl"), read("prepare.cl"), *panels_source(), _RACE))


def pairs_pay(device: Device, options: list[str]) -> bool:
    """Whether cl_kernels/panel_pairs.cl multiplies faster than panel_tile.cl here. options: of the device's variants.

    Raises DeviceError where that does not compile.
    """
    import pyopencl as cl

    kernel = cl.Kernel(device.build(race_source(), [*options, "-DREALM_PAIRS"]), "race")
    zeros = cl.Buffer(device.context, cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR, hostbuf=np.zeros(1 << 13))
    out = cl.Buffer(device.context, cl.mem_flags.WRITE_ONLY, 64)

    def seconds(pairs: int) -> float:
        kernel.set_args(np.int32(pairs), zeros, out)
        began = time.perf_counter()
        cl.enqueue_nd_range_kernel(device.queue, kernel, (1,), (1,))
        device.queue.finish()
        return time.perf_counter() - began

    both = [(seconds(0), seconds(1)) for _ in range(RUNS)]
    plain, pairs = (min(times) for times in zip(*both, strict=True))
    return bool(pairs < GAIN * plain)
