"""Where the accepted guesses of an answer stand in its blocks. Free of Qt.

A guess is known by its place in the markdown source; a block shows the source without its marks. The words of a block
are looked for in the source one after the other, so whatever stands between them (marks, the address of a link) is
passed over, and what is not found there (a bullet, an entity) stays without tint.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from time import perf_counter

Ranges = tuple[tuple[int, int], ...]

_PIECE = re.compile(r"\w+|[^\w\s]")
_FAR = 600
"""Characters of source that one step may pass over: a link's address, the line below a table's head."""
_AT_ONCE = 64
"""Pieces between two looks at the clock."""


def cut_ranges(ranges: Ranges, start: int, end: int) -> Ranges:
    """The parts of ascending ranges that lie between two positions, counted from the first."""
    if not ranges:
        return ()
    cut = []
    index = max(0, bisect_right(ranges, (start, 1 << 60)) - 1)
    while index < len(ranges) and ranges[index][0] < end:
        low, high = max(ranges[index][0], start), min(ranges[index][1], end)
        if low < high:
            cut.append((low - start, high - start))
        index += 1
    return tuple(cut)


class BlockTint:
    """The tinted ranges of one block's text, in characters; grows with the text."""

    def __init__(self, begin: int) -> None:
        self.begin = begin  # where in the source the block is looked for
        self.end = begin
        self.text = ""
        self.ranges: list[tuple[int, int]] = []
        self.done = False
        self._next = 0  # where in `text` to go on
        self._last: tuple[int, int] = (0, begin)  # the last piece found: its place in the text and in the source

    def grow(self, text: str) -> None:
        """Takes the block's text, which may have grown at its end or be another one."""
        if text == self.text:
            return
        if text.startswith(self.text):
            # The last word may have become longer, so it is looked for again.
            self._next, self.end = self._last
            before = len(self.text[: self._next].rstrip())  # the blank was tinted for the word's sake
            while self.ranges and self.ranges[-1][1] > before:
                start, _end = self.ranges.pop()
                if start < before:
                    self.ranges.append((start, before))
                    break
        else:
            self._next, self.end, self.ranges = 0, self.begin, []
            self._last = (0, self.begin)
        self.text = text
        self.done = False

    def advance(self, source: str, drafted: Sequence[tuple[int, int]], deadline: float) -> bool:
        """Looks for more of the text until `deadline` (perf_counter); returns whether all of it is done.

        drafted: ranges of the source, ascending and apart from each other.
        """
        for count, match in enumerate(_PIECE.finditer(self.text, self._next), 1):
            if count % _AT_ONCE == 0 and perf_counter() > deadline:
                self._next = match.start()
                return False
            start, piece = match.start(), match.group()
            place = source.find(piece, self.end, self.end + _FAR)
            if place >= 0:
                self._last = (start, self.end)
                self.end = place + len(piece)
                self._mark(start - place, place, self.end, drafted)
        self._next = len(self.text)
        self.done = True
        return True

    def _mark(self, shift: int, start: int, end: int, drafted: Sequence[tuple[int, int]]) -> None:
        index = bisect_right(drafted, (start, 1 << 60)) - 1
        for a, b in drafted[max(0, index) :]:
            if a >= end:
                break
            low, high = max(a, start) + shift, min(b, end) + shift
            if low >= high:
                continue
            if self.ranges and not self.text[self.ranges[-1][1] : low].strip():
                # Only blanks in between. They are tinted too if the guess covers them in the source.
                before = low - shift - 1
                if self.ranges[-1][1] == low or a <= before:
                    low = self.ranges.pop()[0]
            self.ranges.append((low, high))


class MessageTint:
    """The tint of an answer's blocks, worked out from the first on, a little at a time."""

    def __init__(self) -> None:
        self._blocks: list[BlockTint] = []

    def ranges(self, index: int) -> Ranges:
        """Of one block, as far as known."""
        return tuple(self._blocks[index].ranges) if index < len(self._blocks) else ()

    def advance(self, texts: Sequence[str], source: str, drafted: Ranges, deadline: float) -> bool:
        """Works on until `deadline`; returns whether all blocks are done. texts: of all blocks."""
        del self._blocks[len(texts) :]
        end = 0
        for index, text in enumerate(texts):
            if index == len(self._blocks):
                self._blocks.append(BlockTint(end))
            block = self._blocks[index]
            if block.begin != end:
                block = self._blocks[index] = BlockTint(end)
            if not block.done or block.text != text:
                block.grow(text)
                if not block.advance(source, drafted, deadline):
                    return False
            end = block.end
        return True
