"""One message of the transcript: its blocks, their heights, and the widget that shows those in sight."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from PySide6.QtWidgets import QWidget

from app.desktop.blocks import BlockWidget, RuleBlock, TableBlock, TextBlock, gap_before
from app.desktop.code_block import HEAD, PAD_Y, CodeBlock
from app.desktop.markdown import Block, Code, MarkdownDocument, PlainText, Rule, Table, block_text, plain_blocks
from app.desktop.message_view import ACTION_ROW, BUBBLE_X, BUBBLE_Y, MARGIN, MessageView
from app.desktop.text_box import utf16_ranges
from app.desktop.theme import Themes
from app.desktop.tint import MessageTint, Ranges

PARSE_SLICE = 1500
"""Characters of a stored message that are parsed at a time: a few milliseconds' work."""

MESSAGE_GAP = 10
OUT_OF_SIGHT = -20_000
"""Where widgets wait for their place, lest they appear below the mouse for a moment and take it for hovering."""

BUBBLE_SHARE = 0.86


@dataclass
class MessageData:
    """What the transcript shows of a message.

    note: a faint line below it ("Stopped"). problem: whether the note tells of a failure.
    figures: a faint line beside the actions ("45.1 tokens/s").
    drafted: the parts of `text` that were guessed and accepted, as (start, end) in characters.
    """

    id: int
    role: str
    text: str
    streaming: bool = False
    note: str = ""
    problem: bool = False
    figures: str = ""
    activity: str = ""
    drafted: Ranges = ()

    def copy(self) -> MessageData:
        """One with the same values; a tenth of the cost of dataclasses.replace."""
        twin = object.__new__(MessageData)
        twin.__dict__.update(self.__dict__)
        return twin


class MessageItem:
    """Everything about one message that outlives its widgets. Heights are for the width last laid out."""

    def __init__(self, data: MessageData, themes: Themes) -> None:
        # Opening a chat makes one of these per message, so nothing is done here that can wait until it is in sight.
        self.data = data.copy()  # its text grows here, whatever happens to the original
        self.themes = themes
        self.width = 0
        self.view: MessageView | None = None
        self.widgets: dict[int, BlockWidget] = {}
        self.heights: list[int | None] = []
        self.tops: list[int] = [0]
        self._clean = 0  # blocks whose tops are right
        self._height: int | None = None  # of the whole message, while nothing changes
        self._made: MarkdownDocument | None = None
        self._plain: list[Block] = []
        self._unparsed = data.text
        self._finished = data.streaming or data.role == "user"
        self._bubble_width = 0
        self._tint: MessageTint | None = None
        self.tinted = False

    @property
    def _document(self) -> MarkdownDocument:
        if self._made is None:
            self._made = MarkdownDocument()
        return self._made

    @property
    def blocks(self) -> list[Block]:
        if self.data.role == "user":
            return self._plain
        return self._made.blocks if self._made is not None else []

    @property
    def bubble(self) -> bool:
        return self.data.role == "user"

    # Text

    @property
    def parsed(self) -> bool:
        return not self._unparsed and self._finished

    def parse_slice(self) -> None:
        """Parses some more of a stored message; all of one that is shown as it was typed."""
        if self._unparsed and self.bubble:
            self._plain, self._unparsed = plain_blocks(self.data.text), ""
            self.heights = [None] * len(self._plain)
            self._clean, self._height = 0, None
        if self._unparsed:
            cut = self._unparsed.find("\n", PARSE_SLICE) + 1 or len(self._unparsed)
            cut = min(cut, 2 * PARSE_SLICE)
            piece, self._unparsed = self._unparsed[:cut], self._unparsed[cut:]
            self._changed_from(self._document.append(piece))
        if not self._unparsed and not self._finished:
            self._finished = True
            self._changed_from(self._document.finish())

    def take_data(self, data: MessageData) -> None:
        """Takes notes, figures and activity; the text must be the one that `append` has built."""
        self.data = data.copy()
        self._height = None

    def append(self, text: str) -> None:
        """Adds text to an answer that streams."""
        self.data.text += text
        if self._unparsed:
            self._unparsed += text
        else:
            self._changed_from(self._document.append(text))

    def finish(self) -> None:
        """Ends a streaming answer: what was held back at its end is shown."""
        self.data.streaming = False
        if self._unparsed:
            self._finished = False
        else:
            self._finished = True
            self._changed_from(self._document.finish())

    def _changed_from(self, first: int) -> None:
        blocks = self._document.blocks
        self._height = None
        for index in [i for i in self.widgets if i >= len(blocks)]:
            self._drop(index)
        for index in range(first, len(blocks)):
            block = blocks[index]
            gap = gap_before(blocks[index - 1] if index else None, block)
            widget = self.widgets.get(index)
            if widget is not None and (widget.block != block or widget.gap != gap):
                if type(widget) is _widget_class(block):
                    widget.set_block(block, gap)
                else:
                    self._drop(index)
            elif widget is not None and index < len(self.heights):
                continue  # nothing changed here; the height stays
            if index < len(self.heights):
                self.heights[index] = None
        del self.heights[len(blocks) :]
        self.heights += [None] * (len(blocks) - len(self.heights))
        self._clean = min(self._clean, first)

    # Tint

    def set_tinted(self, tinted: bool) -> None:
        """Whether accepted guesses are tinted."""
        self.tinted = tinted
        if not tinted:
            for widget in self.widgets.values():
                widget.set_tint(())

    def advance_tint(self, deadline: float) -> bool:
        """Finds out some more of what is to be tinted, and shows it; returns whether all of it is known."""
        if not self.tinted or not self.data.drafted or self.bubble:
            return True
        if self._tint is None:
            self._tint = MessageTint()
        texts = [block_text(block) for block in self.blocks]
        done = self._tint.advance(texts, self.data.text, self.data.drafted, deadline)
        for index, widget in self.widgets.items():
            widget.set_tint(utf16_ranges(texts[index], self._tint.ranges(index)))
        return done

    # Geometry

    def set_width(self, width: int) -> None:
        """Takes the width of the column; heights of a former width become estimates."""
        if width != self.width:
            self.width = width
            self.heights = [None] * len(self.blocks)
            self._clean = 0
            self._height = None
            self._bubble_width = 0

    @property
    def block_width(self) -> int:
        """The width that blocks are laid out to."""
        if self.bubble:
            return int(self.width * BUBBLE_SHARE) - 2 * BUBBLE_X
        return self.width

    @property
    def top_pad(self) -> int:
        return BUBBLE_Y if self.bubble else 0

    @property
    def height(self) -> int:
        """Measured where measured, estimated elsewhere."""
        if self._height is not None:
            return self._height
        self._settle_tops()
        rest = ceil(_estimated_text_height(self._unparsed, self.block_width, self.themes)) if self._unparsed else 0
        chrome = 2 * self.top_pad + ACTION_ROW + MESSAGE_GAP + self.note_height
        self._height = self.tops[-1] + rest + chrome
        return self._height

    @property
    def note_height(self) -> int:
        data = self.data
        extra = 0
        if data.streaming or data.activity:
            extra = 0
        elif data.note:
            lines = ceil(len(data.note) * self.themes.small_px * 0.55 / max(100, self.width - 30))
            extra = (8 if self.blocks else 0) + lines * round(self.themes.small_px * 1.6)
        return extra

    def _settle_tops(self) -> None:
        blocks = self.blocks
        del self.tops[self._clean + 1 :]
        y = self.tops[-1]
        for index in range(self._clean, len(blocks)):
            height = self.heights[index]
            if height is None:
                height = _estimated_height(blocks, index, self.block_width, self.themes)
            y += height
            self.tops.append(y)
        self._clean = len(blocks)

    def block_top(self, index: int) -> int:
        """Where a block begins, from the top of the message."""
        self._settle_tops()
        return self.top_pad + self.tops[min(index, len(self.tops) - 1)]

    def block_at(self, y: int) -> int:
        """The block at a height inside the message; the last one for anything below."""
        self._settle_tops()
        y -= self.top_pad
        low, high = 0, max(0, len(self.blocks) - 1)
        while low < high:
            middle = (low + high + 1) // 2
            if self.tops[middle] <= y:
                low = middle
            else:
                high = middle - 1
        return low

    # Widgets

    def show_range(self, parent: QWidget, top: int, bottom: int, margin: int, far: int) -> bool:
        """Makes and measures the blocks between two heights; returns whether the message's height changed.

        margin: how far above and below blocks are made as well. far: how far away they are given up.
        """
        before = self.height
        if self.view is None:
            self.view = MessageView(self.themes, parent)
            self.view.move(0, OUT_OF_SIGHT)
            self.view.show_data(self.data)
            self.view.show()
        index = self.block_at(max(0, top - margin))
        first = index
        while index < len(self.blocks) and (self.block_top(index) < bottom + margin or index == first):
            if index not in self.widgets:
                self._make(index)
            if self.heights[index] is None:
                self._measure(index)
            index += 1
        keep = range(first, index)
        for gone in [i for i in self.widgets if i not in keep]:
            y = self.block_top(gone)
            if y < top - far or y > bottom + far:
                self._drop(gone)
        return self.height != before

    def place_blocks(self) -> None:
        """Puts the widgets where their heights say."""
        view = self.view
        if view is None:
            return
        if self.bubble:
            wish = max((widget.natural_width() for widget in self.widgets.values()), default=0)
            self._bubble_width = max(self._bubble_width, min(wish, self.block_width))
            left = MARGIN + self.width - self._bubble_width - BUBBLE_X
            width = self._bubble_width
            view.bubble_width = self._bubble_width + 2 * BUBBLE_X
        else:
            left, width = MARGIN, self.width
            view.bubble_width = 0
        for index, widget in self.widgets.items():
            height = self.heights[index]
            if height is None:
                height = self._measure(index)
            widget.setGeometry(left, self.block_top(index), width, height)
        self._settle_tops()
        view.arrange(self.block_top(len(self.blocks)), self.top_pad, self.note_height)

    def _make(self, index: int) -> None:
        block = self.blocks[index]
        gap = gap_before(self.blocks[index - 1] if index else None, block)
        widget = _widget_class(block)(block, gap, self.themes, self.view)
        widget.move(0, OUT_OF_SIGHT)
        widget.show()
        self.widgets[index] = widget
        self._measure(index)

    def _measure(self, index: int) -> int:
        height = self.widgets[index].height_for(self.block_width)
        if height != self.heights[index]:
            self.heights[index] = height
            self._clean = min(self._clean, index)
            self._height = None
        return height

    def _drop(self, index: int) -> None:
        widget = self.widgets.pop(index)
        widget.hide()
        widget.deleteLater()

    def drop_view(self) -> None:
        """Gives up all widgets; the heights stay."""
        self.widgets.clear()
        if self.view is not None:
            self.view.hide()
            self.view.deleteLater()
            self.view = None

    def text_of_block(self, index: int) -> str:
        """The plain text of one block, whether it has a widget or not."""
        return block_text(self.blocks[index])


def _widget_class(block: Block) -> type[BlockWidget]:
    match block:
        case Code():
            return CodeBlock
        case Table():
            return TableBlock
        case Rule():
            return RuleBlock
        case _:
            return TextBlock


def _estimated_height(blocks: list[Block], index: int, width: int, themes: Themes) -> int:
    block = blocks[index]
    gap = gap_before(blocks[index - 1] if index else None, block)
    match block:
        case Code():
            return gap + HEAD + 2 * PAD_Y + (block.text.count("\n") + 1) * ceil(themes.code_font.pixelSize() * 1.5)
        case Table():
            return gap + len(block.rows) * 38 + 2
        case Rule():
            return gap + 2
        case PlainText():
            return gap + ceil(_estimated_text_height(block.text, width, themes))
        case _:
            return gap + ceil(_estimated_text_height(block_text(block), width - 28 * len(block.frames), themes))


def _estimated_text_height(text: str, width: int, themes: Themes) -> float:
    step = themes.body_px * 1.55
    lines = text.count("\n") + 1 + len(text) * themes.body_px * 0.5 / max(100, width)
    return step * max(1.0, lines - 0.5)
