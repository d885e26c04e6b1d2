"""Adapters on matrices that deepseek2 models hold head by head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.adapters import AdapterBase, BoundAdapter, LowRank, read_adapter
from engine.adapters.runs import AdapterSet
from engine.architectures import read_architecture
from engine.batch import Batch
from engine.errors import AdapterError
from engine.gguf import GGUFFile
from engine.graph import Graph
from engine.quants import QuantType, dequantize, quantize
from tests.adapters.rounding import as_kept
from tests.adapters.running import check_sums
from tests.adapters.test_experts import info
from tests.adapters.writer import write_gguf, write_gguf_adapter, write_peft
from tests.backends.memory_file import MemoryFile, load

HEADS, ROWS, COLUMNS, OUTPUTS = 3, 42, 96, 80
MODULE = "model.layers.1.self_attn.kv_b_proj"


@pytest.mark.parametrize("executor", ["", "gpu", "tensors"])
@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_each_head_gets_what_its_matrices_add(
    device: str, executor: str, type_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside float64, with other adapters, several and none in the same step, and to the same bits alone."""
    if executor:
        if device == "numpy":
            pytest.skip("one executor")
        monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    if executor == "tensors":
        monkeypatch.setenv("REALM_TENSOR_TWIN", "1")
    random = np.random.default_rng(0)
    file = MemoryFile()
    x = random.standard_normal((ROWS, HEADS * COLUMNS)).astype(np.float32)
    w = (random.standard_normal((HEADS * OUTPUTS, COLUMNS)) / np.sqrt(COLUMNS)).astype(np.float32)
    kind = QuantType.by_name(type_name)
    data = quantize(kind, w)
    graph = Graph(n_vocab=HEADS * OUTPUTS, n_layers=0, n_kv_heads=1, head_width=16)
    weight = file.add("w", type_name, data, COLUMNS)
    graph.linear(graph.embed(file.add("x", "F32", x, HEADS * COLUMNS)), weight, heads=HEADS)
    model: Any = load(device, file, graph)
    added: dict[int, LowRank] = {}
    for rank in (5, 20):
        a = random.standard_normal((HEADS, rank, COLUMNS)) / np.sqrt(COLUMNS)
        b = random.standard_normal((HEADS, OUTPUTS, rank)) / np.sqrt(rank)
        low = LowRank(a.astype(np.float32), b.astype(np.float32), 0.5)
        added[model.add_adapter(BoundAdapter(info(), {weight: low}, {}))] = as_kept(low, model)
    one, two = added
    lengths = [36, 1, 3, 2]
    sets: list[AdapterSet] = [((one, 1.0), (two, 0.5)), (), ((one, -2.0),), ((two, 1.0),)]

    def run(lengths: list[int], sets: list[AdapterSet]) -> NDArray[np.float32]:
        every = np.arange(sum(lengths), dtype=np.int32)
        sequences = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        tables = np.zeros((len(lengths), 2), np.int32)
        out: NDArray[np.float32] = model.forward(Batch(every, every, sequences, tables, every, tuple(sets))).copy()
        return out

    got, first = run(lengths, sets), 0
    stored = dequantize(kind, data).reshape(HEADS, OUTPUTS, COLUMNS).astype(np.float64)
    for length, uses in zip(lengths, sets, strict=True):
        rows = slice(first, first + length)
        merged = stored + sum(
            (s * added[n].scale * (added[n].b.astype(np.float64) @ added[n].a) for n, s in uses), np.zeros(1)
        )
        expected = np.einsum("rhc,hoc->rho", x[rows].reshape(length, HEADS, COLUMNS).astype(np.float64), merged)
        error = ((got[rows] - expected.reshape(length, -1)) ** 2).sum() / (expected**2).sum()
        assert error < (1e-11 if device == "numpy" else 1e-5)
        first += length
    np.testing.assert_array_equal(got[36], run(lengths, [()] * 4)[36])
    if device != "numpy" and executor != "tensors":
        np.testing.assert_array_equal(run([1], sets[:1])[0], got[0])
    model.close()


@pytest.fixture
def model(fixtures_dir: Path) -> Path:
    return fixtures_dir / "tiny_models" / "deepseek2.gguf"


def base_of(path: Path) -> AdapterBase:
    with GGUFFile.open(path) as file:
        return AdapterBase.of(file, read_architecture(file).graph)


def test_it_answers_as_the_model_with_the_sums(device: str, model: Path, tmp_path: Path) -> None:
    """PEFT's LoRA of kv_b_proj, and GGUF files that have its halves, the one of values with one A for all heads."""
    shapes = base_of(model).matrices
    heads, latent, key = shapes["blk.1.attn_k_b"].shape
    value = shapes["blk.1.attn_v_b"].rows
    folder = write_peft(tmp_path / "peft", {MODULE: (heads * (key + value), latent)}, rank=6, size=1.0)
    (low,) = read_adapter(folder).matrices.values()
    rows = low.b.reshape(heads, key + value, 6)
    delta = (low.scale * (rows.astype(np.float64) @ low.a.astype(np.float64))).astype(np.float32)
    keys, values = delta[:, :key].swapaxes(1, 2), delta[:, key:]
    with GGUFFile.open(model) as file:
        merged = {
            name: dequantize(tensor.type, file.data(name)).reshape(tensor.shape)
            for name, tensor in file.tensors.items()
        }
        merged["blk.1.attn_k_b.weight"] = merged["blk.1.attn_k_b.weight"] + keys
        merged["blk.1.attn_v_b.weight"] = merged["blk.1.attn_v_b.weight"] + values
        whole = write_gguf(tmp_path / "merged.gguf", merged, [file.key_bytes(name) for name in file.metadata])
    tensors = {
        "blk.1.attn_k_b.weight.lora_a": rows[:, :key].swapaxes(1, 2),
        "blk.1.attn_k_b.weight.lora_b": np.repeat(low.a.T[None], heads, axis=0),
        "blk.1.attn_v_b.weight.lora_a": low.a[None],
        "blk.1.attn_v_b.weight.lora_b": rows[:, key:],
    }
    gguf = write_gguf_adapter(tmp_path / "halves.gguf", "deepseek2", tensors, alpha=8.0)
    check_sums(model, whole, device, (folder, gguf))


def test_a_whole_of_another_size_is_refused(model: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "peft", {MODULE: (512, 64)})
    with pytest.raises(AdapterError, match=r"'blk.1.attn_kv_b' .* stand for one of 512 x 64, .* is 512 x 128"):
        base_of(model).bind(read_adapter(folder))


def test_one_a_for_more_heads_than_any_model_has_is_refused(tmp_path: Path) -> None:
    tensors = {
        "blk.1.attn_v_b.weight.lora_a": np.ones((1, 4096)),
        "blk.1.attn_v_b.weight.lora_b": np.ones((1 << 15, 1, 1)),
    }
    path = write_gguf_adapter(tmp_path / "many.gguf", "deepseek2", tensors)
    with pytest.raises(AdapterError, match="cannot be meant for 32768 heads"):
        read_adapter(path)
