"""Adapters on the executor for GPUs, run on whatever device there is: one product with 8-bit rows, of more columns than
a work-group sums and of more ranks than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adapters import BoundAdapter, LowRank
from engine.adapters.describe import describe
from engine.adapters.runs import AdapterSet
from engine.backends.opencl.gpu_model import GpuModel
from engine.batch import Batch
from engine.graph import Graph, Weight
from engine.quants import QuantType, quantize
from tests.backends.memory_file import MemoryFile, load

ROWS, COLUMNS, OUTPUTS = 23, 1216, 100

ATOL = 0.15
"""Beside numbers around 3: ten times the deviation that rounding x to 8 bits gives."""


class Product:
    """Rows of a table times a matrix, and adapters for the matrix."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        file = MemoryFile()
        self.x = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        w = random.standard_normal((OUTPUTS, COLUMNS)).astype(np.float32)
        graph = Graph(n_vocab=OUTPUTS, n_layers=0, n_kv_heads=1, head_width=16)
        x = graph.embed(file.add("x", "F32", self.x, COLUMNS))
        self.weight: Weight = file.add("w", "Q8_0", quantize(QuantType.by_name("Q8_0"), w), COLUMNS)
        graph.linear(x, self.weight)
        self.model: Any = load("opencl", file, graph)
        assert isinstance(self.model, GpuModel)
        self.added: dict[int, np.ndarray] = {}

    def add(self, rank: int, seed: int) -> int:
        random = np.random.default_rng(seed)
        a = (random.standard_normal((rank, COLUMNS)) / np.sqrt(COLUMNS)).astype(np.float32)
        b = random.standard_normal((OUTPUTS, rank)).astype(np.float32)
        low = LowRank(a, b, 0.5)
        info = describe(
            Path("a"), {"w": low}, name="", kind="gguf", architecture="", base_model="", alpha=1, size_bytes=1
        )
        number: int = self.model.add_adapter(BoundAdapter(info, {self.weight: low}, {}))
        self.added[number] = 0.5 * self.x.astype(np.float64) @ a.T.astype(np.float64) @ b.T
        return number

    def run(self, lengths: list[int], sets: list[AdapterSet], first: int = 0) -> np.ndarray:
        """So many rows of the table from `first` on for each set, in one step."""
        n = sum(lengths)
        every = np.arange(n, dtype=np.int32)
        sequences = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        tables = np.zeros((len(lengths), 1), np.int32)
        logits: np.ndarray = self.model.forward(
            Batch(every + first, every, sequences, tables, every, tuple(sets))
        ).copy()
        return logits


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Iterator[Product]:
    monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    product = Product()
    yield product
    product.model.close()


def test_rows_get_what_their_adapters_add_and_nothing_else(product: Product) -> None:
    """To the same bits alone and among others; more rows than a work-group takes, and few."""
    small, large = product.add(5, 1), product.add(40, 2)
    lengths = [11, 1, 3, 8]
    sets: list[AdapterSet] = [((large, 1.0),), (), ((small, -2.0), (large, 0.5)), ((small, 1.0),)]
    base = product.run(lengths, [()] * 4)
    mixed = product.run(lengths, sets)
    first = 0
    for length, acting in zip(lengths, sets, strict=True):
        rows = slice(first, first + length)
        expected = sum((strength * product.added[number][rows] for number, strength in acting), np.zeros(1))
        np.testing.assert_allclose(mixed[rows] - base[rows], expected + np.zeros_like(base[rows]), atol=ATOL)
        assert acting or np.array_equal(mixed[rows], base[rows])
        assert np.array_equal(product.run([length], [acting], first), mixed[rows])
        first += length
    assert np.array_equal(product.run(lengths, [()] * 4), base)


def test_an_adapter_takes_the_place_of_one_that_went(product: Product) -> None:
    small, large = product.add(5, 1), product.add(40, 2)
    before = product.run([4, 4], [((small, 1.0),), ((large, 1.0),)])
    taken = product.model.memory().weight_bytes
    product.model.remove_adapter(small)
    other = product.add(5, 3)
    assert product.model.memory().weight_bytes == taken
    after = product.run([4, 4], [((other, 1.0),), ((large, 1.0),)])
    assert not np.array_equal(after[:4], before[:4])
    assert np.array_equal(after[4:], before[4:])
    more = [product.add(40, seed) for seed in (4, 5, 6)]  # the buffer grows and moves
    assert product.model.memory().weight_bytes > taken
    assert np.array_equal(product.run([4, 4], [((other, 1.0),), ((large, 1.0),)]), after)
    for number in more:
        added = product.run([2], [((number, 1.0),)]) - product.run([2], [()])
        np.testing.assert_allclose(added, product.added[number][:2], atol=ATOL)
