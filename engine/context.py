"""What goes when a prompt is too long for the context, or an answer meets its end.

Keys in the cache are bound to their positions, so what stays is computed again at its new ones: what follows equals a
lone run from exactly these tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from engine.errors import ContextFullError, RealmError

SINKS = 4
"""First tokens that stay whatever goes: attention rests on them (arXiv 2309.17453)."""

Messages = Sequence[Mapping[str, Any]]


class Shortening(Protocol):
    """How one request goes on when it has too many tokens."""

    def prompt(self, tokens: list[int], context: int, room: int) -> list[int]:
        """A prompt of fewer than `context` tokens in place of one of at least as many, if possible with room for an
        answer of `room` tokens. Raises ContextFullError."""
        ...

    def answer(self, tokens: list[int], n_prompt: int, context: int) -> list[int] | None:
        """What the full context goes on with: fewer tokens, ending as `tokens` do. n_prompt: how many of the tokens
        are the prompt as `prompt` or `answer` last gave it. None when nothing more can go."""
        ...


class Shift:
    """Keeps the first tokens and the latest."""

    def prompt(self, tokens: list[int], context: int, room: int) -> list[int]:
        return _first_and_last(tokens, context, context - room)

    def answer(self, tokens: list[int], n_prompt: int, context: int) -> list[int] | None:
        sinks = min(SINKS, context // 4)
        return _first_and_last(tokens, context, sinks + (context - sinks) // 2)


class DropOldest:
    """Renders the chat without its oldest turns. The system prompt and the last turn stay."""

    def __init__(self, messages: Messages, render: Callable[[Messages], list[int]]) -> None:
        self._head, self._turns = _turns(messages)
        self._render = render
        self._gone = 0

    def prompt(self, tokens: list[int], context: int, room: int) -> list[int]:
        shorter = self._without(context - room)
        if len(shorter) >= context:
            raise ContextFullError(
                f"The last message and the system prompt alone have {len(shorter)} tokens, but the context holds "
                f"{context}, of which at least one is needed for the answer.",
                "Shorten them, or load the model with a longer context.",
            )
        return shorter

    def answer(self, tokens: list[int], n_prompt: int, context: int) -> list[int] | None:
        said = tokens[n_prompt:]
        if self._gone >= len(self._turns) - 1:
            return None
        try:
            prompt = self._without(context * 3 // 4 - len(said))
        except RealmError:  # a template that cannot do without what went
            return None
        return prompt + said if len(prompt) + len(said) < context * 7 // 8 else None

    def _without(self, most: int) -> list[int]:
        """Drops as many more turns as it takes for at most `most` tokens, or all but the last."""
        choices = range(self._gone, len(self._turns))

        def rendered(gone: int) -> list[int]:
            return self._render([*self._head, *(message for turn in self._turns[gone:] for message in turn)])

        place = bisect_left(choices, True, key=lambda gone: len(rendered(gone)) <= most)
        self._gone = choices[min(place, len(choices) - 1)]
        return rendered(self._gone)


def _first_and_last(tokens: list[int], context: int, most: int) -> list[int]:
    sinks = min(SINKS, context // 4)
    return tokens[:sinks] + tokens[len(tokens) - max(most - sinks, 1) :]


def _turns(messages: Messages) -> tuple[list[Mapping[str, Any]], list[list[Mapping[str, Any]]]]:
    """What stands before the chat, and its turns: each a user's messages with all that answers them."""
    messages = list(messages)
    n_head = 0
    while n_head < len(messages) and messages[n_head].get("role") in ("system", "developer"):
        n_head += 1
    turns: list[list[Mapping[str, Any]]] = []
    for message in messages[n_head:]:
        answered = bool(turns) and turns[-1][-1].get("role") != "user"
        if not turns or (message.get("role") == "user" and answered):
            turns.append([])
        turns[-1].append(message)
    return messages[:n_head], turns or [[]]


def shorter_prompt(shortening: Shortening, tokens: list[int], context: int, max_tokens: int | None) -> list[int]:
    """A quarter of the context, or what the answer may take at most, is left free where a prompt has to be cut."""
    if len(tokens) < context:
        return tokens
    room = max(1, context // 4 if max_tokens is None else min(max_tokens, context // 4))
    return shortening.prompt(tokens, context, room)
