"""The weights of a model file as float32: kept where memory allows, else expanded whenever they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from engine.batch import Progress
from engine.gguf import GGUFFile, release_pages
from engine.graph import Weight
from engine.quants import dequantize

Array = NDArray[np.float32]

BLOCK_VALUES = 1 << 22
"""Weights expanded at a time when they are not kept: 16 MiB of float32."""


class Weights:
    """Vectors are always kept, and so are tensors up to `budget_bytes`, the one that gains most by it first."""

    def __init__(
        self,
        file: GGUFFile,
        shares: Mapping[Weight, float],
        *,
        budget_bytes: int,
        progress: Progress,
        cancelled: Callable[[], bool],
        plan_only: bool = False,
        lent: Weights | None = None,
    ) -> None:
        """shares: the part of a weight's rows that a step of one row reads. plan_only: nothing but nbytes serves.

        lent: those of another model of the same file, which need not be kept twice.
        """
        self._file = file
        self._tensors: dict[str, Array] = {}
        self._kept: dict[Weight, Array] = {}
        self.nbytes = 0
        self._left_out: dict[str, int] = {}
        order = sorted(shares, key=lambda w: 2.0 if w.rows == 1 else shares[w], reverse=True)
        for i, weight in enumerate(order):
            if cancelled():
                return
            progress("weights", i / len(order), weight.name)
            info = file.tensors[weight.name]
            size = 4 * info.n_values
            if lent is not None and weight.name in lent._tensors:
                self._tensors.setdefault(weight.name, lent._tensors[weight.name])
            if weight.name not in self._tensors:
                if weight.rows > 1 and size > budget_bytes:
                    self._left_out[weight.name] = info.nbytes
                    continue
                budget_bytes -= size
                self.nbytes += size
                data = file.data(weight.name)[: 0 if plan_only else None]
                self._tensors[weight.name] = dequantize(info.type, data).reshape(-1)
                release_pages(data)
            if plan_only:
                continue
            values = self._tensors[weight.name]
            first = weight.first * (weight.columns if weight.rows > 1 else 1)
            part = values[first : first + weight.rows * weight.columns]
            self._kept[weight] = part.reshape(weight.rows, weight.columns)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the file that are expanded again whenever they are used."""
        return sum(self._left_out.values())

    def row_bytes(self, weight: Weight) -> float:
        """Bytes that reading one row of a weight takes."""
        if weight in self._kept:
            return 4 * weight.columns
        info = self._file.tensors[weight.name]
        return info.nbytes / info.n_values * weight.columns

    def clear(self) -> None:
        self._tensors.clear()
        self._kept.clear()

    def kept(self, weight: Weight) -> Array | None:
        """The whole weight [rows, columns], if it is kept."""
        return self._kept.get(weight)

    def vector(self, weight: Weight) -> Array:
        """[columns]"""
        vector: Array = self._kept[weight][0]
        return vector

    def rows(self, weight: Weight, start: int, stop: int) -> Array:
        """[stop - start, columns]"""
        kept = self._kept.get(weight)
        if kept is not None:
            return kept[start:stop]
        data = self._file.data(weight.name)[weight.first + start : weight.first + stop]
        expanded = dequantize(self._file.tensors[weight.name].type, data)
        release_pages(data)
        return expanded

    def take(self, weight: Weight, indices: NDArray[np.int32]) -> Array:
        """The rows of these numbers."""
        kept = self._kept.get(weight)
        if kept is not None:
            return np.take(kept, indices, axis=0)
        return dequantize(self._file.tensors[weight.name].type, self._file.data(weight.name)[weight.first + indices])

    def multiply(self, x: Array, weight: Weight, start: int, stop: int) -> Array:
        """x [n, columns] times rows start .. stop - 1 of the weight: [n, stop - start]."""
        step = max(1, BLOCK_VALUES // weight.columns)
        if stop - start <= step or weight in self._kept:
            return product(x, self.rows(weight, start, stop))
        out = np.empty((len(x), stop - start), np.float32)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out[:, first - start : last - start] = product(x, self.rows(weight, first, last))
        return out


def product(x: Array, matrix: Array) -> Array:
    """x @ matrix.T; one row goes as matrix-vector, which BLAS does faster that way round."""
    result: Array = (matrix @ x[0])[None, :] if len(x) == 1 else x @ matrix.T
    return result
