"""Comparing two models whose every logit is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.batch import KV_BLOCK, Batch
from engine.errors import RequestError
from engine.measure import compare_models, measure_perplexity, percentile
from engine.measure.compare import kl_divergence, log_probabilities
from tests.measure.test_measure import N_VOCAB, RememberingModel, expected_logits, tokens_of_a_sequence


class ShiftedModel(RememberingModel):
    """Says something else: the logits of the other, `tilt` more for each token than for the one before it."""

    tilt = 0.25

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        return super().forward(batch) + np.arange(N_VOCAB, dtype=np.float32) * np.float32(self.tilt)


@given(tokens_of_a_sequence, st.integers(3, 60), st.sampled_from([None, 5]), st.integers(1, 50))
def test_what_is_measured_is_what_the_logits_say(tokens: list[int], n_ctx: int, bos: int | None, max_rows: int) -> None:
    if len(tokens) + (bos is not None) < 2:
        return
    a, b = RememberingModel(max_rows=max_rows), ShiftedModel(max_rows=8)

    result = compare_models(a, b, tokens, n_ctx, bos)

    for model, got in ((a, result.perplexity_a), (b, result.perplexity_b)):
        alone = measure_perplexity(model, tokens, n_ctx, bos)
        assert [len(chunk) for chunk in got.nll] == [len(chunk) for chunk in alone.nll]
        for chunk, expected in zip(got.nll, alone.nll, strict=True):
            assert chunk == pytest.approx(expected)
    assert len(result.divergence) == result.perplexity_a.scored
    assert 0 <= result.agreement <= 1


def test_divergence_and_agreement_of_one_sequence() -> None:
    tokens = [3, 1, 4, 1, 5, 2]

    result = compare_models(RememberingModel(), ShiftedModel(), tokens, 64, None)

    agreements = 0
    for position in range(len(tokens) - 1):
        a = expected_logits(tokens[: position + 1]).astype(float)
        b = a + 0.25 * np.arange(N_VOCAB)
        p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
        assert result.divergence[position] == pytest.approx(sum(p * np.log(p / q)), rel=1e-4, abs=1e-9)
        agreements += int(a.argmax() == b.argmax())
    assert result.agreements == agreements
    assert result.mean_divergence == pytest.approx(result.divergence.mean())


def test_a_model_agrees_with_itself() -> None:
    result = compare_models(RememberingModel(), RememberingModel(max_rows=3), [1, 2, 3] * 20, 32, 0)

    assert result.agreement == 1
    assert result.divergence.max() == 0
    assert result.perplexity_a == result.perplexity_b


def test_progress_and_memory_bound() -> None:
    told: list[tuple[int, int]] = []
    a, b = RememberingModel(max_rows=16), ShiftedModel(max_rows=10)

    compare_models(a, b, [1] * 60, 32, None, lambda done, total: told.append((done, total)))

    assert told[-1] == (58, 58)
    assert a.steps == b.steps == [10, 10, 10, 1, 10, 10, 7]  # both step alike, as the one that can do less


def test_what_cannot_be_compared() -> None:
    other = RememberingModel()
    other.n_vocab = N_VOCAB + 1
    with pytest.raises(RequestError, match=f"vocabularies of {N_VOCAB} and {N_VOCAB + 1}"):
        compare_models(RememberingModel(), other, [1, 2, 3], 8, None)
    with pytest.raises(RequestError, match="too short"):
        compare_models(RememberingModel(), RememberingModel(), [1], 8, None)
    assert KV_BLOCK


def test_impossible_tokens_in_the_divergence() -> None:
    log_a = log_probabilities(np.array([[0.0, -np.inf, 0.0], [0.0, 0.0, 0.0]], np.float32))
    log_b = log_probabilities(np.array([[0.0, 0.0, 0.0], [0.0, -np.inf, 0.0]], np.float32))
    assert kl_divergence(log_a, log_b).tolist() == [pytest.approx(math.log(1.5)), math.inf]


def test_percentile() -> None:
    values = np.arange(100, dtype=np.float64)
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile(np.array([0.0, math.inf]), 0.99) == math.inf
