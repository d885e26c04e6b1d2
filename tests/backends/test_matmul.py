"""Each type's matrix product and row expansion on OpenCL, against rows and dots that ggml made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.backends.opencl.formats import FORMATS
from engine.graph import Graph
from tests.backends.memory_file import MemoryFile, load, one_sequence

TYPES = sorted(FORMATS)


def _reference(fixtures_dir: Path, name: str) -> dict[str, np.ndarray]:
    path = next((p for p in (fixtures_dir / "quants").glob("*.npz") if p.stem.lower() == name.lower()), None)
    if path is None and name == "F32":
        source = dict(np.load(fixtures_dir / "quants" / "f16.npz"))
        return {"q": source["src"], "deq": source["src"], "x": source["x"]}
    assert path is not None, f"no fixture for {name}"
    return dict(np.load(path))


def _multiply(name: str, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x @ rows.T on OpenCL, where rows are the bytes of a matrix of the type."""
    file = MemoryFile()
    graph = Graph(n_vocab=len(rows), n_layers=0, n_kv_heads=1, head_width=16)
    inputs = graph.embed(file.add("x", "F32", x, x.shape[1]))
    graph.linear(inputs, file.add("w", name, rows, x.shape[1]))
    model = load("opencl", file, graph)
    result = model.forward(one_sequence(np.arange(len(x)))).astype(np.float64)
    model.close()
    return result


def _check(name: str, got: np.ndarray, rows: np.ndarray, x: np.ndarray) -> None:
    """Within what rounding activations to 8 bits may cost (the bounds of the reference data's FIELDS.md)."""
    size = np.outer(np.linalg.norm(x.astype(np.float64), axis=1), np.linalg.norm(rows.astype(np.float64), axis=1))
    error = np.abs(got - x.astype(np.float64) @ rows.T.astype(np.float64))
    assert (error <= (1e-5 if FORMATS[name].is_float else 6e-3) * size).all()


@pytest.mark.parametrize("name", TYPES)
def test_products_agree_with_the_reference(fixtures_dir: Path, name: str) -> None:
    data = _reference(fixtures_dir, name)
    x, rows = data["x"], data["deq"]
    many = np.concatenate([x, -x, x[:1] * 0, x[::-1] * 3.5])  # thirteen rows: tiles of 8, 4 and 1
    got = _multiply(name, data["q"], many)
    _check(name, got, rows, many)
    expected = x.astype(np.float64) @ rows.T.astype(np.float64)
    nmse = ((got[:4] - expected) ** 2).sum() / (expected**2).sum()
    # one of the inputs has an outlier that costs its whole block: there ggml itself comes to 1e-3 with Q5_0
    assert nmse <= (1e-10 if FORMATS[name].is_float else 2e-3)
    calm = [0, 1]
    nmse = ((got[calm] - expected[calm]) ** 2).sum() / (expected[calm] ** 2).sum()
    assert nmse <= 5e-4


@pytest.mark.parametrize("name", [name for name in TYPES if not FORMATS[name].is_float])
def test_products_of_any_bit_pattern(fixtures_dir: Path, name: str) -> None:
    data = _reference(fixtures_dir, name)
    x = np.stack([data["rnd_x"], -data["rnd_x"]])
    _check(name, _multiply(name, data["rnd_q"], x), data["rnd_deq"], x)


@pytest.mark.parametrize("name", TYPES)
def test_expanded_rows_are_those_of_the_reference(fixtures_dir: Path, name: str) -> None:
    """Embedding a token of a quantised table, read back through an identity product."""
    data = _reference(fixtures_dir, name)
    rows = data["deq"]
    file = MemoryFile()
    graph = Graph(n_vocab=rows.shape[1], n_layers=0, n_kv_heads=1, head_width=16)
    inputs = graph.embed(file.add("table", name, data["q"], rows.shape[1]))
    graph.linear(inputs, file.add("one", "F32", np.eye(rows.shape[1], dtype=np.float32), rows.shape[1]))
    got = load("opencl", file, graph).forward(one_sequence(np.arange(len(rows))))
    np.testing.assert_allclose(got, rows, rtol=3e-7, atol=1e-7 * np.abs(rows).max())
