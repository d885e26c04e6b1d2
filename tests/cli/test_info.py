"""`realm info`: what is in a file, from the file alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Realm


def test_the_starter_model_in_a_table(realm: Realm, starter_model: Path) -> None:
    result = realm("info", starter_model)

    assert result.code == 0
    for line in (
        "architecture   llama",
        "parameters     134.5 M (134515008)",
        "size           98.4 MB (98362432 bytes)",
        "context        8192 tokens",
        "vocabulary     49152 tokens",
        "tokenizer      gpt2 smollm",
        "chat template  yes",
    ):
        assert line in result.out.split("\n")


def test_the_starter_model_in_json(realm: Realm, starter_model: Path) -> None:
    facts = realm("info", starter_model, "--json").json

    assert facts["architecture"] == "llama"
    assert facts["parameters"] == 134_515_008
    assert facts["file_bytes"] == starter_model.stat().st_size
    assert facts["quantisation"] == "Q4_1"
    assert {name: entry["tensors"] for name, entry in facts["types"].items()} == {"Q4_1": 210, "Q8_0": 1, "F32": 61}
    assert sum(entry["parameters"] for entry in facts["types"].values()) == facts["parameters"]
    assert facts["context_length"] == 8192
    assert facts["vocab_size"] == 49152
    assert facts["tokenizer"] == {"model": "gpt2", "pre": "smollm"}
    assert facts["has_chat_template"] is True
    assert facts["metadata"]["llama.attention.head_count_kv"] == 3
    assert facts["metadata"]["tokenizer.chat_template"].startswith("{% for message in messages %}")
    assert facts["arrays"]["tokenizer.ggml.tokens"] == "an array of 49152 strings"
    assert "tensors" not in facts


def test_tensors_are_listed_when_asked_for(realm: Realm, starter_model: Path) -> None:
    tensors = realm("info", starter_model, "--tensors", "--json").json["tensors"]

    assert len(tensors) == 272
    by_name = {tensor["name"]: tensor for tensor in tensors}
    assert by_name["token_embd.weight"] == {
        "name": "token_embd.weight",
        "type": "Q8_0",
        "shape": [49152, 576],
        "bytes": 49152 * 576 // 32 * 34,
    }
    table = realm("info", starter_model, "--tensors").out
    assert "token_embd.weight" in table
    assert "49152 x 576" in table


def test_a_file_that_holds_a_vocabulary_only(realm: Realm, fixtures_dir: Path) -> None:
    file = fixtures_dir / "tokenizers" / "ggml-vocab-llama-spm.gguf"

    facts = realm("info", file, "--json").json

    assert facts["parameters"] == 0
    assert facts["types"] == {}
    assert facts["vocab_size"] == 32000
    assert "a vocabulary only" in realm("info", file).out


@pytest.mark.parametrize("name", ["info", "tokenize", "detokenize", "template", "generate", "logits", "perplexity"])
@pytest.mark.parametrize("trouble", ["missing", "folder", "text", "empty"])
def test_what_is_no_model_is_refused_by_every_command(realm: Realm, tmp_path: Path, name: str, trouble: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Not a model at all, but long enough to look into.\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    messages = tmp_path / "messages.json"
    messages.write_text('[{"role": "user", "content": "Hi"}]')
    model = tmp_path / trouble if trouble != "text" else text
    arguments = {
        "info": ["info", model],
        "tokenize": ["tokenize", "--model", model],
        "detokenize": ["detokenize", "--model", model],
        "template": ["template", "--model", model, "--messages", messages],
        "generate": ["generate", "--model", model, "--prompt", "Hi"],
        "logits": ["logits", "--model", model, "--tokens", "1", "--out", tmp_path / "o.npy"],
        "perplexity": ["perplexity", "--model", model, "--file", text],
    }[name]

    result = realm(*arguments, stdin="[1]")

    assert {"missing": "no model file", "folder": "is a folder", "text": "GGUF", "empty": "is empty"}[
        trouble
    ] in result.error
    assert str(model) in result.error or model.name in result.error
    assert result.out == ""


def test_a_folder_that_holds_a_model_is_pointed_at_it(realm: Realm, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()

    assert "It holds tiny.gguf" in realm("info", tmp_path).error


def test_the_name_starter_says_how_to_get_it(realm: Realm) -> None:
    assert "realm fetch-starter" in realm("info", "starter").error


def test_the_name_starter_finds_it(realm: Realm, data_dir_with_starter: Path) -> None:
    result = realm("info", "starter", "--json")

    assert Path(result.json["path"]).is_relative_to(data_dir_with_starter)


def test_a_chat_model_is_of_no_special_kind(realm: Realm, tiny_model: Path) -> None:
    assert "kind" not in realm("info", tiny_model).out
