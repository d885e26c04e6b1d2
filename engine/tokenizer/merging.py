"""Merging adjacent symbols, best rank first, until no pair has a rank: the heart of BPE and of SentencePiece's BPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

_SHORT = 24  # below this many symbols, looking at every pair again is faster than a heap
_NONE = 1 << 62


def merge(symbols: Sequence[str], ranks: Mapping[str, int], joint: str) -> list[str]:
    """Merges neighbours in `symbols` until nothing more merges.

    A pair (a, b) may merge if `a + joint + b` is in `ranks`; the lowest rank goes first, the leftmost among equals.
    """
    return _merge_short(list(symbols), ranks, joint) if len(symbols) < _SHORT else _merge_long(symbols, ranks, joint)


def _merge_short(parts: list[str], ranks: Mapping[str, int], joint: str) -> list[str]:
    rank_of = ranks.get
    pairs = [rank_of(parts[i] + joint + parts[i + 1], _NONE) for i in range(len(parts) - 1)]
    while pairs:
        best = min(pairs)
        if best == _NONE:
            break
        i = pairs.index(best)
        parts[i] += parts.pop(i + 1)
        del pairs[i]
        if i:
            pairs[i - 1] = rank_of(parts[i - 1] + joint + parts[i], _NONE)
        if i < len(pairs):
            pairs[i] = rank_of(parts[i] + joint + parts[i + 1], _NONE)
    return parts


def _merge_long(symbols: Sequence[str], ranks: Mapping[str, int], joint: str) -> list[str]:
    """The same with a heap of (rank, left index) packed into one integer: O(n log n)."""
    n = len(symbols)
    parts = list(symbols)
    after = list(range(1, n + 1))  # index of the next living symbol; n at the end
    before = list(range(-1, n - 1))
    rank_of = ranks.get
    shift = n.bit_length()
    mask = (1 << shift) - 1
    current = [rank_of(a + joint + b, _NONE) for a, b in pairwise(parts)]  # of (i, after[i])
    current.append(_NONE)
    heap = [(rank << shift) | i for i, rank in enumerate(current) if rank != _NONE]
    heapify(heap)
    while heap:
        key = heappop(heap)
        left = key & mask
        if current[left] != key >> shift:
            continue  # one of the two merged with another meanwhile
        right = after[left]
        text = parts[left] + parts[right]
        parts[left] = text
        parts[right] = ""
        current[right] = _NONE
        right = after[left] = after[right]
        if right < n:
            before[right] = left
            rank = rank_of(text + joint + parts[right], _NONE)
            current[left] = rank
            if rank != _NONE:
                heappush(heap, (rank << shift) | left)
        else:
            current[left] = _NONE
        previous = before[left]
        if previous >= 0:
            rank = rank_of(parts[previous] + joint + text, _NONE)
            current[previous] = rank
            if rank != _NONE:
                heappush(heap, (rank << shift) | previous)
    return [part for part in parts if part]
