"""Colours, sizes, tables and progress."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli import terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _ordinary_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_colours_only_where_a_person_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal.styled("Hi", "dim", Terminal()) == "\x1b[2mHi\x1b[0m"
    assert terminal.styled("Hi", "dim", io.StringIO()) == "Hi"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.styled("Hi", "dim", Terminal()) == "Hi"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.styled("Hi", "dim", Terminal()) == "Hi"


@given(st.text())
def test_nothing_that_a_model_says_can_steer_the_terminal(text: str) -> None:
    shown = terminal.printable(text)

    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert terminal.printable(shown) == shown


def test_an_answer_goes_through_a_pipe_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, screen = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", pipe)
    terminal.write_answer("a\x1b[2Jb\r\n")
    monkeypatch.setattr(sys, "stdout", screen)
    terminal.write_answer("a\x1b[2Jb\r\n")

    assert pipe.getvalue() == "a\x1b[2Jb\r\n"
    assert screen.getvalue() == "a[2Jb\n"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (98362432, "98.4 MB"), (2e12, "2.0 TB"), (1000, "1.0 kB")]
)
def test_sizes(count: int, text: str) -> None:
    assert terminal.bytes_text(count) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (999, "999"), (134515008, "134.5 M"), (7.6e9, "7.6 B")])
def test_counts(count: int, text: str) -> None:
    assert terminal.count_text(count) == text


def test_a_table_aligns_its_columns_whatever_the_rows_hold() -> None:
    assert terminal.table([["a", "bb"], ["ccc", "d\ne"], ["f"]]) == "a    bb\nccc  d e\nf"
    assert terminal.table([]) == ""


def test_progress_is_drawn_in_place_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = terminal.ProgressBar("download")

    bar.update(0.5, "49.2 MB of 98.4 MB")
    assert " 50% 49.2 MB of 98.4 MB" in screen.getvalue()
    bar.update(7.0)
    assert "100%" in screen.getvalue()
    bar.clear()
    assert screen.getvalue().endswith(" \r")


def test_progress_is_silent_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    bar = terminal.ProgressBar("download")

    bar.update(0.5)
    bar.clear()

    assert log.getvalue() == ""
