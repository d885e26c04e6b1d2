"""One run of styled text, laid out to a width: what paragraphs, headings and table cells draw with.

Positions are in UTF-16 units, as Qt counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFont, QFontMetricsF, QPainter, QTextCharFormat, QTextLayout, QTextLine, QTextOption

from app.desktop.markdown import Span
from app.desktop.theme import Themes
from app.desktop.tint import Ranges

LINE_SEPARATOR = "\u2028"


def utf16_length(text: str) -> int:
    """How many units Qt counts for a text."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def utf16_ranges(text: str, ranges: Ranges) -> Ranges:
    """Ranges of characters as ranges of Qt's positions."""
    if text.isascii() or not ranges:
        return ranges
    result, place, units = [], 0, 0
    for start, end in ranges:
        units += utf16_length(text[place:start])
        begin, units = units, units + utf16_length(text[start:end])
        result.append((begin, units))
        place = end
    return tuple(result)


def utf16_slice(text: str, start: int, end: int) -> str:
    """The part of a text between two of Qt's positions."""
    if text.isascii():
        return text[start:end]
    return text.encode("utf-16-le", "surrogatepass")[2 * start : 2 * end].decode("utf-16-le", "replace")


def cursor_x(line: QTextLine, position: int) -> float:
    """Where the cursor stands in a line. Bindings differ in whether they hand back the position beside it."""
    found: Any = line.cursorToX(position)
    return float(found[0] if isinstance(found, tuple) else found)


@dataclass(frozen=True)
class TextStyle:
    """How a text box looks apart from its spans' own styles."""

    px: float
    weight: int = QFont.Weight.Normal
    line_height: float = 1.55  # of the font's pixel size
    color: str = "text"
    alignment: str = "left"


class TextBox:
    """Text with spans. `layouts` counts how often lines were broken anew."""

    def __init__(self, spans: Sequence[Span], style: TextStyle, themes: Themes) -> None:
        self.spans = tuple(spans)
        self.style = style
        self._themes = themes
        self.text = "".join(span.text for span in self.spans)
        self.length = utf16_length(self.text)
        self.width = -1.0
        self.height = 0.0
        self.layouts = 0
        self._breaks = 0  # how often lines were broken, for whatever reason
        self._tinted: tuple[object, list[QRectF]] = (None, [])
        self._natural = -1.0
        self._code: list[tuple[int, int]] = []
        self._links: list[tuple[int, int, str]] = []
        font = QFont(themes.body_font)
        font.setPixelSize(round(style.px))
        font.setWeight(QFont.Weight(style.weight))
        self.line_step = ceil(style.px * style.line_height)
        self.ascent = QFontMetricsF(font).ascent()
        self._layout = QTextLayout(self.text.replace("\n", LINE_SEPARATOR), font)
        self._layout.setCacheEnabled(True)
        option = QTextOption()
        option.setWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        option.setAlignment(
            {"center": Qt.AlignmentFlag.AlignHCenter, "right": Qt.AlignmentFlag.AlignRight}.get(
                style.alignment, Qt.AlignmentFlag.AlignLeft
            )
        )
        self._layout.setTextOption(option)
        self._layout.setFormats(self._formats(font))

    def _formats(self, font: QFont) -> list[QTextLayout.FormatRange]:
        ranges: list[QTextLayout.FormatRange] = []
        start = 0
        for span in self.spans:
            length = utf16_length(span.text)
            form = QTextCharFormat()
            if span.bold:
                form.setFontWeight(max(QFont.Weight.DemiBold, font.weight()))
            if span.italic:
                form.setFontItalic(True)
            if span.strike:
                form.setFontStrikeOut(True)
            if span.code:
                mono = QFont(self._themes.code_font)
                mono.setPixelSize(round(font.pixelSize() * 0.9))
                mono.setItalic(span.italic)
                form.setFont(mono, QTextCharFormat.FontPropertiesInheritanceBehavior.FontPropertiesSpecifiedOnly)
                self._code.append((start, start + length))
            if span.href:
                form.setForeground(self._themes.color("accent"))
                form.setFontUnderline(True)
                self._links.append((start, start + length, span.href))
            if form.propertyCount():
                entry = QTextLayout.FormatRange()
                entry.start, entry.length, entry.format = start, length, form
                ranges.append(entry)
            start += length
        return ranges

    @property
    def natural_width(self) -> float:
        """The width that the longest line wants."""
        if self._natural < 0:
            width = self.width
            self._lay_out(1e6, count=False)
            self._natural = max((self._line(i).naturalTextWidth() for i in range(self.line_count)), default=0.0)
            self.width = -1.0
            if width >= 0:
                self._lay_out(width, count=False)
        return self._natural

    @property
    def line_count(self) -> int:
        return self._layout.lineCount()

    def set_width(self, width: float) -> float:
        """Breaks lines where the width is a new one; returns the height."""
        if width != self.width:
            self._lay_out(width)
        return self.height

    def _lay_out(self, width: float, count: bool = True) -> None:
        self.width = width
        self.layouts += count
        self._breaks += 1
        layout = self._layout
        layout.beginLayout()
        y = 0.0
        while True:
            line = layout.createLine()
            if not line.isValid():
                break
            line.setLineWidth(max(1.0, width))
            line.setPosition(QPointF(0, y + (self.line_step - line.height()) / 2))
            y += max(self.line_step, ceil(line.height()))
        layout.endLayout()
        self.height = max(y, self.line_step)

    def _line(self, index: int) -> QTextLine:
        return self._layout.lineAt(index)

    @property
    def first_baseline(self) -> float:
        """Where the first line's letters stand, from the top."""
        if not self.line_count:
            return (self.line_step + self.ascent) / 2
        line = self._line(0)
        return float(line.y() + line.ascent())

    def range_rects(self, start: int, end: int) -> list[QRectF]:
        """Rectangles, a line high each, that cover some of the text."""
        rects: list[QRectF] = []
        for index in range(self.line_count):
            line = self._line(index)
            first, last = line.textStart(), line.textStart() + line.textLength()
            if end < first or start > last or (start >= last and index + 1 < self.line_count):
                continue
            a, b = max(start, first), min(end, last)
            if b < a:
                continue
            left, right = cursor_x(line, a), cursor_x(line, b)
            if end > last and index + 1 < self.line_count:
                right += 5  # the line break is selected too
            if right == left:
                continue
            top = line.y() - (self.line_step - line.height()) / 2
            rects.append(QRectF(min(left, right), top, abs(right - left), self.line_step))
        return rects

    def tint_rects(self, tint: Ranges) -> list[QRectF]:
        """Rectangles that cover ranges of positions, which ascend. They are kept until ranges or lines change."""
        key = (tint, self._breaks)
        if self._tinted[0] != key:
            self._tinted = (key, self._find_tint_rects(tint))
        return self._tinted[1]

    def _find_tint_rects(self, tint: Ranges) -> list[QRectF]:
        rects: list[QRectF] = []
        inset = (self.line_step - self.style.px * 1.4) / 2
        first = 0
        for index in range(self.line_count):
            line = self._line(index)
            start, end = line.textStart(), line.textStart() + line.textLength()
            top = line.y() - (self.line_step - line.height()) / 2 + inset
            while first < len(tint) and tint[first][1] <= start:
                first += 1
            place = first
            while place < len(tint) and tint[place][0] < end:
                left, right = cursor_x(line, max(start, tint[place][0])), cursor_x(line, min(end, tint[place][1]))
                if left != right:
                    rects.append(QRectF(min(left, right), top, abs(right - left), self.line_step - 2 * inset))
                place += 1
        return rects

    def draw(
        self,
        painter: QPainter,
        x: float,
        y: float,
        selection: tuple[int, int] | None = None,
        tint: Ranges = (),
    ) -> None:
        """Draws at a place; `selection` is a range of positions to mark, `tint` those of accepted guesses."""
        if self._code:
            painter.save()
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._themes.color("inline_code"))
            inset = (self.line_step - self.style.px * 1.32) / 2
            for start, end in self._code:
                for rect in self.range_rects(start, end):
                    painter.drawRoundedRect(rect.translated(x, y).adjusted(-1.5, inset, 1.5, -inset), 4, 4)
            painter.restore()
        if tint:
            painter.save()
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._themes.color("drafted"))
            for rect in self.tint_rects(tint):
                painter.drawRoundedRect(rect.translated(x, y).adjusted(-1, 0, 1, 0), 3, 3)
            painter.restore()
        if selection is not None and selection[1] > selection[0]:
            for rect in self.range_rects(*selection):
                painter.fillRect(rect.translated(x, y), self._themes.color("selection"))
        painter.setPen(QColor(self._themes.color(self.style.color)))
        self._layout.draw(painter, QPointF(x, y))

    def position_at(self, x: float, y: float) -> int:
        """The position nearest to a point."""
        for index in range(self.line_count):
            line = self._line(index)
            bottom = line.y() + (self.line_step + line.height()) / 2
            if y < bottom or index == self.line_count - 1:
                position = line.xToCursor(x)
                end = line.textStart() + line.textLength()
                # A soft break's end is the next line's start; stay on this line.
                if position == end and index < self.line_count - 1:
                    position = max(line.textStart(), position - 1) if x < line.naturalTextWidth() else position
                return int(position)
        return 0

    def link_at(self, x: float, y: float) -> str:
        """The target of the link under a point, or ""."""
        for start, end, href in self._links:
            if any(rect.contains(x, y) for rect in self.range_rects(start, end)):
                return href
        return ""
