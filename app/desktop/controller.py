"""What the window does: starts and ends everything, and holds the parts that answer it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, QUrl
from PySide6.QtGui import QDesktopServices

from app.desktop.adapter_control import AdapterControl
from app.desktop.chat_control import ChatControl
from app.desktop.chat_session import ChatSession
from app.desktop.desk import Desk
from app.desktop.draft_control import DraftControl
from app.desktop.message_control import MessageControl
from app.desktop.model_control import ModelControl
from app.desktop.model_service import EngineLike, ModelService, as_realm_error
from app.desktop.notices import Way
from app.desktop.settings_control import SettingsControl
from app.store import ChatStore, ChatSummary


class Controller(QObject):
    """Owns history and engine from start to end. `models`, `chats`, `messages`, `adapters`, `drafts` and
    `settings` do the rest."""

    def __init__(self, desk: Desk, model_path: Path | None = None) -> None:
        super().__init__(desk.window)
        self.desk = desk
        self.models = ModelControl(desk, self)
        self.chats = ChatControl(desk, self)
        self.messages = MessageControl(desk, self.chats, self.models, self)
        self.adapters = AdapterControl(desk, self.chats, self.models, self.messages, self)
        self.drafts = DraftControl(desk, self.chats, self.messages, self)
        self.settings = SettingsControl(desk, self.chats, self.models, self.messages, self.adapters, self)
        self._wanted_model = model_path
        desk.window.welcome.suggested.connect(desk.window.composer.set_text)
        desk.window.welcome.focus_left.connect(desk.window.composer.text.setFocus)

    @property
    def service(self) -> ModelService:
        return self.desk.service

    @property
    def session(self) -> ChatSession | None:
        """The chat in sight."""
        return self.chats.session

    # Starting and ending

    def start(self) -> None:
        """Opens history and engine on other threads; the window is there in the meantime."""
        self._open_store(self.desk.services.open_store)
        self.desk.background.run_long(self.desk.services.make_engine, self._engine_ready, self._engine_failed)

    def _open_store(self, open_store: Callable[[], ChatStore]) -> None:
        def work() -> tuple[ChatStore, dict[str, Any], list[ChatSummary]]:
            store = open_store()
            return store, store.settings.all(), store.chats()

        self.desk.background.run(work, self._store_ready, self._store_failed)

    def _store_ready(self, opened: tuple[ChatStore, dict[str, Any], list[ChatSummary]]) -> None:
        store, stored, chats = opened
        self.desk.store = store
        self.desk.preferences.fill(stored)
        self.desk.preferences.save = lambda key, value: self.desk.background.run(
            lambda: store.settings.set(key, value), None, self.chats.saving_failed
        )
        preferences = self.desk.preferences
        self.desk.themes.choose(preferences.text("theme", "system"))
        self.desk.window.restore_frame(preferences.text("window_frame"))
        self.desk.window.set_sidebar_wanted(preferences.flag("sidebar", True))
        self.service.recent = preferences.texts("recent_models")
        self.service.device = preferences.text("device", "auto")
        self.service.context_length = preferences.number("context_length")
        self.service.find_models(self.desk.services.models_dir())
        self.desk.window.sidebar.set_chats(chats)
        for number, sentence in enumerate(store.notices):
            self.desk.window.notices.show_notice(f"store-{number}", "info", sentence)
        self._ready()

    def _store_failed(self, error: Exception) -> None:
        known = as_realm_error(error, "The chat history could not be opened.")
        self.desk.window.notices.show_notice(
            "store", "error", known.message, known.hint,
            (
                Way("Try again", lambda: self._open_store(self.desk.services.open_store), primary=True),
                Way("Go on without saving", lambda: self._open_store(self.desk.services.open_spare_store)),
            ),
        )  # fmt: skip

    def _engine_ready(self, engine: EngineLike) -> None:
        self.service.attach(engine)
        self.service.find_devices(self.desk.services.list_devices)
        self._ready()

    def _engine_failed(self, error: Exception) -> None:
        known = as_realm_error(error, "The engine could not be started.")
        self.desk.window.notices.show_notice(
            "engine", "error", known.message, known.hint,
            (Way("Try again", lambda: self.desk.background.run_long(
                self.desk.services.make_engine, self._engine_ready, self._engine_failed), primary=True),),
        )  # fmt: skip

    def _ready(self) -> None:
        """Both are there: a chat can begin, and the model used last is loaded."""
        if self.desk.store is None or self.service.engine is None or self.session is not None:
            return
        self.chats.new_chat()
        path = self._wanted_model or self._last_model()
        if path is None:
            self.desk.background.run_long(
                self._starter_on_disk, self._load_if_any, lambda _error: self._load_if_any(None)
            )
        else:
            self._load_if_any(path)

    def _last_model(self) -> Path | None:
        name = self.desk.preferences.text("last_model")
        return Path(name) if name else None

    def _starter_on_disk(self) -> Path | None:
        return next(iter(sorted(self.desk.services.models_dir().glob("*.gguf"))), None)

    def _load_if_any(self, path: Path | None) -> None:
        self.desk.window.welcome.starting = False
        if path is not None and (self._wanted_model is not None or path.is_file()):
            self.models.load_model(path)
        self.desk.window.welcome.refresh()
        self.desk.window.composer.text.setFocus()

    def shut_down(self) -> None:
        """Ends everything in order; answers that stream are stored as they are."""
        self.desk.preferences.set("window_frame", self.desk.window.frame())
        self.desk.preferences.set("sidebar", self.desk.window.sidebar_wanted)
        self.service.cancel_fetch()
        self.service.cancel_load()
        self.drafts.drafts.cancel_trial()
        for session in self.chats.sessions:
            session.conversation.close()
        self.desk.background.close()
        if self.service.engine is not None:
            self.service.engine.close()
        if self.desk.store is not None:
            self.desk.store.close()

    def show_unexpected(self, summary: str, log_file: Path) -> None:
        """A fault of the program itself: a sentence, and where the details are."""

        def show_log() -> None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(log_file)))

        QTimer.singleShot(0, self, lambda: self.desk.window.notices.show_notice(
            "unexpected", "error", f"Something went wrong in Realm itself: {summary}",
            f"You can go on. The details are in {log_file}.", (Way("Show the details", show_log),),
        ))  # fmt: skip
