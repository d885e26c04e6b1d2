"""What the chat history holds, as plain values that are safe to pass between threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

JsonValue = Any
"""Whatever `json.dumps` takes: None, bool, int, float, str, and lists and string-keyed dicts of these."""

ROLES = ("system", "user", "assistant")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> datetime:
    return datetime.now(UTC)


def microseconds(time: datetime) -> int:
    """As the database keeps it: microseconds since 1970 in UTC."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(value: int) -> datetime:
    return _EPOCH + timedelta(microseconds=value)


class MessageState(StrEnum):
    COMPLETE = "complete"
    STREAMING = "streaming"  # an answer that a live process is writing
    INTERRUPTED = "interrupted"  # its process went away, or the chat was closed, before the answer ended
    CANCELLED = "cancelled"  # the user stopped it
    FAILED = "failed"  # the engine failed; `error` holds the sentence


@dataclass(frozen=True)
class ChatSummary:
    """One line of the list of chats. Times are in UTC; `snippet` is the start of the last message, on one line."""

    id: int
    title: str
    created: datetime
    updated: datetime
    model_path: str
    snippet: str


@dataclass(frozen=True)
class StoredMessage:
    """One message. `role` is "system", "user" or "assistant". Messages of a chat are ordered by id.

    content: of an answer in state `streaming`, what has reached the database so far.
    error: a sentence, in state `failed` only.
    model: the model that wrote an answer, otherwise "".
    figures: what the engine measured for an answer, as a JSON object, or None.
    """

    id: int
    chat_id: int
    role: str
    content: str
    state: MessageState
    created: datetime
    error: str = ""
    model: str = ""
    figures: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True)
class DeletedMessages:
    """Messages taken out of a chat, ascending by id; `ChatStore.restore` brings them back to where they were."""

    chat_id: int
    messages: tuple[StoredMessage, ...]

    @property
    def message_ids(self) -> tuple[int, ...]:
        return tuple(message.id for message in self.messages)


@dataclass(frozen=True)
class SearchHit:
    """A chat whose title or text holds what was searched for; `message_id` is None when only the title does.

    snippet: one line of text around the newest place found.
    """

    chat: ChatSummary
    message_id: int | None
    snippet: str
