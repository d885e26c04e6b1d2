"""The line icons in resources/icons, tinted with a colour of the theme."""

from __future__ import annotations

from functools import cache

from PySide6.QtCore import QByteArray, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QIcon, QIconEngine, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

import resources


@cache
def _source(name: str) -> str:
    return resources.read_text(f"icons/{name}.svg")


@cache
def _renderer(name: str, color: str) -> QSvgRenderer:
    return QSvgRenderer(QByteArray(_source(name).replace("currentColor", color).encode()))


def paint_icon(painter: QPainter, name: str, color: str, rect: QRectF) -> None:
    """Draws an icon into a square."""
    _renderer(name, color).render(painter, rect)


def pixmap(name: str, color: str, size: int, ratio: float) -> QPixmap:
    """An icon of size x size logical pixels for a screen of the given device pixel ratio."""
    result = QPixmap(round(size * ratio), round(size * ratio))
    result.fill(Qt.GlobalColor.transparent)
    painter = QPainter(result)
    paint_icon(painter, name, color, QRectF(0, 0, result.width(), result.height()))
    painter.end()
    result.setDevicePixelRatio(ratio)
    return result


@cache
def _drawn(name: str, color: str, width: int, height: int) -> QPixmap:
    result = QPixmap(width, height)
    result.fill(Qt.GlobalColor.transparent)
    painter = QPainter(result)
    side = min(width, height)
    paint_icon(painter, name, color, QRectF((width - side) / 2, (height - side) / 2, side, side))
    painter.end()
    return result


class _Tinted(QIconEngine):
    """Draws an icon when it is first seen, in the size that is asked for; drawing all sizes ahead takes milliseconds
    for each icon."""

    def __init__(self, name: str, color: str, disabled: str) -> None:
        super().__init__()
        self._name, self._color, self._disabled = name, color, disabled

    def pixmap(self, size: QSize, mode: QIcon.Mode, state: QIcon.State) -> QPixmap:
        """size: in the pixels of the screen."""
        color = self._disabled if mode == QIcon.Mode.Disabled else self._color
        return _drawn(self._name, color, size.width(), size.height())

    def paint(self, painter: QPainter, rect: QRect, mode: QIcon.Mode, state: QIcon.State) -> None:
        color = self._disabled if mode == QIcon.Mode.Disabled else self._color
        paint_icon(painter, self._name, color, QRectF(rect))

    def clone(self) -> QIconEngine:
        return _Tinted(self._name, self._color, self._disabled)


@cache
def icon(name: str, color: str, disabled: str = "") -> QIcon:
    """An icon in one colour, sharp at every size and scale; in another one where it is disabled."""
    return QIcon(_Tinted(name, color, disabled or color))


def app_icon() -> QIcon:
    """The icon of the application, in its own colours."""
    result = QIcon()
    for size in (16, 24, 32, 48, 64, 128, 256):
        result.addPixmap(pixmap("realm", "#000000", size, 1.0))
    return result
