"""Runs `realm` inside of the test's process: starting one for each command would take most of the time."""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.cli.main import main


@dataclass(frozen=True)
class Result:
    code: int
    stdout: bytes
    err: str

    @property
    def out(self) -> str:
        return self.stdout.decode("utf-8")

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON values of stdout, one a line."""
        return [json.loads(line) for line in self.out.split("\n") if line]

    @property
    def error(self) -> str:
        """The sentence of a command that failed; checks that it is one line and no traceback."""
        assert self.code == 1, self
        lines = self.err.strip().split("\n")
        assert len(lines) == 1, self.err
        assert lines[0].startswith("realm: ")
        return lines[0].removeprefix("realm: ")


Realm = Callable[..., Result]


@pytest.fixture
def realm(monkeypatch: pytest.MonkeyPatch) -> Realm:
    """realm("info", path, stdin=b"...") runs a command and returns its exit code and output."""

    def run(*arguments: object, stdin: bytes | str = b"") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        out, err = io.BytesIO(), io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True))
            patch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding="utf-8", write_through=True))
            code = main([str(argument) for argument in arguments])
            sys.stdout.flush()
            sys.stderr.flush()
            return Result(code, out.getvalue(), err.getvalue().decode("utf-8"))

    return run


@pytest.fixture(scope="session")
def tiny_model(fixtures_dir: Path) -> Path:
    """A llama of two layers and 448 tokens with random weights: loads at once, says nothing sensible."""
    return fixtures_dir / "tiny_models" / "llama.gguf"


@pytest.fixture(scope="session")
def tiny_reference(fixtures_dir: Path) -> dict[str, Any]:
    """What the reference computed with the tiny model: prompt, greedy, exact_logits, ... as arrays."""
    with np.load(fixtures_dir / "tiny_models" / "llama.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="session")
def tiny_chat_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    data = tiny_model.read_bytes()
    key = b"tokenizer.chat_template"
    template = CHAT_TEMPLATE.encode()
    # One more key in front of the others, padded by a comment so that tensor data stays aligned to 32 bytes.
    fixed = 8 + len(key) + 4 + 8 + len(template) + len(b"{##}")
    template += b"{#" + b" " * (-fixed % 32) + b"#}"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(template)) + template
    magic_version, n_tensors, n_keys = struct.unpack_from("<QQQ", data)
    file = tmp_path_factory.mktemp("models") / "tiny-chat.gguf"
    file.write_bytes(struct.pack("<QQQ", magic_version, n_tensors, n_keys + 1) + entry + data[24:])
    return file
