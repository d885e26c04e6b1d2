"""What guessing keeps of one request."""

from __future__ import annotations

import numpy as np

from engine.api import DraftOptions, SamplingParams
from engine.drafts.ngram import NgramIndex


class Drafting:
    """Settings and figures of one request's guesses.

    acceptance: how likely the next guess of the kind asked for is to be accepted, judged by this request's latest ones.
    paused: guessing does not pay at present.
    """

    MEMORY = 0.95  # what an observation of acceptance keeps of its weight with each later one

    def __init__(self, options: DraftOptions, sampling: SamplingParams, greedy: bool) -> None:
        self.options = options
        self.sampling = sampling
        self.greedy = greedy
        # numbers of its own: the sampler's draws stay those of a request that guesses nothing
        self.uniform = np.random.default_rng(None if sampling.seed is None else [sampling.seed, 1])
        self.index = NgramIndex()
        self.drafted = 0
        self.accepted = 0
        self.paused = False
        self.refused = 0  # steps one after the other whose guesses were not worth checking
        self.acceptance: float | None = None
        self._with_s = 0.0
        self._without_s = 0.0

    @property
    def most(self) -> int:
        return self.options.max_draft_tokens

    @property
    def at_start(self) -> int:
        return min(self.options.draft_k, self.options.max_draft_tokens)

    @property
    def gain(self) -> float | None:
        """Speed of the steps so far over that of as many tokens without guesses; None until both were measured."""
        return self._without_s / self._with_s if self.drafted and self._without_s else None

    def judged(self, accepted: bool, of_its_kind: bool) -> None:
        self.drafted += 1
        self.accepted += accepted
        if self.acceptance is not None and of_its_kind:
            self.acceptance += (accepted - self.acceptance) * (1 - self.MEMORY)

    def took(self, seconds: float, without: float) -> None:
        self._with_s += seconds
        self._without_s += without
