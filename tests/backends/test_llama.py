"""Whole llama models on both backends: against the reference's logits, and against themselves in other batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.architectures import read_architecture
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.gguf import GGUFFile
from engine.graph import Activation, Graph, Rope, rope_frequencies
from tests.backends.memory_file import MemoryFile, load, one_sequence

TINY = ["llama", "llama-yarn", "llama3-ropescale", "llama-q4_k_m"]


def _open(fixtures_dir: Path, name: str, device: str) -> LoadedModel:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / f"{name}.gguf")
    return load(device, file, read_architecture(file).graph)  # type: ignore[arg-type]


def _nmse(got: Any, expected: Any) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


def _run(model: LoadedModel, tokens: Any, chunk: int) -> Any:
    parts = [
        model.forward(one_sequence(tokens[start : start + chunk], start, np.arange(4))).copy()
        for start in range(0, len(tokens), chunk)
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("chunk", [79, 17, 1])
def test_logits_against_the_reference(fixtures_dir: Path, name: str, chunk: int) -> None:
    data = np.load(fixtures_dir / "tiny_models" / f"{name}.npz")
    tokens = np.concatenate([data["prompt"], data["greedy"]])[: len(data["exact_logits"])]
    exact = data["exact_logits"]
    assert _nmse(_run(_open(fixtures_dir, name, "numpy"), tokens, chunk), exact) <= 1e-6
    got = _run(_open(fixtures_dir, name, "opencl"), tokens, chunk)
    n = len(data["logits"])
    assert _nmse(got[:n], exact[:n]) <= 1.5 * _nmse(data["logits"], exact[:n])
    differs = (got.argmax(1) != exact.argmax(1)) & (np.diff(np.sort(exact, axis=1)[:, -2:])[:, 0] > 0.3)
    assert not differs.any()


def _random_model(
    file: MemoryFile, *, heads: int, kv_heads: int, head_width: int, interleaved: bool, bias: bool
) -> Graph:
    rng = np.random.default_rng(heads * 100 + head_width)
    width, vocabulary = 64, 40

    def matrix(name: str, rows: int, columns: int) -> Any:
        values = rng.normal(0, 1 / np.sqrt(columns), (rows, columns)).astype(np.float32)
        return file.add(name, "F32", values, columns)

    def vector(name: str, n: int) -> Any:
        return file.add(name, "F32", rng.normal(1, 0.3, (1, n)).astype(np.float32), n)

    g = Graph(vocabulary, 2, kv_heads, head_width)
    rope = Rope(rope_frequencies(head_width // 2 // 2 * 2, 10000.0), interleaved=interleaved, magnitude=1.1)
    h = g.embed(matrix("embd", vocabulary, width))
    for layer in range(2):
        n = g.rms_norm(h, vector(f"{layer}.norm", width), 1e-5)
        q, k, v = (
            g.linear(n, matrix(f"{layer}.{name}", rows, width), vector(f"{layer}.{name}.b", rows) if bias else None)
            for name, rows in (("q", heads * head_width), ("k", kv_heads * head_width), ("v", kv_heads * head_width))
        )
        a = g.attention(q, k, v, layer=layer, n_heads=heads, scale=head_width**-0.5, rope=rope)
        h = g.add(h, g.linear(a, matrix(f"{layer}.o", width, heads * head_width)))
        if layer == 1:
            h = g.select_rows(h)
        n = g.rms_norm(h, vector(f"{layer}.ffn", width), 1e-5)
        gated = g.gate(
            g.linear(n, matrix(f"{layer}.g", 96, width)), g.linear(n, matrix(f"{layer}.u", 96, width)), Activation.SILU
        )
        h = g.add(h, g.linear(gated, matrix(f"{layer}.d", width, 96)))
    g.linear(g.rms_norm(h, vector("out", width), 1e-5), matrix("head", vocabulary, width))
    return g


SHAPES = [(4, 4, 16), (6, 2, 64), (9, 3, 64), (8, 1, 128), (4, 2, 80), (2, 1, 256), (8, 8, 8), (5, 1, 24), (40, 1, 16)]


MOST_NMSE = {"f16": 2e-6, "q8_0": 1e-5, "q4_0": 5e-4}
"""By what keys and values are kept as: numpy has no halves, and of a number between two codes either may be right."""


@pytest.mark.parametrize(("heads", "kv_heads", "head_width"), SHAPES)
def test_opencl_agrees_with_numpy_in_any_batch(heads: int, kv_heads: int, head_width: int) -> None:
    """Long and short sequences in one batch, their cache blocks scattered; every head shape that models have."""
    opencl_against_numpy(heads, kv_heads, head_width, "f16")


def opencl_against_numpy(heads: int, kv_heads: int, head_width: int, kv_type: str) -> None:
    models = {}
    for device in ("numpy", "opencl"):
        file = MemoryFile()
        graph = _random_model(
            file,
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            interleaved=head_width % 32 == 0,
            bias=heads == 9,
        )
        models[device] = load(device, file, graph, 40, kv_type)
    rng = np.random.default_rng(5)
    blocks = rng.permutation(40).astype(np.int32)
    tables = np.zeros((3, 20), np.int32)
    tables[0], tables[1, :10], tables[2, :10] = blocks[:20], blocks[20:30], blocks[30:]
    lengths = np.array([0, 0, 0])

    def step(counts: list[int]) -> None:
        sequences = np.repeat(np.arange(3), counts)
        positions = np.concatenate([np.arange(n, n + c) for n, c in zip(lengths, counts, strict=True)])
        wanted = np.sort(rng.choice(len(sequences), min(len(sequences), 70), replace=False))
        batch = Batch(
            tokens=rng.integers(0, 40, len(sequences)).astype(np.int32),
            positions=positions.astype(np.int32),
            sequences=sequences.astype(np.int32),
            block_tables=tables,
            logit_rows=wanted.astype(np.int32),
        )
        got, expected = (models[d].forward(batch) for d in ("opencl", "numpy"))
        assert got.shape == expected.shape
        assert _nmse(got, expected) < MOST_NMSE[kv_type]
        lengths[:] += counts

    step([200, 3, 90])
    step([1, 1, 1])
    step([200, 0, 33])
    step([1, 40, 1])
    step([1, 0, 0])
    step([0, 1, 5])


def test_a_row_does_not_depend_on_its_batch(fixtures_dir: Path) -> None:
    """Bit for bit: what a sequence computes alone and beside others."""
    model = _open(fixtures_dir, "llama-q4_k_m", "opencl")
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 400, (3, KV_BLOCK)).astype(np.int32)
    alone = [model.forward(one_sequence(row, blocks=[i])).copy() for i, row in enumerate(tokens)]
    together = model.forward(
        Batch(
            tokens=tokens.ravel(),
            positions=np.tile(np.arange(KV_BLOCK, dtype=np.int32), 3),
            sequences=np.repeat(np.arange(3, dtype=np.int32), KV_BLOCK),
            block_tables=np.arange(3, dtype=np.int32)[:, None],
            logit_rows=np.arange(3 * KV_BLOCK, dtype=np.int32),
        )
    )
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_no_logits_wanted(fixtures_dir: Path) -> None:
    for device in ("numpy", "opencl"):
        model = _open(fixtures_dir, "llama", device)
        assert model.forward(one_sequence([5, 6, 7], logit_rows=[])).shape == (0, 448)
