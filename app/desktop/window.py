"""The window: where its parts stand and which keys reach them. What they do is in controller.py."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QByteArray, QEvent, QObject, QSize, Qt, QUrl, Signal
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDropEvent, QKeySequence, QMouseEvent, QResizeEvent, QShortcut
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QMainWindow,
    QProgressBar,
    QSizePolicy,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app.desktop.chat_list import Sidebar
from app.desktop.composer import Composer
from app.desktop.footer import Footer
from app.desktop.icons import app_icon, icon
from app.desktop.model_popup import ModelButton, ModelPopup, device_short, progress_text
from app.desktop.model_service import ModelService, model_name
from app.desktop.notices import NoticeArea, Toast
from app.desktop.theme import Themes
from app.desktop.transcript import COLUMN, Transcript
from app.desktop.welcome import Welcome

SIDEBAR = 264
NARROW = 760
"""Window width below which the list of chats lies over the chat instead of beside it."""


class Scrim(QWidget):
    """Dims the chat while the list lies over it; a click closes the list."""

    clicked = Signal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setStyleSheet("background: rgba(0, 0, 0, 70);")
        self.hide()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self.clicked.emit()


class MainWindow(QMainWindow):
    """Sidebar, top bar, transcript or welcome, notices, composer and footer."""

    closing = Signal()
    file_dropped = Signal(str)
    new_chat_wanted = Signal()
    open_file_wanted = Signal()
    settings_wanted = Signal()
    regenerate_wanted = Signal()
    copy_answer_wanted = Signal()

    def __init__(self, themes: Themes, service: ModelService) -> None:
        super().__init__()
        self.themes = themes
        self.service = service
        self.setWindowTitle("Realm")
        self.setWindowIcon(app_icon())
        self.setMinimumSize(380, 420)
        self.setAcceptDrops(True)
        self._sidebar_wanted = True
        self._overlay_open = False
        base = QWidget(self)
        base.setObjectName("base")
        self.setCentralWidget(base)
        base.installEventFilter(self)
        self._base = base
        self.centre = QWidget(base)
        self.centre.setObjectName("centre")
        self.scrim = Scrim(base)
        self.scrim.clicked.connect(self.toggle_sidebar)
        self.sidebar = Sidebar(themes, base)
        self._build_centre()
        self.toast = Toast(self.centre)
        self.popup = ModelPopup(themes, service, self)
        self.model_button.clicked.connect(lambda: self.open_model_popup("model"))
        self.sidebar.hide_wanted.connect(self.toggle_sidebar)
        self.sidebar.settings_wanted.connect(self.settings_wanted)
        service.changed.connect(self._show_model)
        themes.changed.connect(self._dress)
        self._add_shortcuts()
        self._dress()
        self._show_model()
        self.resize(1120, 760)

    def _build_centre(self) -> None:
        column = QVBoxLayout(self.centre)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        bar = QFrame(self.centre)
        bar.setObjectName("topBar")
        bar.setFixedHeight(50)
        row = QHBoxLayout(bar)
        row.setContentsMargins(10, 0, 10, 0)
        row.setSpacing(2)
        self.show_sidebar_button = self._tool(bar, "Show the list of chats (Ctrl+B)", "Show the list of chats")
        self.show_sidebar_button.clicked.connect(self.toggle_sidebar)
        self.new_chat_button = self._tool(bar, "Begin a new chat (Ctrl+N)", "New chat")
        self.new_chat_button.clicked.connect(self.new_chat_wanted)
        self.model_button = ModelButton(self.themes, bar)
        row.addWidget(self.show_sidebar_button)
        row.addWidget(self.new_chat_button)
        row.addWidget(self.model_button)
        row.addStretch(1)
        column.addWidget(bar)
        self.load_bar = QProgressBar(bar)
        self.load_bar.setObjectName("loadBar")
        self.load_bar.setStyleSheet("min-height: 2px; max-height: 2px; border-radius: 0; background: transparent;")
        self.load_bar.setTextVisible(False)
        self.load_bar.hide()
        self._top_bar = bar

        self.transcript = Transcript(self.themes, self.centre)
        self.welcome = Welcome(self.themes, self.service, self.centre)
        self.stack = QStackedWidget(self.centre)
        self.stack.addWidget(self.welcome)
        self.stack.addWidget(self.transcript)
        column.addWidget(self.stack, 1)

        foot = QVBoxLayout()
        foot.setSpacing(8)
        self._foot = foot
        self.notices = NoticeArea(self.themes, self.centre)
        self.composer = Composer(self.themes, self.centre)
        self.footer = Footer(self.themes, self.centre)
        foot.addWidget(self.notices)
        foot.addWidget(self.composer)
        foot.addWidget(self.footer)
        column.addLayout(foot)

    def _tool(self, parent: QWidget, tip: str, name: str) -> QToolButton:
        button = QToolButton(parent)
        button.setToolTip(tip)
        button.setAccessibleName(name)
        button.setIconSize(QSize(19, 19))
        return button

    def _add_shortcuts(self) -> None:
        for keys, do in (
            ("Ctrl+N", self.new_chat_wanted.emit),
            ("Ctrl+O", self.open_file_wanted.emit),
            ("Ctrl+,", self.settings_wanted.emit),
            ("Ctrl+B", self.toggle_sidebar),
            ("Ctrl+F", self._search),
            ("Ctrl+M", lambda: self.open_model_popup("model")),
            ("Ctrl+R", self.regenerate_wanted.emit),
            ("Ctrl+Shift+C", self.copy_answer_wanted.emit),
            ("Ctrl+L", self.composer.text.setFocus),
            ("Ctrl+End", self.transcript.jump_to_latest),
            ("Ctrl+Q", self.close),
            ("Escape", self._escape),
        ):
            QShortcut(QKeySequence(keys), self).activated.connect(do)

    def _escape(self) -> None:
        if self.sidebar.search.hasFocus() and self.sidebar.search.text():
            self.sidebar.search.clear()
        elif self._overlay_open:
            self.toggle_sidebar()
        else:
            self.composer.escape()

    def _search(self) -> None:
        if not self.sidebar.isVisible():
            self.toggle_sidebar()
        self.sidebar.search.setFocus()
        self.sidebar.search.selectAll()

    # Parts

    def show_transcript(self, shown: bool) -> None:
        """Shows the transcript, or the welcome page while a chat is empty."""
        # The page that is not shown must not claim room: in a small window notices would be squeezed.
        policy = QSizePolicy.Policy.Ignored if shown else QSizePolicy.Policy.Preferred
        self.welcome.setSizePolicy(QSizePolicy.Policy.Preferred, policy)
        self.stack.setCurrentWidget(self.transcript if shown else self.welcome)

    def open_model_popup(self, tab: str = "") -> None:
        """Opens what can be done with models and devices, or the page of guessing ahead ("draft")."""
        self.service.find_models()
        if tab:
            self.popup.show_tab(tab)
        self.popup.open_below(self.model_button)

    def _show_model(self) -> None:
        service = self.service
        text, fraction = progress_text(service)
        busy = service.loading is not None or service.fetching is not None
        if service.loading is not None:
            share = f"{fraction:.0%} · {text}" if fraction is not None else text
            self.model_button.show_text(model_name(service.loading), share)
        elif service.fetching is not None:
            self.model_button.show_text("Fetching the starter model", text)
        elif service.model is not None:
            self.model_button.show_text(model_name(service.model.path), device_short(service.model.device))
        else:
            self.model_button.show_text("Choose a model", "")
        self.load_bar.setVisible(busy)
        if busy:
            self.load_bar.setRange(0, 1000 if fraction is not None else 0)
            self.load_bar.setValue(round(1000 * (fraction or 0)))

    # The sidebar

    @property
    def narrow(self) -> bool:
        return self._base.width() < NARROW

    @property
    def sidebar_wanted(self) -> bool:
        """Whether the list of chats is shown where there is room."""
        return self._sidebar_wanted

    def set_sidebar_wanted(self, wanted: bool) -> None:
        self._sidebar_wanted = wanted
        self._arrange()

    def toggle_sidebar(self) -> None:
        """Shows or hides the list of chats."""
        if self.narrow:
            self._overlay_open = not self._overlay_open
        else:
            self._sidebar_wanted = not self._sidebar_wanted
        self._arrange()

    def close_overlay(self) -> None:
        """Takes the list away where it lies over the chat."""
        if self._overlay_open:
            self._overlay_open = False
            self._arrange()

    def _arrange(self) -> None:
        width, height = self._base.width(), self._base.height()
        if not self.narrow:
            self._overlay_open = False
        beside = self._sidebar_wanted and not self.narrow
        shown = beside or self._overlay_open
        self.sidebar.setVisible(shown)
        self.sidebar.setGeometry(0, 0, SIDEBAR, height)
        left = SIDEBAR if beside else 0
        self.centre.setGeometry(left, 0, width - left, height)
        self.scrim.setVisible(self._overlay_open)
        self.scrim.setGeometry(0, 0, width, height)
        self.scrim.raise_()
        self.sidebar.raise_()
        self.show_sidebar_button.setVisible(not beside)
        self.new_chat_button.setVisible(not beside)
        room = width - left
        side = max(12 if room < 560 else 20, (room - COLUMN - 28) // 2)
        self._foot.setContentsMargins(side, 4, side, 6)
        self.model_button.set_limit(min(620, room - (24 if beside else 104)))
        self.load_bar.setGeometry(0, 48, room, 2)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize and watched is self._base:
            self._arrange()
        return super().eventFilter(watched, event)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._arrange()

    # The frame

    def restore_frame(self, state: str) -> None:
        """Puts the window where it was; `state` is what `frame` gave."""
        if state:
            self.restoreGeometry(QByteArray.fromBase64(state.encode()))

    def frame(self) -> str:
        """Place and size of the window as text."""
        return bytes(self.saveGeometry().toBase64().data()).decode()

    def closeEvent(self, event: QCloseEvent) -> None:
        self.closing.emit()
        super().closeEvent(event)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(self._takes(url) for url in event.mimeData().urls()):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        for url in event.mimeData().urls():
            if self._takes(url):
                self.file_dropped.emit(url.toLocalFile())
                return

    @staticmethod
    def _takes(url: QUrl) -> bool:
        name = url.toLocalFile()
        return name.lower().endswith((".gguf", ".safetensors")) or (bool(name) and Path(name).is_dir())

    def _dress(self) -> None:
        theme = self.themes.current
        self.show_sidebar_button.setIcon(icon("sidebar", theme.text_soft))
        self.new_chat_button.setIcon(icon("new-chat", theme.text_soft))
