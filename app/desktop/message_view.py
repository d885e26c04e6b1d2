"""The widget around the blocks of one message: the bubble, the actions that hovering shows, the note below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QEnterEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QLabel, QToolButton, QWidget

from app.desktop.icons import icon
from app.desktop.theme import Themes

if TYPE_CHECKING:
    from app.desktop.message_item import MessageData

ACTION_ROW = 34
ACTIONS = 3
BUBBLE_X = 16
BUBBLE_Y = 11
MARGIN = 8
"""The view is wider than the column by this on both sides, so that an icon can stand flush with the text."""


class ActivityDots(QWidget):
    """Three dots that breathe while an answer is on its way."""

    def __init__(self, themes: Themes, parent: QWidget) -> None:
        super().__init__(parent)
        self._themes = themes
        self._phase = 0
        self._timer = QTimer(self, interval=160)
        self._timer.timeout.connect(self._tick)
        self.setFixedSize(30, 18)
        self.setAccessibleName("Answer on its way")

    def _tick(self) -> None:
        self._phase = (self._phase + 1) % 6
        self.update()

    def showEvent(self, event: QEvent) -> None:
        self._timer.start()

    def hideEvent(self, event: QEvent) -> None:
        self._timer.stop()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        for number in range(3):
            color = self._themes.color("accent")
            distance = (self._phase - number) % 6
            color.setAlphaF((1.0, 0.75, 0.5, 0.32, 0.32, 0.5)[distance])
            painter.setBrush(color)
            painter.drawEllipse(QPointF(4 + number * 10, 9), 3, 3)
        painter.end()


class MessageView(QWidget):
    """Shows a MessageData; its blocks are children that the MessageItem places."""

    action = Signal(str, int)  # "copy", "edit", "regenerate" or "delete", and the message's id

    def __init__(self, themes: Themes, parent: QWidget) -> None:
        super().__init__(parent)
        self.themes = themes
        self.bubble_width = 0
        self._bubble_bottom = 0
        self._top = 0
        self._row = 0
        self._streaming = False
        self._hovered = False
        self._always = False
        self._role = ""
        self._figures = ""
        self._id = 0
        self._buttons: dict[str, QToolButton] = {}
        self.setMouseTracking(True)
        # Made when there is something to show: most messages need none of them, and a chat that opens shows many.
        self.dots: ActivityDots | None = None
        self._labels: dict[str, QLabel] = {}

    def show_data(self, data: MessageData) -> None:
        """Takes over role, notes and activity; the blocks come from the MessageItem."""
        if data.role != self._role:
            self._role = data.role
            self._drop_buttons()
            self.setAccessibleName("Your message" if data.role == "user" else "Answer")
        self._id = data.id
        self._streaming = data.streaming
        if data.streaming and self.dots is None:
            self.dots = ActivityDots(self.themes, self)
        if self.dots is not None:
            self.dots.setVisible(data.streaming)
        self._show_text("activityLabel", data.activity if data.streaming else "")
        self._show_text("messageNote", "" if data.streaming else data.note, data.problem)
        self._figures = data.figures if data.role != "user" else ""
        self._show_actions()

    def _show_text(self, name: str, text: str, problem: bool = False) -> None:
        """Shows a text in the label of a name; hides that for an empty one."""
        label = self._labels.get(name)
        if label is None:
            if not text:
                return
            label = self._labels[name] = QLabel(self)
            label.setObjectName(name)
            if name == "messageNote":
                label.setWordWrap(True)
                label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        if label.property("problem") != problem:
            label.setProperty("problem", problem)
            label.style().unpolish(label)
            label.style().polish(label)
        if text and label.text() != text:
            label.setText(text)
        label.setVisible(bool(text))

    def set_latest(self, latest: bool) -> None:
        """The latest answer shows its actions all the time."""
        if latest != self._always:
            self._always = latest
            self._show_actions()

    def _drop_buttons(self) -> None:
        for button in self._buttons.values():
            button.hide()
            button.deleteLater()
        self._buttons.clear()

    def _make_buttons(self) -> None:
        """Made when they are first shown: of the messages in sight only one shows them without being hovered."""
        own = self._role == "user"
        for name, picture, tip in (
            ("copy", "copy", "Copy the message"),
            ("edit", "edit", "Edit and send again") if own else ("regenerate", "regenerate", "Answer again"),
            ("delete", "trash", "Delete the message"),
        ):
            button = QToolButton(self)
            button.setObjectName("messageAction")
            button.setIcon(icon(picture, self.themes.current.text_faint))
            button.setIconSize(QSize(17, 17))
            button.setFixedSize(30, 28)
            button.setToolTip(tip)
            button.setAccessibleName(tip)
            button.setCursor(Qt.CursorShape.PointingHandCursor)
            button.setFocusPolicy(Qt.FocusPolicy.TabFocus)
            button.clicked.connect(lambda _checked=False, name=name: self._act(name))
            button.hide()
            self._buttons[name] = button

    def button(self, name: str) -> QToolButton:
        """The button of an action, by its name in `action`."""
        if not self._buttons:
            self._make_buttons()
            self._place_actions()
        return self._buttons[name]

    def _act(self, name: str) -> None:
        if name == "copy":
            button = self._buttons["copy"]
            button.setIcon(icon("check", self.themes.current.accent))
            QTimer.singleShot(1400, button, lambda: button.setIcon(icon("copy", self.themes.current.text_faint)))
        self.action.emit(name, self._id)

    def retheme(self) -> None:
        """Takes new colours."""
        self._drop_buttons()
        self._show_actions()
        self.arrange(self._content_bottom, self._top, self._note_height)
        self.update()

    def arrange(self, content_bottom: int, top: int, note_height: int) -> None:
        """Places what stands below the blocks, which end at `content_bottom`."""
        self._content_bottom, self._top, self._note_height = content_bottom, top, note_height
        self._bubble_bottom = content_bottom + top
        y = self._bubble_bottom
        note = self._labels.get("messageNote")
        if note_height and note is not None:
            gap = 8 if content_bottom else 0
            note.setGeometry(MARGIN, y + gap, self.width() - 2 * MARGIN, note_height - gap)
        y += note_height
        self._row = y + 4
        self._place_actions()
        if self.dots is not None:
            self.dots.move(MARGIN, y + 10)
        activity = self._labels.get("activityLabel")
        if activity is not None:
            activity.adjustSize()
            activity.move(MARGIN + 38, y + 10 + (18 - activity.height()) // 2)
        self.update()

    def _place_actions(self) -> None:
        own, row = self._role == "user", self._row
        if own:
            x = self.width() - MARGIN - 30 * ACTIONS + 6
        else:
            x = MARGIN - 6
        for button in self._buttons.values():
            button.move(x, row)
            x += 30
        figures = self._labels.get("messageFigures")
        if figures is not None:
            figures.adjustSize()
            figures.move(MARGIN + 2 + 30 * ACTIONS, row + (28 - figures.height()) // 2)

    def enterEvent(self, event: QEnterEvent) -> None:
        self._hovered = True
        self._show_actions()

    def leaveEvent(self, event: QEvent) -> None:
        self._hovered = False
        self._show_actions()

    def _show_actions(self) -> None:
        visible = (self._hovered or self._always) and not self._streaming
        if visible and not self._buttons:
            self._make_buttons()
        for button in self._buttons.values():
            button.setVisible(visible)
        self._show_text("messageFigures", self._figures if visible else "")
        if visible:
            self._place_actions()

    def paintEvent(self, event: QPaintEvent) -> None:
        if not self.bubble_width:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self.themes.color("raised"))
        left = self.width() - MARGIN - self.bubble_width
        painter.drawRoundedRect(QRectF(left, 0, self.bubble_width, self._bubble_bottom), 16, 16)
        painter.end()
