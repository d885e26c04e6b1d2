"""Adapters on the command line, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.adapters.writer import MODULES, write_peft
from tests.cli.conftest import Realm


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft(
        tmp_path_factory.mktemp("adapter"), MODULES, size=2.0, base_model_name_or_path="someone/tiny-llama"
    )


def test_generate_applies_adapters_as_strongly_as_told(realm: Realm, tiny_model: Path, adapter: Path) -> None:
    lines = [[], [f"{adapter}:0"], [str(adapter)], [f"{adapter}:0.5", f"{adapter}:0.5"], [f"{adapter}:-1"]]
    requests = [{"prompt_tokens": [1, 20, 300], "max_tokens": 12, "lora": lora} for lora in lines]
    text = "\n".join(json.dumps(request) for request in requests)
    result = realm(
        "generate", "-m", tiny_model, "--device", "numpy", "--temp", 0, "--ignore-eos", "--jsonl", stdin=text
    )
    base, off, whole, halves, against = (line["tokens"] for line in result.lines)
    assert off == base
    assert halves == whole
    assert len({tuple(base), tuple(whole), tuple(against)}) == 3
    flags = ("--temp", 0, "-n", 12, "--ignore-eos", "--json", "--device", "numpy")
    once = realm("generate", "-m", tiny_model, "--prompt-tokens", "1,20,300", "--lora", adapter, *flags)
    assert once.json["tokens"] == whole


def test_generate_says_what_is_wrong_with_an_adapter(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    wide = write_peft(tmp_path / "wide", {"model.layers.0.self_attn.q_proj": (512, 512)})
    arguments = ("generate", "-m", tiny_model, "--device", "numpy", "--prompt", "Hi", "--lora")
    assert "made for another model" in realm(*arguments, wide).error
    assert "There is no adapter" in realm(*arguments, tmp_path / "none").error


def test_info_says_what_an_adapter_is(realm: Realm, adapter: Path, tmp_path: Path) -> None:
    out = realm("info", adapter).out
    for word in ("someone/tiny-llama", "attn_q, ffn_down, token_embd, output", "rank"):
        assert word in out
    facts = realm("info", adapter / "adapter_model.safetensors", "--json").json["adapter"]
    assert (facts["rank"], facts["alpha"], facts["scale"], facts["kind"]) == (4, 8.0, 2.0, "peft")
    damaged = write_peft(tmp_path / "damaged", MODULES, use_dora=True)
    assert "use_dora" in realm("info", damaged).error


def test_bench_measures_adapters_against_their_bars(realm: Realm, tiny_model: Path, adapter: Path) -> None:
    flags = ("bench", "-m", tiny_model, "--device", "numpy", "-n", 4, "-r", 2)
    for chosen in (("--lora-rank", 3), ("--lora", adapter)):
        answer = realm(*flags, *chosen, "--json").json
        assert answer["sequences"] == 8
        assert min(answer["decode_tokens_per_s_with"], answer["batch_tokens_per_s_with"]) > 0
        assert [change["change"] for change in answer["changes"]] == [
            "attach, read from the file",
            "change strength",
            "detach",
            "attach",
        ]
    assert "bar: at most 10% slower" in realm(*flags, "--lora-rank", 3).out


def test_an_adapter_in_place_of_a_model(realm: Realm, fixtures_dir: Path) -> None:
    adapter = fixtures_dir / "lora" / "pirate-q8_0.gguf"
    says = "pirate-q8_0.gguf is an adapter, not a model."
    assert says in realm("run", adapter, "hello", "--device", "numpy").error
    assert says in realm("chat", "--model", adapter, "--device", "numpy").error
