"""The SQLite file: two connections (one writes, one reads), transactions, and errors turned into sentences."""

from __future__ import annotations

import sqlite3
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import StoreError

BUSY_TIMEOUT_S = 5.0


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """The sentence for what SQLite reported. Codes: https://www.sqlite.org/rescode.html"""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG):
        return StoreError(f"The disk is full: the chat history {path} cannot grow.", "Free some space and try again.")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"Another program keeps the chat history {path} locked.", "Close that program, then try again."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return StoreError(
            f"The chat history {path} is read-only.", "Make the file and its folder writable, then try again."
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"The chat history {path} cannot be opened.", "Check that its folder exists and that you may write there."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreError(
            f"The chat history {path} is damaged.",
            "Start Realm again: it moves the damaged file aside, saves what can be read and goes on.",
        )
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(
            f"The disk failed while the chat history {path} was in use ({error}).", "Check the disk, then try again."
        )
    if code == sqlite3.SQLITE_CONSTRAINT and "FOREIGN KEY" in str(error):
        return StoreError("This could not be stored: its chat has been removed for good.")
    return StoreError(f"The chat history {path} could not be used: {str(error).rstrip('.')}.")


def is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def folded(text: str) -> str:
    """`text` as search compares it: on one line, upper and lower case and compatibility forms alike."""
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def storable(text: str) -> str:
    """`text` without lone surrogates, which UTF-8 cannot hold; each becomes U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def connect(path: Path, *, timeout: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
    """A connection that any thread may use (one at a time) and that begins transactions only when told to."""
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the disk there
    connection.execute("PRAGMA secure_delete = ON")  # what is removed for good is not left lying in free pages
    connection.create_function("folded", 1, folded, deterministic=True)
    return connection


class Database:
    """Both connections to one file. WAL lets the reader see the last committed state while the writer works."""

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        """Takes over a connection from `connect` as the one that writes. Raises sqlite3.Error."""
        self.path = path
        self._writer_lock = threading.RLock()
        self._reader_lock = threading.Lock()
        self._writing_thread: int | None = None
        self._closed = False
        self._writer = writer
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._reader = connect(path)
        self._reader.execute("PRAGMA query_only = ON")

    @contextmanager
    def write(self, *, sync: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction; inside another one of the same thread it is part of that one.

        sync False: the commit survives the end of the process, but the disk is not waited for. Raises StoreError.
        """
        with self._writer_lock:
            if self._writing_thread is not None:
                try:
                    yield self._writer
                except sqlite3.Error as error:
                    raise store_error(error, self.path) from error
                return
            self._check_open()
            try:
                if not sync:
                    self._writer.execute("PRAGMA synchronous = NORMAL")
                self._writer.execute("BEGIN IMMEDIATE")
                self._writing_thread = threading.get_ident()
                yield self._writer
                self._writer.execute("COMMIT")
            except sqlite3.Error as error:
                raise store_error(error, self.path) from error
            finally:
                self._writing_thread = None
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                if not sync:
                    self._writer.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view; inside a transaction of the same thread it sees what that has written."""
        if self._writing_thread == threading.get_ident():
            yield self._writer
            return
        with self._reader_lock:
            self._check_open()
            try:
                self._reader.execute("BEGIN")
                yield self._reader
            except sqlite3.Error as error:
                raise store_error(error, self.path) from error
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("COMMIT")

    def close(self) -> None:
        with self._writer_lock, self._reader_lock:
            if not self._closed:
                self._closed = True
                self._reader.close()
                self._writer.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("The chat history is closed.", "Open it again.")
