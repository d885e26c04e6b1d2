"""Transparent windows, and what takes their place where there is no compositor."""

from __future__ import annotations

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication

from app.desktop import compositing
from app.desktop.theme import new_menu


@pytest.mark.parametrize("composited", [True, False])
def test_without_a_compositor_popups_and_menus_are_square_and_opaque(open_stage, monkeypatch, composited: bool):
    """What is transparent would be black."""
    monkeypatch.setattr(QGuiApplication, "platformName", staticmethod(lambda: "xcb"))
    monkeypatch.setattr(compositing, "has_compositor", lambda: composited)
    stage = open_stage()
    stage.window.open_model_popup()
    popup, menu = stage.window.popup, new_menu(stage.window)
    clear = Qt.WidgetAttribute.WA_TranslucentBackground
    assert popup.testAttribute(clear) is composited
    assert menu.testAttribute(clear) is composited
    stage.until(lambda: popup.isVisible())
    corner = popup.grab().toImage().pixelColor(0, 0)
    assert (corner.alpha() == 255) is not composited
