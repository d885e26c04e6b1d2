"""Messages from lines: single ones, pastes, and several lines between fences."""

from __future__ import annotations

import io
import sys

import pytest

from app.cli.prompt import PipedLines, read_message
from engine.errors import RequestError


class Typed:
    """Bursts of lines: what is in one burst is there at once, as after a paste."""

    def __init__(self, *bursts: list[str]) -> None:
        self.bursts = [list(burst) for burst in bursts]
        self.prompts: list[str] = []

    def line(self, prompt: str) -> str | None:
        self.prompts.append(prompt)
        while self.bursts and not self.bursts[0]:
            self.bursts.pop(0)
        return self.bursts[0].pop(0) if self.bursts else None

    def pending(self) -> bool:
        return bool(self.bursts and self.bursts[0])


def test_a_line_is_a_message() -> None:
    typed = Typed(["Hello"], [""], ["/help"])

    assert [read_message(typed, "> ") for _ in range(4)] == ["Hello", "", "/help", None]
    assert typed.prompts == ["> "] * 4


def test_a_paste_of_several_lines_is_one_message() -> None:
    typed = Typed(["def f():", "    return 1", ""], ["next"])

    assert read_message(typed, "> ") == "def f():\n    return 1\n"
    assert read_message(typed, "> ") == "next"


@pytest.mark.parametrize(
    "lines",
    [
        ['"""', "one", "", "two", '"""'],
        ['"""one', "", 'two"""'],
        ['  """one', "", "two", '"""  '],
        ['"""one', "", "two"],  # never closed: the end of the input closes it
    ],
)
def test_fences_hold_a_message_of_several_lines(lines: list[str]) -> None:
    assert read_message(Typed(*([line] for line in lines)), "> ") == "one\n\ntwo"


def test_a_fence_may_close_on_its_own_line() -> None:
    assert read_message(Typed(['"""just this"""']), "> ") == "just this"


def test_lines_of_a_pipe_are_messages_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße\r\nTwo\n\nlast".encode())))
    piped = PipedLines()

    assert [read_message(piped, "") for _ in range(5)] == ["Grüße", "Two", "", "last", None]


def test_a_pipe_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\n\xff\xfe\n")))
    piped = PipedLines()

    assert read_message(piped, "") == "fine"
    with pytest.raises(RequestError, match="Line 2 of the input is not UTF-8"):
        read_message(piped, "")
