"""What is chosen by measuring on a processor: one of two ways to the same integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.backends.opencl.gpu_tuning import Tuner
from engine.backends.opencl.source import panels_source, read

if TYPE_CHECKING:
    from engine.backends.opencl.platforms import Device

ONE_BY_ONE, IN_PAIRS = "one by one", "in pairs"

ROWS, COLUMNS = 8, 512
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
            multiply_panels_pairs_0(panel, 2, 0, PANEL_BLOCKS, {COLUMNS}, less, x, {ROWS}, acc, &ahead);
        else
            multiply_panels_1_0(panel, 2, 0, PANEL_BLOCKS, {COLUMNS}, less, x, {ROWS}, acc, &ahead);
    }}
    vstore16(acc[0] + acc[PANEL_ROWS], 0, out);
}}
"""
"""Two panels times some rows, of which all is 0: neither way's time depends on numbers."""


def choose_pairs(device: Device, options: list[str]) -> bool:
    """Whether cl_kernels/panel_pairs.cl multiplies faster than panel_tile.cl here. options: of the device's variants.

    Raises DeviceError where that does not compile.
    """
    source = "\n".join((read("common.cl"), read("prepare.cl"), *panels_source(), _RACE))
    tuner = Tuner(device, source=source.encode())
    way = tuner.choose("low bytes", (ONE_BY_ONE, IN_PAIRS), lambda way: _seconds(device, source, options, way))
    tuner.keep()
    return way == IN_PAIRS


def _seconds(device: Device, source: str, options: list[str], way: str) -> float:
    """That the fastest of some runs takes."""
    import pyopencl as cl

    from engine.backends.opencl.gpu_choices import shortest  # later starts go without

    kernel = cl.Kernel(device.build(source, [*options, "-DREALM_PAIRS"]), "race")
    zeros = cl.Buffer(device.context, cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR, hostbuf=np.zeros(1 << 13))
    out = cl.Buffer(device.context, cl.mem_flags.WRITE_ONLY, 64)
    kernel.set_args(np.int32(way == IN_PAIRS), zeros, out)
    return shortest(device.queue, lambda: cl.enqueue_nd_range_kernel(device.queue, kernel, (1,), (1,)), RUNS)
