"""What adapters cost: steps with and without them, by turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from engine.adapters.runs import AdapterSet
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.measure.logits import check_fits


@dataclass(frozen=True)
class AdapterCost:
    """Seconds of each step without and with adapters, a pair of neighbours at the same position."""

    rows: int
    without: tuple[float, ...]
    with_adapters: tuple[float, ...]

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens per second without and with, medians."""
        return self.rows / median(self.without), self.rows / median(self.with_adapters)

    @property
    def share(self) -> float:
        """The speed with adapters, of that without: the median over pairs of neighbours."""
        return median(a / b for a, b in zip(self.without, self.with_adapters, strict=True))


def measure_adapters(model: LoadedModel, adapters: Sequence[AdapterSet], steps: int) -> AdapterCost:
    """Times `steps` decode steps of as many sequences as there are sets, with them and without by turns.

    Each way has KV blocks of its own. A few steps before warm up.
    """
    rows = len(adapters)
    blocks = -(-steps // KV_BLOCK)
    check_fits(model, 2 * rows * blocks * KV_BLOCK)
    tables = np.arange(2 * rows * blocks, dtype=np.int32).reshape(2, rows, blocks)
    seconds: tuple[list[float], list[float]] = ([], [])

    def step(position: int, which: int) -> float:
        batch = Batch(
            tokens=np.arange(100, 100 + rows, dtype=np.int32) % model.n_vocab,
            positions=np.full(rows, position, np.int32),
            sequences=np.arange(rows, dtype=np.int32),
            block_tables=tables[which],
            logit_rows=np.arange(rows, dtype=np.int32),
            adapters=tuple(adapters) if which else (),
        )
        began = time.perf_counter()
        model.forward(batch)
        return time.perf_counter() - began

    for _ in range(3):
        step(0, 0)
        step(0, 1)
    for position in range(steps):
        order = (0, 1) if position % 2 else (1, 0)
        for which in order:
            seconds[which].append(step(position, which))
    return AdapterCost(rows, tuple(seconds[0]), tuple(seconds[1]))
