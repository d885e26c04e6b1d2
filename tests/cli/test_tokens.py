"""`realm tokenize` and `realm detokenize`, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Realm


@pytest.fixture
def spm(fixtures_dir: Path) -> Path:
    return fixtures_dir / "tokenizers" / "ggml-vocab-llama-spm.gguf"


@pytest.fixture
def bpe(fixtures_dir: Path) -> Path:
    return fixtures_dir / "tokenizers" / "ggml-vocab-llama-bpe.gguf"


def published_cases(vocabulary: Path) -> list[tuple[str, list[int]]]:
    texts = vocabulary.with_name(vocabulary.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    rows = vocabulary.with_name(vocabulary.name + ".out").read_text(encoding="utf-8").splitlines()
    return [(text, [int(token) for token in row.split()]) for text, row in zip(texts, rows, strict=False)]


@pytest.mark.parametrize("name", ["spm", "bpe"])
def test_the_published_cases(realm: Realm, name: str, request: pytest.FixtureRequest) -> None:
    vocabulary: Path = request.getfixturevalue(name)
    cases = published_cases(vocabulary)
    assert len(cases) > 40

    result = realm(
        *("tokenize", "--model", vocabulary, "--no-bos", "--jsonl"),
        stdin="".join(json.dumps(text) + "\n" for text, _ in cases),
    )

    assert result.code == 0
    assert result.lines == [ids for _, ids in cases]


def test_special_tokens_and_detokenizing(realm: Realm, spm: Path, fixtures_dir: Path) -> None:
    data = json.loads((fixtures_dir / "tokenizers" / "random-vocab-llama-spm.json").read_text(encoding="utf-8"))
    cases: list[dict[str, Any]] = data["cases"]
    lines = "".join(json.dumps(case["text"]) + "\n" for case in cases)

    tokenized = realm("tokenize", "--model", spm, "--no-bos", "--special", "--jsonl", stdin=lines)
    assert tokenized.lines == [case["ids_special"] for case in cases]

    arrays = "".join(json.dumps(case["ids"]) + "\n" for case in cases)
    detokenized = realm("detokenize", "--model", spm, "--jsonl", stdin=arrays)
    for text, case in zip(detokenized.lines, cases, strict=True):
        if "detok" in case:
            assert text == case["detok"]


def test_the_last_newline_of_stdin_is_text(realm: Realm, bpe: Path) -> None:
    without = realm("tokenize", "--model", bpe, "--no-bos", stdin="Hello").json
    with_newline = realm("tokenize", "--model", bpe, "--no-bos", stdin="Hello\n").json

    assert with_newline != without
    assert realm("detokenize", "--model", bpe, stdin=json.dumps(with_newline)).stdout == b"Hello\n"
    assert (
        realm("tokenize", "--model", bpe, "--no-bos", stdin="a\r\nb\x00").json
        != realm("tokenize", "--model", bpe, "--no-bos", stdin="a\nb\x00").json
    )


def test_bos_is_there_unless_it_is_not_wanted(realm: Realm, spm: Path) -> None:
    bare = realm("tokenize", "--model", spm, "--no-bos", stdin="Hello").json

    assert realm("tokenize", "--model", spm, stdin="Hello").json == [1, *bare]
    assert realm("tokenize", "--model", spm, stdin="").json == [1]
    assert realm("tokenize", "--model", spm, "--no-bos", stdin="").json == []


def test_special_tokens_in_text_are_text_unless_asked_for(realm: Realm, spm: Path) -> None:
    assert 2 not in realm("tokenize", "--model", spm, stdin="</s>").json
    assert realm("tokenize", "--model", spm, "--no-bos", "--special", stdin="</s>").json[-1] == 2


def test_detokenizing_gives_bytes_back_that_are_no_character(realm: Realm, spm: Path) -> None:
    euro = realm("tokenize", "--model", spm, "--no-bos", stdin="\U0001f9ff").json
    assert len(euro) > 3  # byte tokens: it is in no vocabulary of this age
    head = json.dumps(euro[:-1])

    assert realm("detokenize", "--model", spm, stdin=head).stdout.endswith("\U0001f9ff".encode()[:-1])
    assert realm("detokenize", "--model", spm, "--json", stdin=head).json.endswith("\ufffd")


def test_special_tokens_are_written_unless_left_out(realm: Realm, spm: Path) -> None:
    hello = realm("tokenize", "--model", spm, stdin="Hello").stdout

    assert "<s>" in realm("detokenize", "--model", spm, stdin=hello).out
    assert "<s>" not in realm("detokenize", "--model", spm, "--no-special", stdin=hello).out


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"caf\xe9", "byte 0xe9 at offset 3"), (b"\xff\xfe", "offset 0"), (b"ok\xed\xa0\x80", "offset 2")],
)
def test_text_that_is_not_utf8_is_refused(realm: Realm, bpe: Path, data: bytes, says: str) -> None:
    result = realm("tokenize", "--model", bpe, "--json", stdin=data)

    assert "not UTF-8" in result.error
    assert says in result.error
    assert result.json == {"error": result.error}


@pytest.mark.parametrize("data", [b"", b"1,2", b"{}", b'["1"]', b"[1.5]", b"[[1]]", b"\xff"])
def test_what_is_no_array_of_ids_cannot_be_detokenized(realm: Realm, bpe: Path, data: bytes) -> None:
    assert "The input" in realm("detokenize", "--model", bpe, stdin=data).error


@pytest.mark.parametrize("token", [-1, 32000, 2**70])
def test_ids_outside_of_the_vocabulary_are_refused(realm: Realm, spm: Path, token: int) -> None:
    assert str(token) in realm("detokenize", "--model", spm, stdin=f"[1, {token}]").error


def test_bad_lines_are_answered_and_the_others_too(realm: Realm, spm: Path) -> None:
    tokens = realm("tokenize", "--model", spm, "--jsonl", stdin='5\n"\\ud800"\n\n{"a"\n"Hello"\n').lines
    assert [isinstance(line, dict) and set(line) == {"error"} for line in tokens] == [True, True, True, False]

    texts = realm("detokenize", "--model", spm, "--jsonl", stdin="[32000]\n[-1]\n[15043]\n5\n").lines
    assert [isinstance(line, dict) for line in texts] == [True, True, False, True]
    assert texts[2].strip() == "Hello"
