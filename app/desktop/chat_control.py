"""Which chat is open, and the list of the others."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QObject, Signal

from app.desktop.chat_session import ChatSession
from app.desktop.desk import Desk
from app.desktop.model_service import as_realm_error
from app.desktop.notices import Way
from app.store import ChatStore, ChatSummary


class ChatControl(QObject):
    """Owns the sessions of the chats that are open or still being answered. `session` is the one in sight."""

    shown = Signal()  # another chat is in sight
    told = Signal(object, object)  # as ChatSession.events, of any of the sessions

    def __init__(self, desk: Desk, parent: QObject) -> None:
        super().__init__(parent)
        self._desk = desk
        self._window = desk.window
        self.session: ChatSession | None = None
        self.sessions: list[ChatSession] = []
        self._searching = ""
        desk.window.new_chat_wanted.connect(self.new_chat)
        sidebar = desk.window.sidebar
        sidebar.new_chat.connect(self.new_chat)
        sidebar.chat_chosen.connect(self.open_chat)
        sidebar.chat_renamed.connect(self.rename_chat)
        sidebar.chat_deleted.connect(self.delete_chat)
        sidebar.search_changed.connect(self.search)

    def new_chat(self) -> None:
        """Opens an empty chat; it is stored when its first message is sent."""
        self._window.close_overlay()
        if self.session is not None and self.session.chat_id is None and not self.session.messages:
            self._window.composer.text.setFocus()
            return
        self._open_session(None)

    def open_chat(self, chat_id: int) -> None:
        """Shows a chat."""
        self._window.close_overlay()
        if self.session is not None and self.session.chat_id == chat_id:
            return
        running = next((session for session in self.sessions if session.chat_id == chat_id), None)
        if running is not None:
            self._show_session(running)
        else:
            self._open_session(chat_id)

    def _open_session(self, chat_id: int | None) -> None:
        engine, store = self._desk.service.engine, self._desk.store
        if engine is None or store is None:
            return
        session = ChatSession(
            chat_id, lambda wanted, listen: self._desk.services.open_conversation(engine, store, wanted, listen)
        )
        session.events.connect(self.told)
        self.sessions.append(session)
        self._show_session(session)

    def _show_session(self, session: ChatSession) -> None:
        old = self.session
        self.session = session
        if old is not None and old is not session and not old.pending:
            self.close_session(old)
        window = self._window
        window.composer.cancel_edit()
        for key in ("answer", "context", "action"):
            window.notices.dismiss(key)
        window.toast.hide()
        window.transcript.set_messages([*session.messages])
        # A stored chat is empty only until it has been read; the welcome page must not flash meanwhile.
        window.show_transcript(bool(session.messages) or session.chat_id is not None)
        window.footer.show_figures(session.figures)
        window.sidebar.set_current(session.chat_id)
        self.show_title()
        self.show_streaming()
        window.composer.text.setFocus()
        self.shown.emit()

    def close_session(self, session: ChatSession) -> None:
        """Gives up a chat that is not shown."""
        if session in self.sessions:
            self.sessions.remove(session)
        session.events.disconnect(self.told)
        conversation = session.conversation
        self._desk.background.run_long(conversation.close)
        session.deleteLater()

    def rename_chat(self, chat_id: int, title: str) -> None:
        """Gives a chat another title."""
        session = next((session for session in self.sessions if session.chat_id == chat_id), None)
        if session is not None:
            session.conversation.rename(title)
            return
        self._with_store(lambda store: store.rename_chat(chat_id, title))

    def delete_chat(self, chat_id: int) -> None:
        """Deletes a chat, with a way back."""
        session = next((session for session in self.sessions if session.chat_id == chat_id), None)
        if session is not None and session.pending:
            session.conversation.stop()
        self._with_store(lambda store: store.delete_chat(chat_id))
        if session is not None and session is self.session:
            self._open_session(None)
        self._window.toast.offer("Chat deleted", "Undo", lambda: self._undelete(chat_id))

    def _undelete(self, chat_id: int) -> None:
        self._with_store(lambda store: store.undelete_chat(chat_id))
        self._desk.background.run(lambda: None, lambda _none: self.open_chat(chat_id))

    def search(self, text: str) -> None:
        """Shows the chats that contain a text; all of them for an empty one."""
        self._searching = text
        self.refresh_chats()

    def _with_store(self, do: Callable[[ChatStore], object]) -> None:
        store = self._desk.store
        if store is not None:
            self._desk.background.run(lambda: do(store), lambda _none: self.refresh_chats(), self.saving_failed)

    def refresh_chats(self) -> None:
        """Reads the list of chats again."""
        store, wanted = self._desk.store, self._searching
        if store is None:
            return

        def work() -> tuple[list[ChatSummary], dict[int, str]]:
            if not wanted:
                return store.chats(), {}
            hits = store.search(wanted)
            return [hit.chat for hit in hits], {hit.chat.id: hit.snippet for hit in hits}

        def show(found: tuple[list[ChatSummary], dict[int, str]]) -> None:
            if wanted == self._searching:
                chats, snippets = found
                self._window.sidebar.model.snippets = snippets
                self._window.sidebar.set_chats(chats, searching=bool(wanted))

        self._desk.background.run(work, show, self.saving_failed)

    def saving_failed(self, error: Exception) -> None:
        """Says that the history could not be read or written."""
        known = as_realm_error(error, "The chat history could not be read or written.")
        self._window.notices.show_notice(
            "saving", "error", known.message, known.hint, (Way("Try again", self.refresh_chats, primary=True),)
        )

    def show_streaming(self) -> None:
        """Shows which chats are being answered."""
        session = self.session
        self._window.composer.set_streaming(session is not None and session.pending)
        self._window.sidebar.set_busy(
            {entry.chat_id for entry in self.sessions if entry.pending and entry.chat_id is not None}
        )

    def show_title(self) -> None:
        """Puts the chat's title on the window."""
        title = self.session.title if self.session is not None else ""
        self._window.setWindowTitle(f"{title} – Realm" if title else "Realm")
