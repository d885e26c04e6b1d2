"""The samplers against their definitions, written out here in plain Python over float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling import candidates as c
from engine.sampling.candidates import Candidates

# Few distinct values on purpose: ties are where selection and sorting disagree.
coarse = st.lists(st.integers(-12, 12).map(lambda n: n / 2), min_size=1, max_size=60)
fine = st.lists(st.floats(-15, 15, width=32), min_size=1, max_size=60, unique=True)


def candidates(values: list[float]) -> Candidates:
    return Candidates(None, np.array(values, np.float32))


def kept(result: Candidates) -> list[int]:
    ids = range(len(result)) if result.ids is None else result.ids.tolist()
    return list(ids)


def softmax(values: list[float]) -> list[float]:
    highest = max(values)
    weights = [math.exp(v - highest) for v in values]
    return [w / math.fsum(weights) for w in weights]


def by_likelihood(values: list[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(coarse, st.integers(-1, 70))
def test_top_k_keeps_the_k_largest_and_of_equals_the_lowest_id(values: list[float], k: int) -> None:
    wanted = set(by_likelihood(values)[:k] if k > 0 else range(len(values)))
    assert set(kept(c.top_k(candidates(values), k))) == wanted


def near_a_limit(sums: list[float], limit: float) -> bool:
    return any(abs(s - limit) < 1e-5 for s in sums)


@given(coarse | fine, st.floats(0, 0.999))
def test_top_p_keeps_the_shortest_prefix_that_reaches_p(values: list[float], p: float) -> None:
    order, probability = by_likelihood(values), softmax(values)
    sums = [math.fsum(probability[i] for i in order[: n + 1]) for n in range(len(order))]
    if near_a_limit(sums, p):
        return
    wanted = order[: next(n for n, s in enumerate(sums) if s >= p) + 1]
    assert kept(c.top_p(candidates(values), p)) == wanted


@given(coarse | fine, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough_beside_the_most_likely(values: list[float], p: float) -> None:
    probability = softmax(values)
    ratios = [q / max(probability) for q in probability]
    if near_a_limit([r for r in ratios if r < 1], p):
        return
    wanted = {i for i, r in enumerate(ratios) if r >= p or r == 1}
    assert set(kept(c.min_p(candidates(values), p))) == wanted


@given(fine, st.floats(0, 0.999))
def test_typical_p_keeps_the_tokens_of_most_expected_surprise(values: list[float], p: float) -> None:
    probability = softmax(values)
    entropy = math.fsum(-q * math.log(q) for q in probability if q > 0)
    distance = [abs(-math.log(q) - entropy) for q in probability]
    order = sorted(range(len(values)), key=lambda i: distance[i])
    gaps = [distance[b] - distance[a] for a, b in itertools.pairwise(order)]
    sums = [math.fsum(probability[i] for i in order[: n + 1]) for n in range(len(order))]
    if near_a_limit(sums, p) or any(gap < 1e-4 for gap in gaps):
        return
    wanted = order[: next((n for n, s in enumerate(sums) if s > p), len(order) - 1) + 1]
    assert set(kept(c.typical_p(candidates(values), p))) == set(wanted)


@given(
    coarse,
    st.lists(st.integers(0, 59), max_size=30),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.booleans(),
)
def test_penalties(
    values: list[float], window: list[int], repeat: float, presence: float, frequency: float, narrowed: bool
) -> None:
    window = [token % len(values) for token in window]
    expected = list(values)
    for token in set(window):
        value = expected[token]
        value = value * repeat if value <= 0 else value / repeat
        expected[token] = value - window.count(token) * frequency - presence
    before = candidates(values)
    if narrowed:  # what is left after another sampler: ids in an order of their own
        before = before.front(max(1, len(values) // 2))
    after = c.penalties(before, window, repeat, presence, frequency)
    np.testing.assert_allclose(after.logits, [expected[i] for i in kept(after)], rtol=1e-5, atol=1e-5)
    assert kept(after) == kept(before)


@given(fine, st.floats(0.05, 5))
def test_temperature_divides_the_logits(values: list[float], t: float) -> None:
    result = c.temperature(candidates(values), t)
    probability = result.weights() / result.weights().sum()
    np.testing.assert_allclose(probability, softmax([v / t for v in values]), atol=1e-5)


def test_a_temperature_near_zero_stays_a_distribution() -> None:
    for t in (1e-3, 1e-30, 5e-324):
        weights = c.temperature(candidates([1.0, 30.0, 29.0]), t).weights()
        assert weights.tolist() == [0.0, 1.0, 0.0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 40, 300, 3000]), st.booleans())
@settings(max_examples=40)
def test_the_front_of_a_large_vocabulary_is_that_of_a_full_sort(seed: int, n: int, ties: bool) -> None:
    logits = np.random.default_rng(seed).standard_normal(20_000).astype(np.float32)
    if ties:
        logits = np.round(logits * 4)
    wanted = np.argsort(-logits, kind="stable")[:n]
    front = Candidates(None, logits).front(n)
    assert front.ids is not None
    np.testing.assert_array_equal(front.ids, wanted)


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("p", [0.1, 0.9, 0.999])
def test_cumulative_samplers_on_a_large_vocabulary(spread: float, p: float) -> None:
    """Flat distributions need far more candidates than the first front."""
    logits = (np.random.default_rng(5).standard_normal(20_000) * spread).astype(np.float32)
    probability = np.exp(logits.astype(np.float64))
    probability /= probability.sum()
    order = np.argsort(-logits, kind="stable")
    wanted = int(np.searchsorted(np.cumsum(probability[order]), p)) + 1
    assert abs(len(c.top_p(Candidates(None, logits), p)) - wanted) <= 1 + wanted * 1e-4

    distance = np.abs(-np.log(probability) + np.sum(probability * np.log(probability)))
    sums = np.cumsum(probability[np.argsort(distance, kind="stable")])
    wanted = int(np.searchsorted(sums, p, side="right")) + 1
    assert abs(len(c.typical_p(Candidates(None, logits), p)) - wanted) <= 1 + wanted * 1e-3
