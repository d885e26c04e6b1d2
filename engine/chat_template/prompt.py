"""Messages to token ids, without letting a message forge a control token.

Rendered text is tokenized with control tokens parsed, because the template writes them as text. So that the same texts
inside a message stay text, a guard character is put into them before rendering, and taken out of the plain pieces
after the text has been cut at control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.chat_template.template import ChatTemplate, check_messages
from engine.tokenizer import Tokenizer

_PLAIN_ROLE = re.compile(r"[A-Za-z0-9_-]*")
_PRIVATE_USE = range(0xF0000, 0xFFFFE)


def render_chat_tokens(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    answer_so_far: str = "",
    **extra: Any,
) -> list[int]:
    """Renders messages and tokenizes the result, followed by the beginning of the answer, if there is one.

    Control tokens come from the template only: whatever a message (or a variable in `extra`, such as tools) contains
    is plain text, and so is the answer. BOS stands first once, if the model wants it, whether the template writes it or
    not.

    Raises TemplateError as `ChatTemplate.render` does.
    """
    check_messages(messages)
    used = (
        set().union(template.source, *_texts([list(messages), extra, answer_so_far]))
        | _marks(tokenizer.control_texts).characters
    )
    guard = next(char for char in map(chr, _PRIVATE_USE) if char not in used)
    guarded = Guards(tokenizer.control_texts, template.literals, guard)
    text = template.render(
        [guarded.message(message) for message in messages],
        add_generation_prompt=add_generation_prompt,
        **guarded.value(extra),
    )
    text = text.replace(json.dumps(guard)[1:-1], guard)  # a template may have asked for JSON in ASCII
    text += guarded.text(answer_so_far)
    ids = tokenizer.encode(text, add_special=False, parse_special=True, guard=guard)
    if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids.insert(0, tokenizer.bos)
    return ids


class Guards:
    """Puts a guard character into texts wherever a control token could come about.

    That is inside of every control token's text; and, because templates trim, split and join what they get, at the ends
    of the text and around every literal of the template in it, if what stands there begins or ends a control token.
    """

    def __init__(self, control_texts: frozenset[str], literals: Iterable[str], guard: str) -> None:
        self._guard = guard
        self._marks = _marks(control_texts)
        self._literals = [literal for literal in literals if literal]

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message with guards in every value, except a role that is a plain word.

        Templates compare roles and spell control tokens with them ("<|" + role + "|>").
        """
        return {
            key: value
            if key == "role" and isinstance(value, str) and _PLAIN_ROLE.fullmatch(value)
            else self.value(value)
            for key, value in message.items()
        }

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def text(self, text: str) -> str:
        n = len(text)
        places: set[int] = set()
        cuts = {0, n, n - len(text.lstrip()), len(text.rstrip())}
        for literal in self._literals:
            for at in _occurrences(text, literal):
                cuts.update((at, at + len(literal)))
        for start, end in self._marks.begins(text):
            places.update(cuts.intersection(range(start + 1, end + 1)))
            for stop in range(start + 1, end + 1):
                if text[start:stop] in self._marks.whole:
                    places.add(start + 1 if stop - start > 1 else start)  # before a token of one character
        for start, end in self._marks.ends(text[::-1]):
            places.update(cuts.intersection(range(n - end, n - start)))
        if not places:
            return text
        pieces = []
        at = 0
        for place in sorted(places):
            pieces.append(text[at:place])
            at = place
        return self._guard.join([*pieces, text[at:]])


@dataclass(frozen=True)
class _Marks:
    """The control tokens' texts, ready to be looked for. `ends` reads both them and the text backwards."""

    whole: frozenset[str]
    characters: frozenset[str]
    begins: Callable[[str], Iterator[tuple[int, int]]]
    ends: Callable[[str], Iterator[tuple[int, int]]]


@lru_cache(maxsize=4)  # some vocabularies have thousands
def _marks(control_texts: frozenset[str]) -> _Marks:
    texts = [text for text in control_texts if text]
    return _Marks(
        whole=frozenset(texts),
        characters=frozenset("".join(texts)),
        begins=_beginnings(texts),
        ends=_beginnings([text[::-1] for text in texts]),
    )


def _beginnings(texts: Sequence[str]) -> Callable[[str], Iterator[tuple[int, int]]]:
    """A function that finds, at each place of a text, how far it reads like the beginning of one of `texts`."""
    beginnings = {text[:end] for text in texts for end in range(1, len(text) + 1)}
    first = re.compile("|".join(sorted({re.escape(text[0]) for text in texts})) or r"(?!)")

    def find(text: str) -> Iterator[tuple[int, int]]:
        for match in first.finditer(text):
            start, end = match.span()
            while end < len(text) and text[start : end + 1] in beginnings:
                end += 1
            yield start, end

    return find


def _occurrences(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a nested value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
