"""Guessing with a layer of the model's own file that predicts further tokens (engine/architectures/prediction.py)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.batch import KV_BLOCK, PredictionModel
from engine.drafts.fit import SharedTokens
from engine.drafts.guess import Guess
from engine.drafts.model import ModelDrafter
from engine.drafts.worth import CHUNK, Follower, Work
from engine.kv import Key, n_blocks_for
from engine.sequence import Sequence

MOST_IDLE = 32
"""Texts whose keys and values are kept for what begins like them."""

_NO_ROWS = np.empty((0, 0), np.float32)


@dataclass
class LayerFollower(Follower):
    """How far the layer has followed a sequence.

    tokens, adapter_key: of the sequence. places: the position in it of each row computed so far but for those `ahead`.
    waiting: what the model made of the positions before `end`, not computed yet: float32 [rows, width]. made: what the
    layer made of the last row it computed.
    """

    tokens: list[int] = field(default_factory=list)
    adapter_key: Key = b""
    places: list[int] = field(default_factory=list)
    waiting: NDArray[np.float32] = field(default_factory=lambda: _NO_ROWS)
    end: int = 0
    made: NDArray[np.float32] = field(default_factory=lambda: _NO_ROWS)


class LayerDrafter(ModelDrafter):
    """A ModelDrafter whose model reads, beside tokens, what the model that it guesses for made of them.

    After each step of that model `take` is told of its rows. They are computed when guesses are wanted, and a chunk of
    them as soon as there is one. Of positions that nobody told of - a prefix that the model found in its cache,
    computed before the layer was loaded - there are no keys and values here: the layer's rows are numbered without a
    gap, so it sees what it knows as one text. For guesses that is good enough.
    """

    def __init__(self, model: PredictionModel, n_vocab: int, context_length: int) -> None:
        """n_vocab: tokens of the model. context_length: the model's."""
        everything = SharedTokens(np.ones(n_vocab, np.bool_), np.arange(n_vocab, dtype=np.int32))
        super().__init__(model, everything, n_vocab, context_length)
        self._layer = model
        self._given: list[NDArray[np.float32]] = []
        self._idle: list[LayerFollower] = []

    # -- what Serving calls

    def take(self, sequence: Sequence, start: int, rows: NDArray[np.float32]) -> None:
        """What the model made of a sequence's positions from `start` on, [rows, width]; those after the last that is
        the sequence's own, which were guesses, are not looked at. Raises DeviceError and MemoryError."""
        count = min(sequence.n_computed, len(sequence.tokens) - 1) - start
        follower = self._of(sequence)
        if follower is None or follower.end != start:
            self.forget(sequence)
            follower = self._begin_at(sequence, start)
        self._settle(follower)
        if count > 0:
            follower.waiting = np.concatenate([follower.waiting, rows[:count]])
            follower.end = start + count
        while len(follower.waiting) >= CHUNK:
            # the last one stays: the next guess comes of it
            self._compute(sequence, follower, min(len(follower.waiting) - 1, self.model.max_rows))

    def finish(self, sequence: Sequence) -> None:
        """A sequence has ended: what waits is computed, so that the next turn of its chat finds it."""
        follower = self._of(sequence)
        if follower is not None:
            self._settle(follower)
            while len(follower.waiting):
                self._compute(sequence, follower, min(len(follower.waiting), self.model.max_rows))

    # -- what Speculation calls

    def missing(self, sequence: Sequence) -> int:
        follower = self._of(sequence)
        return len(follower.waiting) if follower is not None else len(sequence.tokens)

    def forget(self, sequence: Sequence) -> None:
        follower = self._of(sequence)
        if follower is None:
            return
        del self._followers[id(sequence)]
        self._settle(follower)
        follower.tokens = list(sequence.tokens)
        follower.waiting = _NO_ROWS
        self._idle.append(follower)
        if len(self._idle) > MOST_IDLE:
            self.blocks.release(self._idle.pop(0).blocks)

    # -- following sequences

    def _of(self, sequence: Sequence) -> LayerFollower | None:
        follower = self._followers.get(id(sequence))
        assert follower is None or isinstance(follower, LayerFollower)
        return follower

    def _knows(self, sequence: Sequence) -> bool:
        follower = self._of(sequence)
        return follower is not None and follower.end == len(sequence.tokens) - 1 and len(follower.waiting) > 0

    def _follow(self, sequence: Sequence) -> bool:
        follower = self._of(sequence)
        if follower is None:
            return False  # another one has just got its blocks
        self._settle(follower)
        follower.used = self._clock
        return self._grow(follower, follower.n_computed + len(follower.waiting))

    def _begin_at(self, sequence: Sequence, start: int) -> LayerFollower:
        """Follows a sequence from a position on, with the blocks of another that begins like it as far as that goes."""
        table = np.zeros(n_blocks_for(self._context_length), np.int32)
        follower = LayerFollower(table, self._sampler(sequence), tokens=sequence.tokens, end=start)
        follower.adapter_key = sequence.adapter_key
        follower.waiting = np.empty((0, self._layer.kept_width), np.float32)
        follower.used = self._clock
        others = [*self._idle, *(f for f in self._followers.values() if isinstance(f, LayerFollower))]
        rows = {
            id(other): bisect_left(other.places, min(_agreeing(other.tokens, sequence.tokens) - 1, start))
            for other in others
            if other.adapter_key == sequence.adapter_key
        }
        best = max((other for other in others if id(other) in rows), key=lambda other: rows[id(other)], default=None)
        known = rows[id(best)] // KV_BLOCK if best is not None else 0
        if best is not None and known:
            self.blocks.share(best.blocks[:known])
            self._give(follower, best.blocks[:known])
            follower.places = best.places[: known * KV_BLOCK]
            follower.n_computed = known * KV_BLOCK
        self._followers[id(sequence)] = follower
        return follower

    @staticmethod
    def _settle(follower: LayerFollower) -> None:
        """Takes back the rows of guesses: they were made of the layer's own rows, not of the model's."""
        follower.n_computed -= len(follower.ahead)
        follower.ahead = []

    def _grow(self, follower: Follower, n_tokens: int) -> bool:
        while self._idle and n_blocks_for(n_tokens) - len(follower.blocks) > self.blocks.free:
            self.blocks.release(self._idle.pop(0).blocks)
        return super()._grow(follower, n_tokens)

    def _compute(self, sequence: Sequence, follower: LayerFollower, count: int) -> None:
        """Computes the first rows that wait; where the cache has no room they are left out."""
        drafting = sequence.drafting
        assert drafting is not None
        follower.used = self._clock
        if self._grow(follower, follower.n_computed + count):
            self._step([Work(sequence, drafting, Guess(), follower=follower, rows=count)], logits=False)
        else:
            follower.waiting = follower.waiting[count:]

    def _left(self, one: Work) -> int:
        assert isinstance(one.follower, LayerFollower)
        return len(one.follower.waiting)

    # -- stepping

    def _step(self, active: list[Work], logits: bool = True) -> NDArray[np.float32]:
        self._given = []
        batch = self._batch(active, logits)
        out = self._layer.forward(batch, np.concatenate(self._given))
        if logits:
            kept = self._layer.kept()
            for one, row in zip(active, batch.logit_rows, strict=True):
                assert isinstance(one.follower, LayerFollower)
                one.follower.made = kept[row : row + 1].copy()
        return out

    def _next_tokens(self, one: Work) -> list[int]:
        follower = one.follower
        assert isinstance(follower, LayerFollower)
        if one.guess.tokens:
            self._given.append(follower.made)
            follower.ahead.append(one.guess.tokens[-1])
            return [one.guess.tokens[-1]]
        first = follower.end - len(follower.waiting)
        follower.places += range(first, first + one.rows)
        self._given.append(follower.waiting[: one.rows])
        follower.waiting = follower.waiting[one.rows :]
        return one.sequence.tokens[first + 1 : first + 1 + one.rows]


def _agreeing(a: Sequence_[int], b: Sequence_[int]) -> int:
    """How many tokens two texts have in common at their start."""
    n = min(len(a), len(b))
    different = np.flatnonzero(np.array(a[:n]) != np.array(b[:n]))
    return int(different[0]) if len(different) else n
