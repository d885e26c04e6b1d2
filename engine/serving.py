"""A loaded model while it serves requests: everything here runs on the engine's thread."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequence_
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.adapters.base import AdapterBase
from engine.adapters.rack import AdapterRack
from engine.answer_text import AnswerText
from engine.api import (
    AdapterUse,
    ContextPolicy,
    DraftKind,
    Embeddings,
    Event,
    Failed,
    Figures,
    Finished,
    GenerateRequest,
    Message,
    ModelInfo,
    Pooling,
    PrefillProgress,
    Started,
    StopReason,
    Token,
)
from engine.batch import GivesTop, LoadedModel, Overlaps, TopLogits, nothing
from engine.chat_template import PLAIN_CHAT_TEMPLATE, ChatTemplate
from engine.context import DropOldest, Shift, Shortening, shorter_prompt
from engine.drafts.drafting import Drafting
from engine.drafts.fit import shared_tokens
from engine.drafts.guess import Guess, judge
from engine.drafts.layer import LayerDrafter
from engine.drafts.loaded import LoadedDraft, LoadedLayer
from engine.drafts.model import ModelDrafter
from engine.drafts.rows import RowsOfSteps
from engine.drafts.speculation import Speculation
from engine.embedding import EmbeddingWork, cannot_chat
from engine.errors import DeviceError, OutOfMemoryError, RealmError, RequestError
from engine.grammar import Grammars
from engine.job import Job
from engine.kv import prefix_keys
from engine.request import check_request, parallel_request, prompt_tokens
from engine.sampling import Sampler, log_probabilities
from engine.scheduler import LONGEST_JUMP, Scheduler, Step
from engine.sequence import Limits, Meter, Sequence
from engine.sessions import Identity, SessionKeeper
from engine.stream import Stream
from engine.tokenizer import Tokenizer

log = logging.getLogger(__name__)

LogitRow: TypeAlias = NDArray[np.float32] | TopLogits
"""What one token is chosen from: the logits of the vocabulary, or the largest of them."""


class Serving:
    """The requests that one model works on. `figures` are those of the request that ran last, or runs now."""

    def __init__(
        self,
        model: LoadedModel,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        info: ModelInfo,
        base: AdapterBase | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """wake: called from another thread when there is something to do again though `busy` said no."""
        self.model = model
        self._gives_top = model if isinstance(model, GivesTop) else None  # asking a protocol takes 12 us
        self.tokenizer = tokenizer
        self.plain_template = ChatTemplate(PLAIN_CHAT_TEMPLATE)
        self.template = template or self.plain_template
        self._scheduler = Scheduler(model.n_blocks, model.max_rows, info.context_length, model)
        self._meter = Meter(model.weight_bytes_per_token, model.read_bandwidth())
        # the output may be padded with rows that are no tokens; those are never drawn
        self._n_vocab = min(model.n_vocab, tokenizer.n_vocab)
        self._grammars = Grammars(tokenizer, self._n_vocab)
        self.speculation = Speculation(model.max_rows)
        self._rows = RowsOfSteps(model, self.speculation)
        self.draft_failed = False  # the draft model is not to be used any more
        if info.is_encoder:  # its cache has room for several texts of the longest kind
            self.info = info
        else:
            self.info = dataclasses.replace(info, context_length=self._scheduler.context_length)
        self.sessions = SessionKeeper(Identity(info.fingerprint, model.kv_layout, model.block_bytes), wake)
        self._embeddings: deque[EmbeddingWork] = deque()
        self.figures: Figures | None = None
        self.adapters = AdapterRack(model, base)
        self._events: list[tuple[Stream, Event]] = []  # that have not been handed out yet
        self._overlaps = isinstance(model, Overlaps)
        if isinstance(model, Overlaps):
            model.meanwhile = self.hand_out

    @property
    def n_active(self) -> int:
        return len(self._scheduler.running)

    @property
    def n_queued(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def busy(self) -> bool:
        return self._scheduler.ready or bool(self._embeddings)

    def set_draft(self, draft: LoadedDraft | LoadedLayer | None) -> None:
        """The draft model, or the layer of the model's own, that guesses from now on; None guesses nothing any more."""
        drafter: ModelDrafter | None = None
        if isinstance(draft, LoadedLayer):
            drafter = LayerDrafter(draft.model, self._n_vocab, draft.context_length)
        elif draft is not None:
            tokens = shared_tokens(self.tokenizer.vocabulary, draft.vocabulary)
            drafter = ModelDrafter(draft.model, tokens, self._n_vocab, draft.context_length)
        self.speculation.set_drafter(DraftKind.MODEL, drafter)
        self.draft_failed = False

    def add(self, stream: Stream, request: GenerateRequest, submitted: float) -> None:
        """Queues a request. Raises a RealmError when something is wrong with it."""
        self.add_parallel({0: stream}, request, submitted)

    def add_parallel(self, streams: Mapping[int, Stream], request: GenerateRequest, submitted: float) -> None:
        """Queues one request for several answers, numbered from 0, each with its stream; its prompt is computed once.

        Raises a RealmError when something is wrong with it; nothing is queued then.
        """
        self.need_decoder()
        check_request(request)
        tokens = self._prompt(request, request.messages)
        sequences = [
            self._sequence(stream, parallel_request(request, number), submitted, tokens)
            for number, stream in streams.items()
        ]
        for sequence in sequences:
            self._scheduler.add(sequence)
            self._begin_restoring(sequence)
            sequence.leader = None if sequence is sequences[0] else sequences[0]

    def _prompt(self, request: GenerateRequest, messages: Sequence_[Message] | None) -> list[int]:
        """The prompt of a checked request, with these messages in place of its own."""
        template = self.plain_template if request.plain_template else self.template
        request = dataclasses.replace(request, messages=messages)
        return prompt_tokens(request, self.tokenizer, template, self._n_vocab)

    def _shortening(self, request: GenerateRequest) -> Shortening | None:
        match request.context_policy:
            case ContextPolicy.STOP:
                return None
            case ContextPolicy.SHIFT:
                return Shift()
            case ContextPolicy.DROP_OLDEST:
                return DropOldest(request.messages or (), lambda messages: self._prompt(request, messages))

    def _sequence(self, stream: Stream, request: GenerateRequest, submitted: float, whole: list[int]) -> Sequence:
        """whole: the tokens of the prompt, however many."""
        self._check_draft(request)
        sampler = Sampler(request.sampling, self._n_vocab, self.tokenizer, self._grammars.constraint(request))
        drafting = None if request.draft is None else Drafting(request.draft, request.sampling, sampler.greedy)
        shortening, tokens = self._shortening(request), whole
        if shortening is not None:
            tokens = shorter_prompt(shortening, whole, self._scheduler.context_length, request.max_tokens)
        # a request that ignores end tokens takes them for text like any other, so that its text spells all its tokens
        end_tokens = frozenset[int]() if request.ignore_eos else self.tokenizer.end_tokens
        decoder = self.tokenizer.stream_decoder(keep_special=request.ignore_eos)
        adapters = self.adapters.resolve(request.adapters, self._adapters_in_use())
        sequence = Sequence(
            list(tokens),
            context_length=self._scheduler.context_length,
            max_blocks=self._scheduler.max_blocks,
            sampler=sampler,
            text=AnswerText(decoder, request.stop),
            limits=Limits(request.max_tokens, end_tokens),
            stream=stream,
            submitted=submitted,
            priority=request.priority,
            session=request.session,
            shortening=shortening,
            logprobs=request.logprobs,
            drafting=drafting,
            adapters=adapters.uses,
            adapter_key=adapters.key,
        )
        sequence.n_dropped = len(whole) - len(tokens)
        return sequence

    def _check_draft(self, request: GenerateRequest) -> None:
        if request.draft is not None and not self.speculation.has(request.draft.kind):
            raise RequestError(
                "The request asks for guesses of a draft model, but none is loaded.",
                "Load one that fits this model, or guess from the text itself (n-gram).",
            )

    def set_adapters(self, stream: Stream, uses: Sequence_[AdapterUse]) -> None:
        """Changes what acts on a running request; its tokens are computed anew, so nothing of the old set remains.

        Raises RequestError when the request has ended, and what AdapterRack.resolve raises.
        """
        scheduler = self._scheduler
        sequence = next((s for s in [*scheduler.running, *scheduler.waiting] if s.stream is stream), None)
        if sequence is None:
            raise RequestError("This answer has ended, so its adapters cannot change any more.")
        adapters = self.adapters.resolve(uses, self._adapters_in_use())
        if adapters.key != sequence.adapter_key:
            self._rows.forget(sequence)
            sequence.adapters, sequence.adapter_key = adapters.uses, adapters.key
            scheduler.restart(sequence)

    def _adapters_in_use(self) -> set[int]:
        sequences = [*self._scheduler.running, *self._scheduler.waiting]
        return {number for sequence in sequences for number, _ in sequence.adapters}

    def need_decoder(self) -> None:
        """Raises RequestError where the model is an encoder."""
        if self.info.is_encoder:
            raise cannot_chat(self.info.name)

    def embed(
        self, job: Job[Embeddings], texts: Sequence_[str], pooling: Pooling | None, *, normalise: bool, truncate: bool
    ) -> None:
        """Queues texts to embed; the job ends with them. Raises a RealmError when something is wrong with one."""
        self._embeddings.append(
            EmbeddingWork(
                job,
                texts,
                pooling=pooling,
                normalise=normalise,
                truncate=truncate,
                tokenizer=self.tokenizer,
                model=self.model,
                info=self.info,
            )
        )

    def step(self) -> None:
        """One forward pass of the running requests and one of texts to embed, and what follows from them.

        Where the model Overlaps, the events of a step are handed out when the next one has been queued, or by hand_out.
        Raises DeviceError when the device failed.
        """
        self._step_requests()
        if self._embeddings:
            self._step_embeddings()
        if not self._overlaps or not self.busy:
            self.hand_out()

    def hand_out(self) -> None:
        """Puts all events so far into their streams."""
        events, self._events = self._events, []
        for stream, event in events:
            stream.put(event)

    def _step_embeddings(self) -> None:
        work, scheduler = self._embeddings[0], self._scheduler
        try:
            if not work.step(scheduler.blocks, alone=not scheduler.running):
                return
        except DeviceError:
            raise
        except Exception as failure:
            log.exception("Embedding failed")
            work.job.fail(
                failure
                if isinstance(failure, RealmError)
                else RealmError(
                    f"Embedding failed ({type(failure).__name__}: {failure}).",
                    "This is a mistake in the program; please report it.",
                )
            )
        if work.job.done():
            self._embeddings.popleft()

    def _step_requests(self) -> None:
        self._end_cancelled()
        self._take_restored()
        self._propose()
        step = self._scheduler.schedule()
        if step is None:
            self.hand_out()
            return
        self._announce(step)
        began = perf_counter()
        logits = self._forward(step)
        if logits is None:
            return
        computed = perf_counter()
        self._rows.set_aside(step)
        only_decodes = all(rows.samples and rows.count == 1 for rows in step.rows)
        self._scheduler.pace.measured(len(step.batch.tokens), computed - began, waited=len(logits) > 0)
        self._scheduler.advance(step)
        row = 0
        new: list[tuple[Sequence, int]] = []
        for rows in step.rows:
            sequence = rows.sequence
            if not sequence.n_generated:
                self._put(sequence, PrefillProgress(sequence.n_computed, sequence.n_prompt))
            if rows.samples:
                before, wanted = sequence.n_generated, 1 + len(rows.guesses)
                if not sequence.n_generated:
                    self._fork(sequence, logits[row : row + 1])
                self._continue(sequence, logits[row : row + wanted])
                new.append((sequence, sequence.n_generated - before))
                self._jump_ahead(sequence)
                row += wanted
        if only_decodes:
            times = computed - began, perf_counter() - computed
            self.speculation.measured(len(step.rows), len(step.batch.tokens), *times, new)
        failure = self._rows.hand_on(rows.sequence for rows in step.rows)
        if failure is not None:
            self._guessing_failed(failure)

    def _propose(self) -> None:
        """Guesses at what follows the sequences that decode. When that fails, the requests that guess fail with it, and
        the draft model is given up; the others go on."""
        decoding = [s for s in self._scheduler.running if s.n_generated and s.n_pending == 1]
        try:
            self.speculation.propose(decoding)
        except Exception as failure:
            self._guessing_failed(failure)

    def _guessing_failed(self, failure: Exception) -> None:
        log.error("Guessing failed", exc_info=failure)
        cause = failure.message if isinstance(failure, RealmError) else f"{type(failure).__name__}: {failure}"
        error = RealmError(
            f"Guessing tokens failed: {cause}", "Send it again without guesses, or load the draft model again."
        )
        self.draft_failed = self.speculation.has(DraftKind.MODEL)
        self.speculation.set_drafter(DraftKind.MODEL, None)
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.drafting is not None:
                self._fail(sequence, error)

    def close(self) -> None:
        """Waits until sessions are saved, then lets go of the model."""
        self.sessions.close()
        if isinstance(self.model, Overlaps):
            self.model.meanwhile = nothing
        self.model.close()

    def _begin_restoring(self, sequence: Sequence) -> None:
        """Has the part of the prompt that the cache does not hold looked for in the session's file."""
        if sequence.session is None:
            return
        keys = list(prefix_keys(sequence.tokens, sequence.adapter_key))
        known = len(self._scheduler.blocks.match(sequence.tokens, sequence.adapter_key))
        if known < len(keys):
            sequence.restoring = self.sessions.read(sequence.session, keys, known)

    def _take_restored(self) -> None:
        for sequence in self._scheduler.waiting:
            if sequence.restoring is not None and sequence.restoring.done():
                restored = sequence.restoring.result()
                sequence.restoring, sequence.note = None, restored.note
                self._scheduler.restored(sequence, restored.first, restored.data)

    def _save_session(self, sequence: Sequence) -> None:
        """Has the sequence's full blocks written to its session's file."""
        path, keys = sequence.session, sequence.block_keys
        if path is None or not keys:
            return
        first = self.sessions.n_on_disk(path, keys)
        if first == len(keys):
            return
        try:
            data = self.model.read_blocks(sequence.blocks[first : len(keys)])
        except MemoryError:
            log.warning("There is not enough memory to save the session %s", path.name)
            return
        self.sessions.save(path, list(keys), first, data)

    def suspend_all(self) -> None:
        self._scheduler.suspend_all()
        for work in self._embeddings:
            work.suspend(self._scheduler.blocks)

    def fail_all(self, reason: RealmError) -> None:
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._fail(sequence, reason)
        for work in self._embeddings:
            work.end(self._scheduler.blocks)
            work.job.fail(reason)
        self._embeddings.clear()
        self.hand_out()

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
                self._put(sequence, Started(sequence.n_prompt, sequence.context_length, sequence.note))

    def _fork(self, parent: Sequence, logits: Sequence_[LogitRow]) -> None:
        """Begins the other answers to the parent's prompt, which has just been computed."""
        for sequence in self._scheduler.fork(parent):
            sequence.start(perf_counter())
            self._put(sequence, Started(sequence.n_prompt, sequence.context_length, sequence.note))
            self._put(sequence, PrefillProgress(sequence.n_computed, sequence.n_prompt))
            self._continue(sequence, logits)
            self._jump_ahead(sequence)

    def _top_wanted(self, step: Step) -> int:
        """How many of the largest logits of each row are all that anybody looks at; 0: somebody wants all."""
        sampling = [rows.sequence for rows in step.rows if rows.samples]
        wanted = [0 if s.logprobs else s.sampler.most_wanted for s in sampling]
        most = self._gives_top.most_top if self._gives_top is not None else 0
        return max(wanted) if wanted and min(wanted) > 0 and max(wanted) <= most else 0

    def _forward(self, step: Step) -> list[LogitRow] | None:
        """What tokens are chosen from, or None when the step failed in a way that leaves the model usable."""
        top = self._top_wanted(step)
        try:
            if top and self._gives_top is not None:
                return [*self._gives_top.top(step.batch, top, self._n_vocab)]
            return [*self.model.forward(step.batch)[:, : self._n_vocab]]
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

    def _continue(self, sequence: Sequence, logits: Sequence_[LogitRow]) -> None:
        """Chooses the next tokens of a sequence from the logits of its last token and of the guesses that the step
        checked: as many as these turn out to be right, and one more."""
        guess = sequence.guess or Guess()
        try:
            for place, row in enumerate(logits):
                guessed = place < len(logits) - 1
                reason, accepted = self._next_token(sequence, row, guess, place if guessed else None)
                if reason is not None:
                    self._finish(sequence, reason)
                    return
                if not accepted or self._forced(sequence):  # what a grammar forces is not chosen, guessed or not
                    break
            if guess.tokens:
                self._scheduler.drop_guesses(sequence)
            if sequence.is_full:
                self._make_room(sequence)
        except RealmError as error:
            if isinstance(error, DeviceError) and sequence.adapters:
                error.hint = "Adapters act on this answer: try with less strength, or without them."
            self._fail(sequence, error)
            if isinstance(error, DeviceError):
                self._scheduler.blocks.forget()  # invalid logits mean that its cached keys and values may be invalid
        except Exception as failure:
            log.exception("A request failed")
            self._fail(sequence, RealmError(f"This answer broke off ({type(failure).__name__}: {failure})."))

    def _make_room(self, sequence: Sequence) -> None:
        """Has a sequence whose context is full go on without its oldest tokens, or ends it."""
        self._rows.forget(sequence)
        if sequence.shorten():
            self._scheduler.restart(sequence)
        else:
            self._finish(sequence, StopReason.CONTEXT)

    def _next_token(
        self, sequence: Sequence, logits: LogitRow, guess: Guess, place: int | None
    ) -> tuple[StopReason | None, bool]:
        """Adds a token and hands it out. place: of the guess that is checked, None where there is none. Returns why the
        answer ends, and whether the guess was right."""
        sampler = sequence.sampler
        candidates = sampler.candidates(logits, sequence.tokens)
        accepted = False
        if place is None:
            token = sampler.draw(candidates)
        else:
            assert sequence.drafting is not None
            drawn_from = guess.distributions[place] if guess.distributions else None
            token = judge(sampler, candidates, guess.tokens[place], drawn_from, sequence.drafting.uniform)
            accepted = token == guess.tokens[place]
        sampler.accept(token)
        now = perf_counter()
        text, reason = sequence.append(token, now)
        if place is not None:
            self.speculation.judged(sequence, guess.confidences[place], accepted)
            if accepted:
                self._scheduler.keep_guess(sequence)
        self.figures = sequence.figures(self._meter, now)
        event = Token(token, text, self.figures, accepted)
        if sequence.logprobs and not isinstance(logits, TopLogits):
            logprob, alternatives = log_probabilities(logits, token, sequence.logprobs)
            event = dataclasses.replace(event, logprob=logprob, alternatives=alternatives)
        self._put(sequence, event)
        return reason, accepted

    @staticmethod
    def _forced(sequence: Sequence) -> list[int]:
        """Tokens that the grammar of an answer forces; none where their log probabilities are asked for, as tokens that
        were not drawn have none to tell."""
        if sequence.logprobs or sequence.ended:
            return []
        return sequence.sampler.forced_tokens()[: LONGEST_JUMP - 1]

    def _jump_ahead(self, sequence: Sequence) -> None:
        """Adds the tokens that the grammar of an answer forces; the next step computes them all at once."""
        try:
            forced = self._forced(sequence)
        except RealmError as error:
            self._fail(sequence, error)
            return
        for token in forced:
            sequence.guess = None
            sequence.sampler.accept(token)
            now = perf_counter()
            text, reason = sequence.append(token, now)
            self.figures = sequence.figures(self._meter, now)
            self._put(sequence, Token(token, text, self.figures))
            if reason is not None:
                self._finish(sequence, reason)
                return
            if sequence.is_full:
                self._make_room(sequence)
                return

    def _finish(self, sequence: Sequence, reason: StopReason) -> None:
        self._save_session(sequence)
        self._rows.end(sequence)
        self._scheduler.remove(sequence)
        self.speculation.forget(sequence)
        self.figures = sequence.figures(self._meter, perf_counter())
        sequence.ended = True
        self._put(sequence, Finished(reason, sequence.finish_text(), self.figures))

    def _fail(self, sequence: Sequence, error: RealmError) -> None:
        self._rows.forget(sequence)
        self._scheduler.remove(sequence)
        self.speculation.forget(sequence)
        sequence.ended = True
        self._put(sequence, Failed(error))

    def _put(self, sequence: Sequence, event: Event) -> None:
        self._events.append((sequence.stream, event))
