"""The controls that settings are made of: numbers, choices, switches, sliders, and the row that names one."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QWheelEvent
from PySide6.QtWidgets import (
    QAbstractButton,
    QButtonGroup,
    QComboBox,
    QDoubleSpinBox,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from app.desktop.icons import paint_icon
from app.desktop.theme import Themes


class _Spin(QSpinBox):
    """Leaves the mouse wheel to the page, so that scrolling changes no value."""

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class _Decimal(QDoubleSpinBox):
    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class _Combo(QComboBox):
    def __init__(self, themes: Themes) -> None:
        super().__init__()
        self._themes = themes

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        place = QRectF(self.width() - 26, (self.height() - 16) / 2, 16, 16)
        paint_icon(painter, "chevron-down", self._themes.current.text_soft, place)
        painter.end()


def spin(low: int, high: int, value: int, step: int = 1, special: str = "", width: int = 130) -> QSpinBox:
    """A whole number; `special` is what stands in place of the lowest one."""
    box = _Spin()
    box.setRange(low, high)
    box.setSingleStep(step)
    box.setValue(value)
    box.lineEdit().setTextMargins(7, 0, 7, 0)
    box.setFixedWidth(width)
    if special:
        box.setSpecialValueText(special)
    return box


def decimal(
    low: float, high: float, value: float, step: float, special: str = "", width: int = 130, decimals: int = 2
) -> QDoubleSpinBox:
    """A number with a fraction; `special` is what stands in place of the lowest one."""
    box = _Decimal()
    box.setDecimals(decimals)
    box.setRange(low, high)
    box.setSingleStep(step)
    box.setValue(value)
    box.lineEdit().setTextMargins(7, 0, 7, 0)
    box.setFixedWidth(width)
    if special:
        box.setSpecialValueText(special)
    return box


def combo(themes: Themes) -> QComboBox:
    """A list to choose from."""
    box = _Combo(themes)
    box.setMinimumWidth(160)
    box.setMaximumWidth(280)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
    return box


class Segments(QWidget):
    """A few choices side by side, one of them taken. `chosen` tells of clicks only."""

    chosen = Signal(str)

    def __init__(self, choices: tuple[tuple[str, str, str], ...], value: str, parent: QWidget | None = None) -> None:
        """choices: (value, title, accessible name)."""
        super().__init__(parent)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(8)
        self._group = QButtonGroup(self)
        self.buttons: dict[str, QPushButton] = {}
        for name, title, accessible in choices:
            button = QPushButton(title)
            button.setObjectName("segment")
            button.setCheckable(True)
            button.setAutoDefault(False)
            button.setChecked(name == value)
            button.setAccessibleName(accessible)
            self._group.addButton(button)
            self.buttons[name] = button
            button.clicked.connect(lambda _checked=False, name=name: self.chosen.emit(name))
            row.addWidget(button)

    @property
    def value(self) -> str:
        return next((name for name, button in self.buttons.items() if button.isChecked()), "")

    def set_value(self, value: str) -> None:
        """Takes a choice without telling."""
        if value in self.buttons:
            self.buttons[value].setChecked(True)


class Switch(QAbstractButton):
    """On or off."""

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._themes = themes
        self.setCheckable(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setFixedSize(self.sizeHint())

    def sizeHint(self) -> QSize:
        return QSize(42, 26)

    def paintEvent(self, event: QPaintEvent) -> None:
        color = self._themes.color
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        track = QRectF(3, 4, 36, 18)
        if not self.isEnabled():
            ground, border, knob = "pressed", "border", "surface"
        elif self.isChecked():
            ground, border, knob = "accent", "accent", "on_accent"
        else:
            ground, border, knob = "surface", "text_faint", "text_faint"
        painter.setPen(QPen(color(border), 1.4))
        painter.setBrush(color(ground))
        painter.drawRoundedRect(track, 9, 9)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(color(knob))
        x = track.right() - 15 if self.isChecked() else track.left() + 3
        painter.drawEllipse(QRectF(x, track.top() + 3, 12, 12))
        if self.hasFocus():
            painter.setPen(QPen(color("accent"), 1.4))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(QRectF(0.8, 1.8, 40.4, 22.4), 11.2, 11.2)
        painter.end()


class Slider(QSlider):
    """A slider from low to high whose fill begins at 0. Values are hundredths."""

    def __init__(self, themes: Themes, low: float, high: float, step: float, parent: QWidget | None = None) -> None:
        super().__init__(Qt.Orientation.Horizontal, parent)
        self._themes = themes
        self.setRange(round(low * 100), round(high * 100))
        self.setSingleStep(round(step * 100))
        self.setPageStep(round(step * 500))
        self.setMinimumHeight(26)
        self.setMinimumWidth(90)

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

    @property
    def number(self) -> float:
        return self.value() / 100

    def set_number(self, number: float) -> None:
        self.setValue(round(number * 100))

    def _x(self, value: float) -> float:
        share = (value - self.minimum()) / (self.maximum() - self.minimum())
        return 9 + share * (self.width() - 18)

    def paintEvent(self, event: QPaintEvent) -> None:
        color = self._themes.color
        enabled = self.isEnabled()
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        middle = self.height() / 2
        painter.setBrush(color("border_strong" if enabled else "border"))
        painter.drawRoundedRect(QRectF(9, middle - 2, self.width() - 18, 4), 2, 2)
        for mark in (0, 100):
            painter.drawEllipse(QRectF(self._x(mark) - 3, middle - 3, 6, 6))
        zero, here = self._x(0), self._x(self.value())
        painter.setBrush(color("accent" if enabled else "border_strong"))
        painter.drawRoundedRect(QRectF(min(zero, here), middle - 2, abs(here - zero), 4), 2, 2)
        painter.setBrush(color("accent" if enabled else "border_strong"))
        painter.drawEllipse(QRectF(here - 7, middle - 7, 14, 14))
        painter.setBrush(color("surface"))
        painter.drawEllipse(QRectF(here - 3, middle - 3, 6, 6))
        if self.hasFocus():
            painter.setPen(QPen(color("accent"), 1.4))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawEllipse(QRectF(here - 9.3, middle - 9.3, 18.6, 18.6))
        painter.end()


class Page(QWidget):
    """A column of titled sections and named rows."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("settingsPage")
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(28, 22, 28, 22)
        self.column.setSpacing(12)

    def section(self, title: str, hint: str = "") -> None:
        """Begins a section."""
        if self.column.count():
            self.column.addSpacing(14)
        label = QLabel(title)
        label.setObjectName("sectionTitle")
        self.column.addWidget(label)
        if hint:
            self.hint(hint)

    def hint(self, text: str) -> QLabel:
        """Adds a faint line."""
        more = QLabel(text)
        more.setObjectName("fieldHint")
        more.setWordWrap(True)
        self.column.addWidget(more)
        return more

    def field(self, title: str, hint: str, control: QWidget, below: bool = False) -> None:
        """Adds a control with its name. below: it stands under its name, not beside it."""
        row: QHBoxLayout | QVBoxLayout = QVBoxLayout() if below else QHBoxLayout()
        row.setSpacing(8 if below else 20)
        words = QVBoxLayout()
        words.setSpacing(1)
        label = QLabel(title)
        label.setBuddy(control)
        words.addWidget(label)
        if hint:
            more = QLabel(hint)
            more.setObjectName("fieldHint")
            more.setWordWrap(True)
            if not below:
                more.setMinimumWidth(150)  # in a small window controls give way
            words.addWidget(more)
        if below:
            row.addLayout(words)
            row.addWidget(control, 0, Qt.AlignmentFlag.AlignLeft)
        else:
            row.addLayout(words, 1)
            row.addWidget(control, 0, Qt.AlignmentFlag.AlignVCenter)
        control.setAccessibleName(title)
        control.setAccessibleDescription(hint)
        self.column.addLayout(row)
