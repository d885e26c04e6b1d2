"""Guessing from what stands in the sequence already: what followed the same tokens the last time."""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (8, 4, 2, 1)
"""Lengths of the ends that are looked up, longest first."""

TRIES = 8
"""Earlier places of one end that are compared, latest first."""

LONGEST_MATCH = 32


class NgramIndex:
    """Where each run of 1, 2, 4 and 8 tokens ended before, kept up as a sequence grows.

    A token costs a few dictionary entries, a look-up a few comparisons: microseconds, however long the sequence.
    """

    def __init__(self) -> None:
        self._latest: list[dict[tuple[int, ...], int]] = [{} for _ in SIZES]
        self._earlier: list[list[int]] = [[] for _ in SIZES]  # place -> the one before it of the same run, or -1
        self._n = 0
        self._last = -1

    def guess(self, tokens: Sequence[int], length: int) -> tuple[list[int], int]:
        """Up to `length` tokens that followed an earlier occurrence of the longest end of `tokens` that has one, and
        how long that end is (at most 32).

        Of equally long ones the latest counts. A continuation that reaches the end of the sequence goes on with
        itself. Nothing is found: no tokens, 0.
        """
        self._follow(tokens)
        for size, latest, earlier in zip(SIZES, self._latest, self._earlier, strict=True):
            if len(tokens) <= size:
                continue
            place = latest.get(tuple(tokens[-size:]), -1)
            if place >= 0:
                place, match = self._longest(tokens, place, size, earlier)
                return _continuation(tokens, place, length), match
        return [], 0

    def _follow(self, tokens: Sequence[int]) -> None:
        """Takes up the tokens that are new; a sequence that was rewritten is read again.

        A run is entered once a token follows it, so an end never finds itself.
        """
        n = len(tokens) - 1
        if n < self._n or (self._n and tokens[self._n - 1] != self._last):
            self.__init__()  # type: ignore[misc]
        for end in range(self._n + 1, n + 1):
            for size, latest, earlier in zip(SIZES, self._latest, self._earlier, strict=True):
                if end >= size:
                    run = tuple(tokens[end - size : end])
                    earlier.append(latest.get(run, -1))
                    latest[run] = end
                else:
                    earlier.append(-1)
        self._n = max(n, 0)
        self._last = tokens[n - 1] if n > 0 else -1

    @staticmethod
    def _longest(tokens: Sequence[int], place: int, size: int, earlier: list[int]) -> tuple[int, int]:
        """Of the places where a run of `size` ended, the one before which most tokens agree: (place, how many)."""
        best, longest = place, 0
        for _ in range(TRIES):
            match = size
            most = min(place, LONGEST_MATCH)
            while match < most and tokens[place - match - 1] == tokens[-match - 1]:
                match += 1
            if match > longest:
                best, longest = place, match
            place = earlier[place - 1]
            if place < 0:
                break
        return best, longest


def _continuation(tokens: Sequence[int], place: int, length: int) -> list[int]:
    out = list(tokens[place : place + length])
    period = len(tokens) - place
    while len(out) < length:
        out.append(out[-period])
    return out
