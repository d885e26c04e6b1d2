"""A block of code: language, copy button, colours; lines are laid out only when they come into sight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from time import perf_counter

from PySide6.QtCore import QEvent, QPoint, QPointF, QRectF, QSize, Qt, QTimer
from PySide6.QtGui import (
    QFont,
    QFontMetricsF,
    QGuiApplication,
    QPainter,
    QPainterPath,
    QPaintEvent,
    QPen,
    QResizeEvent,
    QTextCharFormat,
    QTextLayout,
    QTextOption,
    QWheelEvent,
)
from PySide6.QtWidgets import QScrollBar, QToolButton, QWidget

from app.desktop.blocks import BlockWidget
from app.desktop.highlight import colored_runs, language_name, load_language
from app.desktop.icons import icon
from app.desktop.markdown import Block, Code
from app.desktop.text_box import cursor_x, utf16_length
from app.desktop.theme import Themes
from app.desktop.tint import cut_ranges

HEAD = 36
PAD_X = 16
PAD_Y = 12
SLICE_S = 0.004
RECOLOR_MS = 200
_loader = ThreadPoolExecutor(1, thread_name_prefix="languages")
_loading: dict[str, Future[None]] = {}
LIVE_COLOR_LIMIT = 20_000
"""Characters up to which code is coloured while it is still being written."""


class CodeBlock(BlockWidget):
    """Code in lines of one height, so that its size is known without laying anything out."""

    def __init__(self, block: Block, gap: int, themes: Themes, parent: QWidget | None = None) -> None:
        self._lines: list[str] = []
        self._starts: list[int] = []  # UTF-16 position of each line
        self._colors: dict[int, list[tuple[int, int, str]]] = {}
        self._drawn: dict[int, QTextLayout] = {}
        self._text = ""
        self._widest = 0.0
        self._width = -1
        self._runs: Iterator[tuple[int, int, str]] | None = None
        self._metrics(themes)
        super().__init__(block, gap, themes, parent)
        self._bar = QScrollBar(Qt.Orientation.Horizontal, self)
        self._bar.setObjectName("codeScroll")
        self._bar.valueChanged.connect(lambda _value: self.update())
        self._bar.hide()
        self.copy_button = QToolButton(self)
        self.copy_button.setObjectName("codeCopy")
        self.copy_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.copy_button.setCursor(Qt.CursorShape.PointingHandCursor)
        self.copy_button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.copy_button.setIconSize(QSize(15, 15))
        self.copy_button.setToolTip("Copy this code")
        self.copy_button.setAccessibleName("Copy code")
        self.copy_button.clicked.connect(self._copy)
        self._copied = QTimer(self, singleShot=True, interval=1600)
        self._copied.timeout.connect(self._dress_button)
        self._recolor = QTimer(self, singleShot=True)
        self._recolor.timeout.connect(self._color_slice)
        self._dress_button()
        self._schedule_colors(0)

    def _metrics(self, themes: Themes) -> None:
        self._font = QFont(themes.code_font)
        metrics = QFontMetricsF(self._font)
        self._step = ceil(max(metrics.height(), self._font.pixelSize() * 1.5))
        self._advance = metrics.horizontalAdvance("0" * 16) / 16

    # Text

    def _make(self) -> None:
        block = self.block
        assert isinstance(block, Code)
        if self._lines and block.text.startswith(self._text):
            self._append(block.text[len(self._text) :])
        else:
            self._lines, self._starts, self._widest = [""], [0], 0.0
            self._colors.clear()
            self._drawn.clear()
            self._append(block.text)
        self._text = block.text

    def _append(self, text: str) -> None:
        if not text:
            return
        first, *rest = text.split("\n")
        last = len(self._lines) - 1
        self._lines[last] += first
        self._drawn.pop(last, None)
        for line in rest:
            self._starts.append(self._starts[-1] + utf16_length(self._lines[-1]) + 1)
            self._lines.append(line)
        for line in self._lines[last:]:
            self._widest = max(self._widest, self._line_width(line))

    def _line_width(self, line: str) -> float:
        if line.isascii():
            return len(line.expandtabs(4)) * self._advance
        return QFontMetricsF(self._font).horizontalAdvance(line.expandtabs(4))

    def set_block(self, block: Block, gap: int) -> None:
        super().set_block(block, gap)
        self._schedule_colors(RECOLOR_MS if isinstance(block, Code) and block.open else 0)

    def retheme(self) -> None:
        self._drawn.clear()
        self._dress_button()
        self.update()

    @property
    def text_length(self) -> int:
        return self._starts[-1] + utf16_length(self._lines[-1])

    def natural_width(self) -> int:
        return self.indent + ceil(self._widest) + 2 * PAD_X + 2

    # Colours

    def _schedule_colors(self, delay_ms: int) -> None:
        block = self.block
        assert isinstance(block, Code)
        if not block.language or (block.open and len(block.text) > LIVE_COLOR_LIMIT):
            return
        if delay_ms and self._recolor.isActive():
            return  # a pass is coming up or under way; it restarts once more when it is over
        self._runs = None
        self._recolor.start(delay_ms)

    def _color_slice(self) -> None:
        block = self.block
        assert isinstance(block, Code)
        if self._runs is None:
            if not self._language_loaded(block.language):
                self._recolor.start(20)
                return
            self._runs = colored_runs(block.text, block.language)
            self._coloring = block.text
            self._line_of = _line_starts(block.text)
            self._pending: dict[int, list[tuple[int, int, str]]] = {}
        deadline = perf_counter() + SLICE_S
        for start, end, color in self._runs:
            self._note_color(start, end, color)
            if perf_counter() > deadline:
                self._publish_colors(partial=True)
                self._recolor.start(0)
                return
        self._runs = None
        self._publish_colors(partial=False)
        if block.text != self._coloring:
            self._schedule_colors(RECOLOR_MS if block.open else 0)

    @staticmethod
    def _language_loaded(language: str) -> bool:
        if language not in _loading:
            _loading[language] = _loader.submit(load_language, language)
        return _loading[language].done()

    def _note_color(self, start: int, end: int, color: str) -> None:
        line = bisect_right(self._line_of, start) - 1
        while start < end:
            line_start = self._line_of[line]
            line_end = self._line_of[line + 1] - 1 if line + 1 < len(self._line_of) else end
            stop = min(end, line_end)
            if stop > start:
                self._pending.setdefault(line, []).append((start - line_start, stop - line_start, color))
            start = line_end + 1
            line += 1

    def _publish_colors(self, partial: bool) -> None:
        done = {line: list(colors) for line, colors in self._pending.items()}
        if partial and done:
            newest = max(done)  # its tokens may go on
            self._pending = {newest: self._pending[newest]}
        for line, colors in done.items():
            if self._colors.get(line) != colors:
                self._colors[line] = colors
                self._drawn.pop(line, None)
        if done:
            self.update()

    # Drawing

    def _lay_out(self, width: int) -> int:
        if width != self._width:
            self._width = width
        self.layouts += 1
        scroll = self._bar_height()
        return HEAD + 2 * PAD_Y + len(self._lines) * self._step + scroll

    def _bar_height(self) -> int:
        return 12 if self._widest + 2 * PAD_X > self._width else 0

    def resizeEvent(self, event: QResizeEvent) -> None:
        self._place_children()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() in (QEvent.Type.StyleChange, QEvent.Type.FontChange) and hasattr(self, "copy_button"):
            self._place_children()

    def _place_children(self) -> None:
        size = self.copy_button.sizeHint()
        self.copy_button.setGeometry(
            self.width() - size.width() - 5, self.gap + (HEAD - size.height()) // 2, size.width(), size.height()
        )
        overflow = ceil(self._widest + 2 * PAD_X - (self.width() - self.indent))
        self._bar.setVisible(overflow > 0)
        self._bar.setRange(0, max(0, overflow))
        self._bar.setPageStep(max(1, self.width() - self.indent))
        self._bar.setSingleStep(30)
        self._bar.setGeometry(self.indent + 6, self.height() - 13, self.width() - self.indent - 12, 10)

    def _layout_of(self, index: int) -> QTextLayout:
        found = self._drawn.get(index)
        if found is not None:
            return found
        line = self._lines[index]
        layout = QTextLayout(line, self._font)
        option = QTextOption()
        option.setWrapMode(QTextOption.WrapMode.NoWrap)
        option.setTabStopDistance(4 * self._advance)
        layout.setTextOption(option)
        ranges = []
        for start, end, color in self._colors.get(index, ()):
            form = QTextCharFormat()
            form.setForeground(self.themes.color(color))
            if color == "syntax_comment":
                form.setFontItalic(True)
            entry = QTextLayout.FormatRange()
            begin = utf16_length(line[:start])
            entry.start, entry.length, entry.format = begin, utf16_length(line[start:end]), form
            ranges.append(entry)
        layout.setFormats(ranges)
        layout.beginLayout()
        text_line = layout.createLine()
        if text_line.isValid():
            text_line.setLineWidth(1e7)
            text_line.setPosition(QPointF(0, (self._step - text_line.height()) / 2))
        layout.endLayout()
        if len(self._drawn) > 600:
            self._drawn.clear()
        self._drawn[index] = layout
        return layout

    def _paint_block(self, painter: QPainter, event: QPaintEvent) -> None:
        left = self.indent
        outline = QRectF(left + 0.5, self.gap + 0.5, self.width() - left - 1, self.height() - self.gap - 1)
        shape = QPainterPath()
        shape.addRoundedRect(outline, 10, 10)
        painter.fillPath(shape, self.themes.color("code_ground"))
        painter.save()
        painter.setClipPath(shape)
        painter.fillRect(QRectF(left, self.gap, self.width() - left, HEAD), self.themes.color("code_head"))
        block = self.block
        assert isinstance(block, Code)
        font = QFont(self.themes.body_font)
        font.setPixelSize(self.themes.small_px)
        painter.setFont(font)
        painter.setPen(self.themes.color("text_faint"))
        painter.drawText(
            QRectF(left + PAD_X, self.gap, self.width() - left - 140, HEAD),
            Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft,
            language_name(block.language),
        )
        painter.setClipRect(
            QRectF(left + 1, self.gap + HEAD, self.width() - left - 2, self.height() - self.gap - HEAD),
            Qt.ClipOperation.IntersectClip,
        )
        top = self.gap + HEAD + PAD_Y
        x = left + PAD_X - self._bar.value()
        first = max(0, (event.rect().top() - top) // self._step)
        last = min(len(self._lines) - 1, (event.rect().bottom() - top) // self._step)
        for index in range(first, last + 1):
            y = top + index * self._step
            self._paint_tint(painter, index, x, y)
            self._paint_selection(painter, index, x, y)
            painter.setPen(self.themes.color("text"))
            self._layout_of(index).draw(painter, QPointF(x, y))
        painter.restore()
        painter.setPen(QPen(self.themes.color("border"), 1))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawPath(shape)

    def _paint_tint(self, painter: QPainter, index: int, x: float, y: float) -> None:
        begin = self._starts[index]
        tint = cut_ranges(self.tint, begin, begin + utf16_length(self._lines[index]))
        if not tint:
            return
        line = self._layout_of(index).lineAt(0)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self.themes.color("drafted"))
        for start, end in tint:
            left, right = cursor_x(line, start), cursor_x(line, end)
            painter.drawRoundedRect(QRectF(x + left - 1, y + 1, right - left + 2, self._step - 2), 3, 3)

    def _paint_selection(self, painter: QPainter, index: int, x: float, y: float) -> None:
        if self.selection is None:
            return
        start, end = self.selection
        begin = self._starts[index]
        length = utf16_length(self._lines[index])
        a, b = max(0, start - begin), min(length, end - begin)
        if b < a or end <= begin or start > begin + length:
            return
        line = self._layout_of(index).lineAt(0)
        left = cursor_x(line, a) if line.isValid() else 0.0
        right = cursor_x(line, b) if line.isValid() else 0.0
        if end > begin + length:
            right += self._advance
        painter.fillRect(QRectF(x + left, y, right - left, self._step), self.themes.color("selection"))

    def position_at(self, point: QPoint) -> int:
        row = (point.y() - self.gap - HEAD - PAD_Y) // self._step
        if row < 0:
            return 0
        if row >= len(self._lines):
            return self.text_length
        line = self._layout_of(row).lineAt(0)
        x = point.x() - self.indent - PAD_X + self._bar.value()
        return self._starts[row] + (int(line.xToCursor(x)) if line.isValid() else 0)

    def wheelEvent(self, event: QWheelEvent) -> None:
        delta = event.pixelDelta() if not event.pixelDelta().isNull() else event.angleDelta()
        sideways, down = delta.x(), delta.y()
        if not sideways and event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            sideways, down = down, 0
        if self._bar.isVisible() and abs(sideways) > abs(down):
            self._bar.setValue(self._bar.value() - sideways)
            event.accept()
        else:
            event.ignore()

    # Copying

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self._text)
        self.copy_button.setText("Copied")
        self.copy_button.setIcon(icon("check", self.themes.current.accent))
        self._place_children()
        self._copied.start()

    def _dress_button(self) -> None:
        self.copy_button.setText("Copy")
        self.copy_button.setIcon(icon("copy", self.themes.current.text_soft))
        self._place_children()


def _line_starts(text: str) -> list[int]:
    """Code point index of each line's first character."""
    starts = [0]
    position = text.find("\n")
    while position >= 0:
        starts.append(position + 1)
        position = text.find("\n", position + 1)
    return starts
