"""Messages: what a person does with them, and what the conversations tell of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QGuiApplication

from app.conversation import (
    ActionFailed,
    AnswerFailed,
    AnswerFinished,
    AnswerStarted,
    AnswerText,
    ChatCreated,
    ChatOptions,
    ConversationEvent,
    ConversationLoaded,
    MessageAdded,
    MessagesRemoved,
    MessagesRestored,
    PrefillProgress,
    SavingFailed,
    TitleChanged,
)
from app.desktop.chat_control import ChatControl
from app.desktop.chat_session import PENDING_ID, ChatSession
from app.desktop.desk import Desk
from app.desktop.message_item import MessageData
from app.desktop.model_control import ModelControl
from app.desktop.notices import Way
from engine.api import ContextPolicy, EngineState, StopReason
from engine.errors import RealmError, RequestError

log = logging.getLogger(__name__)


class MessageControl(QObject):
    """Sends, stops, edits and deletes in the open chat, and shows what comes of it."""

    form_wanted = Signal()  # the settings of what form answers have

    def __init__(self, desk: Desk, chats: ChatControl, models: ModelControl, parent: QObject) -> None:
        super().__init__(parent)
        self._desk = desk
        self._window = desk.window
        self._chats = chats
        self._models = models
        self._held: str | None = None  # a message that waits for the model
        self._undo_text = ""
        # What is added to the options of new chats, and how a chat goes on without adapters.
        self.new_chat_options: Callable[[ChatOptions], ChatOptions] = lambda options: options
        self.without_adapters: Callable[[], None] = lambda: None
        self.without_guesses: Callable[[], None] = lambda: None
        self.about_to_ask: Callable[[], None] = lambda: None
        window = desk.window
        window.composer.sent.connect(self.send)
        window.composer.resent.connect(self.resend)
        window.composer.stopped.connect(self.stop)
        window.composer.edit_last.connect(self.edit_last)
        window.transcript.action.connect(self.message_action)
        window.regenerate_wanted.connect(self.regenerate)
        window.copy_answer_wanted.connect(self.copy_answer)
        models.ready.connect(self.send_held)
        models.given_up.connect(self._give_back_held)
        chats.told.connect(self._on_events)

    def send(self, text: str) -> None:
        """Sends a message in the open chat; it waits while the model still loads."""
        session, service = self._chats.session, self._desk.service
        if session is None or service.loading is not None or service.fetching is not None:
            self._held = text
            self._window.notices.show_notice(
                "held", "info", "Your message is sent as soon as the model is ready.", "",
                (Way("Keep it for later", self._give_back_held),),
            )  # fmt: skip
            return
        if service.model is None or service.status.state in (EngineState.EMPTY, EngineState.FAILED):
            self._window.composer.set_text(text)
            self._window.notices.show_notice(
                "no-model",
                "warning",
                "No model is loaded, so there is nobody to answer.",
                "",
                self._models.no_model_ways(),
            )
            return
        self._ask(session, text, lambda: session.conversation.send(text))

    def send_held(self) -> None:
        """Sends the message that waited for the model."""
        if self._held is not None:
            text, self._held = self._held, None
            self._window.notices.dismiss("held")
            self.send(text)

    def _give_back_held(self) -> None:
        if self._held is not None:
            text, self._held = self._held, None
            self._window.notices.dismiss("held")
            if not self._window.composer.text.toPlainText():
                self._window.composer.set_text(text)

    def resend(self, message_id: int, text: str) -> None:
        """Replaces a message of one's own, and what follows, by a new one."""
        session = self._chats.session
        if session is not None and self._can_answer(text):
            self._undo_text = "The earlier messages were replaced"
            self._ask(session, text, lambda: session.conversation.edit_and_resend(message_id, text))

    def regenerate(self) -> None:
        """Answers the last question again."""
        session = self._chats.session
        if session is None or session.pending or session.last_question() is None or not self._can_answer(""):
            return
        self._undo_text = "The earlier answer was replaced"
        self._ask(session, "", session.conversation.regenerate)

    def _can_answer(self, text: str) -> bool:
        if self._desk.service.model is not None:
            return True
        if text:
            self._window.composer.set_text(text)
        self._window.notices.show_notice(
            "no-model", "warning", "No model is loaded, so there is nobody to answer.", "", self._models.no_model_ways()
        )
        return False

    def _ask(self, session: ChatSession, text: str, do: Callable[[], None]) -> None:
        for key in ("answer", "context", "action", "no-model"):
            self._window.notices.dismiss(key)
        self._window.toast.hide()
        self.about_to_ask()
        try:
            do()
        except RealmError as error:
            self._action_failed(error.message, error.hint, text)
            return
        session.pending = True
        self._window.transcript.jump_to_latest()
        self._chats.show_streaming()

    def stop(self) -> None:
        """Ends the answer that streams."""
        if self._chats.session is not None:
            self._chats.session.conversation.stop()

    def edit_last(self) -> None:
        """Edits the last message of one's own."""
        if self._chats.session is not None and not self._chats.session.pending:
            message = self._chats.session.last_question()
            if message is not None:
                self._window.composer.begin_edit(message.id, message.text)

    def copy_answer(self) -> None:
        """Puts the last answer on the clipboard, as markdown."""
        messages = self._chats.session.messages if self._chats.session is not None else []
        message = next((message for message in reversed(messages) if message.role != "user"), None)
        if message is not None:
            QGuiApplication.clipboard().setText(message.text)
            self._window.toast.offer("Answer copied")

    def message_action(self, name: str, message_id: int) -> None:
        """What the buttons below a message do."""
        session = self._chats.session
        message = session.message(message_id) if session is not None else None
        if session is None or message is None:
            return
        if name == "copy":
            QGuiApplication.clipboard().setText(message.text)
        elif session.pending:
            self._window.toast.offer("Wait for the answer, or stop it first", "Stop", self.stop)
        elif name == "edit":
            self._window.composer.begin_edit(message.id, message.text)
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
        session = self._chats.session
        if session is not None:
            self._try("", session.conversation.undo)

    def set_options(self, session: ChatSession, options: ChatOptions) -> None:
        """Has a chat answered in another way from now on."""
        session.options = options
        self._try("", lambda: session.conversation.set_options(options))

    def _try(self, text: str, do: Callable[[], None]) -> None:
        try:
            do()
        except RealmError as error:
            self._action_failed(error.message, error.hint, text)

    def _action_failed(self, sentence: str, hint: str, text: str) -> None:
        if text and not self._window.composer.text.toPlainText():
            self._window.composer.set_text(text)
        self._window.notices.show_notice("action", "error", sentence, hint)

    # What the conversations tell

    def _on_events(self, session: ChatSession, events: Iterable[ConversationEvent]) -> None:
        listed = False
        for event in events:
            if isinstance(event, ChatCreated | TitleChanged | AnswerFinished | AnswerFailed | MessageAdded):
                listed = True
            if isinstance(event, ConversationLoaded) and event.chat is None:
                self._use_default_options(session)
            if isinstance(event, SavingFailed):
                self._window.notices.show_notice("saving", "error", event.sentence, event.hint)
            elif isinstance(event, MessageAdded):
                self._window.notices.dismiss("saving")  # it could be saved
            if session is self._chats.session:
                self._show_event(session, event)
        if session is not self._chats.session and not session.pending:
            self._chats.close_session(session)
        self._chats.show_streaming()
        if listed:
            self._chats.refresh_chats()

    def _use_default_options(self, session: ChatSession) -> None:
        try:
            options = self.new_chat_options(self._desk.preferences.chat_options())
            session.options = options
            session.conversation.set_options(options)
        except RequestError as error:
            log.warning("the stored options were refused: %s", error)

    def _show_event(self, session: ChatSession, event: ConversationEvent) -> None:
        window, transcript = self._window, self._window.transcript
        match event:
            case ConversationLoaded():
                transcript.set_messages([*session.messages])
                window.show_transcript(bool(session.messages))
                window.footer.show_figures(session.figures)
                self._chats.show_title()
            case ChatCreated() | TitleChanged():
                window.sidebar.set_current(session.chat_id)
                self._chats.show_title()
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
                    self._context_full("The context is full, so the answer ends here.", "", session.conversation.go_on)
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
        if self._window.transcript.item(message_id) is None:
            self._window.transcript.add_message(message)
        else:
            self._window.transcript.update_message(message)

    def _offer_undo(self) -> None:
        if self._undo_text:
            text, self._undo_text = self._undo_text, ""
            self._window.toast.offer(text, "Undo", self.undo)

    def _answer_failed(self, event: AnswerFailed) -> None:
        self._desk.service.refresh()
        session = self._chats.session
        if "context" in event.sentence.lower():
            go_on = session.conversation.regenerate if session is not None else lambda: None
            self._context_full(event.sentence, event.hint, go_on)
            return
        ways = [Way("Try again", self.regenerate, primary=True)]
        if "chat template" in event.sentence.lower() and session is not None and not session.options.plain_template:
            ways.insert(0, Way("Answer with a plain template", self._use_plain_template, primary=True))
            ways[1] = Way("Try again", self.regenerate)
        if "adapter" in event.sentence.lower() and session is not None and session.options.adapter_uses():
            ways.insert(0, Way("Answer without adapters", self._answer_without_adapters, primary=True))
            ways[1] = Way("Try again", self.regenerate)
        if any(word in event.sentence for word in ("grammar", "JSON schema")) and self._form_of(session):
            ways.insert(0, Way("Answer in any form", self._answer_in_any_form, primary=True))
            ways[1:] = [Way("Change the form…", self.form_wanted.emit)]
        if "draft model" in event.sentence.lower() and session is not None and session.options.draft is not None:
            ways.insert(0, Way("Answer without guessing", self._answer_without_guesses, primary=True))
            ways[1] = Way("Try again", self.regenerate)
        model = self._desk.service.model
        if model is None:
            ways = list(self._models.no_model_ways())
        elif self._desk.service.status.error is not None and model.device.id != "numpy":
            path = model.path
            ways = [
                Way("Load the model again", lambda: self._models.load_model(path), primary=True),
                Way("Use numpy instead (slower)", lambda: self._desk.service.load(path, "numpy")),
            ]
        self._window.notices.show_notice("answer", "error", event.sentence, event.hint, ways)

    def _answer_without_adapters(self) -> None:
        self.without_adapters()
        self.regenerate()

    @staticmethod
    def _form_of(session: ChatSession | None) -> bool:
        return session is not None and bool(session.options.grammar or session.options.json_schema)

    def _answer_in_any_form(self) -> None:
        session = self._chats.session
        if session is not None:
            self.set_options(session, replace(session.options, grammar=None, json_schema=None))
            self.regenerate()

    def _answer_without_guesses(self) -> None:
        self.without_guesses()
        self.regenerate()

    def _use_plain_template(self) -> None:
        """This chat goes on without the model's own template, which failed."""
        session = self._chats.session
        if session is not None:
            self.set_options(session, replace(session.options, plain_template=True))
            self.regenerate()

    def _context_full(self, sentence: str, hint: str, go_on: Callable[[], None]) -> None:
        session = self._chats.session
        ways: list[Way] = []
        if session is not None:
            policy = session.options.context_policy
            turns = sum(message.role == "user" for message in session.messages)
            if policy is ContextPolicy.STOP and turns > 1:  # a lone turn is never dropped
                do = partial(self._go_on_with, ContextPolicy.DROP_OLDEST, go_on)
                ways.append(Way("Drop the oldest turns and go on", do, primary=True))
            if policy is not ContextPolicy.SHIFT:
                do = partial(self._go_on_with, ContextPolicy.SHIFT, go_on)
                ways.append(Way("Shift and go on", do, primary=not ways))
        ways += [
            Way("Start a new chat", self._chats.new_chat, primary=not ways),
            Way("Change the context length…", self._models.settings_wanted.emit),
        ]
        self._window.notices.show_notice("context", "warning", sentence, hint, ways)

    def _go_on_with(self, policy: ContextPolicy, go_on: Callable[[], None]) -> None:
        """The choice holds for this chat from now on; the settings show it."""
        session = self._chats.session
        if session is not None and not session.pending and self._can_answer(""):
            self.set_options(session, replace(session.options, context_policy=policy))
            self._ask(session, "", go_on)
