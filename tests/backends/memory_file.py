"""A model file that exists in memory only: what backends need of a GGUFFile."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api import DeviceInfo
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.devices import choose_device
from engine.gguf import TensorInfo
from engine.graph import Graph, Weight
from engine.quants import QuantType


class MemoryFile:
    def __init__(self) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self._data: dict[str, NDArray[np.uint8]] = {}

    def add(self, name: str, type_name: str, data: NDArray[Any], columns: int) -> Weight:
        """data: the bytes of the rows, [rows, row bytes] (or float32 [rows, columns] for F32)."""
        quant = QuantType.by_name(type_name)
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(len(data), quant.row_bytes(columns))
        shape = (len(data), columns) if len(data) > 1 else (columns,)
        self.tensors[name] = TensorInfo(name, shape, quant, 0, raw.nbytes)
        self._data[name] = raw
        return Weight(name, len(data), columns)

    def data(self, name: str) -> NDArray[np.uint8]:
        return self._data[name]


def load(device_id: str, file: MemoryFile, graph: Graph, n_blocks: int = 4, kv_type: str = "f16") -> LoadedModel:
    device: DeviceInfo = choose_device(device_id)
    arguments: dict[str, Any] = {
        "device": device,
        "n_blocks": n_blocks,
        "kv_type": kv_type,
        "progress": lambda *_: None,
        "cancelled": lambda: False,
    }
    if device.id == "numpy":
        from engine.backends.numpy_backend import NumpyModel

        return NumpyModel(file, graph, budget_bytes=1 << 30, **arguments)  # type: ignore[arg-type]
    from engine.backends import opencl

    return opencl.load(file, graph, **arguments)  # type: ignore[arg-type]


def one_sequence(tokens: Any, start: int = 0, blocks: Any = None, logit_rows: Any = None) -> Batch:
    n = len(tokens)
    table = np.arange(-(-(start + n) // KV_BLOCK)) if blocks is None else np.asarray(blocks)
    return Batch(
        tokens=np.asarray(tokens, np.int32),
        positions=np.arange(start, start + n, dtype=np.int32),
        sequences=np.zeros(n, np.int32),
        block_tables=table[None].astype(np.int32),
        logit_rows=np.arange(n, dtype=np.int32) if logit_rows is None else np.asarray(logit_rows, np.int32),
    )
