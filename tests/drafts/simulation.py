"""Serving on a clock of its own: steps take what a formula says, so that what guessing gains can be asserted."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.api import DraftKind, DraftOptions, Event, Figures, Finished, GenerateRequest, SamplingParams, Token
from engine.batch import Batch
from engine.drafts.fit import SharedTokens
from engine.drafts.guess import Guess
from engine.drafts.model import ModelDrafter
from engine.drafts.speculation import Planned, Speculation
from engine.sequence import Sequence as Sequence_
from engine.serving import Serving
from engine.stream import Stream
from tests.engine.fakes import GREEDY, N_VOCAB, FakeBundle, FakeModel, History, hashed_logits

Logits = Callable[[History], np.ndarray[Any, np.dtype[np.float32]]]
CLOCKS = ("engine.serving.perf_counter", "engine.drafts.speculation.perf_counter", "engine.drafts.model.perf_counter")


@dataclass
class Clock:
    now: float = 1.0

    def __call__(self) -> float:
        return self.now

    def steps(self, first_row_s: float, row_s: float) -> Callable[[Batch], None]:
        """What FakeModel calls before a step: lets the step's time pass."""

        def before(batch: Batch) -> None:
            self.now += first_row_s + row_s * (len(batch.tokens) - 1)

        return before


def agreeing(rate: float) -> Logits:
    """A draft whose likeliest token is that of `hashed_logits` in this share of the places, else some other."""

    def logits(history: History) -> np.ndarray[Any, np.dtype[np.float32]]:
        out = hashed_logits(history)
        place = zlib.crc32(b"draft" + np.array(history, np.int32).tobytes())
        if place % 1000 >= 1000 * rate:
            out = np.roll(out, 1 + place % 7)
        return out

    return logits


def bundle(logits: Logits = hashed_logits, before: Callable[[Batch], None] = lambda batch: None, **sizes: int) -> Any:
    model = FakeModel(sizes.get("n_blocks", 64), sizes.get("max_rows", 64), logits, before)
    return FakeBundle(model)


def serving_with(target: Any, draft: FakeModel | None = None, shared: np.ndarray[Any, Any] | None = None) -> Serving:
    serving = Serving(target.model, target.tokenizer, target.template, target.info)
    if draft is not None:
        everything = np.ones(N_VOCAB, np.bool_) if shared is None else shared
        tokens = SharedTokens(everything, np.arange(N_VOCAB, dtype=np.int32))
        context = draft.n_blocks * 32
        serving.speculation.set_drafter(DraftKind.MODEL, ModelDrafter(draft, tokens, N_VOCAB, context))
    return serving


def drafter_of(serving: Serving) -> ModelDrafter:
    drafter = serving.speculation._drafters[DraftKind.MODEL]
    assert isinstance(drafter, ModelDrafter)
    return drafter


@dataclass
class Asked:
    request: GenerateRequest
    stream: Stream
    events: list[Event] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, Token)]

    @property
    def figures(self) -> Figures:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last.figures


def ask(
    serving: Serving,
    prompt: Sequence[int] = (1, 2, 3),
    n: int = 100,
    draft: DraftOptions | None = None,
    sampling: SamplingParams = GREEDY,
    **more: Any,
) -> Asked:
    request = GenerateRequest(
        prompt_tokens=list(prompt), max_tokens=n, sampling=sampling, draft=draft, **{"ignore_eos": True, **more}
    )
    stream = Stream()
    assert stream.claim()
    serving.add(stream, request, 1.0)
    return Asked(request, stream)


def run(serving: Serving, *asked: Asked) -> None:
    """Steps until everything is answered."""
    while serving.busy:
        serving.step()
    for one in asked:
        one.events += one.stream.poll()


class Always:
    """A drafter whose guesses are checked whether they pay or not: right ones, wrong ones, and both mixed."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length  # None: what the request begins with

    def propose(self, speculation: Speculation, sequences: Sequence[Sequence_], n_plain: int) -> list[Planned]:
        out = []
        for sequence in sequences:
            history, guess = list(sequence.tokens), Guess()
            assert sequence.drafting is not None
            length = sequence.drafting.at_start if self.length is None else self.length
            for place in range(min(length, sequence.guess_room)):
                token = int(hashed_logits(tuple(history)).argmax())
                if (len(history) * 7 + place) % 5 == 0:
                    token = (token + 1) % 256
                guess.tokens.append(token)
                guess.confidences.append(0.5)
                history.append(token)
            out.append(Planned(sequence, sequence.drafting, guess, probe=len(guess.tokens)))
        return out

    def forget(self, sequence: Sequence_) -> None:
        pass
