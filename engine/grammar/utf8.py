"""Ranges of characters as ranges of bytes."""

from __future__ import annotations

from collections.abc import Iterator

from engine.grammar.syntax import Ranges

Bytes = tuple[tuple[int, int], ...]
"""For each byte of a character, in order, the first and the last that it may be."""

_LAST_OF_LENGTH = (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)


def byte_ranges(ranges: Ranges) -> Iterator[Bytes]:
    """Sequences of byte ranges that together spell exactly these characters in UTF-8. Surrogates are none."""
    for low, high in ranges:
        for length, last in enumerate(_LAST_OF_LENGTH, 1):
            if low > high:
                break
            if low <= last:
                yield from _split(low, min(high, last), length)
                low = last + 1


def _split(low: int, high: int, length: int) -> Iterator[Bytes]:
    """Cuts a range of characters of one length until each byte runs through a range of its own."""
    for trailing in range(1, length):
        mask = (1 << (6 * trailing)) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from _split(low, low | mask, length)
                yield from _split((low | mask) + 1, high, length)
                return
            if high & mask != mask:
                yield from _split(low, (high & ~mask) - 1, length)
                yield from _split(high & ~mask, high, length)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
