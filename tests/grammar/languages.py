"""Small languages with a reader of their own: random expressions as GBNF, and by Brzozowski's derivatives over bytes.

Nothing here is shared with the engine: an expression is a nested tuple, and its derivative by a byte is again one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

Expression = tuple[Any, ...]
NOTHING: Expression = ("nothing",)
EMPTY: Expression = ("empty",)
ALPHABET = 'ab0"\\é€😀'


def text(string: str) -> Expression:
    return ("bytes", string.encode())


def either(*parts: Expression) -> Expression:
    flat = {p for part in parts for p in (part[1] if part[0] == "either" else (part,)) if p != NOTHING}
    return NOTHING if not flat else next(iter(flat)) if len(flat) == 1 else ("either", frozenset(flat))


def then(first: Expression, second: Expression) -> Expression:
    if NOTHING in (first, second):
        return NOTHING
    return second if first == EMPTY else first if second == EMPTY else ("then", first, second)


def times(part: Expression, least: int, most: int | None) -> Expression:
    if most == 0:
        return EMPTY
    return ("times", part, least, most)


@cache
def matches_empty(e: Expression) -> bool:
    match e[0]:
        case "bytes":
            return not e[1]
        case "empty":
            return True
        case "either":
            return any(matches_empty(part) for part in e[1])
        case "then":
            return matches_empty(e[1]) and matches_empty(e[2])
        case "times":
            return e[2] == 0 or matches_empty(e[1])
    return False


@cache
def after(e: Expression, byte: int) -> Expression:
    """What may follow the byte; NOTHING where the byte cannot come."""
    match e[0]:
        case "bytes":
            return ("bytes", e[1][1:]) if e[1][:1] == bytes([byte]) else NOTHING
        case "either":
            return either(*(after(part, byte) for part in e[1]))
        case "then":
            rest = then(after(e[1], byte), e[2])
            return either(rest, after(e[2], byte)) if matches_empty(e[1]) else rest
        case "times":
            least = 0 if matches_empty(e[1]) else max(e[2] - 1, 0)
            return then(after(e[1], byte), times(e[1], least, None if e[3] is None else e[3] - 1))
    return NOTHING


def after_all(e: Expression, string: bytes) -> Expression:
    for byte in string:
        e = after(e, byte)
    return e


def _quoted(char: str) -> str:
    return {'"': '\\"', "\\": "\\\\", "-": "\\-", "]": "\\]"}.get(char, char)


@st.composite
def languages(draw: Any, depth: int = 3) -> tuple[str, Expression]:
    """A GBNF expression and the same thing for the reader above."""
    kind = draw(st.sampled_from(["text", "class", "dot"] if depth == 0 else ["text", "class", "seq", "alt", "repeat"]))
    if kind == "text":
        string = draw(st.text(ALPHABET, max_size=3))
        return '"' + "".join(map(_quoted, string)) + '"', text(string)
    if kind in ("class", "dot"):
        chars = draw(st.sets(st.sampled_from(ALPHABET), min_size=1, max_size=4))
        return "[" + "".join(map(_quoted, sorted(chars))) + "]", either(*map(text, chars))
    if kind == "repeat":
        gbnf, inner = draw(languages(depth=depth - 1))
        sign, least, most = draw(
            st.sampled_from(
                [("*", 0, None), ("+", 1, None), ("?", 0, 1), ("{2}", 2, 2), ("{1,3}", 1, 3), ("{2,}", 2, None)]
            )
        )
        return f"({gbnf}){sign}", times(inner, least, most)
    parts = draw(st.lists(languages(depth=depth - 1), min_size=1, max_size=3))
    if kind == "alt":
        return "(" + " | ".join(g for g, _ in parts) + ")", either(*(e for _, e in parts))
    whole = EMPTY
    for _, part in reversed(parts):
        whole = then(part, whole)
    return " ".join(g for g, _ in parts), whole
