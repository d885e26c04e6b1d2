"""Chats, their messages and the settings, in one SQLite file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from app.store.journal import AnswerJournal
from app.store.settings import Settings
from app.store.values import (
    ChatSummary,
    DeletedMessages,
    JsonValue,
    MessageState,
    SearchHit,
    StoredMessage,
)


class ChatStore:
    """The chat history. Thread-safe; several processes may have the same file open.

    Every method may raise StoreError, whose message is a sentence for the user. What a method wrote is on disk
    (fsync) when it returns, unless it says otherwise. Reading never waits for a writer.
    """

    path: Path
    settings: Settings
    notices: tuple[str, ...]  # sentences the user should see: a damaged history moved aside, answers cut short

    @classmethod
    def open(cls, path: Path | None = None) -> ChatStore:
        """Opens the history, creating it where there is none; None means `app.paths.data_dir() / "chats.sqlite3"`.

        A file of a newer version of Realm, or that is not a chat history, is refused and left as it is. A damaged
        file is moved aside and an empty history begun; `notices` says so. Answers that were streaming in a process
        that is gone become `interrupted` and keep the text that had been journaled.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Stops the journals that still run (their answers become `interrupted`) and closes the file."""
        raise NotImplementedError

    def __enter__(self) -> ChatStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes the calls inside of it one step: all of them are stored, or on an error none."""
        raise NotImplementedError
        yield

    # Chats

    def chats(self) -> list[ChatSummary]:
        """All chats that are not deleted, the one changed last first."""
        raise NotImplementedError

    def chat(self, chat_id: int) -> ChatSummary:
        raise NotImplementedError

    def create_chat(self, title: str = "", model: str = "") -> ChatSummary:
        raise NotImplementedError

    def rename_chat(self, chat_id: int, title: str) -> None:
        raise NotImplementedError

    def set_chat_model(self, chat_id: int, model: str) -> None:
        raise NotImplementedError

    def delete_chat(self, chat_id: int) -> None:
        """Hides a chat; `undelete_chat` brings it back until `purge_deleted` removes it for good."""
        raise NotImplementedError

    def undelete_chat(self, chat_id: int) -> None:
        raise NotImplementedError

    def purge_deleted(self, older_than: timedelta = timedelta(0)) -> int:
        """Removes for good the chats and messages deleted longer ago than `older_than`; returns how many rows."""
        raise NotImplementedError

    def search(self, text: str) -> list[SearchHit]:
        """Chats whose title or messages contain `text`, upper and lower case alike, the one changed last first."""
        raise NotImplementedError

    # Messages

    def messages(self, chat_id: int) -> list[StoredMessage]:
        raise NotImplementedError

    def add_message(
        self,
        chat_id: int,
        role: str,
        content: str,
        *,
        state: MessageState = MessageState.COMPLETE,
        error: str = "",
        model: str = "",
        figures: Mapping[str, JsonValue] | None = None,
    ) -> StoredMessage:
        """Adds a message at the end of a chat. It is on disk when this returns."""
        raise NotImplementedError

    def begin_answer(self, chat_id: int, model: str = "") -> AnswerJournal:
        """Adds an empty answer in state `streaming` and returns the journal that fills it."""
        raise NotImplementedError

    def delete_message(self, message_id: int) -> DeletedMessages:
        raise NotImplementedError

    def delete_messages_from(self, chat_id: int, message_id: int) -> DeletedMessages:
        """Takes a message and all later ones out of a chat."""
        raise NotImplementedError

    def restore(self, deleted: DeletedMessages) -> None:
        """Brings deleted messages back to where they were."""
        raise NotImplementedError

    def chat_settings(self, chat_id: int) -> Settings:
        """Settings of one chat; they go with it when it is purged."""
        raise NotImplementedError
