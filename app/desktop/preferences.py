"""What the person set, read once at the start, kept in memory and written behind the window's back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from app.conversation import ChatOptions


class Preferences:
    """A mapping from names to JSON values; `save` gets every change."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values: dict[str, Any] = dict(values or {})
        self.save: Callable[[str, Any], None] = lambda key, value: None

    def fill(self, values: Mapping[str, Any]) -> None:
        """Takes what was stored; what was set since the start wins."""
        self._values = {**values, **self._values}

    def set(self, key: str, value: Any) -> None:
        """Sets and saves a value, if it is a new one."""
        if self._values.get(key) != value:
            self._values[key] = value
            self.save(key, value)

    def text(self, key: str, default: str = "") -> str:
        value = self._values.get(key)
        return value if isinstance(value, str) else default

    def number(self, key: str) -> int | None:
        value = self._values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        return value if isinstance(value, bool) else default

    def texts(self, key: str) -> list[str]:
        value = self._values.get(key)
        return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._values.get(key)
        return value if isinstance(value, dict) else {}

    def chat_options(self) -> ChatOptions:
        """How new chats are answered."""
        return ChatOptions.from_json(self._values.get("chat_options"))

    def set_chat_options(self, options: ChatOptions) -> None:
        """Stores how new chats are answered; adapters and a plain template belong to a model, a form to one chat."""
        general = replace(options, adapters=(), plain_template=False, grammar=None, json_schema=None)
        self.set("chat_options", general.as_json())
