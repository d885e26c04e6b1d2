"""The line icons in resources/icons, tinted with a colour of the theme."""

from __future__ import annotations

from functools import cache

from PySide6.QtCore import QByteArray, QRectF, Qt
from PySide6.QtGui import QIcon, QPainter, QPixmap
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
def icon(name: str, color: str, disabled: str = "") -> QIcon:
    """An icon in one colour, sharp at every usual size and scale."""
    result = QIcon()
    for size in (16, 18, 20, 24, 32):
        for ratio in (1.0, 2.0, 3.0):
            result.addPixmap(pixmap(name, color, size, ratio))
            if disabled:
                result.addPixmap(pixmap(name, disabled, size, ratio), QIcon.Mode.Disabled)
    return result


def app_icon() -> QIcon:
    """The icon of the application, in its own colours."""
    result = QIcon()
    for size in (16, 24, 32, 48, 64, 128, 256):
        result.addPixmap(pixmap("realm", "#000000", size, 1.0))
    return result
