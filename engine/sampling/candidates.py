"""The tokens that may still be drawn, and the samplers that narrow or reweigh them.

Each sampler takes candidates and returns candidates. Definitions are llama.cpp's (src/llama-sampling.cpp).
Nothing sorts the whole vocabulary: where an order is needed, the front of it is selected first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

COLUMNS = 64  # values that share one maximum when the front of a long array is looked for
FIRST_FRONT = 256  # candidates that a cumulative sampler looks at first
FRONT_GROWTH = 8
LARGEST = 1e30  # of what settings make of logits: float32 holds it, and differences of such numbers


@dataclass(frozen=True)
class Candidates:
    """ids: int64 [n], or None where candidate i is token i (the whole vocabulary).
    logits: float32 [n]; never empty; at least one is finite, none is NaN or +inf.
    descending: the logits are known to descend.
    """

    ids: Ids | None
    logits: Floats
    descending: bool = False

    def __len__(self) -> int:
        return len(self.logits)

    def take(self, chosen: NDArray[Any], descending: bool) -> Candidates:
        ids = chosen if self.ids is None else self.ids[chosen]
        return Candidates(ids, self.logits[chosen], descending)

    def max(self) -> np.float32:
        return self.logits[0] if self.descending else self.logits.max()  # type: ignore[no-any-return]

    def weights(self) -> Floats:
        """exp(logit - largest logit), float32 [n]: the softmax without its division."""
        weights: Floats = np.exp(self.logits - self.max())
        return weights

    def front(self, n: int) -> Candidates:
        """The n largest logits, descending; of equal ones the earlier."""
        if self.descending:
            return self.take(np.arange(min(n, len(self))), True)
        return self.take(largest(self.logits, n), True)


def largest(keys: Floats, n: int) -> Ids:
    """Indices of the n largest keys, descending by key; of equal keys the earlier comes first."""
    if n >= len(keys):
        return np.argsort(-keys, kind="stable")
    found = _front(keys, n)
    return found[np.argsort(-keys[found], kind="stable")[:n]]


def smallest(keys: Floats, n: int) -> Ids:
    """Indices of the n smallest keys, ascending by key; of equal keys the earlier comes first."""
    return largest(-keys, n)


def _front(keys: Floats, n: int) -> Ids:
    """Indices, ascending, of at least the n < len(keys) largest keys and few more.

    The maxima of disjoint groups are keys themselves, so at least n keys reach the n-th largest of them, and only
    groups whose maximum does hold any: one pass over everything instead of a partition.
    """
    groups = len(keys) // COLUMNS
    if groups < 4 * n:
        return np.flatnonzero(keys >= np.partition(keys, -n)[-n])
    table, rest = keys[: groups * COLUMNS].reshape(COLUMNS, groups), keys[groups * COLUMNS :]
    highest = table.max(axis=0)
    bound = np.partition(highest, -n)[-n]
    columns = np.flatnonzero(highest >= bound)
    row, place = np.nonzero(table[:, columns] >= bound)
    return np.concatenate([row * groups + columns[place], groups * COLUMNS + np.flatnonzero(rest >= bound)])


def top_k(candidates: Candidates, k: int) -> Candidates:
    """Keeps the k most likely; k <= 0 keeps all."""
    return candidates.front(k) if 0 < k < len(candidates) else candidates


def top_p(candidates: Candidates, p: float) -> Candidates:
    """Keeps the fewest most likely tokens whose probabilities add up to p or more (Holtzman et al. 2019)."""
    if p >= 1.0:
        return candidates
    wanted = p * candidates.weights().sum(dtype=np.float64)
    highest = candidates.max()
    size = FIRST_FRONT
    while True:
        front = candidates.front(size)
        sums = np.cumsum(np.exp(front.logits - highest), dtype=np.float64)
        if sums[-1] >= wanted or len(front) == len(candidates):
            kept = int(np.searchsorted(sums, wanted)) + 1
            return front.take(np.arange(min(kept, len(front))), True)
        size *= FRONT_GROWTH


def min_p(candidates: Candidates, p: float) -> Candidates:
    """Keeps tokens at least p times as likely as the most likely one."""
    if p <= 0.0:
        return candidates
    kept = np.flatnonzero(candidates.logits >= candidates.max() + np.float32(math.log(p)))
    return candidates.take(kept, candidates.descending)


def typical_p(candidates: Candidates, p: float) -> Candidates:
    """Keeps the tokens whose surprise is nearest to the expected one, until they add up to more than p
    (Meister et al. 2022)."""
    if p >= 1.0:
        return candidates
    weights = candidates.weights()
    total = weights.sum(dtype=np.float64)
    surprise = (np.float32(math.log(total)) + candidates.max()) - candidates.logits
    possible = weights > 0
    expected = float(np.sum(weights[possible] * surprise[possible], dtype=np.float64) / total)
    distance = np.abs(surprise - np.float32(expected))
    size = FIRST_FRONT
    while True:
        nearest = smallest(distance, size)
        sums = np.cumsum(weights[nearest], dtype=np.float64)
        if sums[-1] > p * total or len(nearest) == len(candidates):
            kept = int(np.searchsorted(sums, p * total, side="right")) + 1
            return candidates.take(nearest[:kept], False)
        size *= FRONT_GROWTH


def temperature(candidates: Candidates, value: float) -> Candidates:
    """Divides the logits by value > 0. Where that overflows they are first moved so that the largest is 0."""
    divisor = np.float32(min(max(value, float(np.finfo(np.float32).tiny)), LARGEST))
    highest = candidates.max()
    with np.errstate(over="ignore"):
        overflows = abs(highest / divisor) > LARGEST
        scaled = (candidates.logits - highest if overflows else candidates.logits) / divisor
    return Candidates(candidates.ids, scaled, candidates.descending)


def penalties(
    candidates: Candidates, window: Sequence[int], repeat: float, presence: float, frequency: float
) -> Candidates:
    """Lowers the logits of the tokens in the window: a logit is divided by `repeat` (multiplied where negative),
    then reduced by `presence` and by `frequency` times the token's count."""
    if not window or (repeat == 1.0 and presence == 0.0 and frequency == 0.0):
        return candidates
    tokens, counts = np.unique(np.asarray(window, np.int64), return_counts=True)
    if candidates.ids is None:
        places = tokens
    else:
        places = np.flatnonzero(np.isin(candidates.ids, tokens))
        counts = counts[np.searchsorted(tokens, candidates.ids[places])]
    repeat, presence, frequency = min(max(repeat, 1 / LARGEST), LARGEST), _bounded(presence), _bounded(frequency)
    old = candidates.logits[places].astype(np.float64)
    lowered = np.where(old > 0, old / repeat, old * repeat) - counts * frequency - presence
    logits = candidates.logits.copy()
    logits[places] = np.where(np.isneginf(old), old, np.clip(lowered, -LARGEST, LARGEST))
    return Candidates(candidates.ids, logits, False)


def _bounded(value: float) -> float:
    return float(min(max(value, -LARGEST), LARGEST))


def top_n_sigma(candidates: Candidates, n: float) -> Candidates:
    """Keeps logits at most n standard deviations below the largest (Tang et al. 2024); n <= 0 keeps all.

    The others stay candidates that cannot be drawn: as for llama.cpp, a dynamic temperature still counts them."""
    if n <= 0.0 or len(candidates) <= 1:
        return candidates
    possible = candidates.logits[candidates.logits > -np.inf].astype(np.float64)
    lowest = np.float32(max(float(candidates.max()) - n * float(possible.std()), float(np.finfo(np.float32).min)))
    kept = np.where(candidates.logits >= lowest, candidates.logits, np.float32(-np.inf))
    return Candidates(candidates.ids, kept, candidates.descending)


def xtc(candidates: Candidates, threshold: float) -> Candidates:
    """Excludes top choices: of the tokens at least as likely as the threshold, only the least likely one stays."""
    if len(candidates) < 2:
        return candidates
    weights = candidates.weights()
    tops = np.flatnonzero((weights >= np.float32(threshold) * weights.sum(dtype=np.float64)) & (weights > 0))
    if len(tops) < 2:
        return candidates
    by_likelihood = tops[largest(candidates.logits[tops], len(tops))]
    kept = np.ones(len(candidates), bool)
    kept[by_likelihood[:-1]] = False
    return candidates.take(np.flatnonzero(kept), candidates.descending)


def dynamic_temperature(candidates: Candidates, value: float, spread: float, exponent: float) -> Candidates:
    """Divides the logits by a temperature between value - spread and value + spread: the lower, the surer the model is,
    by the entropy of the candidates over the largest entropy that so many could have."""
    if len(candidates) <= 1:
        return candidates
    weights = candidates.weights().astype(np.float64)
    probability = weights[weights > 0] / weights.sum()
    entropy = -float(np.sum(probability * np.log(probability))) / math.log(len(candidates))
    lowest, highest = max(0.0, value - spread), min(value + spread, LARGEST)
    return temperature(candidates, lowest + (highest - lowest) * min(max(entropy, 0.0), 1.0) ** exponent)
