"""The transcript: what is laid out when, where the view stands, and what can be selected and copied."""

from __future__ import annotations

import pytest
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QGuiApplication

from app.desktop.blocks import BlockWidget
from app.desktop.code_block import CodeBlock
from app.desktop.markdown import MarkdownDocument, block_text
from app.desktop.message_item import MessageData
from app.desktop.transcript import Transcript

PARAGRAPH = "A paragraph that is long enough to need more than one line in a column of this width. " * 3
RICH = (
    "Intro with `code` and [a link](https://example.org).\n\n- one\n- two\n\n```python\nprint('hi')\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\nThe end."
)


@pytest.fixture
def transcript(qtbot, themes):
    widget = Transcript(themes)
    qtbot.addWidget(widget)
    widget.resize(800, 600)
    widget.show()
    qtbot.waitExposed(widget)
    return widget


def layouts(transcript: Transcript) -> dict[tuple[int, int], int]:
    return {
        (item.data.id, index): widget.layouts for item in transcript.items for index, widget in item.widgets.items()
    }


def grow(transcript: Transcript, message: MessageData, text: str) -> None:
    transcript.update_message(MessageData(**{**vars(message), "text": message.text + text}))
    message.text += text


def shown(transcript: Transcript, message_id: int) -> list[tuple[int, int, int, int]]:
    item = transcript.item(message_id)
    assert item is not None
    places = [item.widgets[index].geometry() for index in sorted(item.widgets)]
    return [(place.x(), place.y(), place.width(), place.height()) for place in places]


def test_streaming_ends_in_the_picture_of_the_finished_answer(qtbot, themes, transcript):
    answer = MessageData(2, "assistant", "", streaming=True)
    transcript.set_messages([MessageData(1, "user", "Hello"), answer])
    for start in range(0, len(RICH), 5):
        grow(transcript, answer, RICH[start : start + 5])
    transcript.update_message(MessageData(2, "assistant", RICH))
    qtbot.wait(400)  # the colours of the code come in slices
    streamed = transcript.grab().toImage()
    transcript.set_messages([MessageData(1, "user", "Hello"), MessageData(2, "assistant", RICH)])
    qtbot.waitUntil(lambda: transcript.items[1].parsed)
    qtbot.wait(400)
    assert transcript.items[1].blocks == MarkdownDocument(RICH).blocks
    assert transcript.grab().toImage() == streamed


def test_a_flush_lays_out_the_last_block_only(transcript):
    answer = MessageData(2, "assistant", "", streaming=True)
    transcript.set_messages([MessageData(1, "user", "Hello"), answer])
    grow(transcript, answer, "\n\n".join(["First.", PARAGRAPH, "- a\n- b", "Last paragraph"]))
    before = layouts(transcript)
    last = max(index for message, index in before if message == 2)
    for word in (" goes", " on", " and", " on"):
        grow(transcript, answer, word)
    after = layouts(transcript)
    assert {key: count for key, count in after.items() if key != (2, last)} == {
        key: count for key, count in before.items() if key != (2, last)
    }


def test_the_cost_of_a_flush_does_not_grow_with_the_answer(transcript):
    """Counts what is parsed and laid out for one more word at the end of 100 kB."""
    answer = MessageData(2, "assistant", "", streaming=True)
    transcript.set_messages([MessageData(1, "user", "Hello"), answer])
    for _ in range(40):
        grow(transcript, answer, PARAGRAPH * 10 + "\n\n")
    assert len(answer.text) > 100_000
    grow(transcript, answer, "Now")
    widgets = {id(widget) for item in transcript.items for widget in item.widgets.values()}
    before = sum(layouts(transcript).values())
    document = transcript.items[1]._document
    grow(transcript, answer, " more")
    assert len(document._tail) < 5000
    assert sum(layouts(transcript).values()) - before <= 1
    new = {id(widget) for item in transcript.items for widget in item.widgets.values()} - widgets
    assert len(new) <= 1


def test_growing_code_lays_out_no_line_again(qtbot, transcript):
    answer = MessageData(2, "assistant", "", streaming=True)
    transcript.set_messages([MessageData(1, "user", "Hello"), answer])
    grow(transcript, answer, "```\n" + "x = 1\n" * 100)
    block = next(w for w in transcript.items[1].widgets.values() if isinstance(w, CodeBlock))
    transcript.grab()
    drawn = dict(block._drawn)
    grow(transcript, answer, "y = 2\n" * 3)
    transcript.grab()
    same = [line for line, layout in drawn.items() if block._drawn.get(line) is layout]
    assert len(same) >= len(drawn) - 1


def test_a_long_chat_makes_widgets_for_what_is_in_sight_only(qtbot, transcript):
    messages = [MessageData(n, "user" if n % 2 else "assistant", f"Message {n}. " + PARAGRAPH) for n in range(1, 1001)]
    transcript.set_messages(messages)
    assert sum(len(item.widgets) for item in transcript.items) < 40
    assert transcript.verticalScrollBar().value() == transcript.verticalScrollBar().maximum()
    assert transcript.items[-1].view is not None
    assert transcript.items[0].view is None
    transcript.verticalScrollBar().setValue(0)
    assert transcript.items[0].view is not None
    assert transcript.items[-1].view is None
    assert sum(len(item.widgets) for item in transcript.items) < 40


def test_a_huge_answer_is_parsed_in_slices_and_shown_in_part(qtbot, transcript):
    text = "\n\n".join(f"## Part {n}\n\n{PARAGRAPH}" for n in range(400))
    assert len(text) > 100_000
    transcript.set_messages([MessageData(1, "assistant", text)])
    assert not transcript.items[0].parsed, "all of it was parsed at once"
    qtbot.waitUntil(lambda: transcript.items[0].parsed, timeout=20_000)
    assert len(transcript.items[0].blocks) == 800
    assert len(transcript.items[0].widgets) < 60
    assert transcript.at_bottom


def test_the_view_follows_the_end_only_while_the_person_is_there(qtbot, transcript):
    answer = MessageData(2, "assistant", PARAGRAPH * 8 + "\n\n" + PARAGRAPH * 8, streaming=True)
    transcript.set_messages([MessageData(1, "user", "Hello"), answer])
    qtbot.waitUntil(lambda: transcript.items[1].parsed)
    bar = transcript.verticalScrollBar()
    grow(transcript, answer, "\n\n" + PARAGRAPH)
    assert bar.value() == bar.maximum()
    assert not transcript.latest_button.isVisible()
    bar.setValue(40)
    grow(transcript, answer, "\n\n" + PARAGRAPH * 4)
    assert bar.value() == 40
    assert transcript.latest_button.isVisible()
    qtbot.mouseClick(transcript.latest_button, Qt.MouseButton.LeftButton)
    assert bar.value() == bar.maximum()
    assert not transcript.latest_button.isVisible()


def test_what_one_reads_stays_where_it_is_while_heights_become_known(qtbot, transcript):
    messages = [MessageData(n, "assistant", f"{n}\n\n" + RICH * (n % 4 + 1)) for n in range(1, 81)]
    transcript.set_messages(messages)
    bar = transcript.verticalScrollBar()
    bar.setValue(bar.maximum() // 2)
    for _ in range(12):  # scrolling up meets messages that were only estimated
        index, block, _offset = transcript._anchor
        widget = transcript.items[index].widgets[block]
        before = widget.mapTo(transcript.viewport(), QPoint(0, 0)).y()
        bar.setValue(bar.value() - 30)
        moved = widget.mapTo(transcript.viewport(), QPoint(0, 0)).y() - before
        assert abs(moved - 30) <= 1


def test_narrowing_the_window_keeps_the_place(qtbot, transcript):
    transcript.set_messages([MessageData(n, "assistant", f"{n}\n\n" + PARAGRAPH) for n in range(1, 40)])
    transcript.verticalScrollBar().setValue(1500)
    index = transcript._anchor[0]
    transcript.resize(420, 600)
    assert transcript._item_at(transcript.verticalScrollBar().value()) == index


def test_dragging_selects_across_blocks_and_messages(qtbot, transcript):
    transcript.set_messages(
        [
            MessageData(1, "user", "My question"),
            MessageData(2, "assistant", "First **bold** part.\n\n- item\n\nSecond part."),
        ]
    )
    qtbot.waitUntil(lambda: transcript.items[1].parsed)
    viewport = transcript.viewport()
    first = transcript.items[0].widgets[0]
    last = transcript.items[1].widgets[2]
    start = first.mapTo(viewport, QPoint(0, 5))
    end = last.mapTo(viewport, QPoint(last.width() - 1, last.height() - 4))
    qtbot.mousePress(viewport, Qt.MouseButton.LeftButton, pos=start)
    _drag(transcript, end)
    qtbot.mouseRelease(viewport, Qt.MouseButton.LeftButton, pos=end)
    assert transcript.selected_text() == "My question\n\nFirst bold part.\n\n- item\n\nSecond part."
    qtbot.keyClick(transcript, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    assert QGuiApplication.clipboard().text().startswith("My question\n\nFirst bold")


def _drag(transcript: Transcript, point: QPoint) -> None:
    from PySide6.QtCore import QEvent, QPointF
    from PySide6.QtGui import QMouseEvent

    event = QMouseEvent(
        QEvent.Type.MouseMove, QPointF(point), QPointF(transcript.viewport().mapToGlobal(point)),
        Qt.MouseButton.NoButton, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    transcript.mouseMoveEvent(event)


def test_a_double_click_selects_a_word_even_behind_an_emoji(qtbot, transcript):
    transcript.set_messages([MessageData(1, "assistant", "😀😀 wonderful words")])
    qtbot.waitUntil(lambda: transcript.items[0].parsed)
    widget = transcript.items[0].widgets[0]
    rect = widget.box.range_rects(6, 7)[0]
    point = widget.mapTo(transcript.viewport(), rect.center().toPoint())
    qtbot.mouseDClick(transcript.viewport(), Qt.MouseButton.LeftButton, pos=point)
    assert transcript.selected_text() == "wonderful"


def test_select_all_takes_messages_out_of_sight_too(qtbot, transcript):
    transcript.set_messages([MessageData(n, "user", f"Message {n}") for n in range(1, 201)])
    transcript.setFocus()
    qtbot.keyClick(transcript, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    text = transcript.selected_text()
    assert all(f"Message {n}" in text for n in (1, 77, 200))


def test_the_copy_button_of_code_copies_exactly_the_code(qtbot, transcript):
    code = "def f(a):\n\treturn a  # ümlaut 😀\n\n\nprint(f(1))"
    transcript.set_messages([MessageData(1, "assistant", f"Look:\n\n```python\n{code}\n```\n")])
    qtbot.waitUntil(lambda: transcript.items[0].parsed)
    block = next(w for w in transcript.items[0].widgets.values() if isinstance(w, CodeBlock))
    qtbot.mouseClick(block.copy_button, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text() == code
    assert block.copy_button.text() == "Copied"


def test_code_is_coloured_once_it_is_there(qtbot, transcript):
    transcript.set_messages([MessageData(1, "assistant", "```python\n" + "def f(): return 'x'  # y\n" * 50 + "```")])
    qtbot.waitUntil(lambda: transcript.items[0].parsed)
    block = next(w for w in transcript.items[0].widgets.values() if isinstance(w, CodeBlock))
    qtbot.waitUntil(lambda: len(block._colors) == 50)
    line = {block._lines[49][start:end]: color for start, end, color in block._colors[49]}
    assert line["def"] == "syntax_keyword"
    assert line["f"] == "syntax_function"
    assert line["# y"] == "syntax_comment"


def test_links_open_only_what_is_safe(qtbot, transcript):
    opened: list[str] = []
    transcript.open_link = opened.append
    transcript.set_messages([MessageData(1, "assistant", "[web](https://example.org/x) [file](file:///etc/passwd)")])
    qtbot.waitUntil(lambda: transcript.items[0].parsed)
    widget = transcript.items[0].widgets[0]
    for start, end in ((0, 3), (4, 8)):
        rect = widget.box.range_rects(start, end)[0]
        point = widget.mapTo(transcript.viewport(), rect.center().toPoint())
        qtbot.mouseClick(transcript.viewport(), Qt.MouseButton.LeftButton, pos=point)
    assert opened == ["https://example.org/x"]


def test_messages_go_and_come_back_in_their_order(qtbot, transcript):
    transcript.set_messages([MessageData(n, "user", str(n)) for n in (1, 2, 3, 4)])
    transcript.remove_messages([2, 3])
    assert [item.data.id for item in transcript.items] == [1, 4]
    transcript.add_message(MessageData(3, "user", "3"))
    transcript.add_message(MessageData(2, "user", "2"))
    assert [item.data.id for item in transcript.items] == [1, 2, 3, 4]
    tops = [item.view.y() for item in transcript.items]
    assert tops == sorted(tops)


def test_a_change_of_theme_repaints_without_laying_out_text_anew(qtbot, themes, transcript):
    transcript.set_messages([MessageData(1, "user", "Hi"), MessageData(2, "assistant", RICH)])
    qtbot.waitUntil(lambda: transcript.items[1].parsed)
    qtbot.wait(50)
    places = shown(transcript, 2)
    light = transcript.grab().toImage().pixelColor(3, 3).lightness()
    themes.choose("dark")
    qtbot.wait(50)
    dark = transcript.grab().toImage().pixelColor(3, 3).lightness()
    assert light > 240
    assert dark < 60
    assert shown(transcript, 2) == places
    assert all(isinstance(widget, BlockWidget) for widget in transcript.items[1].widgets.values())
    assert [block_text(block) for block in transcript.items[1].blocks][-1] == "The end."


def test_a_message_has_no_widgets_but_its_blocks_until_there_is_something_to_show(stage):
    stage.ask("one")
    stage.ask("two")
    view = stage.window.transcript.items[0].view
    assert {type(child).__name__ for child in view.children()} == {"TextBlock"}
