"""What a grammar says: rules over characters, tokens and other rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]
"""Code points, first and last of each range, ascending and apart."""

LAST_CHARACTER = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)  # no characters; UTF-8 does not spell them


@dataclass(frozen=True)
class Place:
    """Where something stands in the text of a grammar, both from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True)
class Chars:
    """One character out of the ranges."""

    ranges: Ranges


@dataclass(frozen=True)
class TokenIs:
    """One token of the vocabulary, by its id or its text; or, negated, any but that."""

    token: int | str
    negated: bool
    place: Place


@dataclass(frozen=True)
class Ref:
    """What the rule of this name matches."""

    name: str
    place: Place


@dataclass(frozen=True)
class Seq:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """At least `least` times, at most `most` (None: any number)."""

    item: Node
    least: int
    most: int | None


Node = Chars | TokenIs | Ref | Seq | Alt | Repeat


@dataclass(frozen=True)
class Rule:
    name: str
    body: Node
    place: Place


Grammar = Mapping[str, Rule]
"""Rules by name; "root" is what a whole answer matches."""


def merged(ranges: list[tuple[int, int]]) -> Ranges:
    """The ranges in ascending order, joined where they touch."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def complement(ranges: Ranges) -> Ranges:
    """All other characters."""
    out, start = [], 0
    for low, high in (*ranges, (LAST_CHARACTER + 1, LAST_CHARACTER + 1)):
        if start < low:
            out.append((start, low - 1))
        start = max(start, high + 1)
    return tuple(out)


def without_surrogates(ranges: Ranges) -> Ranges:
    low, high = SURROGATES
    out = []
    for start, end in ranges:
        if start < low:
            out.append((start, min(end, low - 1)))
        if end > high:
            out.append((max(start, high + 1), end))
    return tuple(out)
