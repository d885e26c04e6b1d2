"""Perplexity of real models against the reference's: the exact one on numpy, its integer path on OpenCL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import LoadOptions
from engine.gguf import GGUFFile
from engine.loader import load_model
from engine.measure import Perplexity, measure_perplexity
from engine.quantize import plan_quantisation, quantize_file
from tests.tools.llama2c import convert


def reference(fixtures_dir: Path, name: str) -> dict[str, Any]:
    path = fixtures_dir / "real_models" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the reference data")
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def measured(path: Path, known: dict[str, Any], device: str) -> Perplexity:
    """From the text, as `realm perplexity` does; checks that tokens and chunks are the reference's on the way."""
    expected = known["perplexity"]
    n_ctx = expected["n_ctx"]
    bundle = load_model(path, LoadOptions(device=device, context_length=n_ctx), lambda *_: None)
    try:
        tokens = bundle.tokenizer.encode(expected["text"], add_special=False)
        bos = bundle.tokenizer.bos if bundle.tokenizer.add_bos else None
        skip = 0 if bos is None else 1
        assert tokens == [token for chunk in expected["chunks"] for token in chunk[skip:]]
        return measure_perplexity(bundle.model, tokens, n_ctx, bos)
    finally:
        bundle.model.close()


def check(path: Path, known: dict[str, Any], device: str) -> None:
    """numpy: within 0.1 % of the exact perplexity, no token off by much. OpenCL: within 1.5 % of the reference's."""
    got, expected = measured(path, known, device), known["perplexity"]
    assert got.scored == expected["n_scored"]
    if device == "numpy":
        assert got.value == pytest.approx(expected["exact_ppl"], rel=0.001)
        for ours, exact in zip(got.nll, expected["exact_nll"], strict=True):
            np.testing.assert_allclose(ours, exact, atol=0.02)
    else:
        assert got.value == pytest.approx(expected["ppl"], rel=0.015)


@pytest.mark.parametrize("device", ["numpy", "opencl"])
def test_the_starter_model(fixtures_dir: Path, starter_model: Path, device: str) -> None:
    check(starter_model, reference(fixtures_dir, "smollm2-135m-q4_1"), device)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("device", ["numpy", "opencl"])
@pytest.mark.parametrize("name", ["gemma3-270m-q4_k_m", "tinyllama-1.1b-iq2_xxs", "qwen2.5-coder-1.5b-q4_k_m"])
def test_larger_models(fixtures_dir: Path, models_dir: Path, name: str, device: str) -> None:
    known = reference(fixtures_dir, name)
    path = models_dir / known["file"]
    if not path.is_file():
        pytest.skip(f"no {path.name} among the models; `make fetch-models` fetches it")
    check(path, known, device)


@pytest.fixture(scope="module")
def stories(fixtures_dir: Path, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = models_dir / "stories15M.bin"
    if not checkpoint.is_file():
        pytest.skip(f"no {checkpoint.name} among the models; `make fetch-models` fetches it")
    out = tmp_path_factory.mktemp("stories") / "stories15M.gguf"
    convert(checkpoint, fixtures_dir / "tokenizers" / "ggml-vocab-llama-spm.gguf", out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("device", ["numpy", "opencl"])
def test_a_converted_checkpoint(fixtures_dir: Path, stories: Path, device: str) -> None:
    check(stories, reference(fixtures_dir, "stories15m"), device)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["numpy", "opencl"])
def test_a_file_that_realm_quantised(fixtures_dir: Path, stories: Path, device: str) -> None:
    """As the reference quantised the same weights, whose output matrix fell back to Q8_0."""
    out = stories.with_name("stories15M-q4_0.gguf")
    with GGUFFile.open(stories) as file:
        quantize_file(file, plan_quantisation(file, "Q4_0", output_type="Q6_K"), out, overwrite=True)
    known = reference(fixtures_dir, "stories15m-q4_0")
    with GGUFFile.open(out) as file:
        assert file.tensors["output.weight"].type.name == "Q8_0"
        assert abs(file.size - known["file_bytes"]) < 2000  # but for some keys
    check(out, known, device)
