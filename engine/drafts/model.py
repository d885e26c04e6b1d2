"""Guessing with a smaller model of the same vocabulary."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.drafts.fit import SharedTokens
from engine.drafts.guess import Distribution, Guess
from engine.drafts.pace import StepCost
from engine.drafts.speculation import FIRST_STEPS, LOOKED_AHEAD, PROBES_SHARE, Planned, Speculation
from engine.kv import BlockManager, Key, chain_key, n_blocks_for
from engine.sampling import Sampler
from engine.sequence import Sequence

CHUNK = 128
"""Rows that catching up with sequences may add to one step: what runs beside them waits for it."""

IMPOSSIBLE = np.float32(-1e30)
"""Logit of a token that the draft must not guess; finite, as samplers want it, and a probability of exactly 0."""


@dataclass
class Follower:
    """How far the draft model has followed a sequence.

    blocks: of its own cache; table is the same as Batch wants it. n_computed: tokens whose keys and values these hold;
    the last len(ahead) of them were guesses when they were computed.
    """

    table: NDArray[np.int32]
    sampler: Sampler
    blocks: list[int] = field(default_factory=list)
    block_keys: list[Key] = field(default_factory=list)
    n_computed: int = 0
    ahead: list[int] = field(default_factory=list)
    last: int = -1  # token before `ahead`
    used: int = 0


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
        able = [s for s in sequences if s.guess_room and len(s.tokens) < self._context_length]
        for sequence in sequences:
            if sequence not in able and sequence.drafting is not None:
                sequence.drafting.paused = len(sequence.tokens) >= self._context_length
        willing = _Willing(self, speculation, n_plain).choose(able)
        ready = self._catch_up([one for one in willing if self._follow(one.sequence)])
        active = ready
        while active:
            began = perf_counter()
            logits = self.model.forward(self._batch(active))
            active = [one for one, row in zip(active, logits, strict=True) if self._guess(speculation, one, row)]
            self.cost.observe(self._rows, perf_counter() - began)
        return [one for one in ready if one.guess.tokens]

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

    def _begin(self, sequence: Sequence) -> Follower:
        drafting = sequence.drafting
        assert drafting is not None
        # the samplers' own state and luck stay out: guesses may be drawn from any distribution
        seed = None if drafting.sampling.seed is None else drafting.sampling.seed + 1
        sampler = Sampler(replace(drafting.sampling, seed=seed, mirostat=0), self._n_vocab)
        follower = Follower(np.zeros(n_blocks_for(self._context_length), np.int32), sampler)
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

    def _catch_up(self, willing: list[_Work]) -> list[_Work]:
        """Gives out the rows of the first step; those that stay behind after it compute theirs here and do not guess
        this time."""
        room = min(CHUNK + len(willing), self.model.max_rows)
        ready, behind = [], []
        for one in sorted(willing, key=lambda one: self.missing(one.sequence)):
            one.follower = self._followers[id(one.sequence)]
            missing = len(one.sequence.tokens) - one.follower.n_computed
            one.rows = min(missing, room)
            room -= one.rows
            if one.rows == missing:
                ready.append(one)
            elif one.rows:
                behind.append(one)
        if behind:
            began = perf_counter()
            self.model.forward(self._batch(behind, logits=False))
            self.cost.observe(self._rows, perf_counter() - began)
        return ready

    # -- stepping

    def _batch(self, active: list[_Work], logits: bool = True) -> Batch:
        """The rows that each has: tokens of the sequence that are missing, then its latest guess."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[int] = []
        for index, one in enumerate(active):
            follower, its = one.follower, one.sequence.tokens
            start = follower.n_computed
            if one.guess.tokens:
                new = [one.guess.tokens[-1]]
                follower.ahead += new
            else:
                new = its[start : start + one.rows]
                follower.last = new[-1]
            tokens += new
            positions += range(start, start + len(new))
            sequences += [index] * len(new)
            wanted.append(len(tokens) - 1)
            follower.n_computed += len(new)
        self._rows = len(tokens)
        return Batch(
            tokens=self._tokens.stand_in[np.array(tokens, np.int64)],
            positions=np.array(positions, np.int32),
            sequences=np.array(sequences, np.int32),
            block_tables=np.array([one.follower.table for one in active], np.int32),
            logit_rows=np.array(wanted if logits else [], np.int32),
        )

    def _guess(self, speculation: Speculation, one: _Work, logits: NDArray[np.float32]) -> bool:
        """Adds a guess; says whether to go on after it."""
        guess, sampler = one.guess, one.follower.sampler
        candidates = sampler.candidates(self._for_target(logits), [*one.sequence.tokens, *guess.tokens])
        token = sampler.draw(candidates)
        if sampler.greedy:
            weights = candidates.weights()
            confidence = 1.0 / float(weights.sum(dtype=np.float64))
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
        n = len(guess.tokens)
        if n >= min(one.most, one.sequence.guess_room) or not self._tokens.shared[token]:
            return False
        if n >= one.at_least and one.reach * one.next_rate < one.least_reach:
            return False
        return self._grow(one.follower, len(one.sequence.tokens) + n)

    def _for_target(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of the target's tokens: those that only it has are impossible."""
        if self._all_shared:
            return logits[: self._n_vocab]
        out = np.full(self._n_vocab, IMPOSSIBLE, np.float32)
        out[: self._n_shared] = logits[: self._n_shared]
        out[self._banned] = IMPOSSIBLE
        return out


@dataclass
class _Work(Planned):
    """A sequence that guesses in this step. It goes on while the chance that all its guesses and the next one are
    accepted is at least least_reach; at_least and at most `most` guesses."""

    follower: Follower = field(default=None)  # type: ignore[assignment]  # set before it is used
    rows: int = 0
    reach: float = 1.0
    next_rate: float = 1.0
    least_reach: float = 0.0
    at_least: int = 0
    most: int = 0


class _Willing:
    """Decides which sequences are worth guessing for, and how long."""

    def __init__(self, drafter: ModelDrafter, speculation: Speculation, n_plain: int) -> None:
        self._drafter = drafter
        self._speculation = speculation
        self._n_plain = n_plain
        cost = speculation.cost
        self._plain_s = cost.seconds(n_plain) + n_plain * speculation.choosing_s

    def choose(self, sequences: list[Sequence]) -> list[_Work]:
        known = [s for s in sequences if self._known(s)]
        out = [self._first(s) for s in sequences if not self._known(s)]
        group = known
        while group:
            rates = [self._rate_of(s) for s in group]
            best, guess_s = self._best(rates)
            # a guess pays if what it adds, reach tokens in guess_s seconds, is more than the step makes anyway
            able = [s for s, rate in zip(group, rates, strict=True) if rate >= best * guess_s and self._affords(s, best)]
            if len(able) == len(group):
                out += [self._measured(s, rate, best * guess_s) for s, rate in zip(group, rates, strict=True)]
                break
            group = able
        for sequence in known:
            drafting = sequence.drafting
            assert drafting is not None
            drafting.paused = sequence not in group
            if drafting.paused and (probe := self._probe(sequence)):
                out.append(probe)
        return out

    def _known(self, sequence: Sequence) -> bool:
        assert sequence.drafting is not None
        return self._speculation.pace(sequence.drafting).steps >= FIRST_STEPS and self._drafter.cost.known

    def _rate_of(self, sequence: Sequence) -> float:
        drafting = sequence.drafting
        assert drafting is not None
        if drafting.acceptance is None:
            return self._speculation.pace(drafting).mean.rate(0)
        return drafting.acceptance

    def _best(self, rates: list[float]) -> tuple[float, float]:
        """The most tokens per second that any one length gives, and the seconds that one more guess takes."""
        n, m, cost = self._n_plain, len(rates), self._speculation.cost
        draft_s = self._drafter.cost.seconds(m)
        base = cost.seconds(n)
        rate = sum(rates) / m
        best = n / self._plain_s
        checked_s = (cost.seconds(n + 4 * m) - base) / (4 * m)
        tokens = 1.0
        for length in range(1, 17):
            tokens += rate**length
            total = n - m + m * tokens
            seconds = length * draft_s + cost.seconds(n + length * m) + total * self._speculation.choosing_s
            if total / seconds > best:
                best, checked_s = total / seconds, (cost.seconds(n + length * m) - base) / (length * m)
        return best, draft_s / m + checked_s

    def _affords(self, sequence: Sequence, best: float) -> bool:
        """Whether computing what the draft model has missed comes in again over the rest of the answer."""
        missing = self._drafter.missing(sequence)
        if missing <= 4:
            return True
        saved = self._plain_s / self._n_plain - 1 / best
        return self._catching_up_s(missing) < 0.5 * saved * self._n_plain * min(sequence.guess_room, LOOKED_AHEAD)

    def _catching_up_s(self, missing: int) -> float:
        cost, most = self._drafter.cost, CHUNK
        return (missing // most) * cost.seconds(most) + cost.seconds(missing % most + 1)

    def _first(self, sequence: Sequence) -> _Work:
        drafting = sequence.drafting
        assert drafting is not None
        length = drafting.at_start
        return _Work(sequence, drafting, Guess(), probe=length, at_least=length, most=length)

    def _measured(self, sequence: Sequence, rate: float, least: float) -> _Work:
        drafting = sequence.drafting
        assert drafting is not None
        return _Work(sequence, drafting, Guess(), next_rate=rate, least_reach=least, most=drafting.most)

    def _probe(self, sequence: Sequence) -> _Work | None:
        """A short guess although it does not seem to pay, where enough time was put by for what it costs."""
        drafting = sequence.drafting
        assert drafting is not None
        pace, cost, length = self._speculation.pace(drafting), self._speculation.cost, 2
        extra = cost.seconds(self._n_plain + length) - cost.seconds(self._n_plain)
        extra += self._catching_up_s(self._drafter.missing(sequence)) + (length - 1) * self._drafter.cost.seconds(1)
        if pace.probes_s < extra:
            pace.probes_s += PROBES_SHARE * self._plain_s / self._n_plain
            return None
        pace.probes_s -= extra
        return _Work(sequence, drafting, Guess(), probe=length, at_least=length, most=length)
