"""What a conversation tells its listener. Plain values; they come in batches, on the conversation's own thread."""

from __future__ import annotations

from dataclasses import dataclass

from app.conversation.options import ChatOptions
from app.store.values import ChatSummary, StoredMessage
from engine.api import AdapterUse, Figures, StopReason


@dataclass(frozen=True)
class ConversationLoaded:
    """The first event. `chat` is None for a chat that does not exist until its first message is sent."""

    chat: ChatSummary | None
    messages: tuple[StoredMessage, ...]
    options: ChatOptions


@dataclass(frozen=True)
class ChatCreated:
    chat: ChatSummary


@dataclass(frozen=True)
class TitleChanged:
    chat_id: int
    title: str


@dataclass(frozen=True)
class OptionsChanged:
    options: ChatOptions


@dataclass(frozen=True)
class MessageAdded:
    """A message is on disk (the user's prompt, or an answer that failed before it began)."""

    message: StoredMessage


@dataclass(frozen=True)
class MessagesRemoved:
    """Messages are gone from the chat. `undoable`: `Conversation.undo()` brings them back."""

    message_ids: tuple[int, ...]
    undoable: bool


@dataclass(frozen=True)
class MessagesRestored:
    """Removed messages are back; place them by id among the others."""

    messages: tuple[StoredMessage, ...]


@dataclass(frozen=True)
class AnswerStarted:
    """The engine took the prompt; `message` is the empty answer that the text will fill."""

    message: StoredMessage


@dataclass(frozen=True)
class PrefillProgress:
    message_id: int
    done: int  # prompt tokens
    total: int


@dataclass(frozen=True)
class AnswerText:
    """New text at the end of the answer (many tokens' worth in one event), with the figures up to it.

    drafted: which parts of the whole answer, in characters from its start, were guessed and accepted.
    """

    message_id: int
    text: str
    figures: Figures
    drafted: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class AdaptersInForce:
    """What the running answer is written with from here on; an answer that none precedes has no adapters.

    sentence, hint: why other adapters that were wanted do not act; empty when all is as wanted.
    """

    adapters: tuple[AdapterUse, ...]
    sentence: str = ""
    hint: str = ""


@dataclass(frozen=True)
class AnswerFinished:
    """The answer ended: `message.state` is complete, cancelled (by `stop`) or interrupted (by `close`).

    message: as stored, with the whole text.
    reason: why it ended; CONTEXT means that the context is full.
    saved: False when the database refused it; a SavingFailed event has said why.
    """

    message: StoredMessage
    reason: StopReason
    figures: Figures | None
    saved: bool = True


@dataclass(frozen=True)
class AnswerFailed:
    """No answer, or not all of one. `message` is the failed answer as stored, with the text that had come.

    message is None when there is no failed answer: a `regenerate` that failed before any text brings the old answer
    back (MessagesRemoved and MessagesRestored came before); a database that refuses the answer leaves the prompt alone.
    """

    message: StoredMessage | None
    sentence: str
    hint: str
    saved: bool = True  # as in AnswerFinished


@dataclass(frozen=True)
class AnswerSaved:
    """An answer that had ended with `saved` False is on disk now."""

    message: StoredMessage


@dataclass(frozen=True)
class SavingFailed:
    """The history cannot be written (disk full, read-only, locked); the answer goes on and saving is tried again."""

    sentence: str
    hint: str


@dataclass(frozen=True)
class ActionFailed:
    """An action was not carried out and changed nothing. `action` is the method's name; `text` what was to be sent."""

    action: str
    sentence: str
    hint: str
    text: str = ""


ConversationEvent = (
    ConversationLoaded
    | ChatCreated
    | TitleChanged
    | OptionsChanged
    | MessageAdded
    | MessagesRemoved
    | MessagesRestored
    | AnswerStarted
    | PrefillProgress
    | AnswerText
    | AdaptersInForce
    | AnswerFinished
    | AnswerFailed
    | AnswerSaved
    | SavingFailed
    | ActionFailed
)
