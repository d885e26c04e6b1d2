from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.api import SamplingParams
from engine.errors import DeviceError, RequestError
from engine.sampling import Sampler

PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
GREEDY = SamplingParams(temperature=0.0)


def logits(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


def draws(params: SamplingParams, values: np.ndarray[Any, Any], n: int, history: list[int] | None = None) -> np.ndarray:
    sampler = Sampler(params, len(values))
    tokens = [sampler.sample(values, history or []) for _ in range(n)]
    return np.bincount(tokens, minlength=len(values))


def assert_drawn_from(counts: np.ndarray, probability: np.ndarray) -> None:
    """Chi-square test at six standard deviations of its mean, so that it fails for a wrong formula only."""
    n, possible = counts.sum(), probability > 0
    assert counts[~possible].sum() == 0
    expected = probability[possible] * n
    chi2 = float(((counts[possible] - expected) ** 2 / expected).sum())
    freedom = max(int(possible.sum()) - 1, 1)
    assert chi2 < freedom + 6 * math.sqrt(2 * freedom)


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values.astype(np.float64) - values.max())
    return weights / weights.sum()


VALUES = np.random.default_rng(3).standard_normal(30).astype(np.float32) * 2


def test_draws_follow_the_softmax() -> None:
    assert_drawn_from(draws(replace(PLAIN, seed=1), VALUES, 20_000), softmax(VALUES))


def test_draws_follow_temperature() -> None:
    assert_drawn_from(draws(replace(PLAIN, temperature=0.6, seed=2), VALUES, 20_000), softmax(VALUES / 0.6))


def test_draws_follow_the_default_chain_in_its_order() -> None:
    probability = softmax(VALUES)
    order = np.argsort(-VALUES, kind="stable")[:8]
    left = order[: int(np.searchsorted(np.cumsum(probability[order]) / probability[order].sum(), 0.9)) + 1]
    left = left[probability[left] >= 0.1 * probability.max()]
    expected = np.zeros(30)
    expected[left] = softmax(VALUES[left] / 0.7)
    params = SamplingParams(temperature=0.7, top_k=8, top_p=0.9, min_p=0.1, seed=4)
    assert_drawn_from(draws(params, VALUES, 20_000), expected)


def test_the_order_of_the_chain_matters() -> None:
    """At temperature 4 the first token has 0.4 of the probability; before it, 0.93, enough for top_p alone."""
    values = logits(4, 1, 0, 0)
    first = replace(PLAIN, temperature=4.0, top_p=0.9, seed=1, samplers=("temperature", "top_p"))
    after = replace(first, samplers=("top_p", "temperature"))
    assert (draws(first, values, 500) > 0).sum() == 4
    assert (draws(after, values, 500) > 0).sum() == 1


def test_a_sampler_that_is_left_out_does_not_run() -> None:
    params = replace(PLAIN, top_k=1, seed=1, samplers=("top_p", "temperature"))
    assert (draws(params, logits(0, 0, 0), 200) > 0).all()


def test_the_same_seed_draws_the_same_tokens() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(replace(PLAIN, seed=seed), 30)
        return [sampler.sample(VALUES, []) for _ in range(50)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)


def test_greedy_takes_the_largest_and_of_equals_the_lowest_id() -> None:
    assert Sampler(GREEDY, 4).sample(logits(1, 3, 3, 2), []) == 1


def test_greedy_ignores_what_narrows_the_choice() -> None:
    params = replace(GREEDY, typical_p=0.01, top_k=1, min_p=1.0)
    flat = np.zeros(1000, np.float32)
    flat[17] = 8.0  # far from typical
    assert Sampler(params, 1000).sample(flat, []) == 17


def test_bias_and_penalties_apply_to_greedy() -> None:
    values = logits(5, 4, 3, 2)
    assert Sampler(replace(GREEDY, logit_bias={3: 10.0}), 4).sample(values, []) == 3
    assert Sampler(replace(GREEDY, logit_bias={0: -math.inf}), 4).sample(values, []) == 1
    assert Sampler(replace(GREEDY, repeat_penalty=2.0), 4).sample(values, [0]) == 1
    assert Sampler(replace(GREEDY, presence_penalty=1.5), 4).sample(values, [0, 0]) == 1
    assert Sampler(replace(GREEDY, frequency_penalty=0.75), 4).sample(values, [0]) == 0
    assert Sampler(replace(GREEDY, frequency_penalty=0.75), 4).sample(values, [0, 0]) == 1


def test_penalties_look_at_the_last_tokens_only() -> None:
    values, history = logits(5, 4), [0, 1, 1]
    params = replace(GREEDY, presence_penalty=3.0)
    assert Sampler(replace(params, repeat_last_n=2), 2).sample(values, history) == 0
    assert Sampler(replace(params, repeat_last_n=0), 2).sample(values, [0]) == 0
    assert Sampler(replace(params, repeat_last_n=-1), 2).sample(logits(5, 3), [0, *[1] * 500]) == 0
    assert Sampler(replace(params, repeat_last_n=-1), 3).sample(logits(5, 3, 4), [0, *[1] * 500]) == 2


def test_a_banned_token_never_comes() -> None:
    counts = draws(replace(PLAIN, seed=1, typical_p=0.99, logit_bias={0: -math.inf}), logits(9, 1, 1), 300)
    assert counts[0] == 0
    assert counts[1] > 0
    assert counts[2] > 0


def test_banning_everything_is_an_error() -> None:
    params = replace(GREEDY, logit_bias={0: -math.inf, 1: -math.inf})
    with pytest.raises(RequestError, match="bans every token"):
        Sampler(params, 2).sample(logits(1, 2), [])


def test_the_logits_are_left_as_they_were() -> None:
    values = VALUES.copy()
    params = SamplingParams(logit_bias={1: 2.0}, repeat_penalty=1.3, seed=1)
    Sampler(params, 30).sample(values, [1, 2, 3])
    Sampler(SamplingParams(repeat_penalty=1.3, temperature=0), 30).sample(values, [1, 2, 3])
    np.testing.assert_array_equal(values, VALUES)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), PLAIN])
def test_invalid_logits_are_a_device_error(bad: float, params: SamplingParams) -> None:
    values = VALUES.copy()
    values[11] = bad
    with pytest.raises(DeviceError, match="invalid numbers"):
        Sampler(params, 30).sample(values, [])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 1.01),
        ("top_p", -0.1),
        ("min_p", 2.0),
        ("min_p", math.nan),
        ("typical_p", -1.0),
        ("top_k", 2.5),
        ("repeat_penalty", 0.0),
        ("repeat_penalty", math.nan),
        ("presence_penalty", math.inf),
        ("frequency_penalty", math.nan),
        ("repeat_last_n", -2),
        ("seed", -1),
        ("seed", True),
        ("samplers", ("top_k", "mirostat")),
        ("xtc_probability", 1.5),
        ("xtc_threshold", math.nan),
        ("dry_multiplier", -1.0),
        ("dry_allowed_length", -1),
        ("dry_penalty_last_n", -2),
        ("dry_sequence_breakers", "abc"),
        ("dry_sequence_breakers", ("",)),
        ("dry_sequence_breakers", ("\ud800",)),
        ("dynatemp_range", -0.1),
        ("dynatemp_exponent", math.inf),
        ("top_n_sigma", math.nan),
        ("mirostat", 3),
        ("mirostat_tau", -1.0),
        ("mirostat_eta", "fast"),
        ("samplers", ("top_k", "top_k")),
        ("samplers", "top_k"),
        ("logit_bias", {30: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {2: math.nan}),
        ("logit_bias", {2: math.inf}),
    ],
)
def test_an_invalid_setting_is_named(setting: str, value: Any) -> None:
    with pytest.raises(RequestError, match=setting):
        Sampler(replace(SamplingParams(), **{setting: value}), 30)


def test_the_chain_describes_itself_in_order() -> None:
    params = SamplingParams(seed=5, repeat_penalty=1.1, logit_bias={3: 1.0})
    assert [line.split()[0] for line in Sampler(params, 30).describe()] == [
        "logit_bias",
        "penalties",
        "top_k",
        "top_p",
        "min_p",
        "temperature",
        "draw",
    ]
    turned = replace(PLAIN, top_k=5, temperature=0.5, samplers=("temperature", "top_k"))
    assert Sampler(turned, 30).describe() == ["temperature 0.5", "top_k 5", "draw"]
    assert Sampler(GREEDY, 30).describe() == ["greedy"]


def test_a_token_of_a_large_vocabulary_takes_little_time() -> None:
    values = np.random.default_rng(0).standard_normal(150_000).astype(np.float32) * 3
    sampler, history = Sampler(SamplingParams(seed=1, repeat_penalty=1.1), 150_000), list(range(64))
    times = []
    for _ in range(30):
        start = time.perf_counter()
        sampler.sample(values, history)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.002
    print(f"best {min(times) * 1e6:.0f} us, median {sorted(times)[15] * 1e6:.0f} us")


def distribution(params: SamplingParams, values: np.ndarray, history: list[int] | None = None) -> np.ndarray:
    remaining = Sampler(params, len(values)).candidates(values, history or [])
    out = np.zeros(len(values))
    weights = remaining.weights().astype(np.float64)
    out[np.arange(len(values)) if remaining.ids is None else remaining.ids] = weights / weights.sum()
    return out


def test_penalties_behind_the_temperature_act_on_what_it_made() -> None:
    params = replace(PLAIN, temperature=0.5, repeat_penalty=2.0, samplers=("temperature", "penalties"))
    np.testing.assert_allclose(distribution(params, logits(2.0, 1.0, 0.5), [0]), softmax(logits(2, 2, 1)), rtol=1e-6)


def test_a_dynamic_temperature_counts_what_top_n_sigma_took_out() -> None:
    values = logits(2.0, 1.5, 0.0, -1.0, -2.0, -2.0)  # deviation 1.57: the first two stay
    params = replace(PLAIN, temperature=1.0, dynatemp_range=0.5, top_n_sigma=1.0)
    p = softmax(values[:2])
    warmth = 0.5 + -float(np.sum(p * np.log(p))) / math.log(6)
    np.testing.assert_allclose(distribution(params, values)[:2], softmax(values[:2] / warmth), rtol=1e-5)


def test_xtc_leaves_a_token_that_can_be_drawn() -> None:
    """With the threshold 0 all tokens are top choices, those that were taken out before are not."""
    params = replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.0)
    for taken_out in ({"top_n_sigma": 1.0}, {"logit_bias": {2: -math.inf, 3: -math.inf}}):
        found = distribution(replace(params, **taken_out), logits(2.0, 1.5, -1.0, -2.0))
        np.testing.assert_array_equal(found, [0, 1, 0, 0])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "settings",
    [
        {"dry_multiplier": 1.0, "dry_base": 1e300},
        {"dry_multiplier": 1e300},
        {"presence_penalty": 1e300},
        {"presence_penalty": -1e300, "frequency_penalty": 10**30},
        {"repeat_penalty": 1e-300},
        {"repeat_penalty": 1e300, "dry_multiplier": 1e38},
        {"temperature": 1e300, "top_n_sigma": 1.0},
        {"temperature": 1e-300, "repeat_penalty": 1e-300},
        {"top_n_sigma": 1e308},
        {"temperature": 1e308, "dynatemp_range": 1e308, "dynatemp_exponent": 1e38},
        {"mirostat": 1, "mirostat_tau": 1e308, "mirostat_eta": 1e308},
        {"mirostat": 2, "mirostat_tau": 1e308, "mirostat_eta": 1e308},
        {"logit_bias": {0: 1e300, 1: -1e300}},
    ],
)
def test_settings_however_large_leave_something_to_draw_from(settings: dict[str, Any]) -> None:
    for values in (logits(1.0, 2.0), logits(0.0, 0.0), logits(1e4, -1e4)):
        sampler = Sampler(replace(PLAIN, seed=1, **settings), 2)
        for _ in range(3):
            weights = sampler.candidates(values, [0, 1] * 200).weights()
            assert np.isfinite(weights).all()
            assert weights.sum() > 0
            sampler.sample(values, [0, 1] * 200)


def test_a_number_of_too_many_digits_is_refused() -> None:
    for settings in ({"temperature": 10**400}, {"logit_bias": {0: 10**400}}):
        with pytest.raises(RequestError, match="has to be a"):
            Sampler(replace(PLAIN, **settings), 4)
