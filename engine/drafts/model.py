"""Guessing with a smaller model of the same vocabulary."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.drafts.fit import SharedTokens
from engine.drafts.guess import Distribution
from engine.drafts.pace import StepCost
from engine.drafts.speculation import Planned, Speculation
from engine.drafts.worth import CHUNK, Follower, Work, Worth
from engine.kv import BlockManager, chain_key, n_blocks_for
from engine.sampling import Sampler
from engine.sequence import Sequence

IMPOSSIBLE = np.float32(-1e30)
"""Logit of a token that the draft must not guess; finite, as samplers want it, and a probability of exactly 0."""


class ModelDrafter:
    """A Drafter (engine/drafts/speculation.py) that owns a second model with a paged cache of its own.

    All sequences guess in shared steps. What the target refused is undone by going on at an earlier position; nothing
    is copied. n_vocab: the target's tokens. context_length: up to which the draft model is good for anything.
    """

    def __init__(self, model: LoadedModel, tokens: SharedTokens, n_vocab: int, context_length: int) -> None:
        self.model = model
        self.cost = StepCost()
        self.blocks = BlockManager(model.n_blocks)
        self._tokens = tokens
        self._n_vocab = n_vocab
        self._context_length = min(context_length, model.n_blocks * KV_BLOCK)
        n_shared = min(n_vocab, len(tokens.shared), model.n_vocab)
        self._all_shared = n_shared == n_vocab and bool(tokens.shared[:n_vocab].all())
        self._banned = np.flatnonzero(~tokens.shared[:n_shared])
        self._n_shared = n_shared
        self._followers: dict[int, Follower] = {}
        self._clock = 0

    # -- what Speculation calls

    def propose(self, speculation: Speculation, sequences: Sequence_[Sequence], n_plain: int) -> list[Planned]:
        self._clock += 1
        able = [s for s in sequences if s.guess_room and len(s.tokens) < self._context_length and self._knows(s)]
        room = speculation.max_rows - n_plain
        for sequence in sequences:
            if sequence.drafting is not None and len(sequence.tokens) >= self._context_length:
                sequence.drafting.paused = True
        worth = Worth(self, speculation, n_plain)
        willing = worth.choose(able)
        ready = self._catch_up([one for one in willing if self._follow(one.sequence)])
        active = ready
        while active:
            began = perf_counter()
            logits = self._step(active)
            going = [one for one, row in zip(active, logits, strict=True) if self._guess(speculation, one, row)]
            self.cost.observe(self._rows, perf_counter() - began)
            room -= len(active)
            active = [one for one in worth.going_on(going)[: max(room, 0)] if self._grow(one.follower, one.n_tokens)]
        return [one for one in ready if one.guess.tokens]

    def _knows(self, sequence: Sequence) -> bool:
        """Whether there is all that guessing for a sequence takes."""
        return True

    def missing(self, sequence: Sequence) -> int:
        """Tokens of a sequence that the draft model has not seen yet."""
        follower = self._followers.get(id(sequence))
        if follower is None:
            known = self.blocks.match(sequence.tokens)
            return len(sequence.tokens) - len(known) * KV_BLOCK
        return len(sequence.tokens) - self._valid(follower, sequence.tokens)

    def forget(self, sequence: Sequence) -> None:
        follower = self._followers.pop(id(sequence), None)
        if follower is not None:
            self._undo(follower, sequence.tokens)
            self.blocks.release(follower.blocks)

    def close(self) -> None:
        self.model.close()

    # -- following sequences

    def _follow(self, sequence: Sequence) -> bool:
        """Makes ready to compute what is missing of a sequence and one guess; False where the cache has no room."""
        follower = self._followers.get(id(sequence))
        if follower is None:
            follower = self._begin(sequence)
        else:
            self._undo(follower, sequence.tokens)
        follower.used = self._clock
        return self._grow(follower, len(sequence.tokens))

    def _sampler(self, sequence: Sequence) -> Sampler:
        """What guesses are drawn with: the samplers' own state and luck stay out, for any distribution will do."""
        drafting = sequence.drafting
        assert drafting is not None
        seed = None if drafting.sampling.seed is None else drafting.sampling.seed + 1
        return Sampler(replace(drafting.sampling, seed=seed, mirostat=0), self._n_vocab)

    def _begin(self, sequence: Sequence) -> Follower:
        follower = Follower(np.zeros(n_blocks_for(self._context_length), np.int32), self._sampler(sequence))
        known = self.blocks.match(sequence.tokens)[: len(follower.table)]
        self.blocks.share(known)
        self._give(follower, known)
        follower.n_computed = len(known) * KV_BLOCK
        follower.last = sequence.tokens[follower.n_computed - 1] if known else -1
        self._followers[id(sequence)] = follower
        return follower

    @staticmethod
    def _valid(follower: Follower, tokens: Sequence_[int]) -> int:
        """How many of the follower's computed tokens are still those of the sequence."""
        valid = follower.n_computed - len(follower.ahead)
        if valid > len(tokens) or (valid and tokens[valid - 1] != follower.last):
            return 0  # the sequence was rewritten
        for token in follower.ahead:
            if valid >= len(tokens) or tokens[valid] != token:
                break
            valid += 1
        return valid

    def _undo(self, follower: Follower, tokens: Sequence_[int]) -> None:
        """Goes back to the last token that is the sequence's own, and remembers the full blocks up to there."""
        valid = self._valid(follower, tokens)
        if not valid and follower.n_computed > len(follower.ahead):
            self.blocks.release(follower.blocks)
            follower.blocks, follower.block_keys = [], []
            follower.table[:] = 0
        follower.ahead = []
        follower.n_computed = min(valid, len(tokens) - 1)
        follower.last = tokens[follower.n_computed - 1] if follower.n_computed else -1
        keys = follower.block_keys
        while (len(keys) + 1) * KV_BLOCK <= follower.n_computed:
            start = len(keys) * KV_BLOCK
            keys.append(chain_key(keys[-1] if keys else b"", tokens[start : start + KV_BLOCK]))
            self.blocks.remember(follower.blocks[len(keys) - 1], keys[-1])

    def _grow(self, follower: Follower, n_tokens: int) -> bool:
        wanted = n_blocks_for(n_tokens) - len(follower.blocks)
        if wanted <= 0:
            return True
        if n_tokens > self._context_length:
            return False
        while wanted > self.blocks.free:
            idle = [(f.used, key) for key, f in self._followers.items() if f.used < self._clock and f.blocks]
            if not idle:
                return False
            self.blocks.release(self._followers.pop(min(idle)[1]).blocks)
        self._give(follower, self.blocks.allocate(wanted))
        return True

    @staticmethod
    def _give(follower: Follower, blocks: list[int]) -> None:
        n = len(follower.blocks)
        follower.table[n : n + len(blocks)] = blocks
        follower.blocks += blocks

    def _catch_up(self, willing: list[Work]) -> list[Work]:
        """Gives out the rows of the first step; those that stay behind after it compute theirs here and do not guess
        this time."""
        room = min(CHUNK + len(willing), self.model.max_rows)
        ready, behind = [], []
        for one in sorted(willing, key=lambda one: self.missing(one.sequence)):
            one.follower = self._followers[id(one.sequence)]
            missing = self._left(one)
            one.rows = min(missing, room)
            room -= one.rows
            if one.rows == missing:
                ready.append(one)
            elif one.rows:
                behind.append(one)
        if behind:
            began = perf_counter()
            self._step(behind, logits=False)
            self.cost.observe(self._rows, perf_counter() - began)
        return ready

    def _left(self, one: Work) -> int:
        """Rows that are to be computed before the next guess comes, once what is wrong has been undone."""
        return len(one.sequence.tokens) - one.follower.n_computed

    # -- stepping

    def _step(self, active: list[Work], logits: bool = True) -> NDArray[np.float32]:
        return self.model.forward(self._batch(active, logits))

    def _batch(self, active: list[Work], logits: bool = True) -> Batch:
        """The rows that each has: tokens of the sequence that are missing, then its latest guess."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        for index, one in enumerate(active):
            start = one.follower.n_computed
            new = self._next_tokens(one)
            tokens += new
            positions += range(start, start + len(new))
            sequences += [index] * len(new)
            wanted.append(len(tokens) - 1)
            one.follower.n_computed += len(new)
        self._rows = len(tokens)
        return Batch(
            tokens=self._tokens.stand_in[np.array(tokens, np.int64)],
            positions=np.array(positions, np.int32),
            sequences=np.array(sequences, np.int32),
            block_tables=np.array([one.follower.table for one in active], np.int32),
            logit_rows=np.array(wanted if logits else [], np.int32),
        )

    def _next_tokens(self, one: Work) -> list[int]:
        follower, start = one.follower, one.follower.n_computed
        if one.guess.tokens:
            new = [one.guess.tokens[-1]]
            follower.ahead += new
        else:
            new = one.sequence.tokens[start : start + one.rows]
            follower.last = new[-1]
        return new

    def _guess(self, speculation: Speculation, one: Work, logits: NDArray[np.float32]) -> bool:
        """Adds a guess; says whether to go on after it."""
        guess, sampler = one.guess, one.follower.sampler
        candidates = sampler.candidates(self._for_target(logits), [*one.sequence.tokens, *guess.tokens])
        token = sampler.draw(candidates)
        if sampler.greedy:
            weights = candidates.weights()
            confidence = 1.0 / float(weights.sum())
        else:
            drawn_from = Distribution.of(candidates)
            confidence = drawn_from.probability(token)
        if confidence < one.drafting.options.min_probability:
            return False
        guess.tokens.append(token)
        guess.confidences.append(confidence)
        if not sampler.greedy:
            guess.distributions = [*(guess.distributions or []), drawn_from]
        one.reach *= speculation.pace(one.drafting).acceptance.rate(confidence)
        return len(guess.tokens) < min(one.most, one.sequence.guess_room)

    def _for_target(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of the target's tokens: those that only it has are impossible."""
        if self._all_shared:
            return logits[: self._n_vocab]
        out = np.full(self._n_vocab, IMPOSSIBLE, np.float32)
        out[: self._n_shared] = logits[: self._n_shared]
        out[self._banned] = IMPOSSIBLE
        return out
