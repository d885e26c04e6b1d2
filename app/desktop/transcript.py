"""The transcript: messages in one scroll area, of which only those near the visible part have widgets.

Heights of messages that were never seen are estimates. The scroll position therefore hangs on an anchor (a block and
an offset in it, or the bottom), not on a number of pixels, and nothing jumps when an estimate becomes a height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from PySide6.QtCore import QEvent, QPoint, QSize, Qt, QTimer, QUrl, Signal
from PySide6.QtGui import (
    QAction,
    QContextMenuEvent,
    QDesktopServices,
    QGuiApplication,
    QHideEvent,
    QKeyEvent,
    QKeySequence,
    QMouseEvent,
    QResizeEvent,
    QShowEvent,
)
from PySide6.QtWidgets import QAbstractScrollArea, QFrame, QToolButton, QWidget

from app.desktop.blocks import BlockWidget
from app.desktop.icons import icon
from app.desktop.markdown import is_safe_link
from app.desktop.message_item import MessageData, MessageItem
from app.desktop.message_view import MARGIN
from app.desktop.selection import Place, TranscriptSelection
from app.desktop.theme import Themes, new_menu

COLUMN = 768
TOP_PAD = 28
BOTTOM_PAD = 18
MARGIN_Y = 80
"""How far out of sight widgets are made, so that a turn of the wheel finds them there."""
SLICE_S = 0.006


class Transcript(QAbstractScrollArea):
    """Shows MessageData in order. Sticks to the bottom while the person is there."""

    action = Signal(str, int)  # from MessageView: what to do with which message
    open_link: Callable[[str], object]

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("transcript")
        self.setAccessibleName("Transcript")
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.viewport().setMouseTracking(True)
        self.viewport().setObjectName("transcriptViewport")
        self.themes = themes
        self.open_link = lambda href: QDesktopServices.openUrl(QUrl(href))
        self.items: list[MessageItem] = []
        self._tops: list[int] = []
        self._stick = True
        self._anchor: tuple[int, int, int] = (0, 0, 0)  # message, block, pixels below the block's top
        self._placing = False
        self._selection = TranscriptSelection(self.items)
        self._pressed_link = ""
        self._drag = QTimer(self, interval=40)
        self._drag.timeout.connect(self._scroll_while_selecting)
        self._drag_at = QPoint()
        self._selecting = False
        self._tinted = False
        self._parser = QTimer(self, interval=0)
        self._parser.timeout.connect(self._parse_some)
        self.verticalScrollBar().setSingleStep(26)
        self.latest_button = QToolButton(self)
        self.latest_button.setObjectName("jumpToLatest")
        self.latest_button.setToolTip("Jump to the latest message (Ctrl+End)")
        self.latest_button.setAccessibleName("Jump to latest")
        self.latest_button.setCursor(Qt.CursorShape.PointingHandCursor)
        self.latest_button.setFixedSize(36, 36)
        self.latest_button.setIconSize(QSize(18, 18))
        self.latest_button.clicked.connect(self.jump_to_latest)
        self.latest_button.hide()
        themes.settled.connect(self._retheme)
        self._dress()

    # Content

    def set_messages(self, messages: Sequence[MessageData]) -> None:
        """Shows another chat, at its end."""
        for item in self.items:
            item.drop_view()
        self._selection.clear()
        self.items[:] = [self._new_item(message) for message in messages]
        self._stick = True
        self.relayout()

    def add_message(self, message: MessageData) -> None:
        """Adds a message in its place by id; one's own brings the view to the bottom."""
        place = len(self.items)
        while place > 0 and self.items[place - 1].data.id > message.id:
            place -= 1
        self.items.insert(place, self._new_item(message))
        if place + 1 < len(self.items):
            self._selection.clear()
            if not self._stick and self._anchor[0] >= place:
                self._anchor = (self._anchor[0] + 1, *self._anchor[1:])
        elif message.role == "user":
            self._stick = True
        self.relayout()

    def update_message(self, message: MessageData) -> None:
        """Shows a message's new state; its text must be that shown, or begin with it."""
        item = self.item(message.id)
        if item is None or message == item.data:
            return
        if not message.text.startswith(item.data.text):
            index = self.items.index(item)
            item.drop_view()
            self.items[index] = self._new_item(message)
            self._selection.clear()
            self.relayout()
            return
        rest = message.text[len(item.data.text) :]
        was_streaming = item.data.streaming
        if rest:
            item.append(rest)
        item.take_data(message)
        if was_streaming and not message.streaming:
            item.finish()
        self._show_data(item)
        self.relayout()

    def remove_messages(self, ids: Sequence[int]) -> None:
        """Takes messages out."""
        gone = set(ids)
        self._selection.clear()
        kept = []
        for index, item in enumerate(self.items):
            if item.data.id in gone:
                item.drop_view()
                if self._anchor[0] > index:
                    self._anchor = (max(0, self._anchor[0] - 1), 0, 0)
            else:
                kept.append(item)
        self.items[:] = kept
        self.relayout()

    def _new_item(self, message: MessageData) -> MessageItem:
        item = MessageItem(message, self.themes)
        item.set_tinted(self._tinted)
        return item

    def set_tinted(self, tinted: bool) -> None:
        """Whether accepted guesses are tinted."""
        if tinted != self._tinted:
            self._tinted = tinted
            for item in self.items:
                item.set_tinted(tinted)
            self.relayout()

    def item(self, message_id: int) -> MessageItem | None:
        """The message of an id, or None."""
        return next((item for item in reversed(self.items) if item.data.id == message_id), None)

    def _show_data(self, item: MessageItem) -> None:
        if item.view is not None:
            item.view.show_data(item.data)

    # Geometry

    def column(self) -> tuple[int, int]:
        """Left edge and width of the column of messages."""
        available = self.viewport().width()
        side = 28 if available > 560 else 18
        width = max(120, min(COLUMN, available - 2 * side))
        return (available - width) // 2, width

    def relayout(self) -> None:
        """Places what is in sight. Cheap when little changed: heights are cached per block."""
        if self._placing or not self.isVisible():
            return
        self._placing = True
        try:
            self._place()
        finally:
            self._placing = False
        if not self._stick and self._anchor[1] < 0:
            self._take_anchor()  # the message had no blocks yet; now it has
        self._update_latest_button()
        tinted = not self._tinted or self._advance_tint(perf_counter() + SLICE_S / 2)
        if self._unparsed_visible() or not tinted:
            self._parser.start()

    def _place(self) -> None:
        left, width = self.column()
        height = self.viewport().height()
        bar = self.verticalScrollBar()
        for item in self.items:
            item.set_width(width)
        scroll = total = 0
        shown: range = range(0)
        for _attempt in range(8):
            total = self._sum_heights()
            bottom = max(0, total - height)
            scroll = bottom if self._stick else max(0, min(bottom, self._anchor_y()))
            shown = self._items_between(scroll - MARGIN_Y, scroll + height + MARGIN_Y)
            changed = False
            for index in shown:
                item = self.items[index]
                if not item.parsed and not item.blocks:
                    item.parse_slice()
                    changed = True
                top = scroll - self._tops[index]
                if item.show_range(self.viewport(), top, top + height, MARGIN_Y, height):
                    changed = True
                if item.view is not None and not item.view.property("wired"):
                    item.view.setProperty("wired", True)
                    item.view.action.connect(self.action)
            if not changed:
                break
        bar.setRange(0, max(0, total - height))
        bar.setPageStep(height)
        bar.setValue(scroll)
        kept = self._items_between(scroll - height, scroll + 2 * height)
        for index, item in enumerate(self.items):
            view = item.view
            if view is None:
                continue
            if index in kept:
                view.setGeometry(left - MARGIN, self._tops[index] - scroll, width + 2 * MARGIN, item.height)
                item.place_blocks()
                view.set_latest(index == len(self.items) - 1 and not item.bubble)
            else:
                item.drop_view()
        self._selection.apply()

    def _sum_heights(self) -> int:
        self._tops = []
        y = TOP_PAD
        for item in self.items:
            self._tops.append(y)
            y += item.height
        return y + BOTTOM_PAD

    def _items_between(self, top: int, bottom: int) -> range:
        first = self._item_at(top)
        last = first
        while last < len(self.items) and self._tops[last] < bottom:
            last += 1
        return range(first, last)

    def _item_at(self, y: int) -> int:
        low, high = 0, max(0, len(self.items) - 1)
        while low < high:
            middle = (low + high + 1) // 2
            if self._tops[middle] <= y:
                low = middle
            else:
                high = middle - 1
        return low

    def _anchor_y(self) -> int:
        index, block, offset = self._anchor
        if not self.items:
            return 0
        index = min(index, len(self.items) - 1)
        if block < 0:
            return self._tops[index] + offset
        return self._tops[index] + self.items[index].block_top(block) + offset

    def _take_anchor(self) -> None:
        """Notes what stands at the top of the view, so that it can stay there."""
        bar = self.verticalScrollBar()
        self._stick = bar.value() >= bar.maximum() - 3
        if not self.items or len(self._tops) != len(self.items):
            return
        y = bar.value()
        index = self._item_at(y)
        item = self.items[index]
        if not item.blocks:
            self._anchor = (index, -1, y - self._tops[index])
            return
        block = item.block_at(y - self._tops[index])
        self._anchor = (index, block, y - self._tops[index] - item.block_top(block))

    def scrollContentsBy(self, dx: int, dy: int) -> None:
        if not self._placing:
            self._take_anchor()
            self.relayout()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.relayout()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.relayout()

    def hideEvent(self, event: QHideEvent) -> None:
        super().hideEvent(event)
        self._parser.stop()

    @property
    def at_bottom(self) -> bool:
        """Whether new text keeps the end in sight."""
        return self._stick

    def jump_to_latest(self) -> None:
        """Goes to the end and stays there."""
        self._stick = True
        self.relayout()

    def _update_latest_button(self) -> None:
        left, width = self.column()
        button = self.latest_button
        button.move(left + width // 2 - button.width() // 2, self.viewport().height() - button.height() - 12)
        button.setVisible(not self._stick)
        button.raise_()

    # Parsing what was stored, in slices

    def _unparsed_visible(self) -> bool:
        return any(not item.parsed for item in self.items if item.view is not None)

    def _advance_tint(self, deadline: float) -> bool:
        shown = [item for item in self.items if item.view is not None]
        return all(item.advance_tint(deadline) for item in shown)

    def _parse_some(self) -> None:
        waiting = [item for item in self.items if item.view is not None and not item.parsed]
        if not waiting:
            if not self._tinted or self._advance_tint(perf_counter() + SLICE_S):
                self._parser.stop()
            return
        deadline = perf_counter() + SLICE_S
        for item in waiting:
            while not item.parsed and perf_counter() < deadline:
                item.parse_slice()
        self.relayout()

    # Theme

    def _dress(self) -> None:
        self.latest_button.setIcon(icon("arrow-down", self.themes.current.text_soft))

    def _retheme(self) -> None:
        self._dress()
        for item in self.items:
            if item.view is not None:
                item.view.retheme()
            for index, widget in item.widgets.items():
                widget.retheme()
                widget.height_for(item.block_width)
                item.heights[index] = item.heights[index] or None
        self.relayout()

    # Selecting with the mouse

    def place_at(self, point: QPoint) -> Place | None:
        """The message, block and text position nearest to a point of the viewport."""
        if not self.items or len(self._tops) != len(self.items):
            return None
        y = point.y() + self.verticalScrollBar().value()
        index = self._item_at(y)
        item = self.items[index]
        if not item.blocks:
            return Place(index, 0, 0)
        block = item.block_at(y - self._tops[index])
        widget = item.widgets.get(block)
        if widget is None:
            return Place(index, block, 0)
        return Place(index, block, widget.position_at(widget.mapFrom(self.viewport(), point)))

    def _block_under(self, point: QPoint) -> BlockWidget | None:
        child = self.viewport().childAt(point)
        while child is not None and not isinstance(child, BlockWidget):
            child = child.parentWidget()
        return child if isinstance(child, BlockWidget) else None

    def _link_under(self, point: QPoint) -> str:
        block = self._block_under(point)
        return block.link_at(block.mapFrom(self.viewport(), point)) if block is not None else ""

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.button() != Qt.MouseButton.LeftButton:
            return
        point = event.position().toPoint()
        self._pressed_link = self._link_under(point)
        place = self.place_at(point)
        if place is not None:
            extend = bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier)
            self._selection.begin(place, extend)
            self._selecting = True
            self._selection.apply()

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        point = event.position().toPoint()
        if event.buttons() & Qt.MouseButton.LeftButton and self._selecting:
            self._drag_at = point
            if not self._drag.isActive() and not self.viewport().rect().contains(point):
                self._drag.start()
            self._extend_to(point)
            return
        link = self._link_under(point)
        over_text = self._block_under(point) is not None
        self.viewport().setCursor(
            Qt.CursorShape.PointingHandCursor
            if link
            else Qt.CursorShape.IBeamCursor
            if over_text
            else Qt.CursorShape.ArrowCursor
        )
        self.viewport().setToolTip(link)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._drag.stop()
        self._selecting = False
        point = event.position().toPoint()
        if self._pressed_link and self._selection.empty and self._link_under(point) == self._pressed_link:
            self.follow(self._pressed_link)
        self._pressed_link = ""
        clipboard = QGuiApplication.clipboard()
        if clipboard.supportsSelection() and not self._selection.empty:
            clipboard.setText(self._selection.text(), clipboard.Mode.Selection)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        place = self.place_at(event.position().toPoint())
        if event.button() == Qt.MouseButton.LeftButton and place is not None:
            self._selection.select_word(place)
            self._selection.apply()

    def _extend_to(self, point: QPoint) -> None:
        place = self.place_at(point)
        if place is not None:
            self._selection.extend(place)
            self._selection.apply()

    def _scroll_while_selecting(self) -> None:
        bar = self.verticalScrollBar()
        y = self._drag_at.y()
        over = y if y < 0 else max(0, y - self.viewport().height())
        if not over:
            self._drag.stop()
            return
        bar.setValue(bar.value() + max(-60, min(60, over)))
        self._extend_to(self._drag_at)

    def follow(self, href: str) -> None:
        """Opens a link in the system's browser or mail program; any other kind of address is left alone."""
        if is_safe_link(href):
            self.open_link(href)

    # Copying and keys

    def selected_text(self) -> str:
        """What is selected, as plain text."""
        return self._selection.text()

    def select_all(self) -> None:
        """Selects every message."""
        for item in self.items:
            while not item.parsed:
                item.parse_slice()
        self._selection.select_all()
        self.relayout()

    def copy(self) -> None:
        """Puts the selected text on the clipboard."""
        text = self.selected_text()
        if text:
            QGuiApplication.clipboard().setText(text)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        bar = self.verticalScrollBar()
        if event.matches(QKeySequence.StandardKey.Copy):
            self.copy()
        elif event.matches(QKeySequence.StandardKey.SelectAll):
            self.select_all()
        elif event.key() == Qt.Key.Key_Home:
            bar.setValue(0)
        elif event.key() == Qt.Key.Key_End:
            self.jump_to_latest()
        elif event.key() == Qt.Key.Key_Space:
            bar.triggerAction(bar.SliderAction.SliderPageStepAdd)
        else:
            super().keyPressEvent(event)

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        point = event.pos()
        menu = new_menu(self)
        link = self._link_under(point)

        def add(text: str, do: Callable[[], object], enabled: bool = True, shortcut: str = "") -> None:
            entry = QAction(text, menu)
            entry.setEnabled(enabled)
            if shortcut:
                entry.setShortcut(QKeySequence(shortcut))
            entry.triggered.connect(lambda _checked=False: do())
            menu.addAction(entry)

        if is_safe_link(link):
            add("Open link", lambda: self.follow(link))
            add("Copy link address", lambda: QGuiApplication.clipboard().setText(link))
            menu.addSeparator()
        add("Copy", self.copy, not self._selection.empty, "Ctrl+C")
        add("Select all", self.select_all, bool(self.items), "Ctrl+A")
        place = self.place_at(point)
        if place is not None:
            data = self.items[place.message].data
            own = data.role == "user"
            menu.addSeparator()
            add("Copy message", lambda: self.action.emit("copy", data.id))
            if own:
                add("Edit and send again", lambda: self.action.emit("edit", data.id), not data.streaming)
            else:
                add("Answer again", lambda: self.action.emit("regenerate", data.id), not data.streaming)
            add("Delete message", lambda: self.action.emit("delete", data.id), not data.streaming)
        menu.exec(event.globalPos())
        menu.deleteLater()

    def viewportEvent(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Leave:
            self.viewport().setToolTip("")
        return super().viewportEvent(event)
