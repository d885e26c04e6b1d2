"""A model whose first layers are on one device and the rest on another: rows pass through the host between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.api import DeviceInfo
from engine.batch import Batch, LoadedModel, MemoryUse, PartModel


class SplitModel:
    """A LoadedModel (engine/batch.py) made of two, which have the graphs that engine.graph.split gives."""

    def __init__(self, first: PartModel, second: PartModel, n_layers: int) -> None:
        """n_layers: of the first part."""
        self._first, self._second = first, second
        a, b = first.device, second.device
        self.device = DeviceInfo(
            id=f"{a.id}={n_layers},{b.id}",
            name=f"{a.name} ({n_layers} layers) and {b.name}",
            vendor=a.vendor,
            kind=b.kind if a.kind == "cpu" else a.kind,
            driver=a.driver,
            memory_bytes=a.memory_bytes,
            variants=a.variants,
        )
        self.n_vocab = second.n_vocab
        self.n_blocks = first.n_blocks
        self.max_rows = min(first.max_rows, second.max_rows)
        self.weight_bytes_per_token = first.weight_bytes_per_token + second.weight_bytes_per_token
        self.hidden_width = second.hidden_width

    @property
    def _parts(self) -> tuple[LoadedModel, LoadedModel]:
        return self._first, self._second

    @property
    def block_bytes(self) -> int:
        return sum(part.block_bytes for part in self._parts)

    @property
    def kv_layout(self) -> str:
        return " | ".join(f"{part.kv_layout} {part.block_bytes}" for part in self._parts)

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        return self._second.forward(batch, self._rows(batch))

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        return self._second.hidden(batch, self._rows(batch))

    def _rows(self, batch: Batch) -> NDArray[np.float32]:
        """What the first part makes of every row."""
        return self._first.forward(replace(batch, logit_rows=np.arange(len(batch.tokens), dtype=np.int32)))

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        return np.concatenate([part.read_blocks(blocks) for part in self._parts], axis=1)

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        at = self._first.block_bytes
        self._first.write_blocks(blocks, np.ascontiguousarray(data[:, :at]))
        self._second.write_blocks(blocks, np.ascontiguousarray(data[:, at:]))

    def memory(self) -> MemoryUse:
        a, b = (part.memory() for part in self._parts)
        return MemoryUse(
            a.weight_bytes + b.weight_bytes,
            a.kv_bytes + b.kv_bytes,
            a.scratch_bytes + b.scratch_bytes,
            a.streamed_bytes + b.streamed_bytes,
        )

    def read_bandwidth(self) -> float | None:
        return None

    def close(self) -> None:
        for part in self._parts:
            part.close()
