"""What commands read, and what they say of what they cannot read."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli import input as cli_input
from engine.errors import RequestError


@given(st.lists(st.integers()))
def test_token_lists_are_read_in_every_common_form(ids: list[int]) -> None:
    assert cli_input.token_list(",".join(map(str, ids))) == ids
    assert cli_input.token_list(" ".join(map(str, ids))) == ids
    assert cli_input.token_list(json.dumps(ids)) == ids


@pytest.mark.parametrize("text", ["1,x", "1.5", "[1", "one"])
def test_other_token_lists_are_refused(text: str) -> None:
    if text == "[1":  # a bracket left open does no harm
        assert cli_input.token_list(text) == [1]
        return
    with pytest.raises(argparse.ArgumentTypeError, match="not a list of token ids"):
        cli_input.token_list(text)


@given(st.binary())
def test_bytes_become_the_same_text_or_an_error_that_names_the_place(data: bytes) -> None:
    try:
        expected = data.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(RequestError, match=f"at offset {error.start}"):
            cli_input.decoded(data, "The text")
    else:
        assert cli_input.decoded(data, "The text") == expected


@pytest.mark.parametrize("value", [None, 1, "1", {"a": 1}, [1.5], [True], ["1"], [[1]], [None]])
def test_what_is_no_array_of_ids_is_refused(value: Any) -> None:
    with pytest.raises(RequestError):
        cli_input.token_ids(value)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match=r"\\ud83d alone"):
        cli_input.whole_text(json.loads('"a\\ud83d"'))


@pytest.mark.parametrize("value", [None, {}, "Hi", [1], [{"content": "Hi"}], [{"role": 1}]])
def test_what_is_no_list_of_messages_is_refused(value: Any) -> None:
    with pytest.raises(RequestError):
        cli_input.checked_messages(value)


def test_a_messages_file_may_be_an_array_or_an_object(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    file = tmp_path / "messages.json"

    file.write_text(json.dumps(messages))
    assert cli_input.messages_file(file) == {"messages": messages}
    file.write_text(json.dumps({"messages": messages, "tools": []}))
    assert cli_input.messages_file(file) == {"messages": messages, "tools": []}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"[{]", "line 1, column 3"),
        (b'{"role": "user"}', "has no messages"),
        (b"\xff", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_messages_file_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "messages.json"
    file.write_bytes(content)

    with pytest.raises(RequestError, match=says):
        cli_input.messages_file(file)


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="There is no file"):
        cli_input.file_text(tmp_path / "none")
    with pytest.raises(RequestError, match="is a folder"):
        cli_input.file_text(tmp_path)


def test_each_line_is_answered_whatever_happened_to_the_one_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [b'"one"', b"", b"   ", b"{not json", b'"\xff"', b'"boom"', b'"defect"', b'"two \\u2028"']
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines)), encoding="utf-8"))

    def answer(value: Any) -> Any:
        if value == "boom":
            raise RequestError("It went wrong.", "Do not.")
        if value == "defect":
            raise KeyError("x")
        return [value, float("nan")]

    assert cli_input.answer_lines(answer) == 0
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert answers[0] == ["one", None]
    assert answers[1]["error"].startswith("Line 4 is not JSON")
    assert answers[2]["error"].startswith("Line 5 is not UTF-8")
    assert answers[3] == {"error": "It went wrong. Do not."}
    assert answers[4] == {"error": "Internal error: KeyError('x')."}
    assert answers[5] == ["two \u2028", None]
    assert len(answers) == 6
    assert "Traceback" in captured.err
