"""A model whose first layers are on one device and the rest on another: rows pass through the host between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter
from engine.adapters.runs import AdapterSet
from engine.api import DeviceInfo
from engine.batch import Batch, KeepsRows, MemoryUse, PartModel
from engine.graph import Graph


class SplitModel:
    """A LoadedModel (engine/batch.py) made of two, which have the graphs that engine.graph.split gives."""

    def __init__(self, parts: tuple[PartModel, PartModel], graphs: tuple[Graph, Graph], n_layers: int) -> None:
        """graphs: of the parts. n_layers: of the first one."""
        first, second = self._parts = parts
        self._graphs = graphs
        self._adapters: dict[int, list[int | None]] = {}  # what each part calls an adapter that acts in it
        self._n_added = 0
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
    def last(self) -> PartModel:
        """The part that gives the logits."""
        return self._parts[1]

    @property
    def block_bytes(self) -> int:
        return sum(part.block_bytes for part in self._parts)

    @property
    def kv_layout(self) -> str:
        return " | ".join(f"{part.kv_layout} {part.block_bytes}" for part in self._parts)

    def add_adapter(self, adapter: BoundAdapter) -> int:
        numbers: list[int | None] = []
        try:
            for part, graph in zip(self._parts, self._graphs, strict=True):
                own = adapter.within(graph)
                numbers.append(None if own is None else part.add_adapter(own))
        except BaseException:
            self._remove(numbers)
            raise
        self._n_added += 1
        self._adapters[self._n_added] = numbers
        return self._n_added

    def remove_adapter(self, number: int) -> None:
        self._remove(self._adapters.pop(number))

    def _remove(self, numbers: Sequence[int | None]) -> None:
        """numbers: of the parts, or of the first of them."""
        for part, number in zip(self._parts, numbers, strict=False):
            if number is not None:
                part.remove_adapter(number)

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        return self._parts[1].forward(self._adapted(batch, 1), self._rows(batch))

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        return self._parts[1].hidden(self._adapted(batch, 1), self._rows(batch))

    @property
    def kept_width(self) -> int:
        return self.last.kept_width if isinstance(self.last, KeepsRows) else 0

    def kept(self) -> NDArray[np.float32]:
        assert isinstance(self.last, KeepsRows)
        return self.last.kept()

    def _rows(self, batch: Batch) -> NDArray[np.float32]:
        """What the first part makes of every row."""
        every = np.arange(len(batch.tokens), dtype=np.int32)
        return self._parts[0].forward(replace(self._adapted(batch, 0), logit_rows=every))

    def _adapted(self, batch: Batch, part: int) -> Batch:
        """The batch with the adapters that act in a part, as that part calls them."""

        def own(uses: AdapterSet) -> AdapterSet:
            numbers = [(self._adapters[number][part], strength) for number, strength in uses]
            return tuple((number, strength) for number, strength in numbers if number is not None)

        return replace(batch, adapters=tuple(map(own, batch.adapters)))

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        return np.concatenate([part.read_blocks(blocks) for part in self._parts], axis=1)

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        first, second = self._parts
        first.write_blocks(blocks, np.ascontiguousarray(data[:, : first.block_bytes]))
        second.write_blocks(blocks, np.ascontiguousarray(data[:, first.block_bytes :]))

    def memory(self) -> MemoryUse:
        a, b = (part.memory() for part in self._parts)
        return MemoryUse(
            a.weight_bytes + b.weight_bytes,
            a.kv_bytes + b.kv_bytes,
            a.scratch_bytes + b.scratch_bytes,
            a.streamed_bytes + b.streamed_bytes,
            a.idle_bytes + b.idle_bytes,
        )

    def read_bandwidth(self) -> float | None:
        return None

    def close(self) -> None:
        for part in self._parts:
            part.close()
