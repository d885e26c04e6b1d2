"""Mirostat: the surprise of the text is kept near a target (Basu et al. 2021). Definitions are llama.cpp's."""

from __future__ import annotations

import math

import numpy as np

from engine.sampling.candidates import LARGEST, Candidates

SLOPE_TOKENS = 100  # how many of the likeliest tokens the first version measures the distribution by


class Mirostat:
    """Narrows the candidates to those whose surprise, in bits, is at most `mu`, which moves with what was drawn.

    version: 1 estimates from the slope of the likeliest tokens (Zipf's law) how many to keep; 2 cuts at `mu` itself.
    """

    def __init__(self, version: int, tau: float, eta: float, n_vocab: int) -> None:
        self.mu = min(2.0 * tau, LARGEST)
        self._version = version
        self._tau = tau
        self._eta = eta
        self._n_vocab = n_vocab
        self._remaining: Candidates | None = None

    def narrow(self, candidates: Candidates) -> Candidates:
        remaining = self._by_slope(candidates) if self._version == 1 else self._by_surprise(candidates)
        self._remaining = remaining
        return remaining

    def accept(self, token: int) -> None:
        """Moves `mu` by how surprising the token was among the candidates that `narrow` left last."""
        remaining, self._remaining = self._remaining, None
        if remaining is None:
            return
        places = np.arange(len(remaining)) if remaining.ids is None else remaining.ids
        found = np.flatnonzero(places == token)
        if not len(found):
            return  # it came from elsewhere than these candidates, which says nothing about them
        weights = remaining.weights()
        share = float(weights[found[0]]) / float(weights.sum(dtype=np.float64))
        if share > 0:
            moved = self.mu - self._eta * (-math.log2(share) - self._tau)
            self.mu = min(max(moved, -LARGEST), LARGEST)

    def _by_slope(self, candidates: Candidates) -> Candidates:
        likeliest = candidates.front(SLOPE_TOKENS)
        n = len(likeliest)
        if n < 2:
            return likeliest
        ranks = np.arange(1, n, dtype=np.float64)
        distance = np.log((ranks + 1) / ranks)
        logits = likeliest.logits.astype(np.float64)
        finite = np.isfinite(logits[1:])
        steps = np.where(finite, logits[:-1] - np.where(finite, logits[1:], 0.0), np.inf)
        slope = float(np.sum(distance * steps) / np.sum(distance * distance))
        return candidates.front(max(1, min(self._kept(slope), len(candidates))))

    def _kept(self, slope: float) -> int:
        """How many tokens a Zipf distribution of this slope has up to the surprise `mu`."""
        if math.isinf(slope):
            return 1
        if slope <= 0:
            return self._n_vocab  # all are equally likely
        excess = slope - 1
        try:
            total = (1 - self._n_vocab**-excess) / excess if excess else math.log(self._n_vocab)
            return int(min((2**self.mu / total) ** (1 / slope), self._n_vocab))
        except OverflowError:
            return self._n_vocab

    def _by_surprise(self, candidates: Candidates) -> Candidates:
        weights = candidates.weights()
        least = 2.0**-self.mu * float(weights.sum(dtype=np.float64)) if self.mu > -100 else math.inf
        kept = np.flatnonzero(weights >= least) if least > 0 else np.arange(len(weights))
        if not len(kept):
            kept = np.array([int(np.argmax(candidates.logits))])
        return candidates.take(kept, candidates.descending)
