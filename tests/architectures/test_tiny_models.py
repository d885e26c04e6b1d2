"""Every family's tiny model of the reference data on numpy, against logits of the same weights in exact arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.architectures import read_architecture
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.gguf import GGUFFile
from engine.measure.logits import sequence_batch
from tests.backends.memory_file import load

NAMES = [
    "command-r",
    "deepseek2",
    "gemma",
    "gemma2",
    "gemma2-q6_k",
    "gemma3",
    "glm4",
    "gpt-oss",
    "lfm2",
    "llama",
    "llama-q4_k_m",
    "llama-yarn",
    "llama3-ropescale",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3-iq4_xs",
    "qwen3moe",
    "smollm3",
    "starcoder2",
    "starcoder2-q8_0",
]

GELU_FROM_A_TABLE = ("gemma", "starcoder2")
"""Families whose reference looks GELU up among half-precision values."""

NEAR_TIE = 0.3

CONTEXT = 512
"""What the reference was loaded with."""


class Case:
    def __init__(self, folder: Path, name: str) -> None:
        self.file = GGUFFile.open(folder / f"{name}.gguf")
        self.reference = dict(np.load(folder / f"{name}.npz"))
        self.prompt, self.greedy = self.reference["prompt"], self.reference["greedy"]
        self.tokens = np.concatenate([self.prompt, self.greedy[:-1]]).astype(np.int32)
        self.model: LoadedModel = load(
            "numpy", cast("Any", self.file), read_architecture(self.file, CONTEXT).graph, n_blocks=8
        )

    def logits(self, steps: list[int]) -> NDArray[np.float32]:
        """Logits of all tokens, run so many at a time."""
        out, start = [], 0
        for rows in steps:
            stop = min(start + rows, len(self.tokens))
            batch = sequence_batch(self.tokens, start, stop, np.arange(stop - start, dtype=np.int32))
            out.append(self.model.forward(batch).copy())
            start = stop
        assert start == len(self.tokens)
        return np.concatenate(out)


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, fixtures_dir: Path) -> Case:
    return Case(fixtures_dir / "tiny_models", request.param)


def test_every_tiny_model_is_covered(fixtures_dir: Path) -> None:
    assert {path.stem for path in (fixtures_dir / "tiny_models").glob("*.gguf")} == set(NAMES)


def test_logits_are_those_of_exact_arithmetic(case: Case) -> None:
    exact = case.reference["exact_logits"].astype(np.float64)
    got = case.logits([len(case.tokens)])
    nmse = ((got - exact) ** 2).sum() / ((exact - exact.mean()) ** 2).sum()
    assert nmse <= (1e-5 if case.file.architecture.startswith(GELU_FROM_A_TABLE) else 1e-10)

    steps = got[len(case.prompt) - 1 :].argmax(axis=1)
    sure = case.reference["margin"] > NEAR_TIE
    assert sure.sum() >= len(steps) // 3
    agree = (steps == case.greedy) | (steps == case.reference["exact_top1"])
    assert agree[sure].all()


def test_chunks_and_single_tokens_give_the_same(case: Case) -> None:
    n = len(case.tokens)
    whole = case.logits([n])
    np.testing.assert_allclose(case.logits([17] * 4 + [n - 68]), whole, atol=2e-4)
    np.testing.assert_allclose(case.logits([1] * n), whole, atol=2e-4)


def test_sequences_in_one_batch_do_not_disturb_each_other(case: Case) -> None:
    """A second sequence shares the first block of the first one, a third has other tokens; blocks lie anywhere."""
    tokens = case.tokens
    other = tokens[::-1].copy()
    alone = [case.logits([len(tokens)])]
    case.tokens = other
    alone.append(case.logits([len(other)]))
    case.tokens = tokens

    first = np.array([[6, 1, 4]], np.int32)
    n = 50
    start = sequence_batch(tokens, 0, n, np.zeros(0, np.int32))
    assert case.model.forward(Batch(start.tokens, start.positions, start.sequences, first, start.logit_rows)).size == 0

    tables = np.array([[6, 1, 4], [3, 5, 0], [6, 2, 0]], np.int32)
    rows = [(0, tokens, n, n + 1), (1, other, 0, 40), (2, tokens, KV_BLOCK, KV_BLOCK + 9)]
    got = case.model.forward(
        Batch(
            tokens=np.concatenate([t[a:b] for _, t, a, b in rows]),
            positions=np.concatenate([np.arange(a, b, dtype=np.int32) for _, _, a, b in rows]),
            sequences=np.repeat(np.arange(3, dtype=np.int32), [b - a for *_, a, b in rows]),
            block_tables=tables,
            logit_rows=np.arange(50, dtype=np.int32),
        )
    )
    expected = [alone[0][n : n + 1], alone[1][:40], alone[0][KV_BLOCK : KV_BLOCK + 9]]
    np.testing.assert_allclose(got, np.concatenate(expected), atol=2e-4)
