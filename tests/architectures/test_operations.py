"""Operations of the numpy backend on random inputs, against their plain meaning in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.architectures import read_architecture
from engine.backends.numpy_backend import NumpyModel
from engine.batch import KV_BLOCK
from engine.devices import choose_device
from engine.gguf import GGUFFile
from engine.graph import Gating, Graph, Rope, rope_frequencies
from engine.measure.logits import sequence_batch
from tests.architectures.small_model import F64, rotate, softmax
from tests.backends.memory_file import MemoryFile, load, one_sequence


def attention_by_definition(
    q: F64, k: F64, v: F64, *, scale: float, window: int, softcap: float, sinks: F64 | None
) -> F64:
    group = q.shape[1] // k.shape[1]
    out = np.zeros((len(q), q.shape[1], v.shape[2]))
    for position in range(len(q)):
        first = max(0, position - window + 1) if window else 0
        for head in range(q.shape[1]):
            scores = k[first : position + 1, head // group] @ q[position, head] * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            if sinks is not None:
                scores = np.append(scores, sinks[head])
            seen = v[first : position + 1, head // group]
            out[position, head] = softmax(scores)[: len(seen)] @ seen
    return out.reshape(len(q), -1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_attention(data: st.DataObject) -> None:
    draw = data.draw
    n_kv, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width, value_width = draw(st.integers(2, 9)), draw(st.integers(1, 9))
    rotated = 2 * draw(st.integers(0, width // 2))
    start = draw(st.integers(0, width - rotated))
    interleaved = draw(st.booleans())
    window = draw(st.sampled_from([0, 1, 2, 17, 64, 600]))
    softcap = draw(st.sampled_from([0.0, 0.7]))
    n = draw(st.sampled_from([1, 5, 70, 140]))
    split = draw(st.integers(0, n - 1))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    heads = n_kv * group
    q, k, v = (
        random.standard_normal((n, count, w)) for count, w in ((heads, width), (n_kv, width), (n_kv, value_width))
    )
    file = MemoryFile()
    rows = np.concatenate([x.reshape(n, -1) for x in (q, k, v)], axis=1).astype(np.float32)
    sinks = random.standard_normal(heads).astype(np.float32) if draw(st.booleans()) else None
    graph = Graph(n_vocab=heads * value_width, n_layers=1, n_kv_heads=n_kv, head_width=width)
    table = graph.embed(file.add("rows", "F32", rows, rows.shape[1]))
    at, values = 0, []
    for x in (q, k, v):
        values.append(graph.slice(table, at, x[0].size))
        at += x[0].size
    rope = Rope(rope_frequencies(rotated, 100.0), interleaved, 1.3) if rotated else None
    graph.attention(
        *values,
        layer=0,
        n_heads=heads,
        scale=0.4,
        rope=rope,
        rope_start=start,
        window=window,
        softcap=softcap,
        sinks=None if sinks is None else file.add("sinks", "F32", sinks[None], heads),
    )
    model = load("numpy", file, graph, n_blocks=12)
    blocks = random.permutation(12)[: -(-n // KV_BLOCK)]
    tokens = np.arange(n)
    got = []
    for a, b in ((0, split), (split, n)):
        if b > a:
            table_of = blocks[: -(-b // KV_BLOCK)]
            got.append(model.forward(one_sequence(tokens[a:b], a, table_of)).copy())
    if rope is not None:
        q, k = (rotate(x, rope.frequencies, interleaved=interleaved, magnitude=1.3, start=start) for x in (q, k))
    exact_sinks = None if sinks is None else sinks.astype(np.float64)
    expected = attention_by_definition(q, k, v, scale=0.4, window=window, softcap=softcap, sinks=exact_sinks)
    np.testing.assert_allclose(np.concatenate(got), expected, atol=2e-5)


@pytest.mark.parametrize("gating", Gating)
def test_a_route_prefers_the_lower_expert_among_equals(gating: Gating) -> None:
    file = MemoryFile()
    logits = np.array([[1, 3, 3, 0, 3], [2, 2, 2, 2, 2]], np.float32)
    graph = Graph(n_vocab=4, n_layers=0, n_kv_heads=1, head_width=2)
    graph.route(graph.embed(file.add("logits", "F32", logits, 5)), n_used=2, gating=gating, renormalise=True, scale=3.0)
    got = load("numpy", file, graph).forward(one_sequence([0, 1]))
    np.testing.assert_allclose(got, [[1, 2, 1.5, 1.5], [0, 1, 1.5, 1.5]], rtol=1e-6)


def test_layer_norm_with_an_offset_is_exact() -> None:
    file = MemoryFile()
    x = (1000 + np.random.default_rng(5).standard_normal((3, 64))).astype(np.float32)
    graph = Graph(n_vocab=64, n_layers=0, n_kv_heads=1, head_width=2)
    ones = file.add("ones", "F32", np.ones((1, 64), np.float32), 64)
    graph.layer_norm(graph.embed(file.add("x", "F32", x, 64)), ones, 1e-6, None)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(axis=1, keepdims=True)
    np.testing.assert_allclose(load("numpy", file, graph).forward(one_sequence([0, 1, 2])), exact, atol=1e-3)


def numpy_model(file: GGUFFile, budget_bytes: int) -> NumpyModel:
    return NumpyModel(
        file,
        read_architecture(file, 512).graph,
        n_blocks=4,
        device=choose_device("numpy"),
        budget_bytes=budget_bytes,
        progress=lambda *_: None,
        cancelled=lambda: False,
    )


@pytest.mark.parametrize("name", ["phi3", "gpt-oss", "deepseek2", "lfm2", "gemma2-q6_k", "qwen2moe"])
def test_weights_that_are_not_kept_give_the_same(fixtures_dir: Path, name: str) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / f"{name}.gguf")
    tokens = np.load(fixtures_dir / "tiny_models" / f"{name}.npz")["prompt"].astype(np.int32)
    batch = sequence_batch(tokens, 0, len(tokens), np.arange(len(tokens), dtype=np.int32))
    kept, expanded, some = (numpy_model(file, budget) for budget in (1 << 30, 0, 1 << 20))
    np.testing.assert_allclose(expanded.forward(batch), kept.forward(batch), atol=1e-5)
    np.testing.assert_allclose(some.forward(batch), kept.forward(batch), atol=1e-5)
    assert expanded.memory().weight_bytes < some.memory().weight_bytes < kept.memory().weight_bytes
    assert 0 < kept.weight_bytes_per_token <= kept.memory().weight_bytes


def test_a_token_reads_only_the_experts_it_uses(fixtures_dir: Path) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "qwen3moe.gguf")
    model = numpy_model(file, 1 << 30)
    experts = sum(4 * info.n_values for name, info in file.tensors.items() if "_exps" in name)
    embedding = 4 * file.tensors["token_embd.weight"].n_values
    row = 4 * file.tensors["token_embd.weight"].shape[1]
    everything = model.memory().weight_bytes
    assert model.weight_bytes_per_token == everything - embedding + row - experts * 5 // 8  # 3 of 8 are used


def test_a_batch_that_wants_no_logits_still_fills_the_cache(fixtures_dir: Path) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "command-r.gguf")
    tokens = np.load(fixtures_dir / "tiny_models" / "command-r.npz")["prompt"].astype(np.int32)
    model, n = numpy_model(file, 1 << 30), len(tokens)
    last = np.array([0], np.int32)
    whole = model.forward(sequence_batch(tokens, 0, n, np.array([n - 1], np.int32))).copy()
    silent = model.forward(sequence_batch(tokens[::-1].copy(), 0, n - 1, np.zeros(0, np.int32)))
    assert silent.shape == (0, model.n_vocab)
    other = model.forward(sequence_batch(tokens, n - 1, n, last)).copy()
    model.forward(sequence_batch(tokens, 0, n - 1, np.zeros(0, np.int32)))
    again = model.forward(sequence_batch(tokens, n - 1, n, last))
    np.testing.assert_allclose(again, whole, atol=1e-4)
    assert np.abs(other - whole).max() > 0.1
