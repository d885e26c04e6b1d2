"""Selected text that may run over several blocks and messages of the transcript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.desktop.message_item import MessageItem
from app.desktop.text_box import utf16_length, utf16_slice


class Place(NamedTuple):
    """A position in the transcript; ordered as the text is. `position` counts UTF-16 units inside the block."""

    message: int
    block: int
    position: int


class TranscriptSelection:
    """The range between the place where the mouse went down and the place where it is."""

    def __init__(self, items: Sequence[MessageItem]) -> None:
        self._items = items
        self._anchor: Place | None = None
        self._head: Place | None = None

    @property
    def empty(self) -> bool:
        return self._anchor is None or self._head is None or self._anchor == self._head

    def clear(self) -> None:
        self._anchor = self._head = None
        self.apply()

    def begin(self, place: Place, extend: bool) -> None:
        """Starts anew at a place, or with `extend` moves the end of what is selected."""
        if not extend or self._anchor is None:
            self._anchor = place
        self._head = place

    def extend(self, place: Place) -> None:
        self._head = place

    def select_word(self, place: Place) -> None:
        """Selects the word around a place."""
        text = self._items[place.message].text_of_block(place.block)
        head, tail = utf16_slice(text, 0, place.position), utf16_slice(text, place.position, utf16_length(text))
        back = len(head) - next((i for i in range(len(head), 0, -1) if not _in_word(head[i - 1])), 0)
        ahead = next((i for i, letter in enumerate(tail) if not _in_word(letter)), len(tail))
        start = place.position - utf16_length(head[len(head) - back :])
        end = place.position + utf16_length(tail[:ahead])
        self._anchor, self._head = place._replace(position=start), place._replace(position=end)

    def select_all(self) -> None:
        if not self._items:
            return
        last = len(self._items) - 1
        blocks = self._items[last].blocks
        block = max(0, len(blocks) - 1)
        length = utf16_length(self._items[last].text_of_block(block)) if blocks else 0
        self._anchor, self._head = Place(0, 0, 0), Place(last, block, length)

    def _range_in(self, message: int, block: int, length: int) -> tuple[int, int] | None:
        if self.empty:
            return None
        assert self._anchor is not None and self._head is not None
        start, end = sorted((self._anchor, self._head))
        here = (message, block)
        if here < start[:2] or here > end[:2]:
            return None
        first = start.position if here == start[:2] else 0
        last = end.position if here == end[:2] else length
        return (min(first, length), min(last, length))

    def apply(self) -> None:
        """Marks the selection in the blocks that have widgets."""
        for number, item in enumerate(self._items):
            for index, widget in item.widgets.items():
                widget.set_selection(self._range_in(number, index, widget.text_length))

    def text(self) -> str:
        """The selected text; blocks are parted as they look: list items by a line, the rest by an empty one."""
        if self.empty:
            return ""
        assert self._anchor is not None and self._head is not None
        start, end = sorted((self._anchor, self._head))
        result = ""
        for message in range(start.message, min(end.message + 1, len(self._items))):
            item = self._items[message]
            for block in range(len(item.blocks)):
                text = item.text_of_block(block)
                part = self._range_in(message, block, utf16_length(text))
                if part is None:
                    continue
                piece = utf16_slice(text, *part)
                frames = item.blocks[block].frames
                after_item = block > 0 and any(not f.quote for f in item.blocks[block - 1].frames)
                marker = next((f.marker for f in reversed(frames) if f.first and not f.quote), "")
                if marker and part[0] == 0:
                    piece = "    " * (sum(not f.quote for f in frames) - 1) + marker.replace("•", "-") + " " + piece
                if result:
                    result += "\n" if item.bubble or (marker and after_item) else "\n\n"
                result += piece
        return result


def _in_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"
