"""The sampler chain of one request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.api import SamplingParams
from engine.batch import TopLogits
from engine.errors import DeviceError, RequestError
from engine.grammar import Constraint
from engine.sampling import candidates as c
from engine.sampling.candidates import Candidates
from engine.sampling.dry import Breakers, Spelling, dry, find_breakers
from engine.sampling.mirostat import Mirostat
from engine.sampling.params import check_params
from engine.sampling.restrict import restricted

Step = Callable[[Candidates, Sequence[int]], Candidates]


class Sampler:
    """Draws tokens: logit bias first, then the chain in the order of `params.samplers`, then a seeded draw.

    At temperature 0 the most likely token is taken, the lowest id of equals; of the chain only bias, penalties and DRY
    run then. With mirostat, of the chain only the temperature runs. Raises RequestError when a setting is invalid.

    spelling: the vocabulary, which DRY finds its sequence breakers in; without one there are no breakers.
    constraint: a grammar that the answer has to match; what it does not allow is gone before the chain narrows.
    """

    def __init__(
        self,
        params: SamplingParams,
        n_vocab: int,
        spelling: Spelling | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        check_params(params, n_vocab)
        self._n_vocab = n_vocab
        self._random = np.random.default_rng(params.seed)
        self._greedy = params.temperature == 0 and params.dynatemp_range == 0
        self._mirostat: Mirostat | None = None
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        bias = np.fromiter(params.logit_bias.values(), np.float64)
        self._bias = np.where(np.isneginf(bias), bias, np.clip(bias, -c.LARGEST, c.LARGEST)).astype(np.float32)
        samplers = params.samplers
        if self._greedy:
            samplers = tuple(name for name in samplers if name in ("penalties", "dry"))
        elif params.mirostat:
            samplers = ("temperature",)
            self._mirostat = Mirostat(params.mirostat, params.mirostat_tau, params.mirostat_eta, n_vocab)
        active = [(name, text) for name in samplers if (text := _describe(name, params))]
        breakers: Breakers = {}
        if spelling is not None and any(name == "dry" for name, _ in active):
            breakers = find_breakers(params.dry_sequence_breakers, spelling)
        names = [name for name, _ in active]
        # Logits that change one by one may change before the grammar takes tokens out; what compares them comes behind.
        single = next((i for i, name in enumerate(names) if name not in ("penalties", "dry")), len(names))
        self._singly = [self._step(name, params, breakers) for name in names[:single]]
        self._chain = [self._step(name, params, breakers) for name in names[single:]]
        self._constraint = constraint
        first = names[single : single + 1]
        self._most = 1 if self._greedy else params.top_k if first == ["top_k"] else 0
        biased = [f"logit_bias {len(self._bias)} tokens"] if len(self._bias) else []
        if self._mirostat is not None:
            target = f"mirostat {params.mirostat} tau={params.mirostat_tau:g} eta={params.mirostat_eta:g}"
            active.append(("mirostat", target))
        last = "greedy" if self._greedy else "draw" if params.seed is None else f"draw seed={params.seed}"
        self._description = [*biased, *(text for _, text in active), last]

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, and none drawn."""
        return self._greedy

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

    def candidates(self, logits: NDArray[np.float32] | TopLogits, history: Sequence[int]) -> Candidates:
        """What the chain leaves to draw from; their softmax is the distribution of the next token. Arguments and
        errors as in `sample`; `most_wanted` of the largest logits, or more, are enough where that is not 0."""
        remaining = _front(logits) if isinstance(logits, TopLogits) else self._possible(logits, history)
        for step in self._chain:
            remaining = step(remaining, history)
        return remaining if self._mirostat is None else self._mirostat.narrow(remaining)

    def _possible(self, logits: NDArray[np.float32], history: Sequence[int]) -> Candidates:
        """The whole vocabulary with what comes before the chain: bias, what changes logits singly, a grammar."""
        if logits.shape != (self._n_vocab,):
            raise DeviceError(f"The model produced {logits.shape} numbers where {self._n_vocab} belong.")
        _check_finite(logits)
        remaining = Candidates(None, self._biased(logits) if len(self._bias) else logits)
        for step in self._singly:
            remaining = step(remaining, history)
        return remaining if self._constraint is None else restricted(remaining, self._constraint, self._most)

    @property
    def most_wanted(self) -> int:
        """How many of the largest logits are all that the chain looks at, whatever was said so far; 0: all of them."""
        if len(self._bias) or self._singly or self._constraint is not None or self._mirostat is not None:
            return 0
        return self._most

    def accept(self, token: int) -> None:
        """Says that this token follows, whoever chose it; what depends on the past moves on."""
        if self._mirostat is not None:
            self._mirostat.accept(token)
        if self._constraint is not None:
            self._constraint.accept(token)

    def forced_tokens(self) -> list[int]:
        """Tokens that follow without being drawn: the grammar leaves no choice. `accept` has yet to hear of them."""
        return [] if self._constraint is None else self._constraint.forced_tokens()

    @property
    def must_stop(self) -> bool:
        """Nothing can follow, and the vocabulary has no end token that would say so."""
        return self._constraint is not None and self._constraint.must_stop

    def _step(self, name: str, params: SamplingParams, breakers: Breakers) -> Step:
        p = params
        dynamic = p.dynatemp_range > 0 and not p.mirostat
        steps: dict[str, Step] = {
            "penalties": lambda now, history: c.penalties(
                now, _last(history, p.repeat_last_n), p.repeat_penalty, p.presence_penalty, p.frequency_penalty
            ),
            "dry": lambda now, history: dry(
                now,
                _last(history, p.dry_penalty_last_n),
                p.dry_multiplier,
                p.dry_base,
                p.dry_allowed_length,
                breakers,
            ),
            "top_n_sigma": lambda now, history: c.top_n_sigma(now, p.top_n_sigma),
            "top_k": lambda now, history: c.top_k(now, p.top_k),
            "typical_p": lambda now, history: c.typical_p(now, p.typical_p),
            "top_p": lambda now, history: c.top_p(now, p.top_p),
            "min_p": lambda now, history: c.min_p(now, p.min_p),
            "xtc": lambda now, history: (
                c.xtc(now, p.xtc_threshold) if self._random.random() <= p.xtc_probability else now
            ),
            "temperature": lambda now, history: (
                c.dynamic_temperature(now, p.temperature, p.dynatemp_range, p.dynatemp_exponent)
                if dynamic
                else c.temperature(now, p.temperature)
            ),
        }
        return steps[name]

    def _biased(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if logits.max() == -math.inf:
            raise RequestError("logit_bias bans every token of the vocabulary.", "Leave at least one.")
        return logits

    def draw(self, remaining: Candidates) -> int:
        """One of the candidates: the first most likely one when greedy, else by their probabilities."""
        if self._greedy:
            place = 0 if remaining.descending else int(np.argmax(remaining.logits))
            return int(place if remaining.ids is None else remaining.ids[place])
        sums = np.cumsum(remaining.weights(), dtype=np.float64)
        place = np.searchsorted(sums, self._random.random() * sums[-1], side="right")
        # rounding may put the product onto the last sum; its first place is the last token that is possible
        place = min(place, np.searchsorted(sums, sums[-1]))
        return int(place if remaining.ids is None else remaining.ids[place])


def _last(history: Sequence[int], n: int) -> Sequence[int]:
    return history if n < 0 else history[-n:] if n else ()


def _front(logits: TopLogits) -> Candidates:
    if not logits.finite:
        raise _invalid_logits("some")
    return Candidates(logits.ids, logits.logits, descending=True)


def _check_finite(logits: NDArray[np.float32]) -> None:
    # argmax and argmin stop at the first NaN, and both are a fraction of the cost of isfinite
    if not (math.isfinite(logits[np.argmax(logits)]) and math.isfinite(logits[np.argmin(logits)])):
        raise _invalid_logits(f"{np.count_nonzero(~np.isfinite(logits))} of {len(logits)}")


def _invalid_logits(which: str) -> DeviceError:
    return DeviceError(
        f"The model produced invalid numbers ({which} logits are NaN or infinite).",
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
        case "dry":
            p = params
            if p.dry_multiplier == 0 or p.dry_base < 1 or p.dry_penalty_last_n == 0:
                return ""
            return (
                f"dry multiplier={p.dry_multiplier:g} base={p.dry_base:g} allowed={p.dry_allowed_length} "
                f"last={p.dry_penalty_last_n}"
            )
        case "top_n_sigma":
            return f"top_n_sigma {params.top_n_sigma:g}" if params.top_n_sigma > 0 else ""
        case "xtc":
            p = params
            if p.xtc_probability == 0 or p.xtc_threshold > 0.5:
                return ""
            return f"xtc probability={p.xtc_probability:g} threshold={p.xtc_threshold:g}"
        case _:
            p = params
            if p.dynatemp_range > 0 and not p.mirostat:
                return (
                    f"temperature {max(0.0, p.temperature - p.dynatemp_range):g} to "
                    f"{p.temperature + p.dynatemp_range:g} exponent={p.dynatemp_exponent:g}"
                )
            return f"temperature {p.temperature:g}" if p.temperature != 1 else ""
