"""One chat as the window sees it: a Conversation, its events on the window's thread, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol

from PySide6.QtCore import QObject, Qt, Signal

from app.conversation import (
    ActionFailed,
    AdaptersInForce,
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
    OptionsChanged,
    PrefillProgress,
    TitleChanged,
)
from app.conversation.chat import stored_drafted
from app.desktop.footer import answer_line
from app.desktop.message_item import MessageData
from app.store import MessageState, StoredMessage
from engine.api import AdapterUse, Figures, StopReason

PENDING_ID = 2**62
"""The id of the placeholder that stands for an answer the engine has not begun."""

Listener = Callable[[Sequence[ConversationEvent]], None]


class ConversationLike(Protocol):
    """What the window needs of app.conversation.Conversation."""

    @property
    def chat_id(self) -> int | None: ...
    @property
    def busy(self) -> bool: ...
    @property
    def options(self) -> ChatOptions: ...
    def send(self, text: str) -> None: ...
    def regenerate(self) -> None: ...
    def go_on(self) -> None: ...
    def edit_and_resend(self, message_id: int, text: str) -> None: ...
    def stop(self) -> None: ...
    def delete_message(self, message_id: int) -> None: ...
    def undo(self) -> None: ...
    def rename(self, title: str) -> None: ...
    def set_options(self, options: ChatOptions) -> None: ...
    def close(self, timeout: float = 5.0) -> None: ...


class ChatSession(QObject):
    """Holds the messages of one chat and keeps them up to date, whether the window shows the chat or not."""

    events = Signal(object, object)  # this session, and a tuple of ConversationEvents already applied
    _arrived = Signal(object, object)

    def __init__(
        self, chat_id: int | None, open_conversation: Callable[[int | None, Listener], ConversationLike]
    ) -> None:
        super().__init__()
        self.chat_id = chat_id
        self.title = ""
        self.loaded = False
        self.messages: list[MessageData] = []
        self.figures: Figures | None = None
        self.options = ChatOptions()
        self.in_force: tuple[AdapterUse, ...] = ()  # what the answer that runs is written with
        self.pending = False  # a question is asked and its answer has not ended
        self._arrived.connect(self._apply, Qt.ConnectionType.QueuedConnection)
        self.conversation = open_conversation(chat_id, self._listen)

    def _listen(self, batch: Sequence[ConversationEvent]) -> None:
        """Called on the conversation's thread, which makes what takes long with a thousand messages."""
        loaded = next((event for event in batch if isinstance(event, ConversationLoaded)), None)
        messages = [message_data(stored) for stored in loaded.messages if stored.role != "system"] if loaded else []
        try:
            self._arrived.emit(tuple(batch), messages)
        except RuntimeError:
            return  # the window has closed in the meantime

    @property
    def streaming(self) -> bool:
        """Whether an answer is on its way."""
        return self.pending

    def message(self, message_id: int) -> MessageData | None:
        """The message of an id, or None."""
        return next((message for message in reversed(self.messages) if message.id == message_id), None)

    def last_question(self) -> MessageData | None:
        """The user's last message."""
        return next((message for message in reversed(self.messages) if message.role == "user"), None)

    def _apply(self, batch: Sequence[ConversationEvent], messages: list[MessageData]) -> None:
        for event in batch:
            if isinstance(event, ConversationLoaded):
                self.messages = messages
            self._apply_one(event)
        self.events.emit(self, batch)

    def _apply_one(self, event: ConversationEvent) -> None:
        match event:
            case ConversationLoaded():
                self.loaded = True
                self.options = event.options
                if event.chat is not None:
                    self.chat_id, self.title = event.chat.id, event.chat.title
                self.figures = next(
                    (stored_figures(m.figures) for m in reversed(event.messages) if m.figures is not None), None
                )
            case ChatCreated():
                self.chat_id, self.title = event.chat.id, event.chat.title
            case TitleChanged():
                self.title = event.title
            case OptionsChanged():
                self.options = event.options
            case MessageAdded():
                self._put(message_data(event.message))
            case MessagesRemoved():
                self.messages = [message for message in self.messages if message.id not in event.message_ids]
            case MessagesRestored():
                for stored in event.messages:
                    self._put(message_data(stored))
            case AnswerStarted():
                data = message_data(event.message)
                data.streaming = True
                data.activity = "Reading the prompt"
                self._put(data)
                self.pending = True
                self.in_force = ()
            case AdaptersInForce():
                self.in_force = event.adapters
            case PrefillProgress():
                message = self.message(event.message_id)
                if message is not None and event.total:
                    message.activity = f"Reading the prompt, {event.done / event.total:.0%}"
            case AnswerText():
                message = self.message(event.message_id)
                if message is not None:
                    message.text += event.text
                    message.activity = ""
                    message.drafted = event.drafted
                self.figures = event.figures
            case AnswerFinished():
                data = message_data(event.message, event.figures)
                if event.reason is StopReason.LENGTH:
                    data.note = "The answer reached the length set in the settings."
                elif event.reason is StopReason.CONTEXT:
                    data.note = "The answer ends here because the context is full."
                self._put(data)
                self.figures = event.figures or self.figures
                self.pending = False
            case AnswerFailed():
                if event.message is not None:
                    data = message_data(event.message)
                    data.note = "The answer broke off here." if data.text else "There is no answer."
                    self._put(data)  # the sentence itself stands in a notice, with a way on
                self.pending = False
            case ActionFailed():
                if event.action in ("send", "regenerate", "go_on", "edit_and_resend"):
                    self.pending = False
            case _:
                pass

    def _put(self, data: MessageData) -> None:
        place = len(self.messages)
        while place > 0 and self.messages[place - 1].id >= data.id:
            place -= 1
        if place < len(self.messages) and self.messages[place].id == data.id:
            self.messages[place] = data
        else:
            self.messages.insert(place, data)


def stored_figures(values: Mapping[str, Any] | None) -> Figures | None:
    """Figures out of what the store keeps of them; None when there is nothing usable."""
    if not values:
        return None
    names = {entry.name for entry in fields(Figures)}
    try:
        return Figures(**{name: value for name, value in values.items() if name in names})
    except TypeError:
        return None


def message_data(stored: StoredMessage, figures: Figures | None = None) -> MessageData:
    """What the transcript shows of a stored message."""
    data = MessageData(stored.id, stored.role, stored.content)
    match stored.state:
        case MessageState.STREAMING:
            data.streaming = True
        case MessageState.CANCELLED:
            data.note = "Stopped."
        case MessageState.INTERRUPTED:
            data.note = "This answer was cut short."
        case MessageState.FAILED:
            data.note = stored.error or "This answer failed."
            data.problem = True
        case MessageState.COMPLETE if stored.role == "assistant" and not stored.content:
            data.note = "The answer is empty."
        case _:
            pass
    known = figures or stored_figures(stored.figures)
    data.drafted = stored_drafted(stored.figures)
    if known is not None:
        data.figures = answer_line(known)
    return data
