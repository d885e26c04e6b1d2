"""Accepted guesses are tinted where they stand in the rendered answer, while it grows and afterwards."""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PySide6.QtGui import QColor

from app.desktop.code_block import CodeBlock
from app.desktop.markdown import MarkdownDocument, block_text
from app.desktop.message_item import MessageData
from app.desktop.tint import MessageTint
from app.desktop.transcript import Transcript

SOURCE = (
    "# A *title*\n\nSome **bold** and `code`, [a link](https://example.org/some/where?bold=1) and more.\n\n"
    "1. first\n2. second item\n\n```python\nprint('hi')  # code\nreturn 1\n```\n\n"
    "| a | bb |\n|---|---|\n| one | two |\n\n> quoted 漢字 words 🙂 end\n"
)


def tinted(source: str, *marked: str) -> list[str]:
    """The tinted pieces of the blocks when these parts of the source were guessed."""
    drafted = []
    at = 0
    for part in marked:
        start = source.index(part, at)
        at = start + len(part)
        drafted.append((start, at))
    texts = [block_text(block) for block in MarkdownDocument(source).blocks]
    tint = MessageTint()
    assert tint.advance(texts, source, tuple(drafted), perf_counter() + 10)
    return [texts[i][start:end] for i in range(len(texts)) for start, end in tint.ranges(i)]


def test_guesses_are_found_behind_marks_links_and_fences():
    assert tinted(SOURCE, "itle*\n\nSome **bo", "code`, [a li", " and more.") == [
        "itle", "Some bo", "code, a li", "and more.",
    ]  # fmt: skip
    assert tinted(SOURCE, "irst\n2. sec", "'hi')  # code\nret", "one | tw", "漢字 words 🙂") == [
        "irst", "sec", "'hi')  # code\nret", "one\ttw", "漢字 words 🙂",
    ]  # fmt: skip


def test_a_blank_between_two_guesses_is_tinted_only_if_it_was_guessed():
    assert tinted("one two three", "one", " two") == ["one two"]
    assert tinted("one two three", "one", "two") == ["one", "two"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=5, max_size=60), st.integers(0, 2**32))
def test_growing_ends_as_if_it_had_come_at_once(lengths, seed):
    cuts = [0]
    for length in lengths:
        cuts.append(min(len(SOURCE), cuts[-1] + length))
    pieces = list(pairwise(cuts))
    marked = [piece for number, piece in enumerate(pieces) if seed >> (number % 32) & 1 and piece[0] < piece[1]]
    grown, document, text = MessageTint(), MarkdownDocument(), ""
    for start, end in pieces:
        text += SOURCE[start:end]
        document.append(SOURCE[start:end])
        texts = [block_text(block) for block in document.blocks]
        while not grown.advance(texts, text, tuple(m for m in marked if m[1] <= end), perf_counter() + 10):
            pass
    document.finish()
    texts = [block_text(block) for block in document.blocks]
    assert grown.advance(texts, text, tuple(marked), perf_counter() + 10)
    whole = MessageTint()
    assert whole.advance(texts, text, tuple(marked), perf_counter() + 10)
    assert [grown.ranges(i) for i in range(len(texts))] == [whole.ranges(i) for i in range(len(texts))]


def test_a_long_answer_is_worked_on_in_slices():
    source = "word " * 4000
    tint, drafted = MessageTint(), ((0, 9000),)
    rounds = 0
    while not tint.advance([source.strip()], source, drafted, perf_counter()):
        rounds += 1
    assert rounds > 10
    assert tint.ranges(0) == ((0, 8999),)


@pytest.fixture
def transcript(qtbot, themes):
    widget = Transcript(themes)
    qtbot.addWidget(widget)
    widget.resize(800, 700)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


def tint_pixels(transcript: Transcript) -> int:
    image = transcript.grab().toImage()
    color = QColor(transcript.themes.current.drafted).rgb()
    return sum(image.pixel(x, y) == color for x in range(0, image.width(), 3) for y in range(0, image.height(), 3))


def test_tint_is_seen_on_request_while_streaming_and_afterwards(qtbot, transcript):
    drafted = ((SOURCE.index("Some"), SOURCE.index("more")), (SOURCE.index("print"), SOURCE.index("| one")))
    answer = MessageData(2, "assistant", "", streaming=True)
    transcript.set_messages([MessageData(1, "user", "Hello"), answer])
    for end in range(5, len(SOURCE) + 5, 5):
        transcript.update_message(MessageData(2, "assistant", SOURCE[:end], streaming=True, drafted=drafted))
    assert tint_pixels(transcript) == 0
    transcript.set_tinted(True)
    qtbot.waitUntil(lambda: tint_pixels(transcript) > 100)
    transcript.update_message(MessageData(2, "assistant", SOURCE, drafted=drafted))
    streamed = tint_pixels(transcript)
    transcript.set_messages([MessageData(1, "user", "Hello"), MessageData(2, "assistant", SOURCE, drafted=drafted)])
    qtbot.waitUntil(lambda: transcript.items[1].parsed and abs(tint_pixels(transcript) - streamed) < 20)
    code = next(w for w in transcript.items[1].widgets.values() if isinstance(w, CodeBlock))
    assert code.tint == ((0, len("print('hi')  # code\nreturn 1")),)
    transcript.set_tinted(False)
    assert tint_pixels(transcript) == 0
