"""Guesses at the next tokens, and the rule that makes them part of an answer or not.

The rule is that of speculative sampling (Leviathan et al. 2023, Chen et al. 2023): a guess x drawn from q is accepted
with the probability min(1, p(x)/q(x)), and one that is not is replaced by a draw from max(0, p - q), normalised. What
comes out is distributed as p, whatever q is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.sampling import Sampler
from engine.sampling.candidates import Candidates


@dataclass(frozen=True)
class Distribution:
    """Probabilities of tokens.

    ids: int64 [n], or None where entry i is token i. probabilities: float64 [n], at least 0, together 1.
    """

    ids: NDArray[np.int64] | None
    probabilities: NDArray[np.float64]

    @classmethod
    def of(cls, candidates: Candidates) -> Distribution:
        weights = candidates.weights().astype(np.float64)
        return cls(candidates.ids, weights / weights.sum())

    def probability(self, token: int) -> float:
        if self.ids is None:
            return float(self.probabilities[token]) if token < len(self.probabilities) else 0.0
        return float(self.probabilities[self.ids == token].sum())

    def residual(self, other: Distribution) -> Distribution | None:
        """max(0, self - other), normalised; None where nothing is left."""
        left = np.maximum(self.probabilities - other._at(self.ids, len(self.probabilities)), 0.0)
        total = left.sum()
        return Distribution(self.ids, left / total) if total > 0 else None

    def draw(self, uniform: float) -> int:
        """The token at this place, 0 <= uniform < 1, of the cumulated probabilities."""
        sums = np.cumsum(self.probabilities)
        place = np.searchsorted(sums, uniform * sums[-1], side="right")
        # rounding may put the product onto the last sum; its first place is the last token that is possible
        place = min(place, np.searchsorted(sums, sums[-1]))
        return int(place if self.ids is None else self.ids[place])

    def _at(self, ids: NDArray[np.int64] | None, n: int) -> NDArray[np.float64]:
        """The probabilities of the tokens `ids`, or of 0..n-1; 0 for those that are not among these."""
        if self.ids is None:
            if ids is None:
                out = np.zeros(n)
                m = min(n, len(self.probabilities))
                out[:m] = self.probabilities[:m]
                return out
            known = ids < len(self.probabilities)
            return np.where(known, self.probabilities[np.where(known, ids, 0)], 0.0)
        if ids is None:
            out = np.zeros(max(n, int(self.ids.max()) + 1))
            out[self.ids] = self.probabilities
            return out[:n]
        order = np.argsort(self.ids)
        places = np.minimum(np.searchsorted(self.ids, ids, sorter=order), len(order) - 1)
        found = order[places]
        return np.where(self.ids[found] == ids, self.probabilities[found], 0.0)


@dataclass
class Guess:
    """Tokens that may follow a sequence, in order.

    confidences: for each token how sure its drafter is, in a measure of its own; `Pace` learns what that is worth.
    distributions: what each token was drawn from, or None where it was chosen and not drawn (a point mass).
    looked_up: they stand in the text already, whatever kind of guesses the request asks for.
    """

    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    distributions: list[Distribution] | None = None
    looked_up: bool = False

    def cut(self, length: int) -> None:
        """Leaves the first `length` tokens."""
        del self.tokens[length:], self.confidences[length:]
        if self.distributions is not None:
            del self.distributions[length:]


class Uniform(Protocol):
    """A source of numbers from 0 up to, but not including, 1; numpy's Generator is one."""

    def random(self) -> float: ...


def judge(
    sampler: Sampler, candidates: Candidates, token: int, drawn_from: Distribution | None, uniform: Uniform
) -> int:
    """The token that follows when `token` was guessed; it is accepted when that is the guess itself.

    candidates: the target's, after its whole chain. drawn_from: the guess's distribution, None for a point mass, with
    which the rule comes to this: draw as if there were no guess, and see whether it is the same. So greedy answers, and
    seeded ones whose guesses are point masses, are token for token those without guesses.
    """
    if drawn_from is None:
        return sampler.draw(candidates)
    target = Distribution.of(candidates)
    guessed = drawn_from.probability(token)
    if uniform.random() * guessed < target.probability(token):
        return token
    rest = target.residual(drawn_from)
    return sampler.draw(candidates) if rest is None else rest.draw(uniform.random())
