"""Real models on OpenCL, fed the reference's own tokens: each step's best token against the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.architectures import read_architecture
from engine.gguf import GGUFFile
from tests.backends.memory_file import load, one_sequence

MODELS = ["tinyllama-1.1b-iq2_xxs", "qwen2.5-coder-1.5b-q4_k_m", "gemma3-270m-q4_k_m"]

CLEAR = 0.5
"""Logits by which the reference's best token leads where no rounding of activations excuses another."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_best_token_of_each_step_is_the_references(fixtures_dir: Path, models_dir: Path, name: str) -> None:
    reference = json.loads((fixtures_dir / "real_models" / f"{name}.json").read_text(encoding="utf-8"))
    path = models_dir / reference["file"]
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    file = GGUFFile.open(path)
    model = load("opencl", file, read_architecture(file).graph, n_blocks=32)  # type: ignore[arg-type]
    wrong: list[str] = []
    for case in reference["cases"]:
        prompt, greedy = case["prompt_ids"], case["greedy_ids"]
        tokens = prompt + greedy[:-1]
        steps = np.arange(len(prompt) - 1, len(tokens))
        best = model.forward(one_sequence(tokens, logit_rows=steps)).argmax(axis=1).tolist()
        for step, (token, margin) in enumerate(zip(best, case["margin"], strict=True)):
            if token not in (greedy[step], case["exact_top1"][step]) and margin > CLEAR:
                wrong.append(f"{case['id']} step {step}: {token}, margin {margin}")
    model.close()
    assert not wrong
