"""How attention is cut: every position once, in segments that depend on the row's own position alone."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.opencl.segments import MOST_SEGMENTS, SHORTEST_SEGMENT, cut_attention, segment_length
from engine.batch import KV_BLOCK, Batch

Sequences = list[tuple[int, int]]


def _batch(sequences: Sequences) -> Batch:
    """(first position, rows) of each sequence."""
    positions = [np.arange(first, first + rows) for first, rows in sequences]
    n = sum(rows for _, rows in sequences)
    return Batch(
        tokens=np.zeros(n, np.int32),
        positions=np.concatenate(positions).astype(np.int32),
        sequences=np.repeat(np.arange(len(sequences)), [rows for _, rows in sequences]).astype(np.int32),
        block_tables=np.zeros((len(sequences), 1), np.int32),
        logit_rows=np.zeros(0, np.int32),
    )


def _bounds(position: int) -> list[tuple[int, int]]:
    """The segments of a row: from, to."""
    length = segment_length(position)
    return [(first, min(first + length, position + 1)) for first in range(0, position + 1, length)]


def test_segments_grow_with_the_context_and_stay_few() -> None:
    for position in (0, 1, 127, 128, 4095, 4096, 8191, 8192, 16_384, 131_071, 1_000_000):
        length = segment_length(position)
        assert length % SHORTEST_SEGMENT == 0
        assert length % KV_BLOCK == 0
        assert len(_bounds(position)) <= MOST_SEGMENTS
        assert length == SHORTEST_SEGMENT or len(_bounds(position)) > MOST_SEGMENTS // 2


@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(1, 32),
    st.sampled_from([0, 40, 512]),
)
def test_every_row_reads_its_own_segments(sequences: Sequences, tile_rows: int, slots: int) -> None:
    batch = _batch(sequences)
    cut = cut_attention(batch, tile_rows, slots)
    assert cut.slots <= slots
    joined = {row: range(first, first + n) for row, first, n in cut.combines}
    taken = [slot for some in joined.values() for slot in some]
    assert len(taken) == len(set(taken)) == cut.slots
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for first_row, rows, position, first, last, segment, slot, stride in cut.tiles:
        assert 0 < rows <= tile_rows
        assert last <= position + rows
        for i in range(rows):
            row = first_row + i
            own = position + i
            assert own == batch.positions[row]
            assert batch.sequences[row] == batch.sequences[first_row]
            assert segment == segment_length(own)
            if slot < 0:
                assert row not in joined
                assert (first, last >= own + 1) == (0, True)
                found[row] += _bounds(own)
            else:
                at = joined[row].index(slot + i * stride)
                assert (first, last) == (at * segment, min((at + 1) * segment, position + rows))
                if first <= own:  # else the row sees nothing of it
                    found[row].append((first, min(last, own + 1)))
    assert {row: sorted(parts) for row, parts in found.items()} == {
        row: _bounds(int(position)) for row, position in enumerate(batch.positions)
    }


def test_a_draft_is_checked_by_several_work_groups_and_reads_keys_once() -> None:
    cut = cut_attention(_batch([(1000, 8)]), 10, 512)
    assert len(cut.tiles) == 8  # segments
    assert {tile[1] for tile in cut.tiles} == {8}
    assert len(cut.combines) == 8


def test_a_long_prefill_is_not_split() -> None:
    cut = cut_attention(_batch([(1000, 512)]), 10, 512)
    assert cut.slots == 0
    assert not cut.combines
