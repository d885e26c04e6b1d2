"""Each type's matrix product and row expansion on OpenCL, against rows and dots that ggml made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from engine.backends.opencl.formats import FORMATS
from engine.gguf import GGUFFile
from engine.graph import Graph, Value
from engine.quants import QuantType, dequantize
from tests.backends.memory_file import MemoryFile, load, one_sequence

TYPES = sorted(FORMATS)


def _reference(fixtures_dir: Path, name: str) -> dict[str, np.ndarray]:
    path = next((p for p in (fixtures_dir / "quants").glob("*.npz") if p.stem.lower() == name.lower()), None)
    if path is None and name == "F32":
        source = dict(np.load(fixtures_dir / "quants" / "f16.npz"))
        return {"q": source["src"], "deq": source["src"], "x": source["x"]}
    assert path is not None, f"no fixture for {name}"
    return dict(np.load(path))


TOGETHER = 6
"""Types whose kernels are compiled together: most of what is compiled does not depend on the type."""


def _with_others(file: MemoryFile, graph: Graph, name: str, n: int) -> None:
    """Products that nobody asks for, of all types that go together with this one, for n tokens."""
    if os.environ.get("REALM_EXECUTOR") == "gpu":  # most of what it compiles does
        return
    side = graph.embed(file.add("side", "F32", np.zeros((n, 512), np.float32), 512))
    at = TYPES.index(name) // TOGETHER * TOGETHER
    for other in TYPES[at : at + TOGETHER]:
        zeros = np.zeros((16, QuantType.by_name(other).row_bytes(512)), np.uint8)
        graph.linear(side, file.add(f"side {other}", other, zeros, 512))


def _read_back(file: MemoryFile, graph: Graph, rows: Value, n: int) -> np.ndarray:
    """What a model comes to for n tokens at this value."""
    graph.hidden = graph.select_rows(rows)
    graph.linear(graph.hidden, file.add("head", "F32", np.zeros((16, rows.width), np.float32), rows.width))
    model = load("opencl", file, graph)
    result = model.hidden(one_sequence(np.arange(n))).copy()
    model.close()
    return result


def _multiply(name: str, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x @ rows.T on OpenCL, where rows are the bytes of a matrix of the type."""
    file = MemoryFile()
    graph = Graph(n_vocab=16, n_layers=0, n_kv_heads=1, head_width=16)
    _with_others(file, graph, name, len(x))
    products = graph.linear(graph.embed(file.add("x", "F32", x, x.shape[1])), file.add("w", name, rows, x.shape[1]))
    return _read_back(file, graph, products, len(x)).astype(np.float64)


def _sizes(rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.outer(np.linalg.norm(x.astype(np.float64), axis=1), np.linalg.norm(rows.astype(np.float64), axis=1))


def _check(got: np.ndarray, rows: np.ndarray, x: np.ndarray) -> None:
    """As exact as float32: activations are rounded to 15 bits of a block's largest value."""
    expected = x.astype(np.float64) @ rows.T.astype(np.float64)
    assert (np.abs(got - expected) <= 6e-5 * _sizes(rows, x)).all()


@pytest.mark.parametrize("name", TYPES)
def test_products_agree_with_the_reference(fixtures_dir: Path, name: str) -> None:
    data = _reference(fixtures_dir, name)
    x, rows = data["x"], data["deq"]
    many = np.concatenate([x, -x, x[:1] * 0, x[::-1] * 3.5])  # thirteen rows: tiles of 8, 4 and 1
    got = _multiply(name, data["q"], many)
    _check(got, rows, many)
    expected = many.astype(np.float64) @ rows.T.astype(np.float64)
    assert ((got - expected) ** 2).sum() <= 1e-6 * (expected**2).sum()  # a thousandth of the reference's own error


@pytest.mark.parametrize("name", [name for name in TYPES if not FORMATS[name].is_float])
def test_products_of_any_bit_pattern(fixtures_dir: Path, name: str) -> None:
    data = _reference(fixtures_dir, name)
    x = np.stack([data["rnd_x"], -data["rnd_x"]])
    _check(_multiply(name, data["rnd_q"], x), data["rnd_deq"], x)


@pytest.mark.parametrize("name", TYPES)
def test_expanded_rows_are_those_of_the_reference(fixtures_dir: Path, name: str) -> None:
    """Embedding a token of a quantised table."""
    data = _reference(fixtures_dir, name)
    rows = data["deq"]
    file = MemoryFile()
    graph = Graph(n_vocab=16, n_layers=0, n_kv_heads=1, head_width=16)
    _with_others(file, graph, name, len(rows))
    got = _read_back(file, graph, graph.embed(file.add("table", name, data["q"], rows.shape[1])), len(rows))
    np.testing.assert_allclose(got, rows, rtol=3e-7, atol=1e-7 * np.abs(rows).max())


def test_the_matrices_of_a_model_of_mixed_types_multiply_right(fixtures_dir: Path) -> None:
    """As a real quantiser left them in a file."""
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "qwen3-iq4_xs.gguf")
    matrices = {t.shape: t for t in file.tensors.values() if len(t.shape) == 2 and not FORMATS[t.type.name].is_float}
    assert "IQ4_XS" in {t.type.name for t in matrices.values()}
    rng = np.random.default_rng(4)
    for tensor in matrices.values():
        x = rng.normal(0, 1, (3, tensor.shape[1])).astype(np.float32)
        data = file.data(tensor.name)
        _check(_multiply(tensor.type.name, data, x), dequantize(tensor.type, data), x)


@pytest.mark.parametrize(("name", "columns"), [("MXFP4", 32), ("NVFP4", 64)])
def test_every_scale_of_one_byte(name: str, columns: int) -> None:
    """Powers of two down to subnormal numbers, and small floats with theirs: exact for all codes."""
    quant = QuantType.by_name(name)
    rows = np.random.default_rng(6).integers(0, 256, (256, quant.block_bytes), np.uint8)
    rows[:, 0] = np.arange(256)
    file = MemoryFile()
    graph = Graph(n_vocab=columns, n_layers=0, n_kv_heads=1, head_width=16)
    graph.slice(graph.embed(file.add("table", name, rows, columns)), 0, columns)
    model = load("opencl", file, graph)
    got = np.concatenate([model.forward(one_sequence(np.arange(at, at + 64))).copy() for at in range(0, 256, 64)])
    model.close()
    np.testing.assert_array_equal(got, dequantize(quant, rows))
