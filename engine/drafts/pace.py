"""How far guessing pays: measured costs of steps, measured acceptance, and the lengths that follow from them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

MEMORY = 16.0
"""Samples over which a measured cost is averaged."""

MARGIN = 1.03
"""So much faster has guessing to make the whole, or it is left: what is predicted is not that exact."""

SHORTER = 0.5
"""What a sample below the average counts for."""


class StepCost:
    """Seconds of a model's step by its number of rows, as measured. More rows never count as cheaper than fewer."""

    def __init__(self) -> None:
        self._mean: dict[int, float] = {}
        self._weight: dict[int, float] = {}
        self._rows: list[int] = []
        self._seconds: list[float] = []
        self._stale = False

    def observe(self, rows: int, seconds: float) -> None:
        """Whatever else has the machine only adds to a time, so shorter ones count for more."""
        weight = self._weight.get(rows, 0.0)
        if not weight:
            self._mean[rows] = seconds
        else:
            mean = self._mean[rows]
            share = SHORTER if seconds < mean else 1 / MEMORY
            self._mean[rows] += (min(seconds, 2 * mean) - mean) * share
        for other in self._weight:
            self._weight[other] *= 0.995
        self._weight[rows] = min(weight + 1.0, MEMORY)
        self._stale = True

    def samples(self, rows: int) -> float:
        return self._weight.get(rows, 0.0)

    @property
    def known(self) -> bool:
        return bool(self._mean)

    def seconds(self, rows: int) -> float:
        """What a step of this many rows takes: between measured numbers interpolated, beyond them continued.

        Raises ValueError while nothing has been measured.
        """
        if self._stale:
            self._fit()
        xs, ys = self._rows, self._seconds
        if not xs:
            raise ValueError("no step was measured yet")
        if len(xs) == 1:
            return ys[0] if rows <= xs[0] else ys[0] * (1 + 0.1 * (rows - xs[0]) / xs[0])
        at = min(max(bisect_left(xs, rows), 1), len(xs) - 1)
        if rows > xs[-1]:
            slope = (ys[-1] - ys[0]) / (xs[-1] - xs[0])  # over all of it: two neighbours may lie on one stair
            return ys[-1] + slope * (rows - xs[-1])
        if rows <= xs[0]:
            return ys[0]
        x0, x1 = xs[at - 1], xs[at]
        return ys[at - 1] + (ys[at] - ys[at - 1]) * (rows - x0) / (x1 - x0)

    def _fit(self) -> None:
        """Isotonic regression (pool adjacent violators): measured numbers scatter, real costs ascend.

        No step takes longer than its rows would in several steps; a number that says so was disturbed.
        """
        pools: list[tuple[float, float, int]] = []
        self._rows = sorted(self._mean)
        per_row = min(mean / rows for rows, mean in self._mean.items() if rows <= 2 * self._rows[0])
        for rows in self._rows:
            most = max(rows * per_row, self._mean[self._rows[0]])
            mean, weight, n = min(self._mean[rows], most), self._weight[rows], 1
            while pools and pools[-1][0] >= mean:
                above, its_weight, its_n = pools.pop()
                mean = (mean * weight + above * its_weight) / (weight + its_weight)
                weight, n = weight + its_weight, n + its_n
            pools.append((mean, weight, n))
        self._seconds = [mean for mean, _, n in pools for _ in range(n)]
        self._stale = False


class Acceptance:
    """How often guesses of some confidence are accepted. `edges` part the confidences, `prior` is one rate for each
    part: what is believed before anything was seen, worth `weight` guesses."""

    MEMORY = 200.0

    def __init__(self, edges: Sequence[float], prior: Sequence[float], weight: float = 4.0) -> None:
        self._edges = list(edges)
        self._yes = [rate * weight for rate in prior]
        self._all = [weight] * len(prior)

    def rate(self, confidence: float) -> float:
        part = bisect_right(self._edges, confidence)
        return self._yes[part] / self._all[part]

    def observe(self, confidence: float, accepted: bool) -> None:
        part = bisect_right(self._edges, confidence)
        if self._all[part] >= self.MEMORY:
            self._yes[part] *= 0.5
            self._all[part] *= 0.5
        self._yes[part] += accepted
        self._all[part] += 1


def reaches(rates: Sequence[float]) -> list[float]:
    """How likely each guess is to be accepted, with all before it: the running product of their rates."""
    return [float(r) for r in np.cumprod(rates)]


def plan(
    cost: StepCost, spent: float, per_token: float, n_plain: int, chances: Sequence[Sequence[float]], most: int
) -> list[int]:
    """How many guesses of each sequence to check so that the whole step makes most tokens in a second: none where that
    is less than MARGIN more than without any.

    spent: seconds that guessing took; to check few of the guesses wastes them. per_token: seconds that choosing and
    handing out one token takes. n_plain: rows of the step without guesses. chances: of each sequence that has guesses,
    `reaches`. most: rows that guesses may take.
    """
    ordered = sorted(((-chance, i) for i, its in enumerate(chances) for chance in its))[: max(most, 0)]

    def rate_of(tokens: float, rows: int) -> float:
        return tokens / max(spent + cost.seconds(rows) + per_token * tokens, 1e-9)

    best = MARGIN * rate_of(n_plain, n_plain)
    taken, tokens = 0, float(n_plain)
    for count, (negative, _) in enumerate(ordered, 1):
        tokens -= negative
        rate = rate_of(tokens, n_plain + count)
        if rate > best:
            best, taken = rate, count
    lengths = [0] * len(chances)
    for _, i in ordered[:taken]:
        lengths[i] += 1
    return lengths
