"""What the person set, read once at the start, kept in memory and written behind the window's back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from app.conversation import ChatOptions
from engine.api import SamplingParams


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

    def chat_options(self) -> ChatOptions:
        """How new chats are answered."""
        stored = self._values.get("chat_options")
        return options_from_json(stored) if isinstance(stored, dict) else ChatOptions()

    def set_chat_options(self, options: ChatOptions) -> None:
        """Stores how new chats are answered."""
        self.set("chat_options", options_to_json(options))


_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
             "presence_penalty", "frequency_penalty", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base",
             "dry_allowed_length", "dry_penalty_last_n", "dynatemp_range", "dynatemp_exponent", "top_n_sigma",
             "mirostat", "mirostat_tau", "mirostat_eta", "seed")  # fmt: skip


def options_to_json(options: ChatOptions) -> dict[str, Any]:
    """Chat options as a JSON object."""
    sampling = asdict(options.sampling)
    return {
        "system_prompt": options.system_prompt,
        "max_tokens": options.max_tokens,
        "sampling": {name: sampling[name] for name in _SAMPLING},
    }


def options_from_json(values: Mapping[str, Any]) -> ChatOptions:
    """Chat options out of a JSON object; what does not fit is left at its default."""
    defaults = SamplingParams()
    types = {entry.name: type(getattr(defaults, entry.name)) for entry in fields(SamplingParams)}
    sampling: dict[str, Any] = {}
    stored = values.get("sampling")
    for name, value in (stored if isinstance(stored, dict) else {}).items():
        if name not in _SAMPLING or isinstance(value, bool):
            continue
        if name == "seed":
            if value is None or isinstance(value, int):
                sampling[name] = value
        elif types[name] is int and isinstance(value, int):
            sampling[name] = value
        elif types[name] is float and isinstance(value, int | float):
            sampling[name] = float(value)
    prompt = values.get("system_prompt")
    longest = values.get("max_tokens")
    return ChatOptions(
        system_prompt=prompt if isinstance(prompt, str) else "",
        sampling=SamplingParams(**sampling),
        max_tokens=longest if isinstance(longest, int) and longest > 0 else None,
    )
