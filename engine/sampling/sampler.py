"""The sampler chain of one request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.api import SamplingParams
from engine.errors import DeviceError, RequestError
from engine.sampling import candidates as c
from engine.sampling.candidates import Candidates
from engine.sampling.params import check_params

Step = Callable[[Candidates, Sequence[int]], Candidates]


class Sampler:
    """Draws tokens: logit bias first, then the chain in the order of `params.samplers`, then a seeded draw.

    At temperature 0 the most likely token is taken, the lowest id of equals; of the chain only bias and penalties
    run then. Raises RequestError when a setting is invalid.
    """

    def __init__(self, params: SamplingParams, n_vocab: int) -> None:
        check_params(params, n_vocab)
        self._n_vocab = n_vocab
        self._random = np.random.default_rng(params.seed)
        self._greedy = params.temperature == 0
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        described = [_describe(name, params) for name in params.samplers]
        steps = zip(params.samplers, described, strict=True)
        active = [(name, text) for name, text in steps if text and (not self._greedy or name == "penalties")]
        self._chain = [_step(name, params) for name, _ in active]
        bias = [f"logit_bias {len(self._bias)} tokens"] if len(self._bias) else []
        last = "greedy" if self._greedy else "draw" if params.seed is None else f"draw seed={params.seed}"
        self._description = [*bias, *(text for _, text in active), last]

    def describe(self) -> list[str]:
        """What runs, in order, with the settings; what is switched off is not listed."""
        return list(self._description)

    def sample(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        """The next token.

        logits: float32 [n_vocab], left unchanged. history: the sequence's tokens so far, prompt included.
        Raises DeviceError when a logit is NaN or infinite.
        """
        token = self.draw(self.candidates(logits, history))
        self.accept(token)
        return token

    def candidates(self, logits: NDArray[np.float32], history: Sequence[int]) -> Candidates:
        """What the chain leaves to draw from; their softmax is the distribution of the next token. Arguments and
        errors as in `sample`."""
        if logits.shape != (self._n_vocab,):
            raise DeviceError(f"The model produced {logits.shape} numbers where {self._n_vocab} belong.")
        _check_finite(logits)
        remaining = Candidates(None, self._biased(logits) if len(self._bias) else logits)
        for step in self._chain:
            remaining = step(remaining, history)
        return remaining

    def accept(self, token: int) -> None:
        """Says that this token follows, whoever chose it; what depends on the past moves on."""

    def _biased(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if logits.max() == -math.inf:
            raise RequestError("logit_bias bans every token of the vocabulary.", "Leave at least one.")
        return logits

    def draw(self, remaining: Candidates) -> int:
        """One of the candidates: the first most likely one when greedy, else by their probabilities."""
        if self._greedy:
            place = int(np.argmax(remaining.logits))
            return int(place if remaining.ids is None else remaining.ids[place])
        sums = np.cumsum(remaining.weights(), dtype=np.float64)
        place = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        # rounding may put the product onto the last sum; its first place is the last token that is possible
        place = min(place, np.searchsorted(sums, sums[-1]))
        return int(place if remaining.ids is None else remaining.ids[place])


def _check_finite(logits: NDArray[np.float32]) -> None:
    # argmax and argmin stop at the first NaN, and both are a fraction of the cost of isfinite
    if not (math.isfinite(logits[np.argmax(logits)]) and math.isfinite(logits[np.argmin(logits)])):
        bad = int(np.count_nonzero(~np.isfinite(logits)))
        raise DeviceError(
            f"The model produced invalid numbers ({bad} of {len(logits)} logits are NaN or infinite).",
            "Load the model again; if it happens again, choose another device or another model file.",
        )


def _describe(name: str, params: SamplingParams) -> str:
    """The sampler with its settings, or nothing when they make it do nothing."""
    match name:
        case "penalties":
            p = params
            if p.repeat_last_n == 0 or (p.repeat_penalty, p.presence_penalty, p.frequency_penalty) == (1, 0, 0):
                return ""
            return (
                f"penalties repeat={p.repeat_penalty:g} presence={p.presence_penalty:g} "
                f"frequency={p.frequency_penalty:g} last={p.repeat_last_n}"
            )
        case "top_k":
            return f"top_k {params.top_k}" if params.top_k > 0 else ""
        case "typical_p":
            return f"typical_p {params.typical_p:g}" if params.typical_p < 1 else ""
        case "top_p":
            return f"top_p {params.top_p:g}" if params.top_p < 1 else ""
        case "min_p":
            return f"min_p {params.min_p:g}" if params.min_p > 0 else ""
        case _:
            return f"temperature {params.temperature:g}" if params.temperature != 1 else ""


def _step(name: str, params: SamplingParams) -> Step:
    p = params
    last = p.repeat_last_n

    def window(history: Sequence[int]) -> Sequence[int]:
        return history if last < 0 else history[-last:]

    steps: dict[str, Step] = {
        "penalties": lambda now, history: c.penalties(
            now, window(history), p.repeat_penalty, p.presence_penalty, p.frequency_penalty
        ),
        "top_k": lambda now, history: c.top_k(now, p.top_k),
        "typical_p": lambda now, history: c.typical_p(now, p.typical_p),
        "top_p": lambda now, history: c.top_p(now, p.top_p),
        "min_p": lambda now, history: c.min_p(now, p.min_p),
        "temperature": lambda now, history: c.temperature(now, p.temperature),
    }
    return steps[name]
