"""The largest logits, found where the logits are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.api import GenerateRequest, LoadOptions, SamplingParams
from engine.backends.opencl.model import OpenCLModel
from engine.batch import GivesTop
from engine.devices import list_devices
from engine.engine import Engine
from engine.graph import Graph
from engine.quants import QuantType, quantize
from engine.sampling.candidates import largest
from tests.backends.memory_file import MemoryFile, load, one_sequence
from tests.engine.generation import generate


@pytest.fixture(autouse=True)
def _needs_opencl() -> None:
    if not any(d.id.startswith("opencl") and not d.problem for d in list_devices()):
        pytest.skip("no OpenCL device")


@pytest.mark.parametrize("executor", ["", "gpu"])
def test_they_are_those_that_sorting_gives(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALM_EXECUTOR", executor)
    n, among = 5003, 4999
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((n, 16)).astype(np.float32)
    columns[:, 1] = np.arange(n)  # the largest last
    columns[:, 2] = -np.arange(n)
    columns[:, 3] = np.arange(n) // 100 % 7  # many equal ones
    columns[:, 4] = np.where(np.arange(n) % 2, 0.0, -0.0)  # and all of them
    columns[:, 5] = -3e38
    rows = np.eye(16, dtype=np.float32)[:8]
    rows[6, 0], rows[7, 0] = np.inf, np.nan
    file = MemoryFile()
    graph = Graph(n_vocab=n, n_layers=0, n_kv_heads=1, head_width=16)
    graph.linear(graph.embed(file.add("x", "F32", rows, 16)), file.add("w", "F32", columns, 16))
    model = load("opencl", file, graph)
    assert isinstance(model, GivesTop)
    assert model.most_top == 64
    logits = model.forward(one_sequence(np.arange(8)))[:, :among].copy()
    for count in (1, 40, 64):
        found = model.top(one_sequence(np.arange(8)), count, among)
        assert [row.finite for row in found] == [True] * 6 + [False] * 2
        for row, own in zip(found[:6], logits, strict=False):
            expected = largest(own, count)
            assert row.ids.tolist() == expected.tolist()
            assert row.logits.tolist() == own[expected].tolist()
    few = model.top(one_sequence([0]), 64, 10)[0]
    assert sorted(few.ids.tolist()) == list(range(10))
    model.close()


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K", "Q4_0"])
def test_of_many_rows_they_are_the_same(name: str) -> None:
    """With twelve rows and more, and few wanted, most logits are only bounded."""
    n, among, k = 3001, 2990, 256
    rng = np.random.default_rng(1)
    x = rng.standard_normal((16, k)).astype(np.float32)
    x[1, 7] = 1000
    x[2] = 0
    x[3, 32:] *= 1e-6
    weights = rng.standard_normal((n, k)).astype(np.float32) * rng.lognormal(0, 1, (n, 1)).astype(np.float32)
    weights[100:140] = weights[900]  # equal ones
    blocks = x.reshape(16, -1, 32)
    step = np.maximum(np.abs(blocks).max(axis=2, keepdims=True), 1e-30) / 127
    rest = (blocks - np.rint(blocks / step) * step).reshape(16, k)  # what bytes miss, about
    for at, sign in ((0, 1), (1500, -1), (2980, 1)):  # results that a byte a number gets as wrong as can be
        weights[at : at + 5] = sign * 2e3 * rest[0] * np.arange(1, 6)[:, None]
    file = MemoryFile()
    graph = Graph(n_vocab=n, n_layers=0, n_kv_heads=1, head_width=16)
    table = file.add("w", name, quantize(QuantType.by_name(name), weights), k)
    graph.linear(graph.embed(file.add("x", "F32", np.concatenate([x, np.full_like(x[:1], np.nan)]), k)), table)
    model = load("opencl", file, graph)
    assert isinstance(model, GivesTop)
    for tokens in (range(16), range(4, 13), [16, *range(12)]):
        batch = one_sequence(list(tokens))
        logits = model.forward(batch)[:, :among].copy()
        for count in (1, 4, 40):
            for row, own in zip(model.top(batch, count, among), logits, strict=True):
                assert row.finite == np.isfinite(own).all()
                if row.finite:
                    expected = largest(own, count)
                    assert row.ids.tolist() == expected.tolist()
                    assert row.logits.tolist() == own[expected].tolist()
    model.close()


@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0), SamplingParams(seed=3), SamplingParams(seed=3, top_k=5)]
)
def test_answers_are_those_of_all_logits(
    fixtures_dir: Path, sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    request = GenerateRequest(prompt_tokens=[5, 6, 7], max_tokens=30, ignore_eos=True, sampling=sampling)
    answers = []
    for most in (64, 0):
        monkeypatch.setattr(OpenCLModel, "most_top", most)
        with Engine() as engine:
            engine.load(path, LoadOptions(device="opencl")).result(60)
            answers.append(generate(engine, request).tokens)
    assert answers[0] == answers[1]
