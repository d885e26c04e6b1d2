"""A model file that exists in memory only, with made-up weights: what backends need of a GGUFFile to be timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.gguf import TensorInfo
from engine.graph import Weight
from engine.quants import QuantType


class SyntheticFile:
    """Holds the bytes of each type and shape once, however many weights have them.

    Weights are random bits of which every scale, in whatever format, is a number.
    """

    path = Path("made-up weights")

    def __init__(self) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self._data: dict[tuple[str, int, int], NDArray[np.uint8]] = {}

    def add(self, type_name: str, rows: int, columns: int) -> Weight:
        """A new matrix, or a vector where rows is 1. Raises ValueError where columns are no whole number of blocks."""
        quant = QuantType.by_name(type_name)
        key = quant.name, rows, columns
        if key not in self._data:
            # below 0x3c in each byte: a half, a bfloat16 or a float made of such is below 1
            bits = np.random.default_rng(1).integers(0, 0x3C, (rows, quant.row_bytes(columns)), np.uint8)
            self._data[key] = bits
        name = f"{len(self.tensors)}"
        shape = (rows, columns) if rows > 1 else (columns,)
        self.tensors[name] = TensorInfo(name, shape, quant, 0, self._data[key].nbytes)
        return Weight(name, rows, columns)

    def data(self, name: str) -> NDArray[np.uint8]:
        info = self.tensors[name]
        return self._data[info.type.name, *_rows_and_columns(info.shape)]


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])
