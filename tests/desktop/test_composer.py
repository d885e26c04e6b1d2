"""The composer: keys, growth, editing and the button with two faces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from PySide6.QtCore import Qt

from app.desktop.composer import Composer


@pytest.fixture
def composer(qtbot, themes):
    widget = Composer(themes)
    qtbot.addWidget(widget)
    widget.resize(500, 100)
    widget.show()
    qtbot.waitExposed(widget)
    widget.text.setFocus()
    return widget


def test_enter_sends_and_shift_enter_begins_a_line(qtbot, composer):
    sent: list[str] = []
    composer.sent.connect(sent.append)
    qtbot.keyClicks(composer.text, "one")
    qtbot.keyClick(composer.text, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    qtbot.keyClicks(composer.text, "two")
    assert sent == []
    qtbot.keyClick(composer.text, Qt.Key.Key_Return)
    assert sent == ["one\ntwo"]
    assert composer.text.toPlainText() == ""


def test_nothing_but_spaces_is_not_sent(qtbot, composer):
    sent: list[str] = []
    composer.sent.connect(sent.append)
    qtbot.keyClicks(composer.text, "   ")
    qtbot.keyClick(composer.text, Qt.Key.Key_Return)
    assert sent == []
    assert not composer.button.isEnabled()


def test_it_grows_to_eight_lines_and_then_scrolls(qtbot, composer):
    heights: list[int] = []
    for count in range(1, 12):
        composer.text.setPlainText("\n".join("x" * 3 for _ in range(count)))
        heights.append(composer.text.height())
    steps = [b - a for a, b in pairwise(heights)]
    assert all(step > 10 for step in steps[:7])
    assert all(step == 0 for step in steps[7:])
    assert composer.text.verticalScrollBarPolicy() == Qt.ScrollBarPolicy.ScrollBarAsNeeded
    composer.text.clear()
    assert composer.text.height() == heights[0]


def test_a_long_line_that_wraps_makes_it_grow(qtbot, composer):
    one = composer.text.height()
    composer.text.setPlainText("word " * 60)
    assert composer.text.height() > 2 * one


def test_while_an_answer_streams_the_button_and_escape_stop_it(qtbot, composer):
    sent: list[str] = []
    stopped: list[bool] = []
    composer.sent.connect(sent.append)
    composer.stopped.connect(lambda: stopped.append(True))
    composer.set_streaming(True)
    assert composer.button.accessibleName() == "Stop"
    qtbot.mouseClick(composer.button, Qt.MouseButton.LeftButton)
    composer.escape()
    assert len(stopped) == 2
    qtbot.keyClicks(composer.text, "next question")
    qtbot.keyClick(composer.text, Qt.Key.Key_Return)
    assert sent == []
    assert composer.text.toPlainText() == "next question"
    composer.set_streaming(False)
    qtbot.mouseClick(composer.button, Qt.MouseButton.LeftButton)
    assert sent == ["next question"]


def test_editing_keeps_the_draft(qtbot, composer):
    resent: list[tuple[int, str]] = []
    composer.resent.connect(lambda number, text: resent.append((number, text)))
    qtbot.keyClicks(composer.text, "draft")
    composer.begin_edit(7, "old text")
    assert composer.banner.isVisible()
    composer.escape()
    assert not composer.banner.isVisible()
    assert composer.text.toPlainText() == "draft"
    composer.begin_edit(7, "old text")
    qtbot.keyClicks(composer.text, " and more")
    qtbot.keyClick(composer.text, Qt.Key.Key_Return)
    assert resent == [(7, "old text and more")]
    assert composer.text.toPlainText() == "draft"


def test_pasting_takes_plain_text_only(qtbot, composer):
    from PySide6.QtCore import QMimeData

    data = QMimeData()
    data.setHtml("<b>bold</b>")
    data.setText("bold")
    composer.text.insertFromMimeData(data)
    assert composer.text.toPlainText() == "bold"
