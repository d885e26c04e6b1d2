"""Sentences in place: what went wrong and the buttons that lead on, and the toast that offers to undo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from PySide6.QtCore import QEvent, QObject, QSize, Qt, QTimer
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QToolButton, QVBoxLayout, QWidget

from app.desktop.icons import icon
from app.desktop.theme import Themes

TOAST_MS = 8000


@dataclass(frozen=True)
class Way:
    """A way on from a notice: what the button says and does."""

    label: str
    do: Callable[[], object]
    primary: bool = False


class Notice(QFrame):
    """One sentence with its hint and ways on. kind: "error", "warning" or "info"."""

    def __init__(
        self,
        themes: Themes,
        kind: str,
        sentence: str,
        hint: str,
        ways: Sequence[Way],
        dismiss: Callable[[], None],
        parent: QWidget,
    ) -> None:
        super().__init__(parent)
        self.setObjectName("notice")
        self.setProperty("kind", kind)
        self.setAccessibleName(sentence)
        self._themes = themes
        self._kind = kind
        self.setMinimumWidth(200)  # a row of buttons must not keep the window wide; see resizeEvent
        self._rows = QVBoxLayout()
        self._row_lengths: list[int] = []
        self._buttons: list[QPushButton] = []
        self.sentence = sentence
        self.hint = hint
        self.ways = tuple(ways)

        def take(way: Way) -> None:
            dismiss()
            way.do()

        row = QHBoxLayout(self)
        row.setContentsMargins(14, 12, 8, 12)
        row.setSpacing(12)
        self._picture = QLabel(self)
        self._picture.setFixedSize(22, 22)
        row.addWidget(self._picture, 0, Qt.AlignmentFlag.AlignTop)
        column = QVBoxLayout()
        column.setSpacing(3)
        text = QLabel(sentence, self)
        text.setTextFormat(Qt.TextFormat.PlainText)
        text.setWordWrap(True)
        text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        column.addWidget(text)
        if hint:
            more = QLabel(hint, self)
            more.setObjectName("noticeHint")
            more.setTextFormat(Qt.TextFormat.PlainText)
            more.setWordWrap(True)
            more.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
            column.addWidget(more)
        if ways:
            self._rows.setContentsMargins(0, 8, 0, 0)
            self._rows.setSpacing(8)
            for way in ways:
                button = QPushButton(way.label, self)
                button.setProperty("primary", way.primary)
                button.setCursor(Qt.CursorShape.PointingHandCursor)
                button.clicked.connect(lambda _checked=False, way=way: take(way))
                self._buttons.append(button)
            self._arrange([len(self._buttons)])
            column.addLayout(self._rows)
        row.addLayout(column, 1)
        self._close = QToolButton(self)
        self._close.setIconSize(QSize(15, 15))
        self._close.setToolTip("Dismiss")
        self._close.setAccessibleName("Dismiss")
        self._close.clicked.connect(dismiss)
        row.addWidget(self._close, 0, Qt.AlignmentFlag.AlignTop)
        themes.changed.connect(self._dress)
        self._dress()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        room, lengths = 0, []
        for button in self._buttons:
            wish = button.sizeHint().width() + 8
            if wish > room:
                room = self.width() - 90
                lengths.append(0)
            room -= wish
            lengths[-1] += 1
        if lengths != self._row_lengths:
            self._arrange(lengths)

    def _arrange(self, lengths: list[int]) -> None:
        """Puts so many buttons into each row."""
        self._row_lengths = lengths
        while (old := self._rows.takeAt(0)) is not None:
            row = old.layout()
            while row is not None and row.takeAt(0) is not None:
                pass
        buttons = iter(self._buttons)
        for length in lengths:
            row = QHBoxLayout()
            row.setSpacing(8)
            for button in islice(buttons, length):
                row.addWidget(button)
            row.addStretch(1)
            self._rows.addLayout(row)

    def _dress(self) -> None:
        theme = self._themes.current
        color = {"error": theme.danger, "warning": theme.warning}.get(self._kind, theme.accent)
        picture = icon("info" if self._kind == "info" else "alert", color)
        self._picture.setPixmap(picture.pixmap(QSize(20, 20), self.devicePixelRatio()))
        self._close.setIcon(icon("close", theme.text_soft))


class NoticeArea(QWidget):
    """Notices one below the other; a new one of the same key takes the old one's place."""

    LIMIT = 3

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._themes = themes
        self._notices: dict[str, Notice] = {}
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(8)
        self.hide()

    def show_notice(self, key: str, kind: str, sentence: str, hint: str = "", ways: Sequence[Way] = ()) -> None:
        """Shows a sentence until it is dismissed or replaced; what says the same under another key goes."""
        for other in [name for name, shown in self._notices.items() if name == key or shown.sentence == sentence]:
            self.dismiss(other)
        while len(self._notices) >= self.LIMIT:
            self.dismiss(next(iter(self._notices)))
        notice = Notice(self._themes, kind, sentence, hint, ways, lambda: self.dismiss(key), self)
        self._notices[key] = notice
        self._column.addWidget(notice)
        self.show()

    def dismiss(self, key: str) -> None:
        """Takes a notice away; nothing happens if there is none of this key."""
        notice = self._notices.pop(key, None)
        if notice is not None:
            self._column.removeWidget(notice)
            notice.hide()
            notice.deleteLater()
        self.setVisible(bool(self._notices))

    def notice(self, key: str) -> Notice | None:
        """The notice shown under a key."""
        return self._notices.get(key)

    def keys(self) -> list[str]:
        """The keys of what is shown, oldest first."""
        return list(self._notices)


class Toast(QFrame):
    """A line at the bottom of its parent that goes away by itself."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setObjectName("toast")
        self._parent = parent
        row = QHBoxLayout(self)
        row.setContentsMargins(16, 7, 8, 7)
        row.setSpacing(12)
        self._text = QLabel(self)
        row.addWidget(self._text)
        self.button = QPushButton("Undo", self)
        self.button.setCursor(Qt.CursorShape.PointingHandCursor)
        self.button.clicked.connect(self._act)
        row.addWidget(self.button)
        self._do: Callable[[], object] | None = None
        self._timer = QTimer(self, singleShot=True, interval=TOAST_MS)
        self._timer.timeout.connect(self.hide)
        parent.installEventFilter(self)
        self.lift = 120
        self.hide()

    def offer(self, text: str, label: str = "", do: Callable[[], object] | None = None) -> None:
        """Shows a text and, with a label, a button."""
        self._text.setText(text)
        self.setAccessibleName(text)
        self._do = do
        self.button.setText(label)
        self.button.setVisible(bool(label))
        self.adjustSize()
        self._place()
        self.show()
        self.raise_()
        self._timer.start()

    def _act(self) -> None:
        self.hide()
        if self._do is not None:
            self._do()

    def _place(self) -> None:
        parent = self._parent
        self.move((parent.width() - self.width()) // 2, parent.height() - self.height() - self.lift)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Resize and self.isVisible():
            self._place()
        return False
