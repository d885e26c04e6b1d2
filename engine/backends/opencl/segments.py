"""How attention is cut: positions into segments, rows into tiles.

A row's positions are cut into segments whose length depends on the row's own position alone; each is an online softmax
of its own, and they are joined in their order. So a row comes to the same bits as a lone decode, as one of several rows
that check a draft, and as part of a prefill: which rows share a tile and whether one work-group or several take its
segments is a matter of speed only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from engine.batch import Batch

SHORTEST_SEGMENT = 128
MOST_SEGMENTS = 32
"""Segments have SHORTEST_SEGMENT positions while a row has at most MOST_SEGMENTS of these, then twice as many, ..."""

SPLIT_ROWS = 32
"""So many adjacent rows of a sequence, or fewer, share their segments out among the work-groups."""


def segment_length(position: int) -> int:
    """Positions of a segment of the row at `position`: a power of two times SHORTEST_SEGMENT."""
    length = SHORTEST_SEGMENT
    while position >= MOST_SEGMENTS * length:
        length *= 2
    return length


@dataclass(frozen=True)
class Run:
    """Adjacent rows of one sequence whose segments have the same length."""

    row: int
    rows: int
    position: int  # of the first row
    segment: int

    @property
    def length(self) -> int:
        """Positions that its last row reads."""
        return self.position + self.rows


def runs(batch: Batch) -> list[Run]:
    """The rows of a batch as runs, in order."""
    found: list[Run] = []
    positions, sequences = batch.positions.tolist(), batch.sequences.tolist()
    start, rows = 0, len(positions)
    while start < rows:
        segment = segment_length(positions[start])
        end = start + 1
        while end < rows and sequences[end] == sequences[start] and positions[end] < MOST_SEGMENTS * segment:
            end += 1
        found.append(Run(start, end - start, positions[start], segment))
        start = end
    return found


@dataclass
class Cut:
    """tiles: as TILE_WORDS in step.cl says. combines: (row, first partial slot, slots). slots: how many are used."""

    tiles: list[tuple[int, ...]] = field(default_factory=list)
    combines: list[tuple[int, int, int]] = field(default_factory=list)
    slots: int = 0


def cut_attention(batch: Batch, tile_rows: int, partial_slots: int) -> Cut:
    """Tiles of at most tile_rows rows, and how the partial results of those that are split come together.

    partial_slots: how many results of a row's segments there is room for. Rows that find no room are not split.
    """
    cut = Cut()
    for run in runs(batch):
        n_tiles = -(-run.rows // tile_rows)
        splits = -(-run.length // run.segment)
        split = splits > 1 and run.rows <= SPLIT_ROWS and cut.slots + run.rows * splits <= partial_slots
        for tile in range(n_tiles):
            first, last = run.rows * tile // n_tiles, run.rows * (tile + 1) // n_tiles
            row, rows, position = run.row + first, last - first, run.position + first
            length = position + rows
            if not split:
                cut.tiles.append((row, rows, position, 0, length, run.segment, -1, 0))
                continue
            own = -(-length // run.segment)
            for s in range(own):
                ends = min((s + 1) * run.segment, length)
                cut.tiles.append((row, rows, position, s * run.segment, ends, run.segment, cut.slots + s, own))
            cut.combines += [(row + i, cut.slots + i * own, own) for i in range(rows)]
            cut.slots += rows * own
    return cut


def whole_tiles(batch: Batch, tile_rows: int, partial_slots: int) -> Cut:
    """The tiles of an encoder: each row reads all of its sequence, whose rows are all in the batch."""
    changes = np.flatnonzero(np.diff(batch.sequences)) + 1
    cut = Cut()
    for start, end in pairwise([0, *changes.tolist(), len(batch.tokens)]):
        length = end - start
        segment = segment_length(length - 1)
        for row in range(start, end, tile_rows):
            cut.tiles.append((row, min(tile_rows, end - row), row - start, 0, length, segment, -1, 0))
    return cut
