"""Which rows of a batch go with which adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from engine.batch import Batch

AdapterSet = tuple[tuple[int, float], ...]
"""What acts on a sequence: numbers that TakesAdapters.add_adapter gave, each with its strength; none is 0."""


@dataclass(frozen=True)
class Run:
    """Rows first .. last - 1, adjacent, with the same adapters, at least one."""

    first: int
    last: int
    uses: AdapterSet


def adapter_runs(batch: Batch) -> tuple[list[Run], list[Run]]:
    """The runs among a batch's rows, and among its logit rows (numbered as in logit_rows)."""
    if not any(batch.adapters):
        return [], []
    return _runs(batch, batch.sequences), _runs(batch, batch.sequences[batch.logit_rows])


def _runs(batch: Batch, sequences: NDArray[np.int32]) -> list[Run]:
    runs: list[Run] = []
    if not len(sequences):
        return []
    starts = [0, *(np.flatnonzero(np.diff(sequences)) + 1).tolist()]
    for first, last in zip(starts, [*starts[1:], len(sequences)], strict=True):
        uses = batch.adapters[sequences[first]]
        if not uses:
            continue
        if runs and runs[-1].last == first and runs[-1].uses == uses:
            runs[-1] = Run(runs[-1].first, last, uses)
        else:
            runs.append(Run(first, last, uses))
    return runs
