"""Guessing with a second model: what it changes (nothing), what it gains, and that it gives everything back."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from dataclasses import replace

import numpy as np
import pytest

from engine.api import DraftKind, DraftOptions, Failed, Finished, SamplingParams, StopReason, Token
from engine.batch import Batch
from engine.drafts.speculation import Planned, Speculation
from engine.errors import DeviceError, RequestError
from engine.sequence import Sequence
from engine.serving import Serving
from tests.drafts.simulation import (
    Always,
    Asked,
    Clock,
    agreeing,
    ask,
    bundle,
    drafter_of,
    run,
    serving_with,
)
from tests.engine.fakes import END, N_VOCAB, FakeModel, hashed_logits, lone_run, scripted

MODEL = DraftOptions(DraftKind.MODEL)
NGRAM = DraftOptions(DraftKind.NGRAM)


class Spelling(Always):
    """Guesses a text, and ends after it."""

    def __init__(self, text: bytes) -> None:
        super().__init__(8)
        self.text = [*text, *[END] * 300]

    def propose(self, speculation: Speculation, sequences: Sequence_[Sequence], n_plain: int) -> list[Planned]:
        out = super().propose(speculation, sequences, n_plain)
        for one in out:
            said = len(one.sequence.tokens) - 1
            one.guess.tokens[:] = self.text[said : said + len(one.guess.tokens)]
        return out


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 5])
def test_greedy_answers_are_those_without_guesses(agreement: float, n: int, clock: Clock) -> None:
    """Prompts of different lengths, one of them over several blocks, and blocks that are all given back."""
    draft = FakeModel(256, 64, agreeing(agreement), clock.steps(1.0, 0.05))
    serving = serving_with(bundle(before=clock.steps(10.0, 0.1), n_blocks=256), draft)
    prompts = [[i + 1] * (1 + 40 * i) for i in range(n)]
    asked = [ask(serving, prompt, 90, MODEL) for prompt in prompts]
    run(serving, *asked)
    for one, prompt in zip(asked, prompts, strict=True):
        assert one.tokens == lone_run(prompt, 90, ignore_eos=True)
        if agreement == 1.0:
            assert one.figures.accepted_tokens == one.figures.drafted_tokens > 45
            assert sum(event.drafted for event in one.events if isinstance(event, Token)) > 45
    assert serving._scheduler.blocks.free == 256
    assert drafter_of(serving).blocks.free == 256


@pytest.mark.parametrize("length", [1, 7, 40])
def test_every_length_of_guess_is_undone_exactly(length: int) -> None:
    """Guesses over the borders of blocks, half of them wrong, in a cache that is too small for all of them."""
    serving = serving_with(bundle(n_blocks=14, max_rows=48))
    serving.speculation.set_drafter(DraftKind.MODEL, Always(length))
    prompts = [[3] * 5, [4] * 31, [5] * 64, [6] * 20]
    asked = [ask(serving, prompt, 100, MODEL) for prompt in prompts]
    run(serving, *asked)
    for one, prompt in zip(asked, prompts, strict=True):
        assert one.tokens == lone_run(prompt, 100, ignore_eos=True)
        assert 0 < one.figures.accepted_tokens < one.figures.drafted_tokens
    assert serving._scheduler.blocks.free == 14


def test_a_cached_prefix_holds_no_guess() -> None:
    """The next turn, which finds the first one's blocks, answers as if it had computed them itself."""
    serving = serving_with(bundle())
    serving.speculation.set_drafter(DraftKind.MODEL, Always(40))
    first = ask(serving, [9] * 30, 70, MODEL)
    run(serving, first)
    prompt = [9] * 30 + first.tokens + [1, 2]
    second = ask(serving, prompt, 30, MODEL)
    run(serving, second)
    assert second.figures.cached_tokens >= 64
    assert second.tokens == lone_run(prompt, 30, ignore_eos=True)


def test_an_answer_ends_inside_a_run_of_guesses_as_it_would_without() -> None:
    def finished(draft: DraftOptions | None, **more: object) -> tuple[list[int], str, StopReason]:
        serving = serving_with(bundle(scripted(b"one, two, three, four"), n_blocks=8))
        serving.speculation.set_drafter(DraftKind.MODEL, Spelling(b"one, two, three, four"))
        one = ask(serving, [256], 200, draft, **more)  # type: ignore[arg-type]
        run(serving, one)
        last = one.events[-1]
        assert isinstance(last, Finished)
        assert serving._scheduler.blocks.free == 8
        if draft is not None:
            assert last.figures.accepted_tokens > 3
        text = "".join(event.text for event in one.events if isinstance(event, Token)) + last.text
        return one.tokens, text, last.reason

    for more in ({"stop": ["three"]}, {"stop": ["wo, th"]}, {"ignore_eos": False}, {"ignore_eos": True}):
        assert finished(MODEL, **more) == finished(None, **more)


@pytest.mark.parametrize(("n", "reason"), [(7, StopReason.LENGTH), (64, StopReason.CONTEXT)])
def test_limits_cut_a_run_of_guesses(n: int, reason: StopReason) -> None:
    serving = serving_with(bundle(n_blocks=2))
    serving.speculation.set_drafter(DraftKind.MODEL, Always(40))
    one = ask(serving, [1, 2, 3], n, MODEL)
    run(serving, one)
    last = one.events[-1]
    assert isinstance(last, Finished)
    assert last.reason is reason
    assert one.tokens == lone_run([1, 2, 3], min(n, 61), ignore_eos=True)


def test_cancelling_in_the_middle_gives_everything_back(clock: Clock) -> None:
    draft = FakeModel(64, 64, agreeing(0.9), clock.steps(1.0, 0.05))
    serving = serving_with(bundle(before=clock.steps(10.0, 0.1)), draft)
    cancelled, other = ask(serving, [1], 200, MODEL), ask(serving, [2], 60, MODEL)
    for _ in range(12):
        serving.step()
    assert drafter_of(serving).blocks.free < 64
    cancelled.stream.cancel()
    run(serving, cancelled, other)
    tokens = cancelled.tokens
    assert 12 < len(tokens) < 200
    assert tokens == lone_run([1], len(tokens), ignore_eos=True)
    assert other.tokens == lone_run([2], 60, ignore_eos=True)
    assert serving._scheduler.blocks.free == drafter_of(serving).blocks.free == 64


def test_a_draft_cache_that_is_too_small_leaves_some_without_guesses(clock: Clock) -> None:
    draft = FakeModel(3, 64, agreeing(1.0), clock.steps(1.0, 0.05))
    serving = serving_with(bundle(before=clock.steps(10.0, 0.1)), draft)
    asked = [ask(serving, [i + 1], 80, MODEL) for i in range(4)]
    run(serving, *asked)
    for i, one in enumerate(asked):
        assert one.tokens == lone_run([i + 1], 80, ignore_eos=True)
    assert any(one.figures.accepted_tokens > 20 for one in asked)
    assert drafter_of(serving).blocks.free == 3


def test_tokens_that_only_the_model_has_are_never_guessed(clock: Clock) -> None:
    shared = np.ones(N_VOCAB, np.bool_)
    shared[::2] = False
    draft = FakeModel(64, 64, hashed_logits, clock.steps(1.0, 0.05))
    serving = serving_with(bundle(before=clock.steps(10.0, 0.1)), draft, shared)
    for sampling in (SamplingParams(temperature=0), SamplingParams(temperature=1.5, top_k=0, top_p=1, seed=3)):
        one = ask(serving, [1], 200, MODEL, sampling)
        run(serving, one)
        guessed = [event.token for event in one.events if isinstance(event, Token) and event.drafted]
        assert guessed
        assert all(shared[token] for token in guessed)
        assert len({token % 2 for token in one.tokens}) == 2


def test_a_guess_ends_at_a_token_that_the_draft_finds_unlikely(clock: Clock) -> None:
    draft = FakeModel(64, 64, agreeing(1.0), clock.steps(1.0, 0.05))
    serving = serving_with(bundle(before=clock.steps(10.0, 0.1)), draft)
    timid = ask(serving, [1], 60, DraftOptions(DraftKind.MODEL, min_probability=1.0))
    run(serving, timid)
    assert timid.figures.drafted_tokens == 0
    assert timid.tokens == lone_run([1], 60, ignore_eos=True)


# -- distribution


def test_sampled_answers_have_the_models_distribution(clock: Clock) -> None:
    """Over many seeds, at a high temperature and with a draft that is often wrong, the third and fourth token are
    distributed as without guesses (chi-square of two samples)."""

    def few(history: tuple[int, ...]) -> np.ndarray:
        out = np.full(N_VOCAB, -50, np.float32)
        out[:6] = hashed_logits(history)[:6]
        return out

    def other(history: tuple[int, ...]) -> np.ndarray:
        out = few(history)
        out[:6] = np.roll(out[:6], 1) * 0.7
        return out

    sampling = SamplingParams(temperature=1.3, top_k=0, top_p=1.0, min_p=0.0)
    draft = FakeModel(64, 64, other, clock.steps(0.1, 0.01))
    serving = serving_with(bundle(few, before=clock.steps(10.0, 0.1)), draft)
    n = 800

    def answers(options: DraftOptions | None, seed: int) -> list[Asked]:
        out: list[Asked] = []
        for first in range(seed, seed + n, 40):
            some = [ask(serving, [1, 2], 5, options, replace(sampling, seed=first + i)) for i in range(40)]
            run(serving, *some)
            out += some
        return out

    plain, drafted = answers(None, 0), answers(MODEL, n)
    accepted = sum(one.figures.accepted_tokens for one in drafted)
    assert 200 < accepted < sum(one.figures.drafted_tokens for one in drafted)
    for place in (2, 3, 4):
        a, b = (np.bincount([one.tokens[place] for one in some], minlength=6) for some in (plain, drafted))
        seen = a + b > 0
        chi_square = float((((a - b) ** 2)[seen] / (a + b)[seen]).sum())
        assert chi_square < 30.9  # exceeded once in 100,000 tries with 5 degrees of freedom


# -- what it costs and gains


@pytest.mark.parametrize(
    ("target", "draft", "agreement", "least"),
    [
        ((14.0, 1.5), (4.0, 1.0), 0.87, 1.4),  # a copy at a quarter of the bytes, where checking a row costs a tenth
        ((14.0, 1.5), (4.0, 1.0), 0.99, 1.65),
        ((10.0, 0.2), (1.0, 0.1), 0.87, 2.4),
        ((14.0, 1.5), (4.0, 1.0), 0.0, 0.95),  # nothing to gain: little may be lost
        ((14.0, 4.3), (5.0, 4.0), 0.6, 0.95),
        ((14.0, 14.0), (12.0, 12.0), 1.0, 0.95),
        ((10.0, 0.2), (1.0, 0.1), 0.0, 0.95),
    ],
)
def test_a_draft_gains_what_it_can_and_costs_little_where_it_cannot(
    target: tuple[float, float], draft: tuple[float, float], agreement: float, least: float, clock: Clock
) -> None:
    model = FakeModel(64, 64, agreeing(agreement), clock.steps(*draft))
    serving = serving_with(bundle(before=clock.steps(*target)), model)
    took = []
    for options in (None, MODEL):
        began = clock.now
        one = ask(serving, [1, 2, 3], 240, options)
        run(serving, one)
        took.append(clock.now - began)
    figures = one.figures
    assert took[0] / took[1] >= least
    assert figures.draft_gain == pytest.approx(took[0] / took[1], rel=0.05)
    assert figures.drafting_paused == (least < 1)


def test_many_sequences_never_become_slower(clock: Clock) -> None:
    """Eight at once, where rows cost what they compute: there is nothing to gain, and the lengths shrink to none."""
    model = FakeModel(256, 64, agreeing(0.9), clock.steps(4.0, 1.0))
    serving = serving_with(bundle(before=clock.steps(14.0, 4.3), n_blocks=256), model)
    took = []
    for options in (None, MODEL):
        began = clock.now
        asked = [ask(serving, [i, 2, 3], 150, options) for i in range(8)]
        run(serving, *asked)
        took.append(clock.now - began)
    assert took[1] <= took[0] / 0.95


def test_a_draft_guesses_no_further_than_what_is_checked(clock: Clock) -> None:
    """Where a ninth row makes the target's step twice as long, a draft that is always right stops before it."""

    def before(batch: Batch) -> None:
        clock.now += 10.0 if len(batch.tokens) <= 8 else 20.0

    draft = FakeModel(64, 64, hashed_logits, clock.steps(1.0, 0.05))
    serving = serving_with(bundle(before=before), draft)
    run(serving, ask(serving, [1, 2, 3], 100, MODEL))
    draft.batches.clear()
    one = ask(serving, [3, 2, 1], 200, MODEL)
    run(serving, one)
    made = sum(len(batch.logit_rows) for batch in draft.batches)
    assert one.figures.accepted_tokens > 150
    assert made < 1.1 * one.figures.drafted_tokens


def _timed(
    clock: Clock, serving: Serving, tokens: list[int], draft: DraftOptions | None, *sampling: SamplingParams
) -> tuple[float, list[int]]:
    """What 240 tokens behind these take by the clock, and which they are."""
    began = clock.now
    one = ask(serving, tokens, 240, draft, *sampling)
    run(serving, one)
    return clock.now - began, one.tokens


def test_a_text_that_repeats_itself_is_guessed_from_itself_though_there_is_a_draft(clock: Clock) -> None:
    """A draft that is often wrong, and a text in which what follows stands already."""
    repeated = bytes(range(40, 120)) * 3
    draft = FakeModel(64, 64, agreeing(0.0), clock.steps(4.0, 1.0))
    serving = serving_with(bundle(scripted(repeated), before=clock.steps(14.0, 1.5)), draft)
    plain, _ = _timed(clock, serving, [*repeated, 256], None)
    guessing, tokens = _timed(clock, serving, [*repeated, 256], MODEL)
    assert tokens == list(repeated)
    assert plain / guessing > 1.8
    timid = ask(serving, [*repeated, 256], 240, DraftOptions(DraftKind.MODEL, min_probability=1.0))
    run(serving, timid)
    assert timid.figures.drafted_tokens == 0


def test_ngrams_double_the_speed_of_a_repetition_and_cost_nothing_elsewhere(clock: Clock) -> None:
    repeated = bytes(range(40, 120)) * 3
    serving = serving_with(bundle(scripted(repeated), before=clock.steps(14.0, 1.5)))
    plain, guessing = (_timed(clock, serving, [*repeated, 256], options)[0] for options in (None, NGRAM))
    assert plain / guessing > 2
    serving = serving_with(bundle(before=clock.steps(14.0, 4.3)))
    drawn = SamplingParams(temperature=1.0, top_k=0, top_p=1, min_p=0, seed=4)
    plain, guessing = (_timed(clock, serving, [1, 2], options, drawn)[0] for options in (None, NGRAM))
    assert plain / guessing > 0.95


def test_a_request_for_a_draft_model_without_one_is_refused() -> None:
    serving = serving_with(bundle())
    with pytest.raises(RequestError, match="none is loaded"):
        ask(serving, [1], 5, MODEL)


def test_a_draft_that_fails_fails_who_uses_it_and_nobody_else(clock: Clock) -> None:
    def broken(batch: Batch) -> None:
        if len(draft.batches) > 3:
            raise DeviceError("The device is gone.")

    draft = FakeModel(64, 64, agreeing(1.0), broken)
    serving = serving_with(bundle(before=clock.steps(10.0, 0.1)), draft)
    guessing, plain = ask(serving, [1], 100, MODEL), ask(serving, [2], 100)
    run(serving, guessing, plain)
    last = guessing.events[-1]
    assert isinstance(last, Failed)
    assert last.error.message == "Guessing tokens failed: The device is gone."
    assert plain.tokens == lone_run([2], 100, ignore_eos=True)
    assert serving.draft_failed
    assert serving._scheduler.blocks.free == 64


def test_taking_the_draft_away_lets_answers_go_on(clock: Clock) -> None:
    draft = FakeModel(64, 64, agreeing(1.0), clock.steps(1.0, 0.05))
    serving = serving_with(bundle(before=clock.steps(10.0, 0.1)), draft)
    one = ask(serving, [1], 100, MODEL)
    for _ in range(6):
        serving.step()
    serving.set_draft(None)
    run(serving, one)
    assert not any(isinstance(event, Failed) for event in one.events)
    assert one.tokens == lone_run([1], 100, ignore_eos=True)
    assert one.figures.drafting_paused
