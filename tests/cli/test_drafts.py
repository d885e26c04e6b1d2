"""Guessing tokens from the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.api import LoadOptions
from engine.engine import Engine
from engine.gguf import GGUFFile
from engine.tokenizer.vocabulary import read_vocabulary
from tests.drafts.predicting_files import LAYERS, random_glm, rigged_glm, write

from .conftest import Realm

GREEDY = ("--temperature", "0", "--device", "numpy", "--ignore-eos", "--max-tokens", 30)


@pytest.fixture(scope="session")
def draft(fixtures_dir: Path) -> Path:
    return fixtures_dir / "tiny_models" / "llama-q4_k_m.gguf"


def test_greedy_answers_are_the_same(realm: Realm, tiny_model: Path, draft: Path) -> None:
    generate = ("generate", "--model", tiny_model, "--prompt-tokens", "1,2,3,1,2,3,1,2,3", *GREEDY, "--json")
    plain = realm(*generate).json
    assert plain["timings"]["drafted_tokens"] == 0
    for options in (("--ngram",), ("--ngram", "--draft-k", 2), ("--draft", draft), ("--draft", draft, "--draft-k", 40)):
        answer = realm(*generate, *options).json
        assert answer["tokens"] == plain["tokens"]
        timings = answer["timings"]
        assert timings["drafted_tokens"] >= timings["accepted_tokens"] >= 0
    assert timings["drafted_tokens"] > 0


def test_a_layer_of_the_models_own_guesses(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    """It knows what follows, so all its guesses are accepted; bench measures it too."""
    with GGUFFile.open(tiny_model) as file:
        n_vocab = len(read_vocabulary(file).tokens)
    model = write(tmp_path / "rigged.gguf", tiny_model, rigged_glm(n_vocab, from_rows=True)[0])
    generate = ("generate", "--model", model, "--prompt-tokens", "1,2,3", *GREEDY, "--json")
    plain, guessed = realm(*generate).json, realm(*generate, "--mtp").json
    assert guessed["tokens"] == plain["tokens"]
    timings = guessed["timings"]
    assert timings["drafted_tokens"] == timings["accepted_tokens"] > 0
    assert realm(*generate, "--draft", model).json["timings"]["accepted_tokens"] > 0
    bench = realm("bench", "--model", model, "--device", "numpy", "-n", 8, "-r", 1, "--mtp")
    assert "guessed by its own layer" in bench.out


@pytest.mark.parametrize("device", ["numpy", "opencl"])
def test_info_tells_of_a_layer_that_predicts_and_what_it_takes(
    realm: Realm, tiny_model: Path, tmp_path: Path, device: str
) -> None:
    """What is planned for it is what it takes, less the weights that it shares with the model."""
    with GGUFFile.open(tiny_model) as file:
        n_vocab = len(read_vocabulary(file).tokens)
    tensors = random_glm(n_vocab, 64)
    model = write(tmp_path / "random.gguf", tiny_model, tensors)
    info = ("info", model, "--plan", "--device", device, "--context-length", 512)
    facts = realm(*info, "--json").json
    assert (facts["prediction_layers"], facts["predicts"], facts["no_prediction"]) == (1, True, None)
    with Engine() as engine:
        options = LoadOptions(device=device, context_length=512)
        engine.load(model, options).result(60)
        layer = engine.load_draft(model, options).result(60)
    planned = facts["plan"]["layer"]
    assert (planned["weight_bytes"], planned["kv_bytes"]) == (layer.weight_bytes, layer.kv_bytes)
    out = realm(*info).out
    assert "can guess (`--mtp`)" in out
    assert re.search(r"with --mtp +\S+ \wB more", out)
    del tensors[f"blk.{LAYERS}.nextn.eh_proj.weight"]
    out = realm("info", write(tmp_path / "incomplete.gguf", tiny_model, tensors)).out
    assert "cannot be used" in out
    assert "prediction" not in realm("info", tiny_model).out


def test_a_person_is_told_what_came_of_it(realm: Realm, tiny_model: Path, draft: Path) -> None:
    result = realm("run", tiny_model, "hello", *GREEDY, "--draft", draft)
    assert result.code == 0
    assert "guesses accepted" in result.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--draft", "DRAFT", "--ngram"), "two ways of guessing"),
        (("--mtp", "--ngram"), "--mtp and --ngram are two ways of guessing"),
        (("--mtp",), "carries no whole layer that predicts further tokens"),
        (("--draft-k", 3), "nothing guesses"),
        (("--ngram", "--draft-k", 0), "draft_k is 0"),
        (("--draft", "nothing.gguf"), "There is no model file nothing.gguf"),
        (("--draft", "OTHER"), "cannot draft for tiny-llama: The draft's vocabulary is of the kind 'gpt2'"),
    ],
)
def test_impossible_options_are_refused(
    realm: Realm, tiny_model: Path, draft: Path, options: tuple[object, ...], sentence: str
) -> None:
    paths = {"DRAFT": draft, "OTHER": draft.with_name("qwen2.gguf")}
    given = [paths.get(str(option), option) for option in options]
    assert sentence in realm("generate", "--model", tiny_model, "--prompt", "hi", *GREEDY, *given).error


def test_whether_a_draft_fits_is_told_from_the_files_alone(realm: Realm, tiny_model: Path, draft: Path) -> None:
    assert realm("info", draft, "--draft-for", tiny_model).out == "It fits.\n"
    assert realm("info", draft, "--draft-for", tiny_model, "--json").json == {"fits": True, "reason": ""}
    result = realm("info", draft.with_name("qwen2.gguf"), "--draft-for", tiny_model)
    assert result.code == 1
    assert result.out.startswith("It does not fit: ")


def test_a_chat_guesses(realm: Realm, tiny_chat_model: Path, draft: Path) -> None:
    result = realm(
        *("chat", "--model", tiny_chat_model, "--device", "numpy", "--max-tokens", 40, "--temperature", 0),
        *("--draft", draft),
        stdin="hello\nagain\n",
    )
    assert result.code == 0, result.err
    assert "guesses accepted" in result.err


def test_bench_measures_what_guessing_gains(realm: Realm, tiny_model: Path, draft: Path) -> None:
    bench = ("bench", "--model", tiny_model, "--device", "numpy", "-n", 8, "-r", 1)
    assert "the same" in realm(*bench, "--draft", draft).out
    for options in (("--ngram",), ("--draft", draft)):
        answer = realm(*bench, "--json", *options).json
        greedy = [case for case in answer["cases"].values() if case["identical"] is not None]
        assert greedy
        assert all(case["identical"] for case in greedy)
        for case in answer["cases"].values():
            assert case["gain_min"] <= case["gain"] <= case["gain_max"]
            assert case["tokens_per_s"] > 0
