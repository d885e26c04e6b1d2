"""`realm run` and `realm fetch-starter`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli import fetch_starter as fetch_command
from app.hub.starter import STARTER, starter_path
from engine.errors import DownloadError

from .conftest import Realm

SETTINGS = ("--device", "numpy", "--temperature", 0, "--max-tokens", 4)


def test_a_prompt_goes_through_the_models_template(realm: Realm, tiny_chat_model: Path) -> None:
    seen = "<system>Be brief.\n<user>Name a colour.\n<assistant>"
    expected = realm("generate", "--model", tiny_chat_model, "--prompt", seen, "--json", *SETTINGS).json

    result = realm("run", tiny_chat_model, "Name", "a colour.", "--system", "Be brief.", *SETTINGS)

    assert result.code == 0
    assert expected["text"]
    assert result.out.removesuffix("\n") == expected["text"].removesuffix("\n")
    assert "stopped at the limit of tokens" in result.err


def test_a_model_without_template_continues_the_raw_prompt(realm: Realm, tiny_model: Path) -> None:
    expected = realm("generate", "--model", tiny_model, "--prompt", "Once", "--ignore-eos", "--json", *SETTINGS).json

    result = realm("run", tiny_model, "Once", "--ignore-eos", *SETTINGS)

    assert result.out.removesuffix("\n") == expected["text"].removesuffix("\n")
    assert "no chat template" in result.err.split("\n")[0]
    refused = realm("run", tiny_model, "Once", "--system", "Be brief.", *SETTINGS)
    assert refused.code == 1
    assert "--system" in refused.err


def test_an_answer_matches_a_schema(realm: Realm, tiny_chat_model: Path) -> None:
    answer = realm("run", tiny_chat_model, "Hello", "-j", '{"enum": [1, 22]}', "--device", "numpy")
    assert answer.out.strip() in ("1", "22")


def test_a_dash_stands_for_stdin(realm: Realm, tiny_model: Path) -> None:
    def answer(*prompt: str, stdin: bytes = b"") -> str:
        return realm("run", tiny_model, *prompt, "--ignore-eos", *SETTINGS, stdin=stdin).out

    assert answer("-", stdin=b"Once upon") == answer("Once upon")
    assert answer("Sum up:", "-", stdin=b"Once upon") == answer("Sum up:\nOnce upon")


@pytest.mark.parametrize(("prompt", "stdin"), [("", b""), ("  ", b""), ("-", b""), ("-", b"\n")])
def test_an_empty_prompt_is_refused(realm: Realm, tiny_model: Path, prompt: str, stdin: bytes) -> None:
    assert "prompt is empty" in realm("run", tiny_model, prompt, stdin=stdin).error


def test_a_prompt_that_is_no_text_is_refused(realm: Realm, tiny_model: Path) -> None:
    assert "not UTF-8" in realm("run", tiny_model, "-", stdin=b"\xff").error


def test_the_starter_model_is_fetched(realm: Realm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fetch(progress: Callable[[int, int], None]) -> Path:
        progress(0, STARTER.size)
        progress(STARTER.size, STARTER.size)
        return tmp_path / "starter.gguf"

    monkeypatch.setattr(fetch_command, "fetch_starter", fetch)

    result = realm("fetch-starter")
    assert (result.code, result.out) == (0, f"{tmp_path / 'starter.gguf'}\n")
    assert STARTER.name in result.err
    assert realm("fetch-starter", "--json").json == {
        "path": str(tmp_path / "starter.gguf"),
        "name": STARTER.name,
        "bytes": STARTER.size,
        "sha256": STARTER.sha256,
    }


def test_what_is_there_already_is_kept(realm: Realm, data_dir_with_starter: Path) -> None:
    result = realm("fetch-starter")

    assert result.out.strip() == str(starter_path())
    assert "Fetching" not in result.err


def test_a_download_that_fails_says_why(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(progress: Callable[[int, int], None]) -> Path:
        raise DownloadError("The hub cannot be reached.", "Check the network.")

    monkeypatch.setattr(fetch_command, "fetch_starter", fetch)

    result = realm("fetch-starter", "--json")

    assert result.code == 1
    assert result.json == {"error": "The hub cannot be reached. Check the network."}
