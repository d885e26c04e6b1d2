"""The chats on the left: grouped by day, searched, renamed in place, deleted with an undo."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from PySide6.QtCore import (
    QAbstractItemModel,
    QAbstractListModel,
    QEvent,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QPoint,
    QRect,
    QRectF,
    QSize,
    Qt,
    QTimer,
    Signal,
)
from PySide6.QtGui import QAction, QFont, QKeyEvent, QKeySequence, QMouseEvent, QPainter
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app.desktop.icons import icon, paint_icon
from app.desktop.theme import Themes, new_menu
from app.store import ChatSummary

ROW = 36
HEADING_ROW = 34
SEARCH_MS = 150
UNTITLED = "New chat"

Index = QModelIndex | QPersistentModelIndex


def day_group(when: datetime, today: date) -> str:
    """The heading under which a chat stands, by the day it was changed last, local time."""
    day = when.astimezone().date()
    age = (today - day).days
    if age <= 0:
        return "Today"
    if age == 1:
        return "Yesterday"
    if age < 7:
        return "Previous 7 days"
    if age < 30:
        return "Previous 30 days"
    return f"{day:%B %Y}"


class ChatListModel(QAbstractListModel):
    """Rows are headings (str) and chats (ChatSummary)."""

    renamed = Signal(int, str)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.rows: list[str | ChatSummary] = []
        self.busy: set[int] = set()  # chats whose answer streams
        self.snippets: dict[int, str] = {}

    def set_chats(self, chats: Sequence[ChatSummary], today: date | None = None) -> None:
        """Takes the chats, the newest first."""
        rows: list[str | ChatSummary] = []
        heading = ""
        for chat in chats:
            group = day_group(chat.updated, today or date.today())
            if group != heading:
                heading = group
                rows.append(group)
            rows.append(chat)
        if rows != self.rows:
            self.beginResetModel()
            self.rows = rows
            self.endResetModel()

    def chat_at(self, index: Index) -> ChatSummary | None:
        row = self.rows[index.row()] if index.isValid() and index.row() < len(self.rows) else None
        return row if isinstance(row, ChatSummary) else None

    def index_of(self, chat_id: int) -> QModelIndex:
        """The row of a chat; an invalid index if it is not shown."""
        for number, row in enumerate(self.rows):
            if isinstance(row, ChatSummary) and row.id == chat_id:
                return self.index(number, 0)
        return QModelIndex()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.rows)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        row = self.rows[index.row()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole):
            return row if isinstance(row, str) else row.title or UNTITLED
        if role == Qt.ItemDataRole.ToolTipRole and isinstance(row, ChatSummary):
            return self.snippets.get(row.id) or row.title or UNTITLED
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return row if isinstance(row, str) else f"Chat: {row.title or UNTITLED}"
        return None

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        chat = self.chat_at(index)
        title = str(value).strip()
        if chat is None or not title or title == chat.title:
            return False
        self.renamed.emit(chat.id, title)
        return True

    def flags(self, index: Index) -> Qt.ItemFlag:
        if self.chat_at(index) is None:
            return Qt.ItemFlag.NoItemFlags
        return Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsEditable


class ChatRowDelegate(QStyledItemDelegate):
    """Draws a heading, or a chat with the button for its menu while the mouse is over it."""

    menu_wanted = Signal(QModelIndex, QPoint)

    def __init__(self, themes: Themes, view: QListView) -> None:
        super().__init__(view)
        self._themes = themes
        self._view = view
        self.current_id: int | None = None

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        model = index.model()
        assert isinstance(model, ChatListModel)
        return QSize(100, ROW if model.chat_at(index) else HEADING_ROW)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        model = index.model()
        assert isinstance(model, ChatListModel)
        theme = self._themes.current
        rect: QRect = option.rect
        state: QStyle.StateFlag = option.state
        font = QFont(self._themes.body_font)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        chat = model.chat_at(index)
        if chat is None:
            font.setPixelSize(self._themes.small_px - 1)
            font.setWeight(QFont.Weight.DemiBold)
            painter.setFont(font)
            painter.setPen(self._themes.color("text_faint"))
            place = rect.adjusted(12, 10, -8, 0)
            painter.drawText(place, Qt.AlignmentFlag.AlignVCenter, str(index.data()))
            painter.restore()
            return
        hovered = bool(state & QStyle.StateFlag.State_MouseOver)
        current = chat.id == self.current_id
        row = QRectF(rect).adjusted(2, 1, -2, -1)
        painter.setPen(Qt.PenStyle.NoPen)
        if current or hovered:
            painter.setBrush(self._themes.color("pressed" if current else "hover"))
            painter.drawRoundedRect(row, 8, 8)
        if bool(state & QStyle.StateFlag.State_HasFocus) and self._view.hasFocus():
            painter.setPen(self._themes.color("accent"))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRoundedRect(row.adjusted(0.5, 0.5, -0.5, -0.5), 8, 8)
        font.setPixelSize(self._themes.ui_px)
        painter.setFont(font)
        painter.setPen(self._themes.color("text" if current or hovered else "text_soft"))
        right = 30 if hovered or current or chat.id in model.busy else 10
        place = rect.adjusted(12, 0, -right, 0)
        title = painter.fontMetrics().elidedText(str(index.data()), Qt.TextElideMode.ElideRight, place.width())
        painter.drawText(place, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, title)
        if chat.id in model.busy and not hovered:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self._themes.color("accent"))
            painter.drawEllipse(QRectF(rect.right() - 21, rect.center().y() - 3, 7, 7))
        elif hovered or current:
            paint_icon(painter, "more", theme.text_soft, QRectF(self._menu_rect(rect)).adjusted(3, 3, -3, -3))
        painter.restore()

    @staticmethod
    def _menu_rect(rect: QRect) -> QRect:
        return QRect(rect.right() - 30, rect.center().y() - 11, 24, 24)

    def editorEvent(self, event: QEvent, model: QAbstractItemModel, option: QStyleOptionViewItem, index: Index) -> bool:
        if event.type() == QEvent.Type.MouseButtonRelease and isinstance(event, QMouseEvent):
            place = self._menu_rect(option.rect)
            if place.contains(event.position().toPoint()):
                self.menu_wanted.emit(model.index(index.row(), 0), place.bottomLeft())
                return True
        return False

    def updateEditorGeometry(self, editor: QWidget, option: QStyleOptionViewItem, index: Index) -> None:
        editor.setGeometry(option.rect.adjusted(4, 3, -4, -3))


class ChatListView(QListView):
    """Opens a chat on click or Enter; F2 renames, Delete deletes."""

    chosen = Signal(int)
    delete_wanted = Signal(int)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        index = self.indexAt(event.position().toPoint())
        delegate = self.itemDelegate()
        assert isinstance(delegate, ChatRowDelegate)
        in_menu = delegate._menu_rect(self.visualRect(index)).contains(event.position().toPoint())
        super().mouseReleaseEvent(event)
        chat = self._chat(index)
        if chat is not None and event.button() == Qt.MouseButton.LeftButton and not in_menu:
            self.chosen.emit(chat.id)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        chat = self._chat(self.currentIndex())
        if chat is not None and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.chosen.emit(chat.id)
        elif chat is not None and event.key() == Qt.Key.Key_Delete:
            self.delete_wanted.emit(chat.id)
        else:
            super().keyPressEvent(event)

    def _chat(self, index: QModelIndex) -> ChatSummary | None:
        model = self.model()
        assert isinstance(model, ChatListModel)
        return model.chat_at(index)


class Sidebar(QFrame):
    """New chat, search and the list."""

    new_chat = Signal()
    chat_chosen = Signal(int)
    chat_renamed = Signal(int, str)
    chat_deleted = Signal(int)
    search_changed = Signal(str)
    settings_wanted = Signal()
    hide_wanted = Signal()

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("sidebar")
        self._themes = themes
        column = QVBoxLayout(self)
        column.setContentsMargins(12, 12, 10, 10)
        column.setSpacing(10)

        head = QHBoxLayout()
        head.setSpacing(9)
        self._logo = QLabel(self)
        head.addWidget(self._logo)
        title = QLabel("Realm", self)
        title.setObjectName("sidebarTitle")
        head.addWidget(title, 1)
        self.hide_button = QToolButton(self)
        self.hide_button.setToolTip("Hide the list of chats (Ctrl+B)")
        self.hide_button.setAccessibleName("Hide the list of chats")
        self.hide_button.setIconSize(QSize(19, 19))
        self.hide_button.clicked.connect(self.hide_wanted)
        head.addWidget(self.hide_button)
        column.addLayout(head)

        self.new_button = QToolButton(self)
        self.new_button.setObjectName("newChat")
        self.new_button.setText(" New chat")
        self.new_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.new_button.setIconSize(QSize(18, 18))
        self.new_button.setToolTip("Begin a new chat (Ctrl+N)")
        self.new_button.setAccessibleName("New chat")
        self.new_button.setCursor(Qt.CursorShape.PointingHandCursor)
        self.new_button.setSizePolicy(
            self.new_button.sizePolicy().Policy.Expanding, self.new_button.sizePolicy().Policy.Fixed
        )
        self.new_button.clicked.connect(self.new_chat)
        column.addWidget(self.new_button)

        self.search = QLineEdit(self)
        self.search.setObjectName("search")
        self.search.setPlaceholderText("Search chats")
        self.search.setAccessibleName("Search chats")
        self.search.setToolTip("Search titles and messages (Ctrl+F)")
        self.search.setClearButtonEnabled(True)
        self._search_action = QAction(self.search)
        self.search.addAction(self._search_action, QLineEdit.ActionPosition.LeadingPosition)
        self._search_timer = QTimer(self, singleShot=True, interval=SEARCH_MS)
        self._search_timer.timeout.connect(lambda: self.search_changed.emit(self.search.text().strip()))
        self.search.textChanged.connect(lambda _text: self._search_timer.start())
        column.addWidget(self.search)

        self.model = ChatListModel(self)
        self.model.renamed.connect(self.chat_renamed)
        self.view = ChatListView(self)
        self.view.setObjectName("chatList")
        self.view.setAccessibleName("Chats")
        self.view.setModel(self.model)
        self.view.setMouseTracking(True)
        self.view.setUniformItemSizes(False)
        self.view.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.view.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.view.setEditTriggers(QListView.EditTrigger.EditKeyPressed)
        self.view.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.view.customContextMenuRequested.connect(self._context_menu)
        self.view.chosen.connect(self.chat_chosen)
        self.view.delete_wanted.connect(self.chat_deleted)
        self.delegate = ChatRowDelegate(themes, self.view)
        self.delegate.menu_wanted.connect(self._menu)
        self.view.setItemDelegate(self.delegate)
        column.addWidget(self.view, 1)
        self.empty = QLabel("Your chats appear here.", self)
        self.empty.setObjectName("sidebarNote")
        self.empty.setWordWrap(True)
        self.empty.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(self.empty, 1)
        self.view.hide()

        self.settings_button = QToolButton(self)
        self.settings_button.setObjectName("sidebarSettings")
        self.settings_button.setText(" Settings")
        self.settings_button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.settings_button.setIconSize(QSize(18, 18))
        self.settings_button.setToolTip("Settings (Ctrl+,)")
        self.settings_button.setAccessibleName("Settings")
        self.settings_button.clicked.connect(self.settings_wanted)
        column.addWidget(self.settings_button, 0, Qt.AlignmentFlag.AlignLeft)
        themes.changed.connect(self._dress)
        self._dress()

    def set_chats(self, chats: Sequence[ChatSummary], searching: bool = False) -> None:
        """Shows chats, or with `searching` what a search found."""
        self.model.set_chats(chats)
        self.view.setVisible(bool(chats))
        self.empty.setVisible(not chats)
        self.empty.setText("No chat contains this." if searching else "Your chats appear here.")
        self._select_current()

    def set_current(self, chat_id: int | None) -> None:
        """Marks the open chat."""
        self.delegate.current_id = chat_id
        self._select_current()
        self.view.viewport().update()

    def set_busy(self, chat_ids: set[int]) -> None:
        """Marks the chats whose answers stream."""
        if chat_ids != self.model.busy:
            self.model.busy = set(chat_ids)
            self.view.viewport().update()

    def rename(self, chat_id: int) -> None:
        """Opens the editor on a chat's title."""
        index = self.model.index_of(chat_id)
        if index.isValid():
            self.view.setCurrentIndex(index)
            self.view.edit(index)

    def _select_current(self) -> None:
        current = self.delegate.current_id
        index = self.model.index_of(current) if current is not None else QModelIndex()
        self.view.setCurrentIndex(index)

    def _context_menu(self, point: QPoint) -> None:
        self._menu(self.view.indexAt(point), point)

    def _menu(self, index: QModelIndex, point: QPoint) -> None:
        chat = self.model.chat_at(index)
        if chat is None:
            return
        menu = new_menu(self)
        rename = menu.addAction(icon("edit", self._themes.current.text_soft), "Rename")
        rename.setShortcut(QKeySequence(Qt.Key.Key_F2))
        rename.triggered.connect(lambda: self.rename(chat.id))
        delete = menu.addAction(icon("trash", self._themes.current.danger), "Delete")
        delete.setShortcut(QKeySequence(Qt.Key.Key_Delete))
        delete.triggered.connect(lambda: self.chat_deleted.emit(chat.id))
        menu.aboutToHide.connect(menu.deleteLater)
        menu.popup(self.view.viewport().mapToGlobal(point))

    def _dress(self) -> None:
        theme = self._themes.current
        self._logo.setPixmap(icon("realm", "#000000").pixmap(QSize(24, 24), self.devicePixelRatio()))
        self.hide_button.setIcon(icon("sidebar", theme.text_soft))
        self.new_button.setIcon(icon("new-chat", theme.text))
        self._search_action.setIcon(icon("search", theme.text_faint))
        self.settings_button.setIcon(icon("settings", theme.text_soft))
        self.view.viewport().update()
