"""`realm logits`, `realm perplexity` and `realm bench` on a model whose every logit is known."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Realm
from .test_generate import ids


def test_logits_are_the_references(
    realm: Realm, tiny_model: Path, tiny_reference: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "logits.npy"

    result = realm(
        *("logits", "--model", tiny_model, "--tokens", ids(tiny_reference["prompt"])),
        *("--device", "numpy", "--out", out, "--json"),
    )

    assert result.json == {"out": str(out), "shape": [48, 448], "dtype": "float32", "device": "numpy"}
    logits = np.load(out)
    assert logits.dtype == np.float32
    expected = tiny_reference["exact_logits"][:48].astype(np.float64)
    assert ((logits - expected) ** 2).sum() / (expected**2).sum() < 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["logits.npy"]


def test_logits_can_be_written_over_and_told_in_words(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "logits.npy"
    out.write_text("old")

    result = realm("logits", "--model", tiny_model, "--tokens", "1", "--device", "numpy", "--out", out)

    assert result.code == 0
    assert np.load(out).shape == (1, 448)
    assert "float32 [1, 448]" in result.err


@pytest.mark.parametrize(
    ("tokens", "out", "says"),
    [
        ("", "o.npy", "holds no token id"),
        ("1,448", "o.npy", "Token id 448 (number 2 of the list)"),
        ("-1", "o.npy", "Token id -1"),
        ("1", "", "is a folder"),
        ("1", "none/o.npy", "There is no folder"),
    ],
)
def test_impossible_logits_are_refused_and_leave_no_file(
    realm: Realm, tiny_model: Path, tmp_path: Path, tokens: str, out: str, says: str
) -> None:
    result = realm("logits", "--model", tiny_model, f"--tokens={tokens}", "--device", "numpy", "--out", tmp_path / out)

    assert says in result.error
    assert list(tmp_path.iterdir()) == []


def test_perplexity_follows_from_the_logits(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    text = "It was the best of times,\nit was the worst of times. " * 3
    file = tmp_path / "text.txt"
    file.write_text(text)
    command = ("perplexity", "--model", tiny_model, "--file", file, "--context", 64, "--device", "numpy")

    answer = realm(*command, "--json", "--nll").json

    tokens = realm("tokenize", "--model", tiny_model, "--no-bos", stdin=text).json
    chunks = [[1, *tokens[start : start + 63]] for start in range(0, len(tokens), 63)]
    expected = []
    for chunk in chunks:
        realm("logits", "--model", tiny_model, "--tokens", ids(chunk), "--device", "numpy", "--out", tmp_path / "l.npy")
        logits = np.load(tmp_path / "l.npy").astype(np.float64)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected.append([-logits[i, token] for i, token in enumerate(chunk[1:])])
    assert len(chunks) > 1
    assert answer["chunks"] == len(chunks)
    assert answer["scored_tokens"] == len(tokens)
    for values, reference in zip(answer["nll"], expected, strict=True):
        np.testing.assert_allclose(values, reference, atol=1e-4)
    everything = [value for chunk in answer["nll"] for value in chunk]
    assert answer["mean_nll"] == pytest.approx(np.mean(everything))
    assert answer["perplexity"] == pytest.approx(math.exp(np.mean(everything)))
    assert 0 < answer["standard_error"] < answer["perplexity"]
    plain = realm(*command)
    assert plain.out.startswith(f"perplexity {answer['perplexity']:.4f} ± ")
    assert "nll" not in realm(*command, "--json").json


def test_perplexity_of_the_starter_model_is_the_references(
    realm: Realm, starter_model: Path, fixtures_dir: Path, tmp_path: Path
) -> None:
    """Within 1.5 % of the reference's own path or 0.1 % of the exact one; the first chunk alone, for its time."""
    reference = json.loads((fixtures_dir / "real_models" / "smollm2-135m-q4_1.json").read_text(encoding="utf-8"))
    known = reference["perplexity"]
    file = tmp_path / "text.txt"
    file.write_bytes(realm("detokenize", "--model", starter_model, stdin=json.dumps(known["chunks"][0])).stdout)

    answer = realm("perplexity", "--model", starter_model, "--file", file, "--context", 512, "--json").json

    assert answer["scored_tokens"] == 511
    exact = float(np.mean(known["exact_nll"][0]))
    integer_path = float(np.mean(known["nll"][0]))
    assert abs(answer["mean_nll"] - exact) < 0.001 or abs(answer["mean_nll"] - integer_path) < 0.015


@pytest.mark.parametrize(
    ("content", "context", "says"),
    [(b"", 8, "is empty"), (b"\xff\xfe", 8, "is not UTF-8"), (b"some text", 1, "context of 1"), (None, 8, "no file")],
)
def test_impossible_texts_are_refused(
    realm: Realm, tiny_model: Path, tmp_path: Path, content: bytes | None, context: int, says: str
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)

    result = realm("perplexity", "--model", tiny_model, "--file", file, "--context", context, "--device", "numpy")

    assert says in result.error


def test_bench_measures_what_it_says(realm: Realm, tiny_model: Path) -> None:
    command = ("bench", "--model", tiny_model, "-p", 40, "-n", 10, "-r", 3, "--device", "numpy")

    answer = realm(*command, "--json").json

    for what in ("prefill", "decode"):
        name = f"{what}_tokens_per_s"
        assert 0 < answer[f"{name}_min"] <= answer[name] <= answer[f"{name}_max"]
        assert answer[f"model_{name}"] > 0
    assert (answer["n_prompt"], answer["n_decode"], answer["repetitions"]) == (40, 10, 3)
    assert answer["device"] == "numpy"
    assert answer["decode_gb_per_s"] > 0
    assert answer["load_s"] > 0
    assert answer["peak_memory_bytes"] > answer["file_bytes"] == tiny_model.stat().st_size
    if answer["read_bandwidth_gb_per_s"] is not None:
        share = answer["decode_gb_per_s"] / answer["read_bandwidth_gb_per_s"]
        assert answer["decode_bandwidth_share"] == pytest.approx(share)
    plain = realm(*command)
    assert plain.code == 0
    assert "prefill" in plain.out
    assert "decode" in plain.out
    assert plain.out.count("tokens/s") == 2


@pytest.mark.parametrize("device", ["numpy", "opencl"])
def test_bench_behind_a_context(realm: Realm, tiny_model: Path, device: str) -> None:
    command = ("bench", "--model", tiny_model, "-p", 40, "-n", 4, "-r", 2, "--device", device, "--kv-type", "q8_0")

    answer = realm(*command, "--depth", 33, "--depth", 130, "--json").json

    assert [at["depth"] for at in answer["decode_at"]] == [33, 130]
    assert answer["decode_at"][0]["share_of_first"] == 1
    assert all(0 < at["tokens_per_s_min"] <= at["tokens_per_s"] <= at["tokens_per_s_max"] for at in answer["decode_at"])
    assert answer["kv_type"] == "q8_0"
    plain = realm(*command, "--depth", 33)
    assert "behind      33 tokens" in plain.out
    assert "(q8_0)" in plain.out


def test_bench_behind_a_context_from_a_short_prompt(realm: Realm, tiny_model: Path) -> None:
    command = ("bench", "--model", tiny_model, "-p", 4, "-n", 2, "-r", 1, "--device", "numpy", "--depth", 200)
    assert realm(*command, "--json").json["decode_at"][0]["depth"] == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lora", "x", "--ngram"], "--ngram has no part in what --lora measures"),
        (["--streams", 2, "--kv-type", "q8_0"], "--kv-type has no part in what --streams measures"),
        (["--draft-k", 3], "--draft-k has no part in what speed alone measures"),
        (["--types", "F16"], "--types has no part"),
        (["--draft", "x", "--ngram"], "two ways of guessing"),
        (["--lora-rank", 0], "A rank of 0"),
    ],
)
def test_bench_ignores_no_option(realm: Realm, tiny_model: Path, options: list[object], words: str) -> None:
    assert words in realm("bench", "--model", tiny_model, *options).error


def test_bench_of_loading(realm: Realm, tiny_model: Path, fixtures_dir: Path) -> None:
    answer = realm("bench", "--model", tiny_model, "--load", "-r", 2, "--device", "numpy", "--json").json

    assert answer["vocab_size"] == 448
    assert answer["device"] == "numpy"
    assert 0 < answer["open_s"] < answer["vocabulary_s"]
    assert 0 < answer["load_s"] < answer["first_token_s"]
    vocabulary = fixtures_dir / "tokenizers" / "ggml-vocab-gpt-2.gguf"
    plain = realm("bench", "--model", vocabulary, "--load", "-r", 1)
    assert plain.code == 0
    assert "for 50257 tokens" in plain.out
    assert "first token" not in plain.out


def test_bench_of_grammars(realm: Realm, tiny_model: Path, fixtures_dir: Path) -> None:
    command = ("bench", "--grammar", "-n", 12, "-r", 1, "--device", "numpy", "--json")
    answer = realm(*command, "--model", tiny_model).json
    assert answer["plain_us"] > 0
    assert answer["later_answers_us"] > 0
    assert answer["speed_with_schema"] > 0

    vocabulary = fixtures_dir / "tokenizers" / "ggml-vocab-qwen2.gguf"
    answer = realm(*command, "--model", vocabulary).json
    assert "speed_with_schema" not in answer
    # a mask that is known costs a fraction of what the sampler does without it, whatever else the machine does
    assert answer["later_answers_us"] < answer["plain_us"] + 500


def test_bench_of_a_form_of_ones_own(realm: Realm, tiny_model: Path, fixtures_dir: Path, tmp_path: Path) -> None:
    command = ("bench", "--model", tiny_model, "-n", 4, "-r", 1, "--device", "numpy")
    grammar, schema = tmp_path / "any.gbnf", tmp_path / "any.json"
    grammar.write_text("root ::= [a-z ]*")
    schema.write_text('{"type": "string"}')
    answer = realm(*command, "--grammar", grammar, "--json").json
    assert answer["speed_with_schema"] > 0
    assert "plain_us" not in answer
    assert realm(*command, "--json-schema", schema, "--json").json["schema_tokens_per_s"] > 0

    grammar.write_text("root ::= (")
    broken = realm(*command, "--grammar", grammar)
    assert broken.code == 1
    assert "not closed" in broken.err
    vocabulary = fixtures_dir / "tokenizers" / "ggml-vocab-gpt-2.gguf"
    refused = realm("bench", "--model", vocabulary, "--json-schema", schema)
    assert refused.code == 1
    assert "vocabulary only" in refused.err


def test_bench_of_a_session_that_is_kept(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    session = tmp_path / "chat.session"
    answer = realm("bench", "--model", tiny_model, "--session", session, "--device", "numpy", "--json").json
    assert answer["chat_cached_tokens"] >= answer["chat_tokens"] - 32
    assert session.stat().st_size == answer["session_bytes"] > 0
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    assert realm("bench", "--model", tiny_model, "--session", other, "--device", "numpy").code == 1
    assert other.read_text() == "mine"


def test_a_large_vocabulary_opens_quickly(fixtures_dir: Path) -> None:
    """152,000 tokens, in processor time, as the machine may be busy; the best of three."""
    from app.cli.bench_load import _vocabulary

    seconds = []
    for _ in range(3):
        began = time.process_time()
        _, _, n_vocab = _vocabulary(fixtures_dir / "tokenizers" / "ggml-vocab-qwen2.gguf")
        seconds.append(time.process_time() - began)
    assert n_vocab > 150_000
    assert min(seconds) < 0.7


def test_devices_are_listed(realm: Realm) -> None:
    devices = realm("devices", "--json").json

    assert "numpy" in [device["id"] for device in devices]
    table = realm("devices").out
    for device in devices:
        assert device["name"] in table
        assert device["problem"] in table
