"""Logits, perplexity and speed on a model small enough to know every answer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.api import DeviceInfo
from engine.batch import KV_BLOCK, Batch, MemoryUse
from engine.errors import ContextFullError, RequestError
from engine.measure import (
    chunk_tokens,
    logits_of,
    measure_decode,
    measure_perplexity,
    measure_prefill,
    random_tokens,
)
from engine.measure import logits as logits_module

N_VOCAB = 11


def expected_logits(history: list[int]) -> NDArray[np.float32]:
    """What the model below says after a sequence: something that every token of it and its order decide."""
    state = 1
    for token in history:
        state = (state * 31 + token + 7) % 10007
    return np.sin(np.arange(1, N_VOCAB + 1) * state).astype(np.float32) * 3


class RememberingModel:
    """Keeps tokens where a model keeps keys and values, and answers from what it finds there."""

    def __init__(self, n_blocks: int = 4, max_rows: int = 8) -> None:
        self.device = DeviceInfo("numpy", "test", "", "cpu", "", 0)
        self.n_vocab = N_VOCAB
        self.n_blocks = n_blocks
        self.max_rows = max_rows
        self.weight_bytes_per_token = 1
        self.kv = np.full((n_blocks, KV_BLOCK), -1)
        self.steps: list[int] = []

    def forward(self, batch: Batch) -> NDArray[np.float32]:
        assert 0 < len(batch.tokens) <= self.max_rows
        self.steps.append(len(batch.tokens))
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            block = batch.block_tables[sequence][position // KV_BLOCK]
            self.kv[block, position % KV_BLOCK] = token
        answers = []
        for row in batch.logit_rows:
            table = batch.block_tables[batch.sequences[row]]
            seen = [int(self.kv[table[p // KV_BLOCK], p % KV_BLOCK]) for p in range(int(batch.positions[row]) + 1)]
            answers.append(expected_logits(seen))
        return np.asarray(answers, dtype=np.float32).reshape(len(answers), N_VOCAB)

    @property
    def block_bytes(self) -> int:
        return int(self.kv[0].nbytes)

    @property
    def kv_layout(self) -> str:
        return "fake"

    hidden_width = 0

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        raise NotImplementedError

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        return self.kv[list(blocks)].view(np.uint8)

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        self.kv[list(blocks)] = data.view(np.int64)

    def memory(self) -> MemoryUse:
        return MemoryUse(0, 0, 0)

    def read_bandwidth(self) -> float | None:
        return None

    def close(self) -> None:
        pass


tokens_of_a_sequence = st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=4 * KV_BLOCK)


@given(tokens_of_a_sequence, st.integers(1, 50))
def test_logits_do_not_depend_on_how_a_sequence_is_cut_into_steps(tokens: list[int], max_rows: int) -> None:
    model = RememberingModel(max_rows=max_rows)

    logits = logits_of(model, tokens)

    assert logits.dtype == np.float32
    assert logits.shape == (len(tokens), N_VOCAB)
    for position in (0, len(tokens) // 2, len(tokens) - 1):
        np.testing.assert_array_equal(logits[position], expected_logits(tokens[: position + 1]))


def test_a_large_vocabulary_makes_steps_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RememberingModel(max_rows=8)
    monkeypatch.setattr(logits_module, "LOGITS_BYTES", 3 * 4 * N_VOCAB)

    logits_of(model, [1] * 10)

    assert model.steps == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        ([], RequestError, "no tokens"),
        ([1, N_VOCAB, 2], RequestError, f"Token id {N_VOCAB} (number 2"),
        ([-1], RequestError, "Token id -1"),
        ([1] * (4 * KV_BLOCK + 1), ContextFullError, f"{4 * KV_BLOCK + 1} tokens do not fit"),
    ],
)
def test_impossible_sequences_are_refused_before_a_step(
    tokens: list[int], error: type[RequestError], says: str
) -> None:
    model = RememberingModel()

    with pytest.raises(error) as caught:
        logits_of(model, tokens)

    assert says in str(caught.value)
    assert model.steps == []


@given(tokens_of_a_sequence, st.integers(3, 60), st.sampled_from([None, 5]))
def test_perplexity_scores_each_token_after_those_before_it_in_its_chunk(
    tokens: list[int], n_ctx: int, bos: int | None
) -> None:
    chunks = chunk_tokens(tokens, n_ctx, bos)
    if not chunks:
        return

    result = measure_perplexity(RememberingModel(), tokens, n_ctx, bos)

    assert [len(chunk) - 1 for chunk in chunks] == [len(nll) for nll in result.nll]
    for chunk, values in zip(chunks, result.nll, strict=True):
        for position in range(1, len(chunk)):
            logits = expected_logits(chunk[:position]).astype(float)
            expected = math.log(sum(math.exp(x) for x in logits)) - logits[chunk[position]]
            assert values[position - 1] == pytest.approx(expected, abs=1e-6)
    everything = [value for chunk in result.nll for value in chunk]
    assert result.value == pytest.approx(math.exp(sum(everything) / len(everything)))


def test_perplexity_of_logits_too_large_for_exp_is_finite() -> None:
    class SureModel(RememberingModel):
        def forward(self, batch: Batch) -> NDArray[np.float32]:
            logits = np.full((len(batch.logit_rows), N_VOCAB), -2000, dtype=np.float32)
            logits[:, 3] = 2000
            return logits

    result = measure_perplexity(SureModel(), [3, 3, 3], 8, None)

    assert result.value == pytest.approx(1.0)


def test_perplexity_tells_how_far_it_is() -> None:
    told: list[tuple[int, int]] = []

    measure_perplexity(RememberingModel(), [1] * 40, 20, None, lambda done, total, _: told.append((done, total)))

    assert told[-1] == (38, 38)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("tokens", [[], [4]])
def test_a_text_too_short_to_score_is_refused(tokens: list[int]) -> None:
    with pytest.raises(RequestError, match="too short"):
        measure_perplexity(RememberingModel(), tokens, 8, None)


def test_a_context_of_one_token_is_refused() -> None:
    with pytest.raises(RequestError, match="context of 1"):
        chunk_tokens([1, 2, 3], 1, None)


def test_chunks_are_those_of_the_reference(fixtures_dir: Path) -> None:
    """The reference's token lists say how a text is cut; its value says how the tokens are averaged."""
    files = sorted((fixtures_dir / "real_models").glob("*.json"))
    assert files
    for file in files:
        model = json.loads(file.read_text(encoding="utf-8"))
        reference = model["perplexity"]
        bos = model["bos_id"] if reference["add_bos"] else None
        text = [token for chunk in reference["chunks"] for token in chunk[0 if bos is None else 1 :]]

        chunks = chunk_tokens(text, reference["n_ctx"], bos)

        assert chunks == reference["chunks"], file.name
        assert sum(len(chunk) - 1 for chunk in chunks) == reference["n_scored"]


def test_prefill_and_decode_time_what_they_say() -> None:
    model = RememberingModel(max_rows=8)

    prefill = measure_prefill(model, [1, 2, 3] * 4, repetitions=3)
    assert model.steps == [8, 4] * 4  # one run warms up
    assert (prefill.tokens, len(prefill.seconds)) == (12, 3)
    assert min(prefill.rates) <= prefill.median_rate <= max(prefill.rates)

    model.steps.clear()
    decode = measure_decode(model, 1, 10, repetitions=2)
    assert model.steps == [1] * (8 + 2 * 10)
    assert (decode.tokens, len(decode.seconds)) == (10, 2)
    greedy = [1]
    for _ in range(10):
        greedy.append(int(expected_logits(greedy).argmax()))
    assert model.kv.ravel()[:10].tolist() == greedy[:10]


def test_speed_of_more_tokens_than_fit_is_refused() -> None:
    with pytest.raises(ContextFullError):
        measure_prefill(RememberingModel(), [1] * (4 * KV_BLOCK + 1), 1)


@given(st.integers(0, 100))
def test_random_tokens_are_valid_and_the_same_for_a_seed(seed: int) -> None:
    avoid = frozenset({0, 3})

    tokens = random_tokens(N_VOCAB, 50, seed, avoid)

    assert len(tokens) == 50
    assert all(0 <= token < N_VOCAB and token not in avoid for token in tokens)
    assert tokens == random_tokens(N_VOCAB, 50, seed, avoid)
    assert tokens != random_tokens(N_VOCAB, 50, seed + 1, avoid)
