"""A step's input on a GPU: everything that changes from token to token, as int32 words in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.adapters.rack import MAX_USES
from engine.batch import Batch
from engine.graph import Rope

HEADER_WORDS = 64
"""Words at the start; IN_* in cl_kernels/simt_common.cl. The offsets of the rope tables follow from word 11."""

LORA_WORD = 16
"""Where the words about adapters begin."""

SINGLES_WORD, COMBINES_WORD, ARRIVED_WORD = 22, 23, 32
"""Where kernels read how many parts of lone rows and joins there are, and count who has come to the end of a phase."""

UNIT_WORDS = 5
"""The struct LoraUnit of cl_kernels/simt_lora.cl."""

MAX_ROPES = LORA_WORD - 11

ROWS_WORD, LOGIT_ROWS_WORD = 0, 1
"""Where kernels read how many rows there are."""

LONE_ROWS = 16
"""So many adjacent rows of a sequence, or fewer, attend one by one: so rows that check a draft come to the bits of lone
ones. Tiles add up in another order: rows of a longer prefill differ in their last bits."""

SPLIT_KEYS = 128
MAX_SPLITS = 64
"""A lone row's attention is cut into parts of a multiple of SPLIT_KEYS positions, at most MAX_SPLITS of them."""

PARTIAL_SLOTS = 1024
"""Parts whose results one step can hold."""


@dataclass(frozen=True)
class LoraCounts:
    """groups: of 16 ranks, most of any adapter that acts."""

    units: int = 0
    chunks: int = 0
    groups: int = 1


@dataclass(frozen=True)
class Counts:
    """How many of everything a step has; kernels are launched as often."""

    rows: int
    logit_rows: int
    tiles: int
    singles: int
    combines: int
    lora: LoraCounts = LoraCounts()
    logit_lora: LoraCounts = LoraCounts()


def split_lone_row(length: int) -> list[tuple[int, int]]:
    """The parts [first, last) of a row that reads `length` positions. They depend on its length alone, so that it
    comes out the same in any batch."""
    units = -(-length // SPLIT_KEYS)
    step = SPLIT_KEYS * -(-units // MAX_SPLITS)
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def split_slots(batch: Batch) -> list[Batch]:
    """Cuts a batch between sequences so that no part needs more than PARTIAL_SLOTS partial results."""
    starts = _run_starts(batch)
    cuts, slots = [0], 0
    for start, end in zip(starts, [*starts[1:], len(batch.tokens)], strict=True):
        wanted = 0
        if end - start <= LONE_ROWS:
            wanted = sum(len(split_lone_row(int(p) + 1)) for p in batch.positions[start:end])
        if slots + wanted > PARTIAL_SLOTS and start > cuts[-1]:
            cuts.append(start)
            slots = 0
        slots += wanted
    if len(cuts) == 1:
        return [batch]
    parts = []
    for start, end in zip(cuts, [*cuts[1:], len(batch.tokens)], strict=True):
        rows = slice(start, end)
        wanted_rows = batch.logit_rows[(batch.logit_rows >= start) & (batch.logit_rows < end)]
        parts.append(
            replace(
                batch,
                tokens=batch.tokens[rows],
                positions=batch.positions[rows],
                sequences=batch.sequences[rows],
                logit_rows=(wanted_rows - start).astype(np.int32),
            )
        )
    return parts


@dataclass(frozen=True)
class LoraInput:
    """What acts on rows: int32 [units, UNIT_WORDS] (struct LoraUnit), [chunks, 2] (first unit, number of units)."""

    units: NDArray[np.int32]
    chunks: NDArray[np.int32]
    groups: int


def fill_input(
    words: NDArray[np.int32],
    batch: Batch,
    ropes: list[Rope],
    tile_rows: int,
    causal: bool,
    lora: Sequence[LoraInput] = (),
) -> tuple[int, Counts]:
    """Writes the step's input to `words`; returns its length in words and what there is to do.

    lora: among the rows and among the logit rows, where adapters act.
    """
    tiles, singles, combines = _cut_attention(batch, tile_rows) if causal else (_whole_tiles(batch, tile_rows), [], [])
    at = HEADER_WORDS
    offsets = []
    parts = [batch.tokens, batch.positions, batch.sequences, batch.logit_rows, tiles, singles, combines]
    tables = [rope.table(batch.positions).view(np.int32) for rope in ropes]
    for part in [*parts, batch.block_tables, *tables]:
        flat = np.asarray(part, np.int32).ravel()
        offsets.append(at)
        words[at : at + len(flat)] = flat
        at += len(flat)
    lora_counts = []
    for i, acting in enumerate(lora):
        for word, values in ((LORA_WORD + i, acting.units), (LORA_WORD + 2 + i, acting.chunks)):
            words[word] = at
            words[at : at + values.size] = values.ravel()
            at += values.size
        words[LORA_WORD + 4 + i] = acting.groups
        lora_counts.append(LoraCounts(len(acting.units), len(acting.chunks), acting.groups))
    counts = Counts(len(batch.tokens), len(batch.logit_rows), len(tiles), len(singles), len(combines), *lora_counts)
    words[:3] = (counts.rows, counts.logit_rows, batch.block_tables.shape[1])
    words[3 : 3 + len(offsets)] = offsets
    words[SINGLES_WORD], words[COMBINES_WORD], words[ARRIVED_WORD] = counts.singles, counts.combines, 0
    return at, counts


def input_words(max_rows: int, n_blocks: int, ropes: list[Rope], max_logit_rows: int) -> int:
    """Words that the largest input takes."""
    lone = 4 * (PARTIAL_SLOTS + max_rows)
    lora = (MAX_USES * UNIT_WORDS + 2) * (max_rows + max_logit_rows)
    return HEADER_WORDS + max_rows * (4 + 4 + 3 + n_blocks + sum(r.n_rotated for r in ropes)) + lone + lora


def _run_starts(batch: Batch) -> list[int]:
    """The first rows of the sequences."""
    changes = np.flatnonzero(np.diff(batch.sequences)) + 1
    return [0, *changes.tolist()]


def _whole_tiles(batch: Batch, tile_rows: int) -> list[tuple[int, int, int, int]]:
    """Tiles whose rows read all of their sequence: as if each of them were its last."""
    starts = _run_starts(batch)
    return [
        (row, min(tile_rows, end - row), int(batch.positions[end - 1]), 0)
        for start, end in zip(starts, [*starts[1:], len(batch.tokens)], strict=True)
        for row in range(start, end, tile_rows)
    ]


def _cut_attention(
    batch: Batch, tile_rows: int
) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int, int]], list[tuple[int, int, int]]]:
    """Tiles of rows (first, rows, position, 1), parts of lone rows (row, first, last, slot), what joins them."""
    tiles, singles, combines = [], [], []
    slots = 0
    positions = batch.positions.tolist()
    starts = _run_starts(batch)
    for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
        if end - start > LONE_ROWS:
            tiles += [(row, min(tile_rows, end - row), positions[row], 1) for row in range(start, end, tile_rows)]
            continue
        for row in range(start, end):
            parts = split_lone_row(positions[row] + 1)
            if len(parts) == 1:
                singles.append((row, 0, positions[row] + 1, -1))
                continue
            combines.append((row, slots, len(parts)))
            for first, last in parts:
                singles.append((row, first, last, slots))
                slots += 1
    return tiles, singles, combines
