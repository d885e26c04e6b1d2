"""Which sequences are worth a draft model's time, and how long their guesses should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.drafts.guess import Guess
from engine.drafts.pace import MARGIN, StepCost
from engine.drafts.speculation import FIRST_STEPS, LOOKED_AHEAD, PROBES_SHARE, Planned, Speculation
from engine.kv import Key
from engine.sampling import Sampler
from engine.sequence import Sequence

CHUNK = 128
"""Rows that catching up with sequences may add to one step: what runs beside them waits for it."""

LONGEST = 16
"""Lengths that are compared where the best one is looked for."""


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


@dataclass
class Work(Planned):
    """A sequence that guesses in this step: `most` guesses, fewer where they are not worth it, `probe` at least.

    follower: what the drafter holds of it. rows: those of its first step. reach: how likely all its guesses are to be
    accepted. next_rate: one more after them.
    """

    follower: Follower = field(default=None)  # type: ignore[assignment]  # set before it is used
    rows: int = 0
    reach: float = 1.0
    next_rate: float = 1.0
    most: int = 0

    @property
    def n_tokens(self) -> int:
        return len(self.sequence.tokens) + len(self.guess.tokens)


class CatchesUp(Protocol):
    """What is asked of the drafter: `cost` of its steps by rows, and the tokens of a sequence it has not seen yet."""

    cost: StepCost

    def missing(self, sequence: Sequence) -> int: ...


class Worth:
    """Decides which sequences are worth guessing for, and how long."""

    def __init__(self, drafter: CatchesUp, speculation: Speculation, n_plain: int) -> None:
        self._drafter = drafter
        self._speculation = speculation
        self._n_plain = n_plain
        self._plain_s = speculation.cost.seconds(n_plain) + n_plain * speculation.choosing_s
        self._rows = n_plain  # of the target's step, with the guesses so far
        self._row_s = 0.0  # what checking one more guess takes
        self._rate = 0.0  # tokens per second that one more guess has to be worth

    def choose(self, sequences: list[Sequence]) -> list[Work]:
        unknown = [s for s in sequences if not self._known(s)]
        if unknown:
            return [self._first(unknown[0])]  # one measures for all
        group = sequences
        while group:
            rates = [self._rate_of(s) for s in group]
            best = self._best(rates)
            able = [
                s
                for s, rate in zip(group, rates, strict=True)
                if best >= MARGIN * self._n_plain / self._plain_s
                and rate >= best * self._guess_s(len(group))
                and self._affords(s, best, len(group))
            ]
            if len(able) == len(group):
                break
            group = able
        out = [self._measured(s) for s in group]
        for sequence in sequences:
            drafting = sequence.drafting
            assert drafting is not None
            drafting.paused = sequence not in group
            if drafting.paused and (probe := self._probe(sequence)):
                out.append(probe)
        return out

    def going_on(self, able: list[Work]) -> list[Work]:
        """Those for which one more guess is worth the draft's step and the row it is checked in.

        A guess adds reach * next_rate tokens. The draft's step is shared, so it is the set of all of them that pays:
        the most promising first, as many as make the gain over the usual rate largest.
        """
        musts = [one for one in able if len(one.guess.tokens) < one.probe]
        self._rows += len(able)  # each has just got one more
        rest = [one for one in able if len(one.guess.tokens) >= one.probe and not one.probe]
        rest.sort(key=lambda one: -one.reach * one.next_rate)
        gained = best = 0.0
        taken = 0
        base = self._drafter.cost.seconds(len(musts)) if musts else 0.0
        checked = self._speculation.cost
        for count, one in enumerate(rest, 1):
            gained += one.reach * one.next_rate
            seconds = self._drafter.cost.seconds(len(musts) + count) - base
            seconds += checked.seconds(self._rows + len(musts) + count) - checked.seconds(self._rows + len(musts))
            if gained - self._rate * seconds > best:
                best, taken = gained - self._rate * seconds, count
        return [*musts, *rest[:taken]]

    def _known(self, sequence: Sequence) -> bool:
        assert sequence.drafting is not None
        return self._speculation.pace(sequence.drafting).steps >= FIRST_STEPS and self._drafter.cost.known

    def _rate_of(self, sequence: Sequence) -> float:
        drafting = sequence.drafting
        assert drafting is not None
        if drafting.acceptance is None:
            return self._speculation.pace(drafting).mean.rate(0)
        return drafting.acceptance

    def _best(self, rates: list[float]) -> float:
        """The most tokens per second that any one length gives; sets what one more guess costs and has to be worth."""
        n, m, cost = self._n_plain, len(rates), self._speculation.cost
        draft_s = self._drafter.cost.seconds(m)
        base = cost.seconds(n)
        rate = sum(rates) / m
        best = n / self._plain_s
        self._row_s = (cost.seconds(n + 4 * m) - base) / (4 * m)
        tokens = 1.0
        for length in range(1, LONGEST + 1):
            tokens += rate**length
            total = n - m + m * tokens
            seconds = length * draft_s + cost.seconds(n + length * m) + total * self._speculation.choosing_s
            if total / seconds > best:
                best = total / seconds
                self._row_s = (cost.seconds(n + length * m) - base) / (length * m)
        return best

    def _guess_s(self, m: int) -> float:
        return self._drafter.cost.seconds(m) / m + self._row_s

    def _affords(self, sequence: Sequence, best: float, m: int) -> bool:
        """Whether computing what the draft model has missed comes in again over the rest of the answer."""
        missing = self._drafter.missing(sequence)
        if missing <= 4:
            return True
        saved = (self._plain_s - self._n_plain / best) / m
        return self._catching_up_s(missing) < 0.5 * saved * min(sequence.guess_room, LOOKED_AHEAD)

    def _catching_up_s(self, missing: int) -> float:
        cost, most = self._drafter.cost, CHUNK
        return (missing // most) * cost.seconds(most) + cost.seconds(missing % most + 1)

    def _first(self, sequence: Sequence) -> Work:
        drafting = sequence.drafting
        assert drafting is not None
        length = drafting.at_start
        return Work(sequence, drafting, Guess(), probe=length, most=length)

    def _measured(self, sequence: Sequence) -> Work:
        drafting = sequence.drafting
        assert drafting is not None
        # going on has to beat what the time brings otherwise: the rate that guessing reaches (Dinkelbach's method)
        gain = self._speculation.pace(drafting).gain
        self._rate = max(self._rate, self._n_plain / self._plain_s * max(gain, 1.0))
        return Work(sequence, drafting, Guess(), next_rate=self._rate_of(sequence), most=drafting.most)

    def _probe(self, sequence: Sequence) -> Work | None:
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
        return Work(sequence, drafting, Guess(), probe=length, most=length)
