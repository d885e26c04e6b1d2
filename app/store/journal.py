"""An answer on its way into the database while it streams."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from app.store.database import Database, storable
from app.store.values import JsonValue, MessageState, StoredMessage, microseconds, now
from engine.errors import StoreError

FLUSH_INTERVAL_S = 0.1
"""Text waits at most this long, plus the time of one commit, before it is in the database."""


class AnswerJournal:
    """Writes one streaming answer. `append` may be called from any thread and never waits for the disk.

    A thread that lives from the first text to `finish` commits what has come as a piece of its own, so that the work
    does not grow with the answer; `finish` puts the pieces together. Such a commit is safe once SQLite has handed it
    to the operating system (it outlives this process); only the final one waits for the disk.
    """

    def __init__(self, database: Database, message: StoredMessage, ended: Callable[[AnswerJournal], None]) -> None:
        self.message = message  # the answer as it was begun: empty, state `streaming`
        self._database = database
        self._ended = ended
        self._lock = threading.Lock()  # held for list operations only
        self._flushing = threading.Lock()  # held while writing
        self._pieces: list[str] = []  # all text
        self._flushed = 0  # how many of them are in the database
        self._written_rows = 0
        self._has_text = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._problem: StoreError | None = None

    @property
    def message_id(self) -> int:
        return self.message.id

    def append(self, text: str) -> None:
        """Adds text to the end. Raises ValueError after `finish`."""
        if not text:
            return
        with self._lock:
            if self._stop.is_set():
                raise ValueError("this answer is finished")
            self._pieces.append(text)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="answer journal", daemon=True)
                self._thread.start()
        self._has_text.set()

    @property
    def text(self) -> str:
        """All that has been appended, saved or not."""
        with self._lock:
            return storable("".join(self._pieces))

    def problem(self) -> StoreError | None:
        """Why the last attempt to write failed; None while all is well. Writing is tried again until `finish`."""
        return self._problem

    def finish(
        self, state: MessageState, figures: Mapping[str, JsonValue] | None = None, error: str = ""
    ) -> StoredMessage:
        """Stores the whole answer with its final state; it is on disk when this returns.

        Not to be called while `append` runs. Raises StoreError, after which it may be tried again.
        """
        encoded = None if figures is None else json.dumps(dict(figures))
        with self._flushing:
            content = self.text
            finished = replace(self.message, content=content, state=state, error=storable(error), figures=figures)
            found = self._write_end(finished, encoded)
            self._problem = None
            self._stop.set()
        self._has_text.set()  # wakes the thread, which then ends
        self._ended(self)
        if not found:
            raise StoreError("The answer could not be stored: its chat has been removed for good.")
        return finished

    def abandon(self) -> None:
        """Stops writing without an end; the next start of the program finds the answer and interrupts it."""
        self._stop.set()
        self._has_text.set()

    def _write_end(self, finished: StoredMessage, figures: str | None) -> bool:
        with self._database.write() as connection:
            found = connection.execute(
                "UPDATE messages SET content = ?, state = ?, error = ?, figures = ?, owner = NULL WHERE id = ?",
                (finished.content, finished.state, finished.error, figures, finished.id),
            ).rowcount
            connection.execute("DELETE FROM answer_pieces WHERE message_id = ?", (finished.id,))
            connection.execute("UPDATE chats SET updated = ? WHERE id = ?", (microseconds(now()), finished.chat_id))
        return bool(found)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._has_text.wait()
            self._has_text.clear()
            try:
                self._flush()
            except StoreError as error:
                self._problem = error
                self._has_text.set()  # try again with whatever has come by then
            self._stop.wait(FLUSH_INTERVAL_S)

    def _flush(self) -> None:
        with self._flushing:
            with self._lock:
                count = len(self._pieces)
                text = storable("".join(self._pieces[self._flushed : count]))
            if not text or self._stop.is_set():
                return
            with self._database.write(sync=False) as connection:
                if not connection.execute("SELECT 1 FROM messages WHERE id = ?", (self.message_id,)).fetchone():
                    raise StoreError("The answer cannot be saved: its chat has been removed for good.")
                connection.execute(
                    "INSERT INTO answer_pieces (message_id, number, text) VALUES (?, ?, ?)",
                    (self.message_id, self._written_rows, text),
                )
            self._written_rows += 1
            self._flushed = count
            self._problem = None


def interrupt(connection: sqlite3.Connection, message_id: int) -> None:
    """Turns a streaming answer into an interrupted one that holds the text journaled so far."""
    connection.execute(
        "UPDATE messages SET content = ?, state = 'interrupted', owner = NULL WHERE id = ?",
        (journaled_text(connection, message_id), message_id),
    )
    connection.execute("DELETE FROM answer_pieces WHERE message_id = ?", (message_id,))


def journaled_text(connection: sqlite3.Connection, message_id: int) -> str:
    pieces = connection.execute("SELECT text FROM answer_pieces WHERE message_id = ? ORDER BY number", (message_id,))
    return "".join(text for (text,) in pieces)
