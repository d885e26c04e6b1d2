"""`realm compare`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Realm

TEXT = "It was the best of times,\nit was the worst of times. " * 3


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_two_quantisations(realm: Realm, tiny_model: Path, text_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "q8.gguf"
    realm("quantize", tiny_model, other, "Q8_0")
    command = ("compare", tiny_model, other, "--file", text_file, "--context", 64, "--device", "numpy")

    answer = realm(*command, "--json").json

    for side, path in (("a", tiny_model), ("b", other)):
        alone = realm(
            "perplexity", "--model", path, "--file", text_file, "--context", 64, "--device", "numpy", "--json"
        )
        assert answer[side]["perplexity"] == pytest.approx(alone.json["perplexity"], rel=1e-6)
        assert answer[side]["standard_error"] == pytest.approx(alone.json["standard_error"], rel=1e-6)
    assert answer["tokens"] == alone.json["scored_tokens"]
    assert 0 < answer["mean_kl_divergence"] < answer["kl_divergence_99"] <= answer["max_kl_divergence"] < 0.1
    assert answer["top1_agreement"] > 0.9
    plain = realm(*command).out
    assert "q8.gguf" in plain
    assert f"{answer['top1_agreement']:.2%} of {answer['tokens']} tokens" in plain


def test_one_model_on_two_devices(realm: Realm, tiny_model: Path) -> None:
    tokens = ",".join(str(3 + 7 * i % 400) for i in range(50))

    answer = realm(
        *("compare", tiny_model, "--tokens", tokens, "--device-a", "numpy", "--device-b", "opencl", "--json")
    ).json

    assert answer["a"]["device"] == "numpy"
    assert answer["b"]["device"].startswith("opencl")
    assert answer["tokens"] == 49
    assert answer["max_kl_divergence"] < 0.01
    assert answer["b"]["perplexity"] == pytest.approx(answer["a"]["perplexity"], rel=0.01)


def test_what_cannot_be_compared(realm: Realm, tiny_model: Path, text_file: Path, fixtures_dir: Path) -> None:
    def refused(*arguments: object) -> str:
        return realm("compare", *arguments, "--device", "numpy").error

    assert "nothing to compare" in refused(tiny_model, "--tokens", "1,2,3")
    assert "Token id 448 (number 2" in refused(tiny_model, tiny_model, "--tokens", "1,448")
    assert "context of 1" in refused(tiny_model, tiny_model, "--tokens", "1,2", "--context", 1)
    assert "too short" in refused(tiny_model, tiny_model, "--tokens", "1")
    other = fixtures_dir / "tiny_models" / "llama3-ropescale.gguf"
    assert "different tokens" in refused(tiny_model, other, "--file", text_file)
    assert realm("compare", tiny_model, tiny_model).code == 2
