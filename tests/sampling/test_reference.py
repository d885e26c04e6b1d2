"""The samplers against llama.cpp's: candidates and probabilities that its samplers gave (llama-cpp-python 0.3.36)."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.api import SamplingParams
from engine.gguf import GGUFFile
from engine.sampling import Sampler
from engine.sampling.candidates import Candidates
from engine.sampling.dry import dry, find_breakers
from engine.tokenizer import Tokenizer

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text())
PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)


def ids_of(remaining: Candidates) -> list[int]:
    return list(range(len(remaining))) if remaining.ids is None else remaining.ids.tolist()


@pytest.mark.parametrize("case", REFERENCE["narrow"], ids=lambda case: case["sampler"])
def test_one_sampler_leaves_the_same_distribution(case: dict[str, Any]) -> None:
    values = np.array(case["logits"], np.float32)
    remaining = Sampler(replace(PLAIN, **case["settings"]), len(values)).candidates(values, [])

    expected, found = np.zeros(len(values)), np.zeros(len(values))
    expected[case["ids"]] = case["p"]
    weights = remaining.weights().astype(np.float64)
    found[ids_of(remaining)] = weights / weights.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("run", REFERENCE["mirostat"], ids=lambda run: f"{run['version']}-{run['tau']}")
def test_mirostat_keeps_the_same_tokens_step_by_step(run: dict[str, Any]) -> None:
    params = replace(PLAIN, mirostat=run["version"], mirostat_tau=run["tau"], mirostat_eta=run["eta"])
    sampler = Sampler(params, len(run["steps"][0]["logits"]))
    for step in run["steps"]:
        remaining = sampler.candidates(np.array(step["logits"], np.float32), [])
        assert sorted(ids_of(remaining)) == step["ids"]
        sampler.accept(step["token"])


@pytest.mark.parametrize("case", REFERENCE["dry"], ids=lambda case: f"{case['allowed']}-{len(case['history'])}")
@pytest.mark.parametrize("narrowed", [False, True])
def test_dry_lowers_the_same_logits(case: dict[str, Any], narrowed: bool) -> None:
    before = Candidates(None, np.array(case["logits"], np.float32))
    if narrowed:  # ids in an order of their own
        before = before.front(5)
    params = replace(
        PLAIN,
        dry_multiplier=case["multiplier"],
        dry_base=case["base"],
        dry_allowed_length=case["allowed"],
        dry_penalty_last_n=case["last"],
    )
    if narrowed:
        window = case["history"] if case["last"] < 0 else case["history"][-case["last"] :]
        after = dry(before, window, case["multiplier"], case["base"], case["allowed"], {})
    else:
        after = Sampler(params, len(before)).candidates(before.logits, case["history"])
    np.testing.assert_allclose(after.logits, np.array(case["after"])[ids_of(after)], rtol=1e-4, atol=1e-5)


@cache
def vocabulary(folder: Path, name: str) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(folder / "tokenizers" / f"ggml-vocab-{name}.gguf"))


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])
def test_dry_stops_at_sequence_breakers(name: str, fixtures_dir: Path) -> None:
    spelling = vocabulary(fixtures_dir, name)
    for case in REFERENCE["breakers"]:
        if case["vocabulary"] != name:
            continue
        breakers = find_breakers(case["breakers"], spelling)
        zeros = Candidates(None, np.zeros(spelling.n_vocab, np.float32))
        after = dry(zeros, case["history"], 1.0, 1.5, 1, breakers)
        lowered = {str(token): -float(after.logits[token]) for token in np.flatnonzero(after.logits)}
        assert lowered == pytest.approx(case["lowered"], rel=1e-4), case


def test_xtc_strikes_as_often_as_it_is_told() -> None:
    values = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(replace(PLAIN, xtc_probability=0.3, xtc_threshold=0.25, seed=5), 3)
    struck = sum(len(sampler.candidates(values, [])) == 2 for _ in range(2000))
    assert 520 < struck < 680


def test_mirostat_holds_the_surprise_of_a_long_text() -> None:
    """Draws from a flat-tailed distribution whose own entropy is far above the target."""
    values = (-1.2 * np.log(np.arange(1, 3001))).astype(np.float32)
    log_p = np.log2(np.exp(values) / np.exp(values).sum())
    for version in (1, 2):
        sampler = Sampler(replace(PLAIN, mirostat=version, mirostat_tau=3.0, seed=3), 3000)
        surprises = []
        for _ in range(600):
            remaining = sampler.candidates(values, [])
            weights = remaining.weights().astype(np.float64)
            token = sampler.draw(remaining)
            surprises.append(-np.log2(weights[ids_of(remaining).index(token)] / weights.sum()))
            sampler.accept(token)
        assert abs(float(np.mean(surprises[100:])) - 3.0) < 0.4
    assert -float(np.sum(2.0**log_p * log_p)) > 5.0
