"""The window around a scripted engine, for tests that drive it as a person would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from app.desktop.controller import Controller
from app.desktop.main import build
from app.desktop.theme import Themes
from app.desktop.window import MainWindow
from tests.desktop.fakes import FakeEngine, services


class Stage:
    """A window on show, what drives it, and the engine behind it."""

    def __init__(self, qtbot: QtBot, window: MainWindow, controller: Controller, engine: FakeEngine) -> None:
        self.qtbot, self.window, self.controller, self.engine = qtbot, window, controller, engine

    def until(self, condition: Callable[[], Any], timeout: int = 8000) -> None:
        self.qtbot.waitUntil(lambda: bool(condition()), timeout=timeout)

    def ask(self, text: str, wait: bool = True) -> None:
        """Types a message, sends it with Enter, and waits for the end of the answer."""
        from PySide6.QtCore import Qt

        before = len(self.engine.requests)
        self.window.composer.text.setFocus()
        self.qtbot.keyClicks(self.window.composer.text, text)
        self.qtbot.keyClick(self.window.composer.text, Qt.Key.Key_Return)
        if wait:
            self.until(lambda: len(self.engine.requests) > before and not self.pending)

    @property
    def pending(self) -> bool:
        return self.controller.session is not None and self.controller.session.pending

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Role and text of every message that the transcript shows."""
        return [(item.data.role, item.data.text) for item in self.window.transcript.items]

    def press(self, key: str, label: str) -> None:
        """Presses a button of a notice."""
        from PySide6.QtCore import Qt
        from PySide6.QtWidgets import QPushButton

        notice = self.window.notices.notice(key)
        assert notice is not None, f"no notice {key!r}; there are {self.window.notices.keys()}"
        button = next(button for button in notice.findChildren(QPushButton) if button.text() == label)
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


@pytest.fixture
def themes(qapp: QApplication) -> Iterator[Themes]:
    themes = Themes(qapp)
    themes.choose("light")
    yield themes
    themes.setParent(None)
    themes.deleteLater()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def open_stage(qtbot: QtBot, qapp: QApplication, tmp_path: Path, engine: FakeEngine) -> Iterator[Callable[..., Stage]]:
    """Opens the window on a folder that lives as long as the test; a second call finds the first one's chats."""
    opened: list[Stage] = []

    def open_(model: bool = True, fetch: Callable[..., Path] | None = None, **settings: object) -> Stage:
        from app.store import ChatStore

        model_file = tmp_path / "SmolLM2.gguf"
        with ChatStore.open(tmp_path / "chats.sqlite3") as store:
            for name, value in settings.items():
                store.settings.set(name, value)
        if model:
            model_file.touch()
        window, controller = build(qapp, services(engine, tmp_path, fetch), model_file if model else None)
        qtbot.addWidget(window)
        window.resize(1000, 700)
        window.show()
        controller.start()
        stage = Stage(qtbot, window, controller, engine)
        opened.append(stage)
        stage.until(
            lambda: controller.session is not None and controller.session.loaded and not window.welcome.starting
        )
        if model and engine.load_at_once and not engine.load_errors:
            stage.until(lambda: controller.service.model is not None or controller.desk.window.notices.keys())
        window.resize(1000, 700)
        return stage

    yield open_
    engine.hold.set()
    for stage in opened:
        close(stage)


def close(stage: Stage) -> None:
    if not stage.engine.closed:
        stage.window.hide()
        stage.controller.shut_down()


@pytest.fixture
def stage(open_stage: Callable[..., Stage]) -> Stage:
    return open_stage()
