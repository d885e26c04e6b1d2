"""What can still be read of a damaged history, copied into a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from app.store.database import connect

_COLUMNS = {  # of the current schema, parents before children
    "chats": "id, title, model, created, updated, deleted",
    "messages": "id, chat_id, role, content, state, error, model, figures, created, deleted, owner",
    "answer_pieces": "message_id, number, text",
    "settings": "key, value",
    "chat_settings": "chat_id, key, value",
}


def copy_readable_rows(damaged: Path, into: sqlite3.Connection) -> tuple[int, int]:
    """Copies what a damaged file still yields into an empty, current database; returns how many chats and messages.

    A message whose chat is lost gets a new chat of the same id, so that its text stays within reach.
    """
    copied = dict.fromkeys(_COLUMNS, 0)
    try:
        with closing(connect(damaged)) as source:
            source.execute("PRAGMA query_only = ON")
            source.execute("PRAGMA writable_schema = ON")  # reads a file that has been cut off, too
            for table, columns in _COLUMNS.items():
                for row in _readable_rows(source, table, columns):
                    copied[table] += _insert(into, table, columns, row)
    except sqlite3.Error:
        pass  # not even the header can be read
    return copied["chats"], copied["messages"]


def _readable_rows(source: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows from the front up to the first damaged page, then those from the back."""
    key = columns.split(", ")[: 2 if table in ("answer_pieces", "chat_settings") else 1]
    seen: set[tuple[Any, ...]] = set()
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{column} {direction}" for column in key)
        try:
            for row in source.execute(f"SELECT {columns} FROM {table} ORDER BY {order}"):  # noqa: S608 - our own names
                if row[: len(key)] in seen:
                    return
                seen.add(row[: len(key)])
                yield row
            return
        except sqlite3.Error:
            continue


def _insert(into: sqlite3.Connection, table: str, columns: str, row: tuple[Any, ...]) -> int:
    marks = ", ".join("?" * len(row))
    try:
        if table == "messages":
            chat_id, created = row[1], row[8]
            into.execute(
                "INSERT OR IGNORE INTO chats (id, title, model, created, updated) VALUES (?, 'Recovered', '', ?, ?)",
                (chat_id, created, created),
            )
        return into.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", row).rowcount  # noqa: S608
    except sqlite3.Error:
        return 0  # damage has left a row that cannot be one
