"""How a chat is answered: system prompt, sampling, adapters, guessing and length, kept with the chat."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.api import DEFAULT_SAMPLERS, AdapterUse, ContextPolicy, DraftKind, DraftOptions, SamplingParams
from engine.errors import RequestError
from engine.sampling.params import check_params, is_integer
from engine.strength import check_strength

# The default order of chats that were stored before there were more samplers.
_FIRST_DEFAULT_SAMPLERS = ("penalties", "top_k", "typical_p", "top_p", "min_p", "temperature")

DRAFT_LIMIT = 64
"""The most tokens that may be guessed at once."""


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter that a chat knows of. One that is off keeps its strength for later."""

    path: Path
    strength: float = 1.0
    on: bool = True


@dataclass(frozen=True)
class ChatOptions:
    """Every field changes what the engine is asked.

    max_tokens: the longest answer in tokens; None means until the model stops or the context is full.
    stop: strings that end an answer; the answer ends before them.
    plain_template: use a plain chat template in place of the model's own, which may fail.
    adapters: those that are on act together.
    draft: how the next tokens are guessed at; None guesses nothing.
    context_policy: what happens when an answer meets the end of the context.
    grammar, json_schema: what answers have to match, at most one of them.
    """

    system_prompt: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    plain_template: bool = False
    adapters: tuple[AdapterChoice, ...] = ()
    draft: DraftOptions | None = None
    context_policy: ContextPolicy = ContextPolicy.STOP
    grammar: str | None = None
    json_schema: Mapping[str, Any] | str | None = None

    def adapter_uses(self) -> tuple[AdapterUse, ...]:
        """The adapters that are on, as a request names them."""
        return tuple(AdapterUse(choice.path, choice.strength) for choice in self.adapters if choice.on)

    def check(self) -> None:
        """Raises RequestError, naming the field, for a value that the engine cannot use."""
        check_params(self.sampling, n_vocab=sys.maxsize)  # the model that will answer may not be loaded yet
        if self.max_tokens is not None and (not is_integer(self.max_tokens) or self.max_tokens < 1):
            raise RequestError(
                f"max_tokens is {self.max_tokens!r}, but it has to be a whole number from 1 up, or none.", "Change it."
            )
        if "" in self.stop:
            raise RequestError("stop holds an empty string, which would end every answer at once.", "Remove it.")
        for choice in self.adapters:
            check_strength(choice.path.name, choice.strength)
        if self.draft is not None:
            _check_draft(self.draft)
        if self.grammar and self.json_schema:
            raise RequestError("Answers can be held to a grammar or to a JSON schema, not to both.", "Take one away.")

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["sampling"]["logit_bias"] = {str(token): bias for token, bias in self.sampling.logit_bias.items()}
        values["adapters"] = [
            {"path": str(choice.path), "strength": choice.strength, "on": choice.on} for choice in self.adapters
        ]
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
        for item in fields(cls):
            if item.name != "sampling":
                options = options._with(item.name, values)
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
        except (KeyError, TypeError, ValueError, AttributeError, RequestError):
            return self
        return changed


def _check_draft(draft: DraftOptions) -> None:
    for name, value, lowest in (("draft_k", draft.draft_k, 1), ("max_draft_tokens", draft.max_draft_tokens, 1)):
        if not is_integer(value) or not lowest <= value <= DRAFT_LIMIT:
            raise RequestError(
                f"{name} is {value!r}, but it has to be a whole number from {lowest} to {DRAFT_LIMIT}.", "Change it."
            )
    if not 0 <= draft.min_probability <= 1:
        raise RequestError(f"min_probability is {draft.min_probability!r}, but it has to be from 0 to 1.", "Change it.")


def adapters_from_json(values: Any) -> tuple[AdapterChoice, ...]:
    """The adapters out of a list of JSON objects. Raises TypeError, KeyError or ValueError for anything else."""
    choices = []
    for value in values:
        path, strength, on = value["path"], value.get("strength", 1.0), value.get("on", True)
        if not isinstance(path, str) or not path or not isinstance(on, bool) or isinstance(strength, bool | str):
            raise TypeError("adapters")
        choices.append(AdapterChoice(Path(path), float(strength), on))
    return tuple(choices)


def _decoded(name: str, value: Any) -> Any:
    match name:
        case "logit_bias":
            return {int(token): float(bias) for token, bias in value.items()}
        case "samplers" | "stop" | "dry_sequence_breakers":
            if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                raise TypeError(name)
            return DEFAULT_SAMPLERS if tuple(value) == _FIRST_DEFAULT_SAMPLERS else tuple(value)
        case "adapters":
            return adapters_from_json(value)
        case "draft":
            return None if value is None else DraftOptions(**{**value, "kind": DraftKind(value["kind"])})
        case "context_policy":
            return ContextPolicy(value)
        case "grammar" if value is not None and not isinstance(value, str):
            raise TypeError(name)
        case "json_schema" if value is not None and not isinstance(value, str | Mapping):
            raise TypeError(name)
        case "system_prompt" if not isinstance(value, str):
            raise TypeError(name)
        case "plain_template" if not isinstance(value, bool):
            raise TypeError(name)
        case _:
            return value
