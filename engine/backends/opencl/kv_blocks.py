"""Physical KV blocks as bytes: out of the caches of a model on a device, and back into them.

A cache is any buffer in which the bytes of a block lie together and block follows block, whatever they mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

KV_LAYOUT = 2
"""Counts up whenever the bytes of a KV block come to mean something else: what was saved with another number is not
read."""

Bytes = NDArray[np.uint8]


def read_blocks(queue: Any, caches: Sequence[tuple[Any, int]], blocks: Sequence[int], *, mapped: bool) -> Bytes:
    """Bytes [len(blocks), sum of sizes] of some blocks. Raises pyopencl's errors and MemoryError.

    caches: pairs of a buffer and the bytes that one block takes in it.
    mapped: the device's memory is the host's, so that a buffer is looked at where it lies.
    """
    import pyopencl as cl

    data = np.empty((len(blocks), sum(size for _, size in caches)), np.uint8)
    start = 0
    for buffer, size in caches:
        columns = slice(start, start + size)
        start += size
        if mapped:
            with _mapped(queue, buffer, size, cl.map_flags.READ) as content:
                data[:, columns] = content[np.asarray(blocks, np.intp)]
            continue
        piece = np.empty((len(blocks), size), np.uint8)
        copies = [  # kept, for an event that is given up waits with Python's lock in its hands
            cl.enqueue_copy(queue, piece[at : at + count], buffer, src_offset=first * size, is_blocking=False)
            for at, first, count in _runs(blocks)
        ]
        queue.finish()
        del copies
        data[:, columns] = piece
    return data


def write_blocks(
    queue: Any, caches: Sequence[tuple[Any, int]], blocks: Sequence[int], data: Bytes, *, mapped: bool
) -> None:
    """Puts back what `read_blocks` gave."""
    import pyopencl as cl

    start = 0
    for buffer, size in caches:
        columns = slice(start, start + size)
        start += size
        if mapped:
            with _mapped(queue, buffer, size, cl.map_flags.WRITE) as content:
                content[np.asarray(blocks, np.intp)] = data[:, columns]
            continue
        piece = np.ascontiguousarray(data[:, columns])
        copies = [
            cl.enqueue_copy(queue, buffer, piece[at : at + count], dst_offset=first * size, is_blocking=False)
            for at, first, count in _runs(blocks)
        ]
        queue.finish()
        del copies


@contextmanager
def _mapped(queue: Any, buffer: Any, size: int, flags: Any) -> Iterator[Bytes]:
    import pyopencl as cl

    enqueue_map: Any = cl.enqueue_map_buffer  # its annotations take no numpy types
    content, _ = enqueue_map(queue, buffer, flags, 0, (buffer.size // size, size), np.uint8)
    try:
        yield content
    finally:
        content.base.release(queue)
        queue.finish()


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbours that are also adjacent on the device: (place in `blocks`, first block, how many)."""
    at = 0
    while at < len(blocks):
        count = 1
        while at + count < len(blocks) and blocks[at + count] == blocks[at] + count:
            count += 1
        yield at, blocks[at], count
        at += count
