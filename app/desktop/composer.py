"""Where messages are written: grows with its text, sends with Enter, stops with Esc or the button."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QMimeData, QObject, QSize, Qt, Signal
from PySide6.QtGui import QKeyEvent, QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPlainTextEdit, QToolButton, QVBoxLayout, QWidget

from app.desktop.icons import icon
from app.desktop.theme import Themes

MAX_LINES = 8


class ComposerText(QPlainTextEdit):
    """Plain text of one to eight lines' height."""

    submitted = Signal()
    edit_last = Signal()

    def __init__(self, themes: Themes, parent: QWidget) -> None:
        super().__init__(parent)
        self.setObjectName("composerText")
        self.setAccessibleName("Message")
        self.setFont(themes.body_font)
        self.setStyleSheet(f"font-size: {themes.body_px}px;")
        self.setTabChangesFocus(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.document().setDocumentMargin(3)
        self.textChanged.connect(self._fit)
        self._fit()

    def _fit(self) -> None:
        rows = 0
        block = self.document().firstBlock()
        while block.isValid() and rows <= MAX_LINES:
            layout = block.layout()
            rows += max(1, layout.lineCount())
            block = block.next()
        shown = max(1, min(MAX_LINES, rows))
        height = shown * self.fontMetrics().lineSpacing() + 8
        policy = Qt.ScrollBarPolicy.ScrollBarAsNeeded if rows > MAX_LINES else Qt.ScrollBarPolicy.ScrollBarAlwaysOff
        self.setVerticalScrollBarPolicy(policy)
        if self.height() != height or self.minimumHeight() != height:
            self.setFixedHeight(height)

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def insertFromMimeData(self, source: QMimeData) -> None:
        self.insertPlainText(source.text())

    def keyPressEvent(self, event: QKeyEvent) -> None:
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        shift = bool(event.modifiers() & Qt.KeyboardModifier.ShiftModifier)
        if enter and not shift:
            self.submitted.emit()
        elif enter:
            self.insertPlainText("\n")
            self.ensureCursorVisible()
        elif event.key() == Qt.Key.Key_Up and not self.toPlainText():
            self.edit_last.emit()
        else:
            super().keyPressEvent(event)


class Composer(QWidget):
    """The card with the text, the send button that turns into a stop button, and the banner while editing."""

    sent = Signal(str)
    resent = Signal(int, str)  # an edited message: its id and new text
    stopped = Signal()
    edit_last = Signal()

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._themes = themes
        self._streaming = False
        self._editing: int | None = None
        self._draft = ""
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        card = QFrame(self)
        card.setObjectName("composerCard")
        self._card = card
        outer.addWidget(card)
        column = QVBoxLayout(card)
        column.setContentsMargins(8, 8, 8, 8)
        column.setSpacing(6)

        self.banner = QFrame(card)
        self.banner.setObjectName("composerBanner")
        row = QHBoxLayout(self.banner)
        row.setContentsMargins(12, 4, 4, 4)
        self._banner_text = QLabel("Editing an earlier message. Sending replaces it and all that follows.")
        self._banner_text.setWordWrap(True)
        row.addWidget(self._banner_text, 1)
        self.cancel_edit_button = QToolButton(self.banner)
        self.cancel_edit_button.setToolTip("Keep the message as it was (Esc)")
        self.cancel_edit_button.setAccessibleName("Cancel editing")
        self.cancel_edit_button.setIconSize(QSize(15, 15))
        self.cancel_edit_button.clicked.connect(self.cancel_edit)
        row.addWidget(self.cancel_edit_button)
        self.banner.hide()
        column.addWidget(self.banner)

        line = QHBoxLayout()
        line.setContentsMargins(8, 0, 0, 0)
        line.setSpacing(8)
        self.text = ComposerText(themes, card)
        self.text.setPlaceholderText("Message Realm")
        self.text.submitted.connect(self.submit)
        self.text.edit_last.connect(self.edit_last)
        self.text.textChanged.connect(self._update_button)
        self.text.installEventFilter(self)
        line.addWidget(self.text, 1, Qt.AlignmentFlag.AlignVCenter)
        self.button = QToolButton(card)
        self.button.setObjectName("sendButton")
        self.button.setFixedSize(34, 34)
        self.button.setIconSize(QSize(20, 20))
        self.button.setCursor(Qt.CursorShape.PointingHandCursor)
        self.button.clicked.connect(self._pressed)
        line.addWidget(self.button, 0, Qt.AlignmentFlag.AlignBottom)
        column.addLayout(line)
        self.setFocusProxy(self.text)

        themes.changed.connect(self._dress)
        self._dress()

    @property
    def editing(self) -> int | None:
        """The id of the message that is being edited, or None."""
        return self._editing

    def set_streaming(self, streaming: bool) -> None:
        """Turns the button into Stop, or back."""
        if streaming != self._streaming:
            self._streaming = streaming
            self._dress()

    def set_placeholder(self, text: str) -> None:
        self.text.setPlaceholderText(text)

    def set_text(self, text: str) -> None:
        """Puts a text in, the cursor behind it."""
        self.text.setPlainText(text)
        self.text.moveCursor(self.text.textCursor().MoveOperation.End)
        self.text.setFocus()

    def begin_edit(self, message_id: int, text: str) -> None:
        """Edits an earlier message; what was being written comes back afterwards."""
        if self._editing is None:
            self._draft = self.text.toPlainText()
        self._editing = message_id
        self.banner.show()
        self.set_text(text)
        self._dress()

    def cancel_edit(self) -> None:
        """Leaves the earlier message as it was."""
        if self._editing is not None:
            self._editing = None
            self.banner.hide()
            self.set_text(self._draft)
            self._draft = ""

    def escape(self) -> None:
        """Esc: stops the answer, or else leaves editing."""
        if self._streaming:
            self.stopped.emit()
        else:
            self.cancel_edit()

    def submit(self) -> None:
        """Sends what is written, unless it is empty or an answer streams."""
        text = self.text.toPlainText().strip()
        if not text or self._streaming:
            return
        if self._editing is not None:
            message_id, self._editing = self._editing, None
            self.banner.hide()
            self.text.setPlainText(self._draft)
            self._draft = ""
            self.resent.emit(message_id, text)
        else:
            self.text.clear()
            self.sent.emit(text)

    def _pressed(self) -> None:
        if self._streaming:
            self.stopped.emit()
        else:
            self.submit()

    def _update_button(self) -> None:
        self.button.setEnabled(self._streaming or bool(self.text.toPlainText().strip()))

    def _dress(self) -> None:
        theme = self._themes.current
        name = "stop" if self._streaming else "send"
        tip = "Stop the answer (Esc)" if self._streaming else "Send (Enter); Shift+Enter begins a new line"
        self.button.setIcon(icon(name, theme.on_accent, theme.text_faint))
        self.button.setToolTip(tip)
        self.button.setAccessibleName("Stop" if self._streaming else "Send")
        self.cancel_edit_button.setIcon(icon("close", theme.text_soft))
        self._update_button()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() in (QEvent.Type.FocusIn, QEvent.Type.FocusOut):
            self._card.setProperty("focused", event.type() == QEvent.Type.FocusIn)
            self._card.style().unpolish(self._card)
            self._card.style().polish(self._card)
        return super().eventFilter(watched, event)
