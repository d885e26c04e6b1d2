"""What the window does: joins its parts to the chats, the store and the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, QUrl
from PySide6.QtGui import QDesktopServices, QGuiApplication
from PySide6.QtWidgets import QFileDialog

from app.conversation import (
    ActionFailed,
    AnswerFailed,
    AnswerFinished,
    AnswerStarted,
    AnswerText,
    ChatCreated,
    ConversationEvent,
    ConversationLoaded,
    MessageAdded,
    MessagesRemoved,
    MessagesRestored,
    PrefillProgress,
    SavingFailed,
    TitleChanged,
)
from app.desktop.background import Background
from app.desktop.chat_session import PENDING_ID, ChatSession, ConversationLike, Listener
from app.desktop.message_item import MessageData
from app.desktop.model_service import EngineLike, ModelService, as_realm_error, model_name
from app.desktop.notices import Way
from app.desktop.preferences import Preferences
from app.desktop.settings_dialog import SettingsDialog, SettingsValues
from app.desktop.theme import Themes
from app.desktop.window import MainWindow
from app.store import ChatStore, ChatSummary
from engine.api import DeviceInfo, EngineState, ModelInfo, StopReason
from engine.errors import DeviceError, ModelFileError, OutOfMemoryError, RealmError, RequestError, UnsupportedModelError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """How to come by everything outside the window. The functions run on other threads, save open_conversation."""

    open_store: Callable[[], ChatStore]
    open_spare_store: Callable[[], ChatStore]  # one that forgets, for when the history cannot be opened
    make_engine: Callable[[], EngineLike]
    list_devices: Callable[[], Iterable[DeviceInfo]]
    open_conversation: Callable[[EngineLike, ChatStore, int | None, Listener], ConversationLike]
    fetch_starter: Callable[..., Path]
    models_dir: Callable[[], Path]


class Controller(QObject):
    """Owns the sessions of the chats that are open, and answers every signal of the window."""

    def __init__(self, window: MainWindow, themes: Themes, service: ModelService, background: Background,
                 services: Services, model_path: Path | None = None) -> None:  # fmt: skip
        super().__init__(window)
        self.window = window
        self.themes = themes
        self.service = service
        self.background = background
        self.services = services
        self.preferences = Preferences()
        self.store: ChatStore | None = None
        self.session: ChatSession | None = None
        self.sessions: list[ChatSession] = []
        self._wanted_model = model_path
        self._held: str | None = None  # a message that waits for the model
        self._undo_text = ""
        self._searching = ""
        self._dialog: SettingsDialog | None = None
        self._wire()

    def _wire(self) -> None:
        window, service = self.window, self.service
        window.composer.sent.connect(self.send)
        window.composer.resent.connect(self.resend)
        window.composer.stopped.connect(self.stop)
        window.composer.edit_last.connect(self.edit_last)
        window.transcript.action.connect(self.message_action)
        window.regenerate_wanted.connect(self.regenerate)
        window.copy_answer_wanted.connect(self.copy_answer)
        window.new_chat_wanted.connect(self.new_chat)
        window.open_file_wanted.connect(self.choose_file)
        window.settings_wanted.connect(self.open_settings)
        window.file_dropped.connect(lambda name: self.load_model(Path(name)))
        sidebar = window.sidebar
        sidebar.new_chat.connect(self.new_chat)
        sidebar.chat_chosen.connect(self.open_chat)
        sidebar.chat_renamed.connect(self.rename_chat)
        sidebar.chat_deleted.connect(self.delete_chat)
        sidebar.search_changed.connect(self.search)
        welcome, popup = window.welcome, window.popup
        for part in (welcome, popup):
            part.fetch_wanted.connect(self.fetch_starter)
            part.open_wanted.connect(self.choose_file)
            part.cancel_wanted.connect(self.cancel_work)
            part.load_wanted.connect(self.load_model)
        welcome.suggested.connect(window.composer.set_text)
        popup.unload_wanted.connect(service.unload)
        popup.device_chosen.connect(self.choose_device)
        service.loaded.connect(self._model_loaded)
        service.load_failed.connect(self._load_failed)
        service.fetch_failed.connect(self._fetch_failed)
        service.changed.connect(self._show_placeholder)

    # Starting and ending

    def start(self) -> None:
        """Opens history and engine on other threads; the window is there in the meantime."""
        self._open_store(self.services.open_store)
        self.background.run_long(self.services.make_engine, self._engine_ready, self._engine_failed)

    def _open_store(self, open_store: Callable[[], ChatStore]) -> None:
        def work() -> tuple[ChatStore, dict[str, Any], list[ChatSummary]]:
            store = open_store()
            return store, store.settings.all(), store.chats()

        self.background.run(work, self._store_ready, self._store_failed)

    def _store_ready(self, opened: tuple[ChatStore, dict[str, Any], list[ChatSummary]]) -> None:
        self.store, stored, chats = opened
        store = self.store
        self.preferences.fill(stored)
        self.preferences.save = lambda key, value: self.background.run(
            lambda: store.settings.set(key, value), None, self._saving_failed
        )
        preferences = self.preferences
        self.themes.choose(preferences.text("theme", "system"))
        self.window.restore_frame(preferences.text("window_frame"))
        self.window.set_sidebar_wanted(preferences.flag("sidebar", True))
        self.service.recent = preferences.texts("recent_models")
        self.service.device = preferences.text("device", "auto")
        self.service.context_length = preferences.number("context_length")
        self.service.find_models(self.services.models_dir())
        self.window.sidebar.set_chats(chats)
        for number, sentence in enumerate(store.notices):
            self.window.notices.show_notice(f"store-{number}", "info", sentence)
        self._ready()

    def _store_failed(self, error: Exception) -> None:
        known = as_realm_error(error, "The chat history could not be opened.")
        self.window.notices.show_notice(
            "store", "error", known.message, known.hint,
            (
                Way("Try again", lambda: self._open_store(self.services.open_store), primary=True),
                Way("Go on without saving", lambda: self._open_store(self.services.open_spare_store)),
            ),
        )  # fmt: skip

    def _engine_ready(self, engine: EngineLike) -> None:
        self.service.attach(engine)
        self.service.find_devices(self.services.list_devices)
        self._ready()

    def _engine_failed(self, error: Exception) -> None:
        known = as_realm_error(error, "The engine could not be started.")
        self.window.notices.show_notice(
            "engine", "error", known.message, known.hint,
            (Way("Try again", lambda: self.background.run_long(
                self.services.make_engine, self._engine_ready, self._engine_failed), primary=True),),
        )  # fmt: skip

    def _ready(self) -> None:
        """Both are there: a chat can begin, and the model used last is loaded."""
        if self.store is None or self.service.engine is None or self.session is not None:
            return
        self.new_chat()
        path = self._wanted_model or self._last_model()
        if path is None:
            self.background.run_long(self._starter_on_disk, self._load_if_any, lambda _error: self._load_if_any(None))
        else:
            self._load_if_any(path)

    def _last_model(self) -> Path | None:
        name = self.preferences.text("last_model")
        return Path(name) if name else None

    def _starter_on_disk(self) -> Path | None:
        return next(iter(sorted(self.services.models_dir().glob("*.gguf"))), None)

    def _load_if_any(self, path: Path | None) -> None:
        self.window.welcome.starting = False
        if path is not None and (self._wanted_model is not None or path.is_file()):
            self.load_model(path)
        self.window.welcome.refresh()
        self.window.composer.text.setFocus()

    def shut_down(self) -> None:
        """Ends everything in order; answers that stream are stored as they are."""
        self.preferences.set("window_frame", self.window.frame())
        self.preferences.set("sidebar", self.window.sidebar_wanted)
        self.service.cancel_fetch()
        self.service.cancel_load()
        for session in self.sessions:
            session.conversation.close()
        self.background.close()
        if self.service.engine is not None:
            self.service.engine.close()
        if self.store is not None:
            self.store.close()

    # Models

    def load_model(self, path: Path) -> None:
        """Loads a model file with the device and context length that are set."""
        self._dismiss_model_notices()
        self.service.load(path)

    def _dismiss_model_notices(self) -> None:
        for key in ("model", "fetch", "no-model", "model-notes"):
            self.window.notices.dismiss(key)

    def choose_file(self) -> None:
        """Lets the person choose a model file; the dialog leaves the window alive."""
        dialog = QFileDialog(self.window, "Open a model file")
        dialog.setNameFilters(["GGUF models (*.gguf)", "All files (*)"])
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        if self.service.recent:
            dialog.setDirectory(str(Path(self.service.recent[0]).parent))
        dialog.fileSelected.connect(lambda name: self.load_model(Path(name)))
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def fetch_starter(self) -> None:
        """Fetches the starter model and loads it."""
        self._dismiss_model_notices()
        self.service.fetch_starter(self.services.fetch_starter)

    def cancel_work(self) -> None:
        """Gives up the download or the load that runs."""
        self._give_back_held()
        if self.service.fetching is not None:
            self.service.cancel_fetch()
        else:
            self.service.cancel_load()

    def choose_device(self, device: str) -> None:
        """Sets the device; a loaded model moves there."""
        self.service.device = device
        self.preferences.set("device", device)
        self._reload()

    def _reload(self) -> None:
        if self.service.model is not None:
            self.load_model(self.service.model.path)
        self.service.changed.emit()

    def _model_loaded(self, model: ModelInfo) -> None:
        self.preferences.set("last_model", str(model.path))
        self.preferences.set("recent_models", self.service.recent)
        self._dismiss_model_notices()
        if model.notes:
            self.window.notices.show_notice("model-notes", "info", model.notes[0], " ".join(model.notes[1:]))
        if self._held is not None:
            text, self._held = self._held, None
            self.window.notices.dismiss("held")
            self.send(text)

    def _load_failed(self, error: RealmError, path: Path) -> None:
        self._give_back_held()
        self._dismiss_model_notices()
        ways = [Way("Open another model…", self.choose_file)]
        if isinstance(error, DeviceError) and not isinstance(error, OutOfMemoryError):
            if self.service.device != "numpy":
                on_numpy = Way("Use numpy instead (slower)", lambda: self.service.load(path, "numpy"), primary=True)
                ways.insert(0, on_numpy)
            ways.append(Way("Try again", lambda: self.load_model(path)))
        elif isinstance(error, OutOfMemoryError):
            ways.append(Way("Change the context length…", self.open_settings))
        elif isinstance(error, ModelFileError | UnsupportedModelError) or not path.is_file():
            ways[0] = Way("Open another model…", self.choose_file, primary=True)
            ways.append(Way("Fetch the starter model", self.fetch_starter))
        else:
            ways.insert(0, Way("Try again", lambda: self.load_model(path), primary=True))
        self.window.notices.show_notice("model", "error", error.message, error.hint, ways)

    def _fetch_failed(self, error: RealmError) -> None:
        self._give_back_held()
        self.window.notices.show_notice(
            "fetch", "error", error.message, error.hint,
            (Way("Try again", self.fetch_starter, primary=True), Way("Open a model file…", self.choose_file)),
        )  # fmt: skip

    def _show_placeholder(self) -> None:
        model = self.service.model
        self.window.composer.set_placeholder(
            f"Message {model_name(model.path)}" if model is not None else "Message Realm"
        )

    def _no_model_ways(self) -> tuple[Way, ...]:
        ways = [Way("Open a model file…", self.choose_file)]
        known = self.service.models
        if known:
            ways.insert(0, Way(f"Load {known[0].name}", lambda: self.load_model(known[0].path), primary=True))
        else:
            ways.insert(0, Way("Fetch the starter model", self.fetch_starter, primary=True))
        return tuple(ways)

    # Chats

    def new_chat(self) -> None:
        """Opens an empty chat; it is stored when its first message is sent."""
        self.window.close_overlay()
        if self.session is not None and self.session.chat_id is None and not self.session.messages:
            self.window.composer.text.setFocus()
            return
        self._open_session(None)

    def open_chat(self, chat_id: int) -> None:
        """Shows a chat."""
        self.window.close_overlay()
        if self.session is not None and self.session.chat_id == chat_id:
            return
        running = next((session for session in self.sessions if session.chat_id == chat_id), None)
        if running is not None:
            self._show_session(running)
        else:
            self._open_session(chat_id)

    def _open_session(self, chat_id: int | None) -> None:
        engine, store = self.service.engine, self.store
        if engine is None or store is None:
            return
        session = ChatSession(
            chat_id, lambda wanted, listen: self.services.open_conversation(engine, store, wanted, listen)
        )
        session.events.connect(self._on_events)
        self.sessions.append(session)
        self._show_session(session)

    def _show_session(self, session: ChatSession) -> None:
        old = self.session
        self.session = session
        if old is not None and old is not session and not old.pending:
            self._close_session(old)
        window = self.window
        window.composer.cancel_edit()
        for key in ("answer", "context", "action"):
            window.notices.dismiss(key)
        window.toast.hide()
        window.transcript.set_messages([*session.messages])
        # A stored chat is empty only until it has been read; the welcome page must not flash meanwhile.
        window.show_transcript(bool(session.messages) or session.chat_id is not None)
        window.footer.show_figures(session.figures)
        window.sidebar.set_current(session.chat_id)
        self._show_title()
        self._show_streaming()
        window.composer.text.setFocus()

    def _close_session(self, session: ChatSession) -> None:
        if session in self.sessions:
            self.sessions.remove(session)
        session.events.disconnect(self._on_events)
        conversation = session.conversation
        self.background.run_long(conversation.close)
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
        self.window.toast.offer("Chat deleted", "Undo", lambda: self._undelete(chat_id))

    def _undelete(self, chat_id: int) -> None:
        self._with_store(lambda store: store.undelete_chat(chat_id))
        self.background.run(lambda: None, lambda _none: self.open_chat(chat_id))

    def search(self, text: str) -> None:
        """Shows the chats that contain a text; all of them for an empty one."""
        self._searching = text
        self._refresh_chats()

    def _with_store(self, do: Callable[[ChatStore], object]) -> None:
        store = self.store
        if store is not None:
            self.background.run(lambda: do(store), lambda _none: self._refresh_chats(), self._saving_failed)

    def _refresh_chats(self) -> None:
        store, wanted = self.store, self._searching
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
                self.window.sidebar.model.snippets = snippets
                self.window.sidebar.set_chats(chats, searching=bool(wanted))

        self.background.run(work, show, self._saving_failed)

    def _saving_failed(self, error: Exception) -> None:
        known = as_realm_error(error, "The chat history could not be read or written.")
        self.window.notices.show_notice(
            "saving", "error", known.message, known.hint, (Way("Try again", self._refresh_chats, primary=True),)
        )

    # Messages

    def send(self, text: str) -> None:
        """Sends a message in the open chat; it waits while the model still loads."""
        session, service = self.session, self.service
        if session is None or service.loading is not None or service.fetching is not None:
            self._held = text
            self.window.notices.show_notice(
                "held", "info", "Your message is sent as soon as the model is ready.", "",
                (Way("Keep it for later", self._give_back_held),),
            )  # fmt: skip
            return
        if service.model is None or service.status.state in (EngineState.EMPTY, EngineState.FAILED):
            self.window.composer.set_text(text)
            self.window.notices.show_notice(
                "no-model", "warning", "No model is loaded, so there is nobody to answer.", "", self._no_model_ways()
            )
            return
        self._ask(session, text, lambda: session.conversation.send(text))

    def _give_back_held(self) -> None:
        if self._held is not None:
            text, self._held = self._held, None
            self.window.notices.dismiss("held")
            if not self.window.composer.text.toPlainText():
                self.window.composer.set_text(text)

    def resend(self, message_id: int, text: str) -> None:
        """Replaces a message of one's own, and what follows, by a new one."""
        session = self.session
        if session is not None and self._can_answer(text):
            self._undo_text = "The earlier messages were replaced"
            self._ask(session, text, lambda: session.conversation.edit_and_resend(message_id, text))

    def regenerate(self) -> None:
        """Answers the last question again."""
        session = self.session
        if session is None or session.pending or session.last_question() is None or not self._can_answer(""):
            return
        self._undo_text = "The earlier answer was replaced"
        self._ask(session, "", session.conversation.regenerate)

    def _can_answer(self, text: str) -> bool:
        if self.service.model is not None:
            return True
        if text:
            self.window.composer.set_text(text)
        self.window.notices.show_notice(
            "no-model", "warning", "No model is loaded, so there is nobody to answer.", "", self._no_model_ways()
        )
        return False

    def _ask(self, session: ChatSession, text: str, do: Callable[[], None]) -> None:
        for key in ("answer", "context", "action", "no-model"):
            self.window.notices.dismiss(key)
        self.window.toast.hide()
        try:
            do()
        except RealmError as error:
            self._action_failed(error.message, error.hint, text)
            return
        session.pending = True
        self.window.transcript.jump_to_latest()
        self._show_streaming()

    def stop(self) -> None:
        """Ends the answer that streams."""
        if self.session is not None:
            self.session.conversation.stop()

    def edit_last(self) -> None:
        """Edits the last message of one's own."""
        if self.session is not None and not self.session.pending:
            message = self.session.last_question()
            if message is not None:
                self.window.composer.begin_edit(message.id, message.text)

    def copy_answer(self) -> None:
        """Puts the last answer on the clipboard, as markdown."""
        messages = self.session.messages if self.session is not None else []
        message = next((message for message in reversed(messages) if message.role != "user"), None)
        if message is not None:
            QGuiApplication.clipboard().setText(message.text)
            self.window.toast.offer("Answer copied")

    def message_action(self, name: str, message_id: int) -> None:
        """What the buttons below a message do."""
        session = self.session
        message = session.message(message_id) if session is not None else None
        if session is None or message is None:
            return
        if name == "copy":
            QGuiApplication.clipboard().setText(message.text)
        elif session.pending:
            self.window.toast.offer("Wait for the answer, or stop it first", "Stop", self.stop)
        elif name == "edit":
            self.window.composer.begin_edit(message.id, message.text)
        elif name == "regenerate":
            self._regenerate_at(session, message)
        elif name == "delete":
            self._undo_text = "Message deleted"
            self._try("", lambda: session.conversation.delete_message(message_id))

    def _regenerate_at(self, session: ChatSession, message: MessageData) -> None:
        place = session.messages.index(message)
        question = next((entry for entry in reversed(session.messages[:place]) if entry.role == "user"), None)
        if question is None or question is session.last_question():
            self.regenerate()
        else:  # an answer further up: its question is asked again in place of all that follows
            self.resend(question.id, question.text)

    def undo(self) -> None:
        """Takes back what the toast told of."""
        session = self.session
        if session is not None:
            self._try("", session.conversation.undo)

    def _try(self, text: str, do: Callable[[], None]) -> None:
        try:
            do()
        except RealmError as error:
            self._action_failed(error.message, error.hint, text)

    def _action_failed(self, sentence: str, hint: str, text: str) -> None:
        if text and not self.window.composer.text.toPlainText():
            self.window.composer.set_text(text)
        self.window.notices.show_notice("action", "error", sentence, hint)

    # What the conversations tell

    def _on_events(self, session: ChatSession, events: Iterable[ConversationEvent]) -> None:
        listed = False
        for event in events:
            if isinstance(event, ChatCreated | TitleChanged | AnswerFinished | AnswerFailed | MessageAdded):
                listed = True
            if isinstance(event, ConversationLoaded) and event.chat is None:
                self._use_default_options(session)
            if isinstance(event, SavingFailed):
                self.window.notices.show_notice("saving", "error", event.sentence, event.hint)
            if session is self.session:
                self._show_event(session, event)
        if session is not self.session and not session.pending:
            self._close_session(session)
        self._show_streaming()
        if listed:
            self._refresh_chats()

    def _use_default_options(self, session: ChatSession) -> None:
        try:
            session.conversation.set_options(self.preferences.chat_options())
        except RequestError as error:
            log.warning("the stored options were refused: %s", error)

    def _show_event(self, session: ChatSession, event: ConversationEvent) -> None:
        window, transcript = self.window, self.window.transcript
        match event:
            case ConversationLoaded():
                transcript.set_messages([*session.messages])
                window.show_transcript(bool(session.messages))
                window.footer.show_figures(session.figures)
                self._show_title()
            case ChatCreated() | TitleChanged():
                window.sidebar.set_current(session.chat_id)
                self._show_title()
            case MessageAdded():
                window.show_transcript(True)
                self._put(session, event.message.id)
                if event.message.role == "user" and session.pending:
                    transcript.add_message(
                        MessageData(PENDING_ID, "assistant", "", streaming=True, activity="Waiting for the engine")
                    )
            case AnswerStarted():
                transcript.remove_messages([PENDING_ID])
                self._put(session, event.message.id)
            case PrefillProgress():
                self._put(session, event.message_id)
            case AnswerText():
                # The session already holds the text of all events of this batch; the transcript takes what it lacks.
                self._put(session, event.message_id)
                window.footer.show_figures(event.figures)
            case AnswerFinished():
                transcript.remove_messages([PENDING_ID])
                self._put(session, event.message.id)
                window.footer.show_figures(session.figures)
                if event.reason is StopReason.CONTEXT:
                    self._context_full("The context is full, so the answer ends here.")
                self._offer_undo()
            case AnswerFailed():
                transcript.remove_messages([PENDING_ID])
                if event.message is not None:
                    self._put(session, event.message.id)
                self._answer_failed(event)
            case MessagesRemoved():
                transcript.remove_messages(event.message_ids)
                window.show_transcript(bool(session.messages))
                if event.undoable and not session.pending:
                    self._offer_undo()
            case MessagesRestored():
                window.show_transcript(True)
                for stored in event.messages:
                    self._put(session, stored.id)
            case ActionFailed():
                transcript.remove_messages([PENDING_ID])
                self._action_failed(event.sentence, event.hint, event.text)
            case _:
                pass

    def _put(self, session: ChatSession, message_id: int) -> None:
        """Brings one message of the transcript up to date with the session."""
        message = session.message(message_id)
        if message is None:
            return
        if self.window.transcript.item(message_id) is None:
            self.window.transcript.add_message(message)
        else:
            self.window.transcript.update_message(message)

    def _offer_undo(self) -> None:
        if self._undo_text:
            text, self._undo_text = self._undo_text, ""
            self.window.toast.offer(text, "Undo", self.undo)

    def _answer_failed(self, event: AnswerFailed) -> None:
        self.service.refresh()
        if "context" in event.sentence.lower():
            self._context_full(event.sentence, event.hint)
            return
        ways = [Way("Try again", self.regenerate, primary=True)]
        session = self.session
        if "chat template" in event.sentence.lower() and session is not None and not session.options.plain_template:
            ways.insert(0, Way("Answer with a plain template", self._use_plain_template, primary=True))
            ways[1] = Way("Try again", self.regenerate)
        model = self.service.model
        if model is None:
            ways = list(self._no_model_ways())
        elif self.service.status.error is not None and model.device.id != "numpy":
            path = model.path
            ways = [
                Way("Load the model again", lambda: self.load_model(path), primary=True),
                Way("Use numpy instead (slower)", lambda: self.service.load(path, "numpy")),
            ]
        self.window.notices.show_notice("answer", "error", event.sentence, event.hint, ways)

    def _use_plain_template(self) -> None:
        """This chat goes on without the model's own template, which failed."""
        session = self.session
        if session is not None:
            options = replace(session.options, plain_template=True)
            session.options = options
            self._try("", lambda: session.conversation.set_options(options))
            self.regenerate()

    def _context_full(self, sentence: str, hint: str = "") -> None:
        self.window.notices.show_notice(
            "context", "warning", sentence, hint,
            (
                Way("Start a new chat", self.new_chat, primary=True),
                Way("Change the context length…", self.open_settings),
            ),
        )  # fmt: skip

    def _show_streaming(self) -> None:
        session = self.session
        self.window.composer.set_streaming(session is not None and session.pending)
        self.window.sidebar.set_busy(
            {entry.chat_id for entry in self.sessions if entry.pending and entry.chat_id is not None}
        )

    def _show_title(self) -> None:
        title = self.session.title if self.session is not None else ""
        self.window.setWindowTitle(f"{title} – Realm" if title else "Realm")

    # Settings

    def open_settings(self) -> None:
        """Opens the settings; the window stays usable."""
        if self._dialog is not None:
            self._dialog.raise_()
            self._dialog.activateWindow()
            return
        options = self.session.options if self.session is not None else self.preferences.chat_options()
        values = SettingsValues(self.themes.choice, self.service.device, self.service.context_length, options)
        dialog = SettingsDialog(self.themes, values, self.service.devices, self.window)
        dialog.saved.connect(self.apply_settings)
        dialog.finished.connect(self._settings_closed)
        self._dialog = dialog
        dialog.show()

    def _settings_closed(self) -> None:
        if self._dialog is not None:
            self._dialog.deleteLater()
            self._dialog = None

    def apply_settings(self, values: SettingsValues) -> None:
        """Makes the settings hold: at once, for the open chat, and for what comes."""
        self.themes.choose(values.theme)
        self.preferences.set("theme", values.theme)
        self.preferences.set_chat_options(values.options)
        session = self.session
        if session is not None and values.options != session.options:
            session.options = values.options
            self._try("", lambda: session.conversation.set_options(values.options))
        moved = (values.device, values.context_length) != (self.service.device, self.service.context_length)
        self.service.device, self.service.context_length = values.device, values.context_length
        self.preferences.set("device", values.device)
        self.preferences.set("context_length", values.context_length)
        if moved:
            self._reload()

    def show_unexpected(self, summary: str, log_file: Path) -> None:
        """A fault of the program itself: a sentence, and where the details are."""

        def show_log() -> None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(log_file)))

        QTimer.singleShot(0, self, lambda: self.window.notices.show_notice(
            "unexpected", "error", f"Something went wrong in Realm itself: {summary}",
            f"You can go on. The details are in {log_file}.", (Way("Show the details", show_log),),
        ))  # fmt: skip
