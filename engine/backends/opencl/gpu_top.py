"""The largest logits of rows, found on a GPU (cl_kernels/simt_top.cl)."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.backends.opencl.lowering import MOST_TOP, TOP
from engine.backends.opencl.platforms import Device
from engine.batch import TopLogits

PART, THREADS = 2048, 256
"""Logits that a work-group sorts, and its work-items: TOP_PART and TOP_THREADS."""


def top_bytes(width: int, rows: int) -> int:
    """Bytes of both buffers for so many rows of logits."""
    return rows * (8 * MOST_TOP * -(-width // PART) + TOP.itemsize)


class TopFinder:
    """buffers: what it has allocated, for its owner to release."""

    def __init__(self, device: Device, kernels: Any, width: int, rows: int) -> None:
        """width: logits of a row; rows: the most at a time."""
        import pyopencl as cl

        self._device, self._width = device, width
        self._parts = cl.Kernel(kernels, "top_of_parts")
        self._rows = cl.Kernel(kernels, "top_of_rows")
        self._found = np.zeros(rows, TOP)
        left = rows * 8 * MOST_TOP * -(-width // PART)
        self.buffers = [cl.Buffer(device.context, cl.mem_flags.READ_WRITE, size) for size in (left, self._found.nbytes)]

    def find(self, logits: Any, rows: int, count: int, among: int) -> list[TopLogits]:
        """The `count` largest of the first `among` in each row of the buffer `logits`."""
        import pyopencl as cl

        queue, (left, out), parts = self._device.queue, self.buffers, -(-among // PART)
        self._parts.set_args(logits, np.int32(self._width), np.int32(among), left)
        self._rows.set_args(left, np.int32(parts), out)
        cl.enqueue_nd_range_kernel(queue, self._parts, (THREADS * parts, rows), (THREADS, 1))
        cl.enqueue_nd_range_kernel(queue, self._rows, (THREADS * rows,), (THREADS,))
        found = self._found[:rows]
        cl.enqueue_copy(queue, found, out, is_blocking=True)
        count = min(count, among)
        return [
            TopLogits(row["ids"][:count].astype(np.int64), row["logits"][:count].copy(), bool(row["finite"]))
            for row in found
        ]
