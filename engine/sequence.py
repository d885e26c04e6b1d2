"""One request while it is worked on."""

from __future__ import annotations

from collections.abc import Set
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.adapters.runs import AdapterSet
from engine.answer_text import AnswerText
from engine.api import Figures, StopReason
from engine.context import Shortening
from engine.drafts.drafting import Drafting
from engine.drafts.guess import Guess
from engine.kv import Key
from engine.sampling import Sampler
from engine.sessions import Restored
from engine.stream import Stream
from engine.swap import SavedBlocks


@dataclass(frozen=True)
class Limits:
    """When an answer ends by itself. end_tokens is empty where the request ignores them."""

    max_tokens: int | None
    end_tokens: Set[int]


@dataclass(frozen=True)
class Meter:
    """What turns tokens per second into memory bandwidth. Bytes, and bytes/s where it was measured."""

    weight_bytes_per_token: int = 0
    read_bandwidth: float | None = None


@dataclass(frozen=True)
class Turn:
    """Whose tokens are computed first: the higher priority, then the smaller `finish`.

    finish: how many rows of prompts will have been computed once this one's are, if from its arrival on they were
        computed without a pause. So the shortest goes first, but not before one that has waited so long that its own
        tokens could have been computed since it came.
    """

    priority: int = 0
    finish: int = 0
    arrival: int = 0


class Sequence:
    """Tokens of one request, the KV blocks that hold them, and how its answer goes on.

    tokens: prompt and answer so far. n_computed: how many of them have their keys and values in `blocks`.
    block_table: int32 [max_blocks], `blocks` padded with 0, as `Batch` wants it.
    block_keys: content keys of the full computed blocks.
    drafting: how its next tokens are guessed, where they are. guess: what the next step checks. made: what the last
    step kept of its rows, and the position of the first of them, where a layer of the model guesses.
    adapters, adapter_key: what acts on it, and the key that its blocks' keys begin with.
    saved: the start of the tokens' keys and values in host memory, while it waits.
    leader: a sequence with the same prompt, which is computed for both; until then this one waits.
    shortening, n_dropped: how it goes on when the context is full (None: not at all), and how many tokens that cost.
    session, restoring, note: the file that keeps its keys and values, what is being read from it (until that is there
        the sequence waits), and a sentence if that did not go well.
    """

    def __init__(
        self,
        prompt: list[int],
        *,
        context_length: int,
        max_blocks: int,
        sampler: Sampler,
        text: AnswerText,
        limits: Limits,
        stream: Stream,
        submitted: float,
        adapters: AdapterSet = (),
        adapter_key: Key = b"",
        logprobs: int = 0,
        drafting: Drafting | None = None,
        priority: int = 0,
        session: Path | None = None,
        shortening: Shortening | None = None,
    ) -> None:
        self.tokens = prompt
        self.n_prompt = len(prompt)
        self.n_computed = 0
        self.n_cached = 0
        self.context_length = context_length
        self.blocks: list[int] = []
        self.block_table: NDArray[np.int32] = np.zeros(max_blocks, np.int32)
        self.block_keys: list[Key] = []
        self.adapters = adapters
        self.adapter_key = adapter_key
        self.turn = Turn(priority)
        self.saved: SavedBlocks | None = None
        self.leader: Sequence | None = None
        self.session = session
        self.shortening = shortening
        self.n_dropped = 0
        self._removed = 0  # tokens by which the context has been cut since the answer began
        self._n_prompt_kept = self.n_prompt  # how many of the tokens are the prompt
        self.restoring: Future[Restored] | None = None
        self.note = ""
        self.sampler = sampler
        self.logprobs = logprobs
        self.stream = stream
        self.ended = False  # nothing follows in its stream
        self.drafting = drafting
        self.guess: Guess | None = None
        self.made: tuple[int, NDArray[np.float32]] | None = None
        self._text = text
        self._limits = limits
        self._submitted = submitted
        self._started = 0.0
        self._first_token = 0.0
        self._last_token = 0.0

    @property
    def held(self) -> bool:
        """It cannot join yet."""
        return self.leader is not None or (self.restoring is not None and not self.restoring.done())

    @property
    def n_generated(self) -> int:
        return len(self.tokens) + self._removed - self.n_prompt

    @property
    def n_pending(self) -> int:
        """Tokens that still have to go through the model before the next one can be sampled."""
        return len(self.tokens) - self.n_computed

    @property
    def guess_room(self) -> int:
        """How many guesses can become part of the answer: one more token always follows them."""
        room = self.context_length - len(self.tokens) - 1
        most = self._limits.max_tokens
        return max(room if most is None else min(room, most - self.n_generated - 1), 0)

    @property
    def started(self) -> bool:
        return self._started > 0

    def start(self, now: float) -> None:
        """Work begins; says how many tokens of the prompt the cache already held."""
        self._started = now
        self.n_cached = self.n_computed

    def append(self, token: int, now: float) -> tuple[str, StopReason | None]:
        """Adds a sampled token. Returns the text that became certain, and why the answer ends here if it does."""
        self.tokens.append(token)
        self._last_token = now
        if self.n_generated == 1:
            self._first_token = now
        limits = self._limits
        if token in limits.end_tokens:
            return "", StopReason.EOS
        text = self._text.push(token)
        if self._text.stopped:
            return text, StopReason.STOP
        if self.sampler.must_stop:
            return text, StopReason.STOP
        if self.n_generated == limits.max_tokens:
            return text, StopReason.LENGTH
        if self.is_full and self.shortening is None:
            return text, StopReason.CONTEXT
        return text, None

    @property
    def is_full(self) -> bool:
        return len(self.tokens) >= self.context_length

    def shorten(self) -> bool:
        """Cuts the full context by the request's policy; False when that is not possible."""
        assert self.shortening is not None
        tokens = self.shortening.answer(self.tokens, self._n_prompt_kept, self.context_length)
        if tokens is None:
            return False
        removed = len(self.tokens) - len(tokens)
        self._n_prompt_kept -= min(removed, self._n_prompt_kept)
        self._removed += removed
        self.n_dropped += removed
        self.tokens[:] = tokens
        return True

    def finish_text(self) -> str:
        return self._text.finish()

    def figures(self, meter: Meter, now: float) -> Figures:
        """What has been measured up to now. The first token belongs to prefill, decoding is what follows it."""
        generated = self.n_generated
        prefill_s = decode_s = first_s = 0.0
        if generated:
            first_s = self._first_token - self._submitted
            prefill_s = self._first_token - self._started
            decode_s = self._last_token - self._first_token
        elif self._started:
            prefill_s = now - self._started
        computed = self.n_prompt if generated else min(self.n_computed, self.n_prompt)
        decode_rate = (generated - 1) / decode_s if decode_s > 0 else 0.0
        bytes_per_s = decode_rate * meter.weight_bytes_per_token
        share = bytes_per_s / meter.read_bandwidth if meter.read_bandwidth and bytes_per_s else None
        return Figures(
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            generated_tokens=generated,
            queue_s=(self._started or now) - self._submitted,
            prefill_s=prefill_s,
            decode_s=decode_s,
            time_to_first_token_s=first_s,
            prefill_tokens_per_s=max(computed - self.n_cached, 0) / prefill_s if prefill_s > 0 else 0.0,
            decode_tokens_per_s=decode_rate,
            decode_gb_per_s=bytes_per_s / 1e9,
            decode_bandwidth_share=share,
            context_used=len(self.tokens),
            context_length=self.context_length,
            dropped_tokens=self.n_dropped,
            drafted_tokens=self.drafting.drafted if self.drafting else 0,
            accepted_tokens=self.drafting.accepted if self.drafting else 0,
            draft_gain=self.drafting.gain if self.drafting else None,
            drafting_paused=self.drafting.paused if self.drafting else False,
        )
