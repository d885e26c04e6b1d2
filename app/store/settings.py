"""Settings as JSON values under names, for the whole application or for one chat."""

from __future__ import annotations

from app.store.values import JsonValue


class Settings:
    """A persistent mapping from names to JSON values. Thread-safe. Every call may raise StoreError."""

    def get(self, key: str, default: JsonValue = None) -> JsonValue:
        """The value under `key`, or `default` when there is none or it cannot be read."""
        raise NotImplementedError

    def set(self, key: str, value: JsonValue) -> None:
        """Stores a JSON value, durable on return."""
        raise NotImplementedError

    def remove(self, key: str) -> None:
        """Forgets a value; fine if there is none."""
        raise NotImplementedError

    def all(self) -> dict[str, JsonValue]:
        raise NotImplementedError
