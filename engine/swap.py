"""Keys and values in host memory: of sequences that had to give their KV blocks away, or read from a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.batch import KV_BLOCK
from engine.devices import total_memory_bytes

DEFAULT_BUDGET_BYTES = 1 << 30
"""At most this much, or an eighth of the machine's memory."""

FIRST_BYTES_PER_S = 2e9
"""How fast blocks are taken to move until that has been measured."""


class BlockDevice(Protocol):
    """What holds the KV blocks; a LoadedModel."""

    @property
    def block_bytes(self) -> int: ...
    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]: ...
    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None: ...


@dataclass(frozen=True)
class SavedBlocks:
    """Blocks number first, first + 1, ... of one sequence: data uint8 [blocks, block_bytes].

    n_tokens: how many of the sequence's tokens are in them and in the blocks before `first` together.
    """

    first: int
    data: NDArray[np.uint8]
    n_tokens: int


class HostMemory:
    """Moves blocks between the device and host memory, of which it uses at most budget_bytes."""

    def __init__(self, device: BlockDevice, budget_bytes: int | None = None) -> None:
        self._device = device
        if budget_bytes is None:
            budget_bytes = min(DEFAULT_BUDGET_BYTES, (total_memory_bytes() or 8 << 30) // 8)
        self._budget = budget_bytes
        self._bytes_per_s = FIRST_BYTES_PER_S
        self.used_bytes = 0

    def save(self, blocks: Sequence[int], n_tokens: int, rows_per_s: float) -> SavedBlocks | None:
        """Reads the blocks that hold a sequence's first n_tokens tokens.

        None where there is no room, or where computing them again, at rows_per_s (0: not known), takes less time.
        """
        size = len(blocks) * self._device.block_bytes
        if n_tokens < KV_BLOCK or self.used_bytes + size > self._budget:
            return None
        if rows_per_s and 2 * size / self._bytes_per_s > n_tokens / rows_per_s:
            return None
        began = time.perf_counter()
        try:
            data = self._device.read_blocks(blocks)
        except MemoryError:
            return None
        self._measured(size, began)
        self.used_bytes += size
        return SavedBlocks(0, data, n_tokens)

    def restore(self, saved: SavedBlocks, blocks: Sequence[int]) -> None:
        """Writes the part of `saved` that belongs into blocks: the sequence's last ones, to the end of `saved`."""
        began = time.perf_counter()
        self._device.write_blocks(blocks, saved.data[len(saved.data) - len(blocks) :])
        self._measured(len(blocks) * self._device.block_bytes, began)

    def adopt(self, saved: SavedBlocks) -> None:
        """Counts blocks that came from elsewhere, until they are dropped. They may go beyond the budget: they are
        there already."""
        self.used_bytes += saved.data.nbytes

    def drop(self, saved: SavedBlocks) -> None:
        self.used_bytes -= saved.data.nbytes

    def copy(self, source: int, target: int) -> None:
        """Makes a block hold what another one holds."""
        self._device.write_blocks([target], self._device.read_blocks([source]))

    def _measured(self, size: int, began: float) -> None:
        seconds = time.perf_counter() - began
        if seconds > 0 and size:
            self._bytes_per_s += 0.3 * (size / seconds - self._bytes_per_s)
