"""Chats, their messages and the settings, in one SQLite file."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Self

from app import paths
from app.store.database import folded, storable
from app.store.journal import AnswerJournal, journaled_text
from app.store.opening import open_database, purge
from app.store.sessions import DEFAULT_BUDGET_BYTES, SessionFolder
from app.store.settings import Settings
from app.store.values import (
    ROLES,
    ChatSummary,
    DeletedMessages,
    JsonValue,
    MessageState,
    SearchHit,
    StoredMessage,
    from_microseconds,
    microseconds,
    now,
)
from engine.errors import StoreError

log = logging.getLogger(__name__)

FILE_NAME = "chats.sqlite3"
SNIPPET_LENGTH = 120
SESSION_BUDGET = "session_budget_bytes"
"""Setting: how much of the disk sessions may take."""

_SELECT_CHATS = """
SELECT id, title, created, updated, model,
    (SELECT substr(content, 1, 400) FROM messages
     WHERE chat_id = chats.id AND deleted IS NULL AND content <> '' ORDER BY id DESC LIMIT 1)
FROM chats WHERE deleted IS NULL
"""
_SELECT_MESSAGES = """
SELECT id, chat_id, role, content, state, created, error, model, figures FROM messages WHERE deleted IS NULL
"""


class ChatStore:
    """The chat history. Thread-safe; several processes may have the same file open.

    Every method may raise StoreError, whose message is a sentence for the user. What a method wrote is on disk
    (fsync) when it returns, unless it says otherwise. Reading never waits for a writer.
    """

    def __init__(self, path: Path) -> None:
        """As `open`, with a path."""
        self.path = path
        self._database, self._owners, self.notices = open_database(path)
        self.settings = Settings(self._database)
        self.sessions = SessionFolder(path.with_name(path.name + "-sessions"), self._session_budget())
        self.sessions.keep_only({chat.id for chat in self.chats()})
        self._journals_lock = threading.Lock()
        self._journals: set[AnswerJournal] = set()

    @classmethod
    def open(cls, path: Path | None = None) -> Self:
        """Opens the history, creating it where there is none; None means `app.paths.data_dir() / "chats.sqlite3"`.

        A file of a newer version of Realm, or that is not a chat history, is refused and left as it is. A damaged
        file is moved aside and what can still be read is copied into a new one; `notices` says so. Answers that were
        streaming in a process that is gone become `interrupted` and keep the text that had been journaled. What was
        deleted is removed for good, unless another process has the history open, which may still take it back.
        """
        return cls(paths.data_dir() / FILE_NAME if path is None else path)

    def close(self) -> None:
        """Ends the journals that still run (their answers become `interrupted`) and closes the file."""
        with self._journals_lock:
            journals = list(self._journals)
        for journal in journals:
            try:
                journal.finish(MessageState.INTERRUPTED)
            except StoreError as error:  # the next start finds it, with the text that had been journaled
                log.warning("An answer could not be finished: %s", error)
                journal.abandon()
        self.sessions.trim()
        self._database.close()
        self._owners.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes the calls inside of it, on this thread, one step: all of them are stored, or on an error none."""
        with self._database.write():
            yield

    # Chats

    def chats(self) -> list[ChatSummary]:
        """All chats that are not deleted, the one changed last first."""
        with self._database.read() as connection:
            rows = connection.execute(f"{_SELECT_CHATS} ORDER BY updated DESC, id DESC").fetchall()
        return [_chat(row) for row in rows]

    def chat(self, chat_id: int) -> ChatSummary:
        """Raises StoreError for a chat that is deleted or never was."""
        with self._database.read() as connection:
            row = connection.execute(f"{_SELECT_CHATS} AND id = ?", (chat_id,)).fetchone()
        if row is None:
            raise _no_chat(chat_id)
        return _chat(row)

    def create_chat(self, title: str = "", model: str = "") -> ChatSummary:
        time = now()
        title, model = storable(title), storable(model)
        with self._database.write() as connection:
            cursor = connection.execute(
                "INSERT INTO chats (title, model, created, updated) VALUES (?, ?, ?, ?)",
                (title, model, microseconds(time), microseconds(time)),
            )
        return ChatSummary(cursor.lastrowid or 0, title, time, time, model, "")

    def rename_chat(self, chat_id: int, title: str) -> None:
        self._update_chat(chat_id, "title", title)

    def set_chat_model(self, chat_id: int, model: str) -> None:
        """Remembers the path of the model that a chat is held with."""
        self._update_chat(chat_id, "model", model)

    def _update_chat(self, chat_id: int, column: str, value: str) -> None:
        with self._database.write() as connection:
            _check_chat(connection, chat_id)
            connection.execute(f"UPDATE chats SET {column} = ? WHERE id = ?", (storable(value), chat_id))  # noqa: S608

    def delete_chat(self, chat_id: int) -> None:
        """Hides a chat; `undelete_chat` brings it back until `purge_deleted` removes it for good."""
        with self._database.write() as connection:
            _check_chat(connection, chat_id)
            connection.execute("UPDATE chats SET deleted = ? WHERE id = ?", (microseconds(now()), chat_id))
        self.sessions.remove(chat_id)

    def undelete_chat(self, chat_id: int) -> None:
        with self._database.write() as connection:
            if not connection.execute("UPDATE chats SET deleted = NULL WHERE id = ?", (chat_id,)).rowcount:
                raise StoreError("This chat cannot be brought back: it has been removed for good.")

    def purge_deleted(self, older_than: timedelta = timedelta(0)) -> int:
        """Removes for good the chats and messages deleted at least `older_than` ago.

        Returns how many chats, plus messages of other chats, that were. Answers that still stream are left alone.
        """
        with self._database.write() as connection:
            return purge(connection, microseconds(now() - older_than))

    def set_session_budget(self, budget_bytes: int) -> None:
        """How many bytes of the disk the sessions of chats may take, from now on; 0 keeps none."""
        self.settings.set(SESSION_BUDGET, budget_bytes)
        self.sessions.budget_bytes = budget_bytes

    def _session_budget(self) -> int:
        value = self.settings.get(SESSION_BUDGET)
        return value if isinstance(value, int) and not isinstance(value, bool) else DEFAULT_BUDGET_BYTES

    def search(self, text: str) -> list[SearchHit]:
        """Chats whose title or messages contain `text`, upper and lower case alike, the one changed last first.

        A blank `text` finds nothing.
        """
        wanted = folded(text)
        if not wanted:
            return []
        with self._database.read() as connection:
            newest = dict(
                connection.execute(
                    "SELECT chat_id, max(id) FROM messages"
                    " WHERE deleted IS NULL AND instr(folded(content), ?) GROUP BY chat_id",
                    (wanted,),
                ).fetchall()
            )
            chats = [_chat(row) for row in connection.execute(f"{_SELECT_CHATS} ORDER BY updated DESC, id DESC")]
            hits = []
            for chat in chats:
                message_id = newest.get(chat.id)
                if message_id is not None:
                    content = connection.execute("SELECT content FROM messages WHERE id = ?", (message_id,)).fetchone()
                    hits.append(SearchHit(chat, message_id, _snippet_around(content[0], wanted)))
                elif wanted in folded(chat.title):
                    hits.append(SearchHit(chat, None, chat.snippet))
        return hits

    # Messages

    def messages(self, chat_id: int) -> list[StoredMessage]:
        """The messages of a chat in order. Raises StoreError for a chat that is deleted or never was."""
        with self._database.read() as connection:
            _check_chat(connection, chat_id)
            return _messages(connection, "chat_id = ?", chat_id)

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
        if state is MessageState.STREAMING:
            raise ValueError("begin_answer adds a streaming answer")
        message = StoredMessage(
            0, chat_id, role, storable(content), state, now(), storable(error), storable(model), figures
        )
        return self._insert(message, owner=None, sync=True)

    def begin_answer(self, chat_id: int, model: str = "") -> AnswerJournal:
        """Adds an empty answer in state `streaming` and returns the journal that fills it.

        Does not wait for the disk: the answer has no text yet that could be lost.
        """
        message = StoredMessage(0, chat_id, "assistant", "", MessageState.STREAMING, now(), model=storable(model))
        message = self._insert(message, owner=self._owners.own_name, sync=False)
        journal = AnswerJournal(self._database, message, self._forget_journal)
        with self._journals_lock:
            self._journals.add(journal)
        return journal

    def delete_message(self, message_id: int) -> DeletedMessages:
        with self._database.write() as connection:
            messages = _messages(connection, "id = ?", message_id)
            if not messages:
                raise StoreError("This message is no longer there.")
            return _delete(connection, messages[0].chat_id, messages)

    def delete_messages_from(self, chat_id: int, message_id: int) -> DeletedMessages:
        """Takes a message and all later ones out of a chat; there may be none."""
        with self._database.write() as connection:
            return _delete(connection, chat_id, _messages(connection, "chat_id = ? AND id >= ?", chat_id, message_id))

    def restore(self, deleted: DeletedMessages) -> None:
        """Brings deleted messages back to where they were, even when they have been purged since (but not the chat)."""
        with self._database.write() as connection:
            if not connection.execute("SELECT 1 FROM chats WHERE id = ?", (deleted.chat_id,)).fetchone():
                raise StoreError("The messages cannot be brought back: their chat has been removed for good.")
            for message in deleted.messages:
                if not connection.execute("UPDATE messages SET deleted = NULL WHERE id = ?", (message.id,)).rowcount:
                    _insert_row(connection, message, owner=None)

    def chat_settings(self, chat_id: int) -> Settings:
        """Settings of one chat; they go with it when it is purged."""
        return Settings(self._database, chat_id)

    def _insert(self, message: StoredMessage, *, owner: str | None, sync: bool) -> StoredMessage:
        if message.role not in ROLES:
            raise ValueError(f"role is {message.role!r}, not one of {', '.join(ROLES)}")
        with self._database.write(sync=sync) as connection:
            _check_chat(connection, message.chat_id)
            message_id = _insert_row(connection, message, owner=owner)
            connection.execute(
                "UPDATE chats SET updated = ? WHERE id = ?", (microseconds(message.created), message.chat_id)
            )
        return replace(message, id=message_id)

    def _forget_journal(self, journal: AnswerJournal) -> None:
        with self._journals_lock:
            self._journals.discard(journal)


def _no_chat(chat_id: int) -> StoreError:
    return StoreError(f"Chat {chat_id} is not there, or has been deleted.", "Choose another chat or start a new one.")


def _check_chat(connection: sqlite3.Connection, chat_id: int) -> None:
    if not connection.execute("SELECT 1 FROM chats WHERE id = ? AND deleted IS NULL", (chat_id,)).fetchone():
        raise _no_chat(chat_id)


def _chat(row: tuple[int, str, int, int, str, str | None]) -> ChatSummary:
    chat_id, title, created, updated, model, start = row
    snippet = " ".join((start or "").split())[:SNIPPET_LENGTH]
    return ChatSummary(chat_id, title, from_microseconds(created), from_microseconds(updated), model, snippet)


def _messages(connection: sqlite3.Connection, where: str, *values: int) -> list[StoredMessage]:
    """The messages that are not deleted and match, ascending by id."""
    rows = connection.execute(f"{_SELECT_MESSAGES} AND {where} ORDER BY id", values).fetchall()
    messages = []
    for message_id, chat_id, role, content, state, created, error, model, figures in rows:
        if state == MessageState.STREAMING:
            content = journaled_text(connection, message_id)
        messages.append(
            StoredMessage(
                message_id,
                chat_id,
                role,
                content,
                MessageState(state),
                from_microseconds(created),
                error,
                model,
                None if figures is None else json.loads(figures),
            )
        )
    return messages


def _insert_row(connection: sqlite3.Connection, message: StoredMessage, *, owner: str | None) -> int:
    """Inserts a message, under its own id unless that is 0. One that streamed without an owner is interrupted."""
    state = message.state
    if state is MessageState.STREAMING and owner is None:
        state = MessageState.INTERRUPTED
    cursor = connection.execute(
        "INSERT INTO messages (id, chat_id, role, content, state, error, model, figures, created, owner)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.id or None,
            message.chat_id,
            message.role,
            message.content,
            state,
            message.error,
            message.model,
            None if message.figures is None else json.dumps(dict(message.figures)),
            microseconds(message.created),
            owner,
        ),
    )
    return cursor.lastrowid or 0


def _delete(connection: sqlite3.Connection, chat_id: int, messages: list[StoredMessage]) -> DeletedMessages:
    time = microseconds(now())
    connection.executemany("UPDATE messages SET deleted = ? WHERE id = ?", [(time, message.id) for message in messages])
    return DeletedMessages(chat_id, tuple(messages))


def _snippet_around(content: str, wanted: str) -> str:
    """One line around the first place where `wanted` (folded) is found."""
    line = " ".join(content.split())
    start = folded(content).find(wanted)  # folding can change the length a little; for a snippet that is near enough
    return line[max(0, start - SNIPPET_LENGTH // 3) :][:SNIPPET_LENGTH]
