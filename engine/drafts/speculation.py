"""Guessing for all sequences of a model: who guesses, how far, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from engine.api import DraftKind
from engine.drafts.drafting import Drafting
from engine.drafts.guess import Guess
from engine.drafts.pace import MEMORY, Acceptance, StepCost, plan, reaches
from engine.sequence import Sequence

PROBES_SHARE = 0.02
"""Part of the time that may go into guesses which do not seem to pay, to see whether they have begun to."""

PLAIN_SAMPLES = 2.0
PLAIN_EVERY = 64
"""Steps without guesses at the start, and one in so many later: what guessing is measured against."""

FIRST_STEPS = 2
"""Steps with guesses of the length asked for, before the length follows what was measured."""

PROBE_LENGTH = 3
LOOKED_AHEAD = 256
"""Tokens an answer is assumed to go on for, at most, where something pays off only later."""

PAUSED_AFTER = 8
"""Steps one after the other with guesses not worth checking, before a request counts as paused."""

NGRAM_EDGES = (2, 3, 4, 5, 7, 9, 13, 17, 25)
NGRAM_PRIOR = (0.10, 0.25, 0.40, 0.50, 0.60, 0.70, 0.80, 0.85, 0.90, 0.92)
"""By the length of the match (one more for each guess that went before): how likely the guess is right."""

MODEL_EDGES = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
MODEL_PRIOR = (0.40, 0.50, 0.60, 0.70, 0.80, 0.88, 0.93, 0.97)
"""By the probability that the draft model gives its guess."""


@dataclass
class Pace:
    """What is known of one way of guessing.

    mean: acceptance whatever the confidence. steps: with guesses so far; with_s: seconds that the latest of them took;
    without_s: that as many tokens would have taken without guesses. probes_s: seconds put by for probes.
    resting: steps for which nothing is guessed, because guessing turned out slower than expected.
    """

    MEMORY = 0.95
    WINDOW = 8

    acceptance: Acceptance
    mean: Acceptance
    steps: int = 0
    with_s: float = 0.0
    without_s: float = 0.0
    probes_s: float = 0.0
    resting: int = 0
    _rests: int = 0
    _window: int = 0

    @property
    def gain(self) -> float:
        return self.without_s / self.with_s if self.with_s else 1.0

    def stepped(self, with_s: float, without_s: float) -> None:
        self.steps += 1
        self.with_s = self.with_s * self.MEMORY + with_s
        self.without_s = self.without_s * self.MEMORY + without_s
        self._window += 1
        if self._window < self.WINDOW:
            return
        if self.gain < 1.0:
            self.resting = 16 << min(self._rests, 5)
            self._rests += 1
            self.with_s = self.without_s = self._window = 0
        elif self.gain > 1.0:
            self._rests = 0

    def rests(self) -> bool:
        """Whether nothing is guessed in this step."""
        if self.resting:
            self.resting -= 1
        return self.resting > 0


@dataclass
class Planned:
    """Guesses of one step before it is decided how many of them are checked.

    probe: checked whether they seem to pay or not, up to so many.
    """

    sequence: Sequence
    drafting: Drafting
    guess: Guess
    chances: list[float] = field(default_factory=list)
    probe: int = 0


class Drafter(Protocol):
    """Guesses for several sequences at once."""

    def propose(self, speculation: Speculation, sequences: Sequence_[Sequence], n_plain: int) -> list[Planned]:
        """Guesses at what follows each sequence, which has nothing else pending; those without any are left out."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """Gives back what is held for a sequence."""
        ...


class Ngrams:
    """The Drafter that looks at what stands in the sequence already."""

    def propose(self, speculation: Speculation, sequences: Sequence_[Sequence], n_plain: int) -> list[Planned]:
        out = []
        for sequence in sequences:
            drafting = sequence.drafting
            assert drafting is not None
            room = min(drafting.most, sequence.guess_room)
            tokens, match = drafting.index.guess(sequence.tokens, room) if room else ([], 0)
            if tokens:
                confidences = [float(match + i) for i in range(len(tokens))]
                out.append(Planned(sequence, drafting, Guess(tokens, confidences, looked_up=True)))
        return out

    def forget(self, sequence: Sequence) -> None:
        pass


class Speculation:
    """Plans guesses before a step and learns from it afterwards.

    max_rows: of one step of the target. cost: of its steps by rows. choosing_s: what it takes to choose and hand out
    one token.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.cost = StepCost()
        self.choosing_s = 0.0
        self._plain_s: dict[int, float] = {}  # rows -> what whole steps without guesses take, disturbed or not
        self._drafters: dict[DraftKind, Drafter] = {DraftKind.NGRAM: Ngrams()}
        self._paces: dict[tuple[DraftKind, bool], Pace] = {}
        self._since_plain = 0
        self._drafting_s = 0.0
        self._plain_token_s = 0.0

    def set_drafter(self, kind: DraftKind, drafter: Drafter | None) -> None:
        if drafter is None:
            self._drafters.pop(kind, None)
        else:
            self._drafters[kind] = drafter
        for key in [key for key in self._paces if key[0] is kind]:
            del self._paces[key]

    def has(self, kind: DraftKind) -> bool:
        return kind in self._drafters

    def pace(self, drafting: Drafting, guess: Guess | None = None) -> Pace:
        """Of the kind of guesses that the request asks for, or of the kind that a guess is of."""
        kind = DraftKind.NGRAM if guess and guess.looked_up else drafting.options.kind
        key = (kind, drafting.greedy)
        if key not in self._paces:
            ngram = kind is DraftKind.NGRAM
            acceptance = Acceptance(*((NGRAM_EDGES, NGRAM_PRIOR) if ngram else (MODEL_EDGES, MODEL_PRIOR)))
            self._paces[key] = Pace(acceptance, Acceptance((), (0.7,), weight=3.0))
        return self._paces[key]

    def _pace_of(self, sequence: Sequence) -> Pace:
        assert sequence.drafting is not None
        return self.pace(sequence.drafting)

    def propose(self, decoding: Sequence_[Sequence]) -> None:
        """Sets `guess` of the sequences that decode in the next step."""
        began = perf_counter()
        by_kind: dict[DraftKind, list[Sequence]] = {}
        for sequence in decoding:
            sequence.guess = None
            if sequence.drafting is not None:
                by_kind.setdefault(sequence.drafting.options.kind, []).append(sequence)
        if by_kind and not self._plain_is_due(len(decoding)):
            self._plain_token_s = self.cost.seconds(len(decoding)) / len(decoding) + self.choosing_s
            resting = {id(pace) for pace in self._paces.values() if pace.rests()}
            planned: list[Planned] = []
            for kind, sequences in by_kind.items():
                if kind is DraftKind.MODEL:
                    looked_up = self._looked_up(sequences, len(decoding), resting)
                    planned += looked_up
                    found = {id(one.sequence) for one in looked_up}
                    sequences = [s for s in sequences if id(s) not in found]
                able = [s for s in sequences if kind in self._drafters and id(self._pace_of(s)) not in resting]
                for sequence in sequences:
                    if sequence not in able and sequence.drafting is not None:
                        sequence.drafting.paused = True
                if able:
                    planned += self._drafters[kind].propose(self, able, len(decoding))
            self._choose([one for one in planned if one.guess.tokens], len(decoding), perf_counter() - began)
        self._drafting_s = perf_counter() - began

    def _looked_up(self, sequences: list[Sequence], n_plain: int, resting: set[int]) -> list[Planned]:
        """Guesses from the text itself for sequences that ask for a draft model's, where they are likely to bring more
        than it does: they take no time."""
        out = []
        for one in Ngrams().propose(self, sequences, n_plain):
            drafting, own, pace = one.drafting, self.pace(one.drafting), self.pace(one.drafting, one.guess)
            if id(pace) in resting or (own.steps < FIRST_STEPS and self.has(DraftKind.MODEL)):
                continue
            rates = [pace.acceptance.rate(confidence) for confidence in one.guess.confidences]
            unlikely = (i for i, rate in enumerate(rates) if rate < drafting.options.min_probability)
            chances = reaches(rates[: next(unlikely, len(rates))])
            if self._rate(chances, n_plain) > max(own.gain, 1.0) * self._rate([], n_plain):
                one.guess.cut(len(chances))
                drafting.paused = False
                out.append(one)
        return out

    def _rate(self, chances: list[float], n_plain: int) -> float:
        """Tokens per second of one of the sequences with the best number of these guesses."""
        base = self.cost.seconds(n_plain)
        best = tokens = 0.0
        for rows, chance in enumerate([1.0, *chances]):
            tokens += chance
            seconds = base / n_plain + self.cost.seconds(n_plain + rows) - base + tokens * self.choosing_s
            best = max(best, tokens / seconds)
        return best

    def _plain_is_due(self, n: int) -> bool:
        return self.cost.samples(n) < PLAIN_SAMPLES or self._since_plain >= PLAIN_EVERY

    def _choose(self, planned: list[Planned], n_plain: int, spent: float) -> None:
        """Cuts guesses to the length that pays and gives them to their sequences. spent: seconds they took."""
        for one in planned:
            acceptance = self.pace(one.drafting, one.guess).acceptance
            one.chances = reaches([acceptance.rate(confidence) for confidence in one.guess.confidences])
        chances = [one.chances for one in planned]
        lengths = plan(self.cost, spent, self.choosing_s, n_plain, chances, self.max_rows - n_plain)
        for one, length in zip(planned, lengths, strict=True):
            drafting, pace = one.drafting, self.pace(one.drafting, one.guess)
            worth = length
            if pace.steps < FIRST_STEPS:
                if one.chances[0] >= 0.25:  # nothing is known yet of what it costs; a bad guess is none all the same
                    length = drafting.at_start
            elif not length and not one.probe:
                length = self._probe(one, pace, n_plain)
            length = max(length, one.probe)
            drafting.refused = 0 if worth else drafting.refused + 1
            if drafting.options.kind is DraftKind.NGRAM:
                drafting.paused = drafting.refused >= PAUSED_AFTER
            one.guess.cut(length)
            if one.guess.tokens:
                one.sequence.guess = one.guess

    def _probe(self, one: Planned, pace: Pace, n_plain: int) -> int:
        """How many guesses to check although they do not seem to pay: some, when there is time left for it."""
        length = min(PROBE_LENGTH, len(one.chances))
        extra = self.cost.seconds(n_plain + length) - self.cost.seconds(n_plain)
        if pace.probes_s < extra:
            pace.probes_s += PROBES_SHARE * self.cost.seconds(n_plain) / n_plain
            return 0
        pace.probes_s -= extra
        return length

    def judged(self, sequence: Sequence, confidence: float, accepted: bool) -> None:
        """A guess of this sequence was checked; those after one that is not accepted never are."""
        drafting = sequence.drafting
        assert drafting is not None
        pace = self.pace(drafting, sequence.guess)
        own = pace is self.pace(drafting)
        pace.acceptance.observe(confidence, accepted)
        if drafting.acceptance is None and own:
            drafting.acceptance = pace.mean.rate(0)
        pace.mean.observe(0, accepted)
        drafting.judged(accepted, own)
        if accepted and (drafting.paused or drafting.refused):
            pace.probes_s += self._plain_token_s  # a probe that saved time may be followed by another

    def measured(
        self, n_plain: int, n_rows: int, forward_s: float, choosing_s: float, tokens: Sequence_[tuple[Sequence, int]]
    ) -> None:
        """A step of decodes alone is over.

        n_plain: its rows without guesses. n_rows: with them. choosing_s: to choose and hand out all `tokens`, which are
        the sequences and how many tokens each has now more.
        """
        self.cost.observe(n_rows, forward_s)
        count = sum(n for _, n in tokens)
        if count:
            share = choosing_s / count
            self.choosing_s += (min(share, 2 * self.choosing_s) - self.choosing_s) / 16 if self.choosing_s else share
        took = self._drafting_s + forward_s + choosing_s
        if n_rows == n_plain:
            self._since_plain = 0
            before = self._plain_s.get(n_plain, forward_s + choosing_s)
            self._plain_s[n_plain] = before + (forward_s + choosing_s - before) / MEMORY
        else:
            self._since_plain += 1
        if n_plain not in self._plain_s:
            return
        plain = self._plain_s[n_plain]
        paces: dict[int, Pace] = {}
        for sequence, n in tokens:
            if sequence.drafting is not None:
                sequence.drafting.took(took, n * plain)
                if sequence.guess is not None:
                    pace = self.pace(sequence.drafting, sequence.guess)
                    paces[id(pace)] = pace
        for pace in paces.values():
            pace.stepped(took, count * plain / n_plain)

    def drafter(self, kind: DraftKind) -> Drafter | None:
        return self._drafters.get(kind)

    def forget(self, sequence: Sequence) -> None:
        for drafter in self._drafters.values():
            drafter.forget(sequence)
