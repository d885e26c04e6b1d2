"""What an empty chat shows: a way to a first model, how far it is, or some things to ask."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QResizeEvent, QShowEvent
from PySide6.QtWidgets import (
    QApplication,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from app.desktop.icons import icon
from app.desktop.model_popup import file_size, progress_text
from app.desktop.model_service import ModelService, model_name
from app.desktop.theme import Themes

SUGGESTIONS = (
    ("Explain something", "Explain to a curious ten-year-old why the sky is blue."),
    ("Write some code", "Write a Python function that checks whether a word is a palindrome."),
    ("Draft a message", "Write a friendly email that moves a meeting from Monday to Tuesday."),
    ("Make a list", "List five things to check before a long bicycle tour."),
)


class Welcome(QWidget):
    """Rebuilt whenever its state changes; while something loads only the bar moves."""

    fetch_wanted = Signal()
    open_wanted = Signal()
    cancel_wanted = Signal()
    load_wanted = Signal(Path)
    suggested = Signal(str)
    focus_left = Signal()  # what had the focus is gone

    def __init__(self, themes: Themes, service: ModelService, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("welcome")
        self._themes = themes
        self._service = service
        self.starting = True
        self._outer = QVBoxLayout(self)
        self._outer.setContentsMargins(28, 16, 28, 16)
        self._page: QWidget | None = None
        self._shape: object = None
        self._bar: QProgressBar | None = None
        self._stage: QLabel | None = None
        service.changed.connect(self.refresh)
        themes.settled.connect(self._retheme)
        self._rebuild()

    @property
    def state(self) -> str:
        """ "starting", "working", "ready" or "empty"."""
        service = self._service
        if service.loading is not None or service.fetching is not None:
            return "working"
        if service.model is not None:
            return "ready"
        return "starting" if self.starting else "empty"

    def refresh(self) -> None:
        """Shows the service's present state."""
        if self._shape_now() != self._shape:
            self._rebuild()
        elif self._bar is not None and self._stage is not None:
            text, fraction = progress_text(self._service)
            self._stage.setText(text)
            self._bar.setRange(0, 1000 if fraction is not None else 0)
            self._bar.setValue(round(1000 * (fraction or 0)))

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.refresh()

    def _retheme(self) -> None:
        self._shape = None
        if self.isVisible():
            self._rebuild()

    def _shape_now(self) -> object:
        service = self._service
        return (self.state, service.loading, service.fetching is not None, tuple(service.models), self.width() < 560)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._center()
        self.refresh()

    def _rebuild(self) -> None:
        self._shape = self._shape_now()
        self._bar = self._stage = None
        if self._page is not None:
            self._outer.removeWidget(self._page)
            focused = QApplication.focusWidget()
            if focused is not None and self._page.isAncestorOf(focused):
                self.focus_left.emit()
            self._page.hide()
            self._page.deleteLater()
        page = self._page = QWidget(self)
        page.setMaximumWidth(600)
        column = QVBoxLayout(page)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(10)
        column.addStretch(5)
        logo = QLabel()
        logo.setPixmap(icon("realm", "#000000").pixmap(QSize(56, 56), self.devicePixelRatio()))
        logo.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(logo)
        column.addSpacing(4)
        match self.state:
            case "ready":
                self._title(column, "What is on your mind?", "")
                column.addSpacing(10)
                self._add_suggestions(column)
            case "working":
                service = self._service
                name = model_name(service.loading) if service.loading is not None else "the starter model"
                verb = "Loading" if service.loading is not None else "Fetching"
                self._title(column, "One moment", f"{verb} {name}")
                self._add_progress(column)
            case "starting":
                self._title(column, "Realm", "Getting ready")
            case _:
                self._title(
                    column,
                    "Welcome to Realm",
                    "Language models, run by this computer alone. What you write stays here.",
                )
                column.addSpacing(8)
                self._add_ways(column)
        column.addStretch(6)
        self._outer.addWidget(page, 1)
        page.show()
        self._center()
        self.refresh()

    def _center(self) -> None:
        side = max(28, (self.width() - 600) // 2)
        self._outer.setContentsMargins(side, 16, side, 16)

    def _title(self, column: QVBoxLayout, title: str, text: str) -> None:
        head = QLabel(title)
        head.setObjectName("welcomeTitle")
        head.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        head.setWordWrap(True)
        column.addWidget(head)
        if text:
            more = QLabel(text)
            more.setObjectName("welcomeText")
            more.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            more.setWordWrap(True)
            column.addWidget(more)

    def _add_suggestions(self, column: QVBoxLayout) -> None:
        narrow = self.width() < 560
        grid = QGridLayout()
        grid.setSpacing(10)
        shown = SUGGESTIONS[:2] if narrow else SUGGESTIONS
        for number, (title, prompt) in enumerate(shown):
            button = QPushButton()
            button.setObjectName("suggestion")
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            button.setAccessibleName(f"{title}: {prompt}")
            inner = QVBoxLayout(button)
            inner.setContentsMargins(14, 11, 14, 11)
            inner.setSpacing(2)
            head = QLabel(title)
            head.setObjectName("popupTitle")
            detail = QLabel(prompt)
            detail.setObjectName("popupDetail")
            detail.setWordWrap(True)
            for label in (head, detail):
                label.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
                inner.addWidget(label)
            button.setMinimumHeight(84)
            button.clicked.connect(lambda _checked=False, prompt=prompt: self.suggested.emit(prompt))
            grid.addWidget(button, number if narrow else number // 2, 0 if narrow else number % 2)
        column.addLayout(grid)

    def _add_progress(self, column: QVBoxLayout) -> None:
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setFixedWidth(280)
        column.addSpacing(6)
        column.addWidget(self._bar, 0, Qt.AlignmentFlag.AlignHCenter)
        self._stage = QLabel(" ")
        self._stage.setObjectName("popupDetail")
        self._stage.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(self._stage)
        cancel = QPushButton("Cancel")
        cancel.clicked.connect(self.cancel_wanted)
        column.addSpacing(4)
        column.addWidget(cancel, 0, Qt.AlignmentFlag.AlignHCenter)

    def _add_ways(self, column: QVBoxLayout) -> None:
        known = self._service.models
        buttons: list[QPushButton] = []
        if known:
            load = QPushButton(f"Load {known[0].name}")
            load.setToolTip(f"{known[0].path}, {file_size(known[0].size)}")
            load.clicked.connect(lambda _checked=False, path=known[0].path: self.load_wanted.emit(path))
            buttons.append(load)
        if not any("SmolLM2-135M-Instruct" in model.path.name for model in known):
            fetch = QPushButton("Fetch the starter model (98 MB)")
            fetch.setToolTip("SmolLM2 135M Instruct, under the Apache 2.0 licence")
            fetch.clicked.connect(self.fetch_wanted)
            buttons.append(fetch)
        choose = QPushButton("Open a model file…")
        choose.setToolTip("Choose a GGUF file (Ctrl+O)")
        choose.clicked.connect(self.open_wanted)
        buttons.append(choose)
        buttons[0].setProperty("primary", True)
        if self.width() < 560:
            for button in buttons:
                column.addWidget(button, 0, Qt.AlignmentFlag.AlignHCenter)
            return
        row = QHBoxLayout()
        row.setSpacing(10)
        row.addStretch(1)
        for button in buttons:
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            row.addWidget(button)
        row.addStretch(1)
        column.addLayout(row)
