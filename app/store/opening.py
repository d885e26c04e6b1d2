"""From a path to a usable database: checked, migrated, recovered, and moved aside when it is damaged."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from filelock import Timeout

from app.store.database import Database, connect, is_damage, store_error
from app.store.journal import interrupt
from app.store.owners import Owners
from app.store.salvage import copy_readable_rows
from app.store.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION
from app.store.values import microseconds, now
from engine.errors import StoreError


class _DamagedError(Exception):
    pass


def open_database(path: Path) -> tuple[Database, Owners, tuple[str, ...]]:
    """Returns the database, this store's place among its owners, and sentences for the user. Raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        owners = Owners(path)
        opening = owners.opening()
        with opening:
            database, notices = _open_exclusively(path, owners)
            try:
                owners.claim()
            except BaseException:
                database.close()
                raise
        return database, owners, notices
    except Timeout:
        raise StoreError(
            f"Another Realm has been busy opening the chat history {path} for a long time.",
            "Close it, then try again.",
        ) from None
    except OSError as error:
        raise StoreError(
            f"The chat history {path} cannot be opened: {error.strerror or error}.",
            "Check that its folder exists and that you may write there.",
        ) from error
    except sqlite3.Error as error:
        raise store_error(error, path) from error


def _open_exclusively(path: Path, owners: Owners) -> tuple[Database, tuple[str, ...]]:
    alive = owners.others_alive()
    notices = []
    try:
        database = _open_checked(path)
    except _DamagedError:
        if alive:
            raise StoreError(
                f"The chat history {path} is damaged, and another Realm has it open.",
                "Close every other Realm, then start this one again.",
            ) from None
        aside = _move_aside(path)
        database = _open_checked(path)
        with database.write() as connection:
            chats, messages = copy_readable_rows(aside, connection)
        notices.append(
            f"The chat history was damaged. It has been moved to {aside}, and what could still be read was taken over: "
            f"{_count(chats, 'chat')}, {_count(messages, 'message')}."
        )
    cut_short = _interrupt_answers_without_owner(database, alive)
    if cut_short:
        notices.append(
            f"Realm ended while {_count(cut_short, 'answer')} still streamed; the text up to then has been kept."
        )
    if not alive:
        with database.write() as connection:
            purge(connection, microseconds(now()))
    return database, tuple(notices)


def _open_checked(path: Path) -> Database:
    """Raises _DamagedError, sqlite3.Error, or StoreError for a file that is sound but not for this version."""
    if not path.exists():
        path.touch(mode=0o600)  # chats are private; SQLite gives its other files the same mode
    connection = connect(path)
    try:
        _check(connection, path)
        database = Database(path, connection)
        _migrate(database)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error) and is_damage(error):
            raise _DamagedError from error
        raise
    return database


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id != APPLICATION_ID:
        raise StoreError(
            f"{path} is a database of another program, not a chat history.",
            "Move it elsewhere, or set another data folder with REALM_DATA_DIR.",
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"The chat history {path} was written by a newer version of Realm"
            f" (schema {version}; this version knows up to {SCHEMA_VERSION}).",
            "Update Realm. The file has been left as it is.",
        )
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise _DamagedError


def _migrate(database: Database) -> None:
    with database.read() as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
        with database.write() as connection:
            for statement in _statements(migration):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")


def _statements(script: str) -> list[str]:
    """The statements of a script, each of which ends its line. (executescript would commit the transaction first.)"""
    statements, current = [], ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements


def _move_aside(path: Path) -> Path:
    """Renames a damaged file and what SQLite keeps beside it; returns the new name of the main file."""
    stamp = now().astimezone().strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}-damaged-{stamp}{path.suffix}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.stem}-damaged-{stamp}-{number}{path.suffix}")
    for suffix in ("-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.rename(aside.with_name(aside.name + suffix))
    return aside


def purge(connection: sqlite3.Connection, limit: int) -> int:
    """Removes for good the chats and messages deleted up to `limit` (microseconds since 1970, UTC).

    Returns how many chats, plus messages of other chats, that were. Answers that still stream are left alone.
    """
    chats = connection.execute(
        "DELETE FROM chats WHERE deleted <= ? AND NOT EXISTS"
        " (SELECT 1 FROM messages WHERE chat_id = chats.id AND owner IS NOT NULL)",
        (limit,),
    ).rowcount
    messages = connection.execute("DELETE FROM messages WHERE deleted <= ? AND owner IS NULL", (limit,)).rowcount
    return chats + messages


def _interrupt_answers_without_owner(database: Database, alive: set[str]) -> int:
    with database.read() as connection:
        rows = connection.execute("SELECT id, owner, deleted FROM messages WHERE owner IS NOT NULL").fetchall()
    gone = [(message_id, deleted) for message_id, owner, deleted in rows if owner not in alive]
    if not gone:
        return 0
    with database.write() as connection:
        for message_id, _ in gone:
            interrupt(connection, message_id)
    return sum(deleted is None for _, deleted in gone)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
