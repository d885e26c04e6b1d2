"""Embeddings of real models against those of the reference, through the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import LoadOptions, Pooling
from engine.engine import Engine

KNOWN: dict[str, Any] = json.loads(Path(__file__).with_name("expected_embeddings.json").read_text(encoding="utf-8"))


def check(path: Path, device: str) -> None:
    known = dict(KNOWN["models"][path.stem])
    counts = known.pop("tokens")
    with Engine() as engine:
        engine.load(path, LoadOptions(device=device, context_length=512)).result(120)
        for pooling, expected in known.items():
            got = engine.embed(KNOWN["texts"], Pooling(pooling)).result(120)
            assert list(got.token_counts) == counts
            vectors = got.vectors.astype(np.float64)
            np.testing.assert_allclose(vectors[:, :12], expected["first"], atol=1e-3)
            np.testing.assert_allclose(vectors @ vectors.T, expected["cosines"], atol=1e-3)


@pytest.mark.parametrize("device", ["opencl", "numpy"])
def test_a_chat_models_hidden_state(starter_model: Path, device: str) -> None:
    check(starter_model, device)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["opencl", "gpu", "numpy"])
def test_an_encoder(models_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models_dir / "nomic-embed-text-v1.5.f16.gguf"
    if not path.is_file():
        pytest.skip(f"no {path.name} among the models")
    if device == "gpu":
        monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    check(path, "numpy" if device == "numpy" else "opencl")
