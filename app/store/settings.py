"""Settings as JSON values under names, for the whole application or for one chat."""

from __future__ import annotations

import json
from dataclasses import dataclass

from app.store.database import Database
from app.store.values import JsonValue


@dataclass(frozen=True)
class _Statements:
    get: str
    set: str
    remove: str
    all: str


_OF_APPLICATION = _Statements(
    get="SELECT value FROM settings WHERE key = ?",
    set="INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)",
    remove="DELETE FROM settings WHERE key = ?",
    all="SELECT key, value FROM settings",
)
_OF_CHAT = _Statements(
    get="SELECT value FROM chat_settings WHERE chat_id = ? AND key = ?",
    set="INSERT OR REPLACE INTO chat_settings (chat_id, key, value) VALUES (?, ?, ?)",
    remove="DELETE FROM chat_settings WHERE chat_id = ? AND key = ?",
    all="SELECT key, value FROM chat_settings WHERE chat_id = ?",
)


class Settings:
    """A persistent mapping from names to JSON values. Thread-safe. Every call may raise StoreError."""

    def __init__(self, database: Database, chat_id: int | None = None) -> None:
        self._database = database
        self._statements = _OF_APPLICATION if chat_id is None else _OF_CHAT
        self._scope = () if chat_id is None else (chat_id,)

    def get(self, key: str, default: JsonValue = None) -> JsonValue:
        """The value under `key`, or `default` when there is none or it is not JSON."""
        with self._database.read() as connection:
            row = connection.execute(self._statements.get, (*self._scope, key)).fetchone()
        if row is None:
            return default
        try:
            return json.loads(row[0])
        except ValueError:
            return default

    def set(self, key: str, value: JsonValue) -> None:
        """Stores a JSON value, on disk on return. Raises TypeError for what JSON cannot hold."""
        encoded = json.dumps(value)
        with self._database.write() as connection:
            connection.execute(self._statements.set, (*self._scope, key, encoded))

    def remove(self, key: str) -> None:
        """Forgets a value; fine if there is none."""
        with self._database.write() as connection:
            connection.execute(self._statements.remove, (*self._scope, key))

    def all(self) -> dict[str, JsonValue]:
        """Every value that is JSON."""
        with self._database.read() as connection:
            rows = connection.execute(self._statements.all, self._scope).fetchall()
        values = {}
        for key, text in rows:
            try:
                values[key] = json.loads(text)
            except ValueError:
                continue
        return values
