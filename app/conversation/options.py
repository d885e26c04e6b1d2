"""How a chat is answered: system prompt, sampling, length and stop strings, kept with the chat."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from engine.api import DEFAULT_SAMPLERS, SamplingParams
from engine.errors import RequestError
from engine.sampling.params import check_params, is_integer

# The default order of chats that were stored before there were more samplers.
_FIRST_DEFAULT_SAMPLERS = ("penalties", "top_k", "typical_p", "top_p", "min_p", "temperature")


@dataclass(frozen=True)
class ChatOptions:
    """Every field changes what the engine is asked.

    max_tokens: the longest answer in tokens; None means until the model stops or the context is full.
    stop: strings that end an answer; the answer ends before them.
    plain_template: use a plain chat template in place of the model's own, which may fail.
    """

    system_prompt: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    plain_template: bool = False

    def check(self) -> None:
        """Raises RequestError, naming the field, for a value that sampling cannot use."""
        check_params(self.sampling, n_vocab=sys.maxsize)  # the model that will answer may not be loaded yet
        if self.max_tokens is not None and (not is_integer(self.max_tokens) or self.max_tokens < 1):
            raise RequestError(
                f"max_tokens is {self.max_tokens!r}, but it has to be a whole number from 1 up, or none.", "Change it."
            )
        if "" in self.stop:
            raise RequestError("stop holds an empty string, which would end every answer at once.", "Remove it.")

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["sampling"]["logit_bias"] = {str(token): bias for token, bias in self.sampling.logit_bias.items()}
        return values

    @classmethod
    def from_json(cls, values: object) -> ChatOptions:
        """The options that `as_json` gave; what is missing, unknown or unusable falls back to its default."""
        options = cls()
        if not isinstance(values, Mapping):
            return options
        stored = values.get("sampling")
        if isinstance(stored, Mapping):
            for item in fields(SamplingParams):
                options = options._with_sampling(item.name, stored)
        for name in ("system_prompt", "max_tokens", "stop", "plain_template"):
            options = options._with(name, values)
        return options

    def _with_sampling(self, name: str, stored: Mapping[str, Any]) -> ChatOptions:
        try:
            changed = replace(self, sampling=replace(self.sampling, **{name: _decoded(name, stored[name])}))
            changed.check()
        except (KeyError, TypeError, ValueError, AttributeError, RequestError):
            return self
        return changed

    def _with(self, name: str, stored: Mapping[str, Any]) -> ChatOptions:
        try:
            changed: ChatOptions = replace(self, **{name: _decoded(name, stored[name])})
            changed.check()
        except (KeyError, TypeError, ValueError, RequestError):
            return self
        return changed


def _decoded(name: str, value: Any) -> Any:
    if name == "logit_bias":
        return {int(token): float(bias) for token, bias in value.items()}
    if name in ("samplers", "stop", "dry_sequence_breakers"):
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise TypeError(name)
        return DEFAULT_SAMPLERS if tuple(value) == _FIRST_DEFAULT_SAMPLERS else tuple(value)
    if name == "system_prompt" and not isinstance(value, str):
        raise TypeError(name)
    if name == "plain_template" and not isinstance(value, bool):
        raise TypeError(name)
    return value
