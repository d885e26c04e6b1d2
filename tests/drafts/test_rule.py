"""The rule by which guesses become tokens leaves the target's distribution as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api import SamplingParams
from engine.drafts.guess import Distribution, judge
from engine.sampling import Sampler
from engine.sampling.candidates import Candidates

CHI_SQUARE_1_IN_100000 = {1: 19.5, 2: 23.0, 3: 25.9, 4: 28.5, 5: 30.9, 6: 33.1, 7: 35.3}
"""Values that chi-square exceeds once in 100,000 tries, by degrees of freedom."""

weights = st.lists(st.integers(0, 9), min_size=3, max_size=6).filter(any)


def distribution(values: list[int], ids: list[int] | None = None) -> Distribution:
    p = np.array(values, np.float64)
    return Distribution(None if ids is None else np.array(ids, np.int64), p / p.sum())


def candidates(values: list[int], ids: list[int] | None = None) -> Candidates:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(values, np.float32))
    return Candidates(None if ids is None else np.array(ids, np.int64), logits)


def dense(d: Distribution, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([d.probability(token) for token in range(n)])


@given(p=weights, q=weights, p_ids=st.permutations(range(8)), q_ids=st.permutations(range(8)), kinds=st.integers(0, 3))
@settings(deadline=None, max_examples=200)
def test_accepting_and_replacing_together_give_the_target(
    p: list[int], q: list[int], p_ids: list[int], q_ids: list[int], kinds: int
) -> None:
    """In exact probabilities: q(x) min(1, p(x)/q(x)) + P(rejected) residual(x) = p(x), however tokens are listed."""
    target = distribution(p, p_ids[: len(p)] if kinds & 1 else None)
    guess = distribution(q, q_ids[: len(q)] if kinds & 2 else None)
    p_dense, q_dense = dense(target, 8), dense(guess, 8)
    accepted = np.minimum(p_dense, q_dense)
    rest = target.residual(guess)
    rejected = 1 - accepted.sum()
    total = accepted + (rejected * dense(rest, 8) if rest is not None else 0)
    np.testing.assert_allclose(total, p_dense, atol=1e-12)
    if rest is None:
        assert rejected == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "q"),
    [([1, 2, 3, 4], [4, 3, 2, 1]), ([1, 1, 0, 2], [0, 0, 5, 1]), ([5, 1], [5, 1]), ([1, 2, 3], [9, 0, 0])],
)
@pytest.mark.parametrize("listed", [False, True])
def test_judged_guesses_are_distributed_as_the_target(p: list[int], q: list[int], listed: bool) -> None:
    ids = list(range(len(p)))[::-1] if listed else None
    target, guess = candidates(p, ids), distribution(q, ids)
    random = np.random.default_rng(5)
    sampler = Sampler(SamplingParams(seed=8), len(p))
    counts = np.zeros(len(p))
    n = 6000
    for _ in range(n):
        counts[judge(sampler, target, guess.draw(random.random()), guess, random)] += 1
    wanted = dense(Distribution.of(target), len(p)) * n
    possible = wanted > 0
    assert not counts[~possible].any()
    chi_square = float((((counts - wanted) ** 2)[possible] / wanted[possible]).sum())
    assert chi_square < CHI_SQUARE_1_IN_100000[int(possible.sum()) - 1]


def test_a_chosen_guess_changes_no_draw() -> None:
    """With a point mass the seeded draws are those without guesses, accepted or not."""
    target = candidates([1, 2, 3, 4])
    with_guesses, without = (Sampler(SamplingParams(seed=3), 4) for _ in range(2))
    random = np.random.default_rng(0)
    for step in range(200):
        assert judge(with_guesses, target, step % 4, None, random) == without.draw(target)


def test_a_guess_that_the_target_never_says_is_never_accepted() -> None:
    target, guess = candidates([1, 1, 0]), distribution([0, 0, 1])
    random = np.random.default_rng(1)
    sampler = Sampler(SamplingParams(seed=1), 3)
    assert {judge(sampler, target, 2, guess, random) for _ in range(200)} == {0, 1}
