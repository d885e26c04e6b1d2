"""A loaded model while it serves requests: everything here runs on the engine's thread."""

from __future__ import annotations

import dataclasses
import logging
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from engine.answer_text import AnswerText
from engine.api import (
    Failed,
    Figures,
    Finished,
    GenerateRequest,
    ModelInfo,
    PrefillProgress,
    Started,
    StopReason,
    Token,
)
from engine.batch import LoadedModel
from engine.chat_template import PLAIN_CHAT_TEMPLATE, ChatTemplate
from engine.errors import DeviceError, OutOfMemoryError, RealmError
from engine.request import check_request, prompt_tokens
from engine.sampling import Sampler, log_probabilities
from engine.scheduler import Scheduler, Step
from engine.sequence import Limits, Meter, Sequence
from engine.stream import Stream
from engine.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Serving:
    """The requests that one model works on. `figures` are those of the request that ran last, or runs now."""

    def __init__(
        self, model: LoadedModel, tokenizer: Tokenizer, template: ChatTemplate | None, info: ModelInfo
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.plain_template = ChatTemplate(PLAIN_CHAT_TEMPLATE)
        self.template = template or self.plain_template
        self._scheduler = Scheduler(model.n_blocks, model.max_rows, info.context_length)
        self._meter = Meter(model.weight_bytes_per_token, model.read_bandwidth())
        # the output may be padded with rows that are no tokens; those are never drawn
        self._n_vocab = min(model.n_vocab, tokenizer.n_vocab)
        self.info = dataclasses.replace(info, context_length=self._scheduler.context_length)
        self.figures: Figures | None = None

    @property
    def n_active(self) -> int:
        return len(self._scheduler.running)

    @property
    def n_queued(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def busy(self) -> bool:
        return bool(self._scheduler.running or self._scheduler.waiting)

    def add(self, stream: Stream, request: GenerateRequest, submitted: float) -> None:
        """Queues a request. Raises a RealmError when something is wrong with it."""
        check_request(request)
        sampler = Sampler(request.sampling, self._n_vocab, self.tokenizer)
        template = self.plain_template if request.plain_template else self.template
        tokens = prompt_tokens(request, self.tokenizer, template, self._n_vocab)
        # a request that ignores end tokens takes them for text like any other, so that its text spells all its tokens
        end_tokens = frozenset[int]() if request.ignore_eos else self.tokenizer.end_tokens
        decoder = self.tokenizer.stream_decoder(keep_special=request.ignore_eos)
        self._scheduler.add(
            Sequence(
                tokens,
                context_length=self._scheduler.context_length,
                max_blocks=self._scheduler.max_blocks,
                sampler=sampler,
                text=AnswerText(decoder, request.stop),
                limits=Limits(request.max_tokens, end_tokens),
                stream=stream,
                submitted=submitted,
                logprobs=request.logprobs,
            )
        )

    def step(self) -> None:
        """One forward pass and what follows from it. Raises DeviceError when the device failed."""
        self._end_cancelled()
        step = self._scheduler.schedule()
        if step is None:
            return
        self._announce(step)
        logits = self._forward(step)
        if logits is None:
            return
        self._scheduler.advance(step)
        row = 0
        for rows in step.rows:
            sequence = rows.sequence
            if not sequence.n_generated:
                sequence.stream.put(PrefillProgress(sequence.n_computed, sequence.n_prompt))
            if rows.samples:
                self._continue(sequence, logits[row])
                row += 1

    def suspend_all(self) -> None:
        self._scheduler.suspend_all()

    def fail_all(self, reason: RealmError) -> None:
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._fail(sequence, reason)

    def _end_cancelled(self) -> None:
        scheduler = self._scheduler
        for sequence in [*scheduler.running, *scheduler.waiting]:
            if sequence.stream.cancelled:
                self._finish(sequence, StopReason.CANCELLED)

    def _announce(self, step: Step) -> None:
        for rows in step.rows:
            sequence = rows.sequence
            if not sequence.started:
                sequence.start(perf_counter())
                sequence.stream.put(Started(sequence.n_prompt, sequence.context_length))

    def _forward(self, step: Step) -> NDArray[np.float32] | None:
        """The logits, or None when the step failed in a way that leaves the model usable."""
        try:
            return self.model.forward(step.batch)
        except DeviceError:
            raise
        except MemoryError:
            error: RealmError = OutOfMemoryError("There was not enough memory for this step.", "Close other programs.")
        except Exception as failure:
            log.exception("A step failed")
            error = RealmError(
                f"Computing this answer failed ({type(failure).__name__}: {failure}).",
                "This is a mistake in the program; please report it.",
            )
        for rows in step.rows:
            self._fail(rows.sequence, error)
        return None

    def _continue(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        try:
            logits = logits[: self._n_vocab]
            token = sequence.sampler.sample(logits, sequence.tokens)
            now = perf_counter()
            text, reason = sequence.append(token, now)
            self.figures = sequence.figures(self._meter, now)
            event = Token(token, text, self.figures)
            if sequence.logprobs:
                logprob, alternatives = log_probabilities(logits, token, sequence.logprobs)
                event = dataclasses.replace(event, logprob=logprob, alternatives=alternatives)
            sequence.stream.put(event)
            if reason is not None:
                self._finish(sequence, reason)
        except RealmError as error:
            self._fail(sequence, error)
            if isinstance(error, DeviceError):
                self._scheduler.blocks.forget()  # invalid logits mean that its cached keys and values may be invalid
        except Exception as failure:
            log.exception("A request failed")
            self._fail(sequence, RealmError(f"This answer broke off ({type(failure).__name__}: {failure})."))

    def _finish(self, sequence: Sequence, reason: StopReason) -> None:
        self._scheduler.remove(sequence)
        self.figures = sequence.figures(self._meter, perf_counter())
        sequence.stream.put(Finished(reason, sequence.finish_text(), self.figures))

    def _fail(self, sequence: Sequence, error: RealmError) -> None:
        self._scheduler.remove(sequence)
        sequence.stream.put(Failed(error))
