"""Memory of a CPU device: where a buffer lies, and large pages for it.

Linux gives a program pages of 4 KB unless it asks for larger ones (where transparent_hugepage is "madvise", as most
distributions have it). Reading weights from pages of 2 MB is 10 to 20 % faster: the processor fetches ahead within a
page only, and looks up fewer of them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from engine.backends.opencl.platforms import Device
from engine.backends.opencl.tools import tools

LARGE_PAGE = 2 << 20

_MADV_HUGEPAGE = 14

_POOL_BYTES = 64 << 20
"""Most bytes of an allocation that pieces share."""

_PIECE_ALIGNMENT = 4096
"""Where pieces begin; no device asks for more."""

T = TypeVar("T")


def allocate(device: Device, size: int) -> Any:
    """A buffer of so many bytes, in large pages where that helps. Raises pyopencl.MemoryError."""
    import pyopencl as cl

    buffer = cl.Buffer(device.context, cl.mem_flags.READ_WRITE, size)
    if device.executor == "persistent" and size >= 2 * LARGE_PAGE and sys.platform == "linux":
        start = -(-address_of(device, buffer) // LARGE_PAGE) * LARGE_PAGE
        end = (address_of(device, buffer) + size) // LARGE_PAGE * LARGE_PAGE
        # an advice: where it is not taken, pages stay small
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(_MADV_HUGEPAGE))
    return buffer


def allocate_pieces(device: Device, sizes: Mapping[T, int]) -> tuple[dict[T, Any], list[Any]]:
    """A buffer of each size; small ones share an allocation, so that they lie in large pages too.

    Also returns all buffers in the order in which to release them. Raises pyopencl.MemoryError.
    """
    found: dict[T, Any] = {}
    wholes: list[Any] = []
    names = list(sizes)
    while names:
        together: list[tuple[T, int]] = []
        size = 0
        while names and (not together or size + sizes[names[0]] <= _POOL_BYTES):
            together.append((names[0], size))
            size += -(-max(sizes[names.pop(0)], 64) // _PIECE_ALIGNMENT) * _PIECE_ALIGNMENT
        whole = allocate(device, size)
        wholes.append(whole)
        for name, start in together:
            found[name] = whole.get_sub_region(start, max(sizes[name], 64))
    return found, [*found.values(), *wholes]


def address_of(device: Device, buffer: Any) -> int:
    """Where a buffer lies in this process's memory: on a CPU it stays there for its lifetime."""
    import pyopencl as cl

    out = np.zeros(1, np.int64)
    result = cl.Buffer(device.context, cl.mem_flags.WRITE_ONLY, 8)
    cl.Kernel(tools(device), "address_of")(device.queue, (1,), (1,), buffer, result)
    cl.enqueue_copy(device.queue, out, result)
    return int(out[0])


class View:
    """What makes a buffer's memory an array of numpy: it lives as long as any array that shows it."""

    def __init__(self, device: Device, buffer: Any, dtype: DTypeLike) -> None:
        self.buffer = buffer
        kind = np.dtype(dtype)
        self.__array_interface__ = {
            "version": 3,
            "shape": (buffer.size // kind.itemsize,),
            "typestr": kind.str,
            "data": (address_of(device, buffer), False),
        }
