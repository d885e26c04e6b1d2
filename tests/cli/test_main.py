"""The command line itself: help, exit codes, errors in words."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.cli import devices as devices_command
from app.cli.main import COMMANDS, main
from engine.errors import DeviceError

from .conftest import Realm

PROJECT = Path(__file__).resolve().parents[2]


def test_help_names_every_command(realm: Realm) -> None:
    result = realm("--help")

    assert result.code == 0
    for name in COMMANDS:
        assert f"  {name} " in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(realm: Realm, name: str) -> None:
    result = realm(name, "--help")

    assert result.code == 0
    assert f"usage: realm {name}" in result.out


def test_help_starts_nothing_heavy() -> None:
    code = (
        "import sys, app.cli.main as m; code = m.main(['--help']); "
        "print([name for name in ('numpy', 'jinja2', 'sqlite3', 'engine', 'tokenizers') if name in sys.modules]); "
        "sys.exit(code)"
    )
    began = time.perf_counter()

    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - began < 5  # a busy machine included; alone it takes a twentieth of a second


def test_the_version_is_told(realm: Realm) -> None:
    result = realm("--version")

    assert result.code == 0
    assert result.out.startswith("realm ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["info"], "MODEL"),
        (["info", "--colour", "x.gguf"], "--colour"),
        (["logits", "--model", "x", "--tokens", "1,two", "--out", "o.npy"], "'1,two' is not a list of token ids"),
        (["generate", "--model", "x", "--prompt", "a", "--prompt-tokens", "1"], "not allowed with"),
        (["generate", "--model", "x", "--prompt", "a", "--top-k", "many"], "--top-k"),
        (["generate", "--model", "x", "--prompt", "a", "--max-tok", "1"], "--max-tok"),
        (["bench", "--model", "x", "-r", "0"], "0 is less than 1"),
        (["perplexity", "--model", "x"], "--file"),
    ],
)
def test_wrong_usage_is_told_in_two_lines_and_exits_with_2(realm: Realm, arguments: list[str], says: str) -> None:
    result = realm(*arguments)

    assert result.code == 2
    assert result.out == ""
    assert says in result.err
    assert len(result.err.strip().split("\n")) == 2
    assert "--help" in result.err


def test_an_error_is_a_sentence_on_stderr_and_json_where_that_was_asked_for(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise DeviceError("The device\nwas lost.", "Use --device numpy.")

    monkeypatch.setattr(devices_command, "list_devices", lost)

    plain = realm("devices")
    assert plain.error == "The device was lost. Use --device numpy."
    assert plain.out == ""
    as_json = realm("devices", "--json")
    assert as_json.error == plain.error
    assert as_json.json == {"error": plain.error}


def test_ctrl_c_exits_with_130(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(devices_command, "list_devices", interrupted)

    assert realm("devices").code == 130


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(devices_command, "list_devices", broken)

    with pytest.raises(ZeroDivisionError):
        main(["devices"])


def test_a_reader_that_goes_away_is_no_error(fixtures_dir: Path) -> None:
    model = fixtures_dir / "tokenizers" / "ggml-vocab-llama-bpe.gguf"
    command = [sys.executable, "-m", "app.cli.main", "tokenize", "--model", str(model), "--jsonl"]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps("hello").encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())
    process.stdout.close()
    process.stdin.write((json.dumps("hello again") + "\n").encode())
    process.stdin.close()

    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141
    process.stderr.close()
