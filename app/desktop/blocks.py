"""The widgets that show one block of a message each. A block is laid out once per width and text, then only drawn."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QPointF, QRectF, Qt
from PySide6.QtGui import QFont, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QWidget

from app.desktop.markdown import Block, Frame, Paragraph, PlainText, Rule, Span, Table, block_text
from app.desktop.text_box import TextBox, TextStyle
from app.desktop.theme import Themes
from app.desktop.tint import Ranges, cut_ranges

ITEM_INDENT = 28
QUOTE_INDENT = 18
READ_ALOUD = 4000
"""Characters of a block that a screen reader is given."""

_HEADING_SCALE = {1: 1.5, 2: 1.28, 3: 1.12, 4: 1.0, 5: 1.0, 6: 0.94}


def gap_before(previous: Block | None, block: Block) -> int:
    """The free space above a block, in pixels."""
    if previous is None or isinstance(block, PlainText):
        return 0
    if isinstance(block, Rule) or isinstance(previous, Rule):
        return 18
    if isinstance(block, Paragraph) and block.level:
        return 24 if block.level <= 2 else 18
    if isinstance(previous, Paragraph) and previous.level:
        return 8
    if _begins_item(block) and any(not frame.quote for frame in previous.frames):
        return 5
    if _begins_item(block):
        return 8
    return 12


def _begins_item(block: Block) -> bool:
    return any(frame.first and not frame.quote for frame in block.frames)


class BlockWidget(QWidget):
    """One block. Positions inside its text are UTF-16 units, 0 to `text_length`."""

    def __init__(self, block: Block, gap: int, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.block = block
        self.gap = gap
        self.themes = themes
        self.layouts = 0  # how often this block was laid out; a test counts them
        self.selection: tuple[int, int] | None = None
        self.tint: Ranges = ()
        self.setMouseTracking(True)
        self.setAccessibleName(block_text(block)[:READ_ALOUD])
        self._make()

    def set_block(self, block: Block, gap: int) -> None:
        """Shows another text of the same kind in this widget. The caller asks for the height afterwards."""
        self.block = block
        self.gap = gap
        self.setAccessibleName(block_text(block)[:READ_ALOUD])
        self._make()
        self.update()

    def height_for(self, width: int) -> int:
        """Lays the block out where it has to be, and returns the height, the gap above included."""
        inner = max(40, width - self.indent)
        return self.gap + self._lay_out(inner)

    @property
    def indent(self) -> int:
        return sum(QUOTE_INDENT if frame.quote else ITEM_INDENT for frame in self.block.frames)

    @property
    def text_length(self) -> int:
        return 0

    def position_at(self, point: QPoint) -> int:
        """The text position nearest to a point of this widget."""
        return 0

    def link_at(self, point: QPoint) -> str:
        """The target of the link under a point, or ""."""
        return ""

    def natural_width(self) -> int:
        """The width that this block would like."""
        return 0

    def set_selection(self, selection: tuple[int, int] | None) -> None:
        """Marks a range of positions."""
        if selection != self.selection:
            self.selection = selection
            self.update()

    def set_tint(self, tint: Ranges) -> None:
        """Tints ranges of positions, which ascend: what was guessed and accepted."""
        if tint != self.tint:
            self.tint = tint
            self.update()

    def retheme(self) -> None:
        """Takes new colours; sizes stay as they are."""
        self._make()
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        self._paint_frames(painter)
        self._paint_block(painter, event)
        painter.end()

    def _paint_frames(self, painter: QPainter) -> None:
        x = 0.0
        for frame in self.block.frames:
            if frame.quote:
                top = self.gap if frame.first else 0
                painter.setPen(Qt.PenStyle.NoPen)
                painter.setBrush(self.themes.color("border_strong"))
                painter.drawRoundedRect(QRectF(x + 1, top, 3, self.height() - top), 1.5, 1.5)
                x += QUOTE_INDENT
            else:
                if frame.first:
                    self._paint_marker(painter, frame, x)
                x += ITEM_INDENT

    def _paint_marker(self, painter: QPainter, frame: Frame, x: float) -> None:
        baseline = self.gap + self._first_baseline()
        px = self.themes.body_px
        if frame.marker == "•":
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self.themes.color("text_faint"))
            painter.drawEllipse(QPointF(x + ITEM_INDENT - 14, baseline - px * 0.34), 2.6, 2.6)
        elif frame.marker in ("☐", "☑"):
            box = QRectF(x + ITEM_INDENT - 22, baseline - px * 0.82, px * 0.9, px * 0.9)
            done = frame.marker == "☑"
            painter.setPen(QPen(self.themes.color("accent" if done else "border_strong"), 1.4))
            painter.setBrush(self.themes.color("accent") if done else Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(box, 3, 3)
            if done:
                painter.setPen(QPen(self.themes.color("on_accent"), 1.7))
                painter.drawPolyline(
                    [
                        box.topLeft() + QPointF(box.width() * 0.24, box.height() * 0.54),
                        box.topLeft() + QPointF(box.width() * 0.43, box.height() * 0.72),
                        box.topLeft() + QPointF(box.width() * 0.77, box.height() * 0.31),
                    ]
                )
        else:
            font = QFont(self.themes.body_font)
            painter.setFont(font)
            painter.setPen(self.themes.color("text_soft"))
            width = painter.fontMetrics().horizontalAdvance(frame.marker)
            painter.drawText(QPointF(x + ITEM_INDENT - 8 - width, baseline), frame.marker)

    def _first_baseline(self) -> float:
        return self.themes.body_px * 1.15

    def _make(self) -> None:
        """Builds what is drawn from the block."""

    def _lay_out(self, width: int) -> int:
        raise NotImplementedError

    def _paint_block(self, painter: QPainter, event: QPaintEvent) -> None:
        raise NotImplementedError


class TextBlock(BlockWidget):
    """A paragraph, a heading, or text as it was typed."""

    def _make(self) -> None:
        block = self.block
        px = float(self.themes.body_px)
        if isinstance(block, Paragraph) and block.level:
            style = TextStyle(round(px * _HEADING_SCALE[block.level]), QFont.Weight.DemiBold, 1.35)
            spans = block.spans
        elif isinstance(block, Paragraph):
            quoted = any(frame.quote for frame in block.frames)
            style = TextStyle(px, color="text_soft" if quoted else "text")
            spans = block.spans
        else:
            assert isinstance(block, PlainText)
            style = TextStyle(px, line_height=1.5)
            spans = (Span(block.text),)
        self.box = TextBox(spans, style, self.themes)

    @property
    def text_length(self) -> int:
        return self.box.length

    def natural_width(self) -> int:
        return self.indent + int(self.box.natural_width) + 2

    def position_at(self, point: QPoint) -> int:
        if point.y() < self.gap:
            return 0
        return self.box.position_at(point.x() - self.indent, point.y() - self.gap)

    def link_at(self, point: QPoint) -> str:
        return self.box.link_at(point.x() - self.indent, point.y() - self.gap)

    def _first_baseline(self) -> float:
        return self.box.first_baseline

    def _lay_out(self, width: int) -> int:
        before = self.box.layouts
        height = round(self.box.set_width(width))
        self.layouts += self.box.layouts - before
        return height

    def _paint_block(self, painter: QPainter, event: QPaintEvent) -> None:
        self.box.draw(painter, self.indent, self.gap, self.selection, self.tint)


class RuleBlock(BlockWidget):
    """A horizontal rule."""

    def _lay_out(self, width: int) -> int:
        self.layouts += 1
        return 2

    def _paint_block(self, painter: QPainter, event: QPaintEvent) -> None:
        painter.fillRect(QRectF(self.indent, self.gap, self.width() - self.indent, 1), self.themes.color("border"))


class TableBlock(BlockWidget):
    """A table; columns share the width by what their texts want."""

    PAD_X = 12
    PAD_Y = 8

    def _make(self) -> None:
        block = self.block
        assert isinstance(block, Table)
        px = float(self.themes.body_px - 1)
        # A growing table keeps the cells that are as they were.
        old: list[list[TextBox]] = getattr(self, "_cells", [])
        known = {(row, column): box for row, boxes in enumerate(old) for column, box in enumerate(boxes)}
        self._cells: list[list[TextBox]] = []
        for number, row in enumerate(block.rows):
            weight = QFont.Weight.DemiBold if number == 0 else QFont.Weight.Normal
            boxes = []
            for column, (spans, alignment) in enumerate(zip(row, block.alignments, strict=True)):
                style = TextStyle(px, weight, 1.5, alignment=alignment)
                box = known.get((number, column))
                if box is None or box.spans != spans or box.style != style:
                    box = TextBox(spans, style, self.themes)
                boxes.append(box)
            self._cells.append(boxes)
        self._width = -1
        self._columns: list[float] = []
        self._rows: list[float] = []

    @property
    def text_length(self) -> int:
        return sum(cell.length + 1 for row in self._cells for cell in row) - 1 if self._cells else 0

    def retheme(self) -> None:
        self._cells = []  # their colours are part of their layout
        super().retheme()

    def natural_width(self) -> int:
        return self.indent + int(sum(self._natural_columns())) + 2

    def _natural_columns(self) -> list[float]:
        if not self._cells:
            return []
        return [
            max(row[column].natural_width for row in self._cells) + 2 * self.PAD_X + 2
            for column in range(len(self._cells[0]))
        ]

    def _lay_out(self, width: int) -> int:
        if width != self._width:
            self._width = width
            self.layouts += 1
            self._columns = _shared_widths(self._natural_columns(), float(width))
            self._rows = []
            for row in self._cells:
                heights = [
                    cell.set_width(column - 2 * self.PAD_X) for cell, column in zip(row, self._columns, strict=True)
                ]
                self._rows.append(max(heights, default=0) + 2 * self.PAD_Y)
        return round(sum(self._rows)) + 2

    def _places(self) -> list[tuple[TextBox, float, float, float, float, int]]:
        """Every cell with its x, y, width, height and first text position."""
        places = []
        y, position = float(self.gap), 0
        for row, height in zip(self._cells, self._rows, strict=True):
            x = float(self.indent)
            for cell, width in zip(row, self._columns, strict=True):
                places.append((cell, x, y, width, height, position))
                position += cell.length + 1
                x += width
            y += height
        return places

    def position_at(self, point: QPoint) -> int:
        best = 0
        for cell, x, y, _width, _height, position in self._places():
            if point.y() >= y and point.x() >= x:
                best = position + cell.position_at(point.x() - x - self.PAD_X, point.y() - y - self.PAD_Y)
        return best

    def link_at(self, point: QPoint) -> str:
        for cell, x, y, width, height, _position in self._places():
            if QRectF(x, y, width, height).contains(QPointF(point)):
                return cell.link_at(point.x() - x - self.PAD_X, point.y() - y - self.PAD_Y)
        return ""

    def _paint_block(self, painter: QPainter, event: QPaintEvent) -> None:
        left, right = float(self.indent), self.indent + sum(self._columns)
        outline = QRectF(left + 0.5, self.gap + 0.5, right - left - 1, sum(self._rows))
        painter.setPen(QPen(self.themes.color("border"), 1))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        if self._rows:
            painter.save()
            painter.setClipRect(QRectF(left, self.gap, right - left, self._rows[0]))
            painter.setBrush(self.themes.color("code_ground"))
            painter.drawRoundedRect(outline, 8, 8)
            painter.restore()
        painter.drawRoundedRect(outline, 8, 8)
        y = float(self.gap)
        for height in self._rows[:-1]:
            y += height
            painter.fillRect(QRectF(left + 1, round(y), right - left - 2, 1), self.themes.color("border"))
        for cell, x, y, _width, _height, position in self._places():
            selection = None
            if self.selection is not None:
                a = max(0, self.selection[0] - position)
                b = min(cell.length, self.selection[1] - position)
                selection = (a, b) if b > a else None
            tint = cut_ranges(self.tint, position, position + cell.length)
            cell.draw(painter, x + self.PAD_X, y + self.PAD_Y, selection, tint)


def _shared_widths(natural: list[float], width: float) -> list[float]:
    """Column widths: what the columns want if it fits; else the narrow ones keep theirs, the wide share the rest."""
    if sum(natural) <= width:
        return natural
    result = [0.0] * len(natural)
    rest = width
    open_columns = sorted(range(len(natural)), key=lambda i: natural[i])
    while open_columns:
        fair = rest / len(open_columns)
        column = open_columns[0]
        if natural[column] > fair:
            break
        result[column] = natural[column]
        rest -= natural[column]
        open_columns.pop(0)
    total = sum(natural[column] for column in open_columns)
    floor = min(72.0, rest / max(1, len(open_columns)))
    spare = rest - floor * len(open_columns)
    for column in open_columns:
        result[column] = floor + spare * natural[column] / total
    return result
