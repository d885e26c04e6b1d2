"""Keys and values in 8 and 4 bits: OpenCL against numpy, which rounds by ggml's own rule for the types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import LoadOptions
from engine.architectures import read_architecture
from engine.backends.numpy_backend.attention import rounded
from engine.errors import RequestError
from engine.gguf import GGUFFile
from engine.loader import load_model
from tests.backends.memory_file import load, one_sequence

NAMES = "llama-q4_k_m gemma2 gemma3 gpt-oss deepseek2 lfm2 qwen3moe phi3".split()

BYTES = {"f16": 64, "q8_0": 34, "q4_0": 18}
"""Of 32 numbers."""


def _nmse(got: Any, expected: Any) -> float:
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


@pytest.mark.parametrize("name", NAMES)
def test_opencl_keeps_what_numpy_keeps(fixtures_dir: Path, name: str) -> None:
    """Closer to numpy with the same type than the type is to exact arithmetic, by far, in any steps."""
    file = GGUFFile.open(fixtures_dir / "tiny_models" / f"{name}.gguf")
    graph = read_architecture(file).graph
    tokens = np.random.default_rng(4).integers(3, graph.n_vocab, 180)
    blocks = [4, 1, 0, 5, 3, 2]
    exact = load("numpy", file, graph, 6).forward(one_sequence(tokens, blocks=blocks)).copy()  # type: ignore[arg-type]
    for kv_type in ("q8_0", "q4_0"):
        model = load("numpy", file, graph, 6, kv_type)  # type: ignore[arg-type]
        expected = model.forward(one_sequence(tokens, blocks=blocks)).copy()
        model = load("opencl", file, graph, 6, kv_type)  # type: ignore[arg-type]
        got, at = [], 0
        for length in (150, 17, 3, *[1] * 10):
            got.append(model.forward(one_sequence(tokens[at : at + length], at, blocks)).copy())
            at += length
        # a number that lies between two codes may go the other way in one of them
        assert _nmse(np.concatenate(got), expected) < 0.2 * _nmse(expected, exact), kv_type
        model.close()


@pytest.mark.parametrize("executor", ["persistent", "gpu"])
def test_the_cache_takes_the_memory_it_should(
    fixtures_dir: Path, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REALM_EXECUTOR", executor)
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "llama.gguf")
    graph = read_architecture(file).graph
    bytes_ = {kv: load("opencl", file, graph, 8, kv).memory().kv_bytes for kv in BYTES}  # type: ignore[arg-type]
    assert bytes_["q8_0"] * BYTES["f16"] == bytes_["f16"] * BYTES["q8_0"]
    assert bytes_["q4_0"] * BYTES["f16"] == bytes_["f16"] * BYTES["q4_0"]


def test_blocks_of_another_type_are_told_apart(fixtures_dir: Path) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / "llama.gguf")
    graph = read_architecture(file).graph
    for device in ("numpy", "opencl"):
        layouts = {load(device, file, graph, 4, kv).kv_layout for kv in BYTES}  # type: ignore[arg-type]
        assert len(layouts) == 3


def test_rounding_of_heads_of_any_width() -> None:
    x = np.random.default_rng(0).standard_normal((5, 2, 80)).astype(np.float32)
    assert rounded(x, "f16") is x
    for kv_type, most in (("q8_0", 0.02), ("q4_0", 0.3)):
        got = rounded(x, kv_type)
        assert got.shape == x.shape
        assert 0 < np.abs(got - x).max() < most


def test_what_cannot_be_is_refused(fixtures_dir: Path) -> None:
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    with pytest.raises(RequestError, match=r"'q5_9'.*f16, q8_0, q4_0"):
        load_model(path, LoadOptions(device="numpy", kv_type="q5_9"), lambda *_: None)
