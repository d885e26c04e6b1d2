"""`realm quantize`."""

from __future__ import annotations

from pathlib import Path

from .conftest import Realm


def test_quantise_and_run(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"

    result = realm("quantize", tiny_model, out, "q8_0", "--json")

    answer = result.json
    assert answer["files"] == [str(out)]
    assert answer["type"] == "Q8_0"
    assert answer["bytes"] == out.stat().st_size < answer["source_bytes"]
    assert set(answer["tensor_types"].values()) == {"F32", "Q8_0"}
    assert realm("info", out, "--json").json["quantisation"] == "Q8_0"
    generated = realm("generate", "--model", out, "--prompt-tokens", "1,5,6", "-n", 3, "--device", "numpy", "--json")
    assert len(generated.json["tokens"]) <= 3
    assert "exists already" in realm("quantize", tiny_model, out, "Q8_0").error
    told = realm("quantize", tiny_model, out, "Q4_K_M", "--force")
    assert told.code == 0
    assert str(out) in told.out
    assert "Q6_K" in told.err


def test_split_and_notes(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    result = realm("quantize", tiny_model, tmp_path / "s.gguf", "Q8_0", "--split-max-size", "400K", "--json")
    files = result.json["files"]
    assert len(files) == len(list(tmp_path.iterdir())) > 1
    assert files[0].endswith(f"s-00001-of-{len(files):05d}.gguf")

    result = realm("quantize", files[0], tmp_path / "again.gguf", "Q4_0", "--output-type", "Q6_K")

    assert "Note: The model is already quantised (Q8_0)" in result.err


def test_impossible_arguments(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    assert "Choose of F32" in realm("quantize", tiny_model, tmp_path / "x.gguf", "Q9_9").error
    assert "no model file" in realm("quantize", tmp_path / "none.gguf", tmp_path / "x.gguf", "Q8_0").error
    assert "is a folder" in realm("quantize", tiny_model, tmp_path, "Q8_0").error
    usage = realm("quantize", tiny_model, tmp_path / "x.gguf", "Q8_0", "--split-max-size", "big")
    assert usage.code == 2
    assert "no size such as 500M" in usage.err
