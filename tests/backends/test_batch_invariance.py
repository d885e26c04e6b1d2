"""What a row comes to depends on its own sequence alone: bit for bit the same in a prefill, token by token, among the
rows that check a draft, and beside other sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.architectures import read_architecture
from engine.backends.opencl.segments import MOST_SEGMENTS, SHORTEST_SEGMENT, segment_length
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.gguf import GGUFFile
from tests.backends.memory_file import load

NAMES = "llama-q4_k_m gemma2 gemma3 gpt-oss deepseek2 lfm2 qwen3moe command-r".split()

Tokens = NDArray[np.int32]


def _steps(model: LoadedModel, tokens: Tokens, at: int, lengths: list[int], last: int, others: int = 0) -> NDArray[Any]:
    """Logits of the last tokens, in steps of these lengths from `at` on; beside two sequences that take `others` tokens
    a step."""
    blocks = np.random.default_rng(3).permutation(-(-len(tokens) // KV_BLOCK))
    table = np.stack([blocks, *(model.n_blocks - 1 - np.roll(blocks, i) for i in (0, 5))]).astype(np.int32)
    got = []
    for turn, length in enumerate(lengths):
        counts = [others * (turn % 3 != 0), length, others * (turn % 2)]
        starts = [turn * others, at, turn * others]
        positions = np.concatenate([np.arange(n, n + count) for n, count in zip(starts, counts, strict=True)])
        sequences = np.repeat([1, 0, 2], counts)
        mine = np.flatnonzero(sequences == 0)
        row_tokens = (positions * 7 + sequences) % 50 + 3
        row_tokens[mine] = tokens[at : at + length]
        batch = Batch(
            tokens=row_tokens.astype(np.int32),
            positions=positions.astype(np.int32),
            sequences=sequences.astype(np.int32),
            block_tables=table,
            logit_rows=mine[max(0, len(tokens) - last - at) :].astype(np.int32),
        )
        got.append(model.forward(batch).copy())
        at += length
    return np.concatenate(got)


def _assert_the_same_in_any_steps(model: LoadedModel, n: int, last: int) -> None:
    """The logits of the `last` of n tokens, however the steps are cut."""
    tokens = np.random.default_rng(2).integers(3, model.n_vocab, n).astype(np.int32)
    most = model.max_rows
    whole = _steps(model, tokens, 0, [*[most] * (n // most), n % most], last)
    assert np.isfinite(whole).all()
    before = n - last
    steps = [*[most - 5] * (before // (most - 5)), before % (most - 5)]
    _steps(model, tokens, 0, [steps[-1], *steps[:-1]], 0)  # what follows reads the cache that these steps write
    ways: dict[str, tuple[list[int], int]] = {
        "one by one": ([1] * last, 0),
        "three by three": ([3] * (last // 3), 0),
        "as drafts are checked": ([16, 2, 9, 7, 5, 1] * (last // 40), 0),
        "beside others": ([1, 4, 12, 2, 3, 8] * (last // 30), 6),
        "all the rest": ([last], 0),
    }
    for way, (lengths, others) in ways.items():
        got = _steps(model, tokens, n - last, lengths, last, others)
        wrong = np.flatnonzero((got != whole[: len(got)]).any(axis=1))
        assert not len(wrong), f"{way}: rows {wrong[:10]} of {len(got)} differ"


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_in_any_step(fixtures_dir: Path, name: str) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / f"{name}.gguf")
    model = load("opencl", file, read_architecture(file).graph, n_blocks=40)  # type: ignore[arg-type]
    _assert_the_same_in_any_steps(model, n=290, last=120)
    model.close()


def test_a_row_is_the_same_where_segments_grow_longer(fixtures_dir: Path) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "gemma3.gguf")
    model = load("opencl", file, read_architecture(file).graph, n_blocks=280)  # type: ignore[arg-type]
    edge = SHORTEST_SEGMENT * MOST_SEGMENTS
    assert segment_length(edge - 1) < segment_length(edge)
    _assert_the_same_in_any_steps(model, n=edge + 70, last=120)
    model.close()


def test_rows_that_check_a_draft_are_as_lone_ones_on_the_gpu_executor(
    fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "llama-q4_k_m.gguf")
    model = load("opencl", file, read_architecture(file).graph, n_blocks=40)  # type: ignore[arg-type]
    n, last = 200, 60
    tokens = np.random.default_rng(2).integers(3, model.n_vocab, n).astype(np.int32)
    _steps(model, tokens, 0, [n - last], 0)
    alone = _steps(model, tokens, n - last, [1] * last, last)
    for lengths, others in (([16, 2, 9, 7, 5, 16, 1, 4], 0), ([1, 4, 12, 2, 3, 8] * 2, 6)):
        got = _steps(model, tokens, n - last, lengths, last, others)
        np.testing.assert_array_equal(got, alone[: len(got)])
    model.close()


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["llama-q4_k_m", "gemma3", "deepseek2"])
def test_a_row_is_the_same_with_a_cache_of_whole_numbers(fixtures_dir: Path, name: str, kv_type: str) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / f"{name}.gguf")
    model = load("opencl", file, read_architecture(file).graph, n_blocks=40, kv_type=kv_type)  # type: ignore[arg-type]
    _assert_the_same_in_any_steps(model, n=290, last=120)
    model.close()


def test_a_row_of_the_starter_model_is_the_same_in_any_step(starter_model: Path) -> None:
    file = GGUFFile.open(starter_model)
    model = load("opencl", file, read_architecture(file).graph, n_blocks=40)  # type: ignore[arg-type]
    _assert_the_same_in_any_steps(model, n=300, last=48)
    model.close()
