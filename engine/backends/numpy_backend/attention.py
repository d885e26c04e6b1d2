"""Attention and short convolutions: what reads other positions of a sequence, through the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.batch import KV_BLOCK, Batch
from engine.graph import Attention, Rope
from engine.quants import QuantType, dequantize, quantize

Array = NDArray[np.float32]

QUERY_ROWS = 64
KEY_ROWS = 512
"""Attention works on tiles of this many query and key positions, with an online softmax between key tiles. A tile of
keys is the longer: so each query finds a position it may read in the first tile."""


_HADAMARD = np.array([[(-1) ** (i & j).bit_count() for j in range(32)] for i in range(32)], np.float32) / np.sqrt(
    np.float32(32)
)
"""Walsh-Hadamard: orthogonal, symmetric, its own inverse."""


@dataclass(frozen=True)
class Tile:
    """Some positions of a sequence and where in the cache they are."""

    span: NDArray[np.int64]
    where: slice | NDArray[np.int32]


class Positions:
    """Where the rows of a batch stand; worked out once for all layers."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.slots = self.slots_of(batch.positions)
        self.starts = np.flatnonzero(np.diff(batch.sequences, prepend=-1))
        self._tables: dict[int, Array] = {}
        self._tiles: dict[tuple[int, int, int], list[Tile]] = {}

    def slots_of(self, positions: NDArray[np.int32]) -> NDArray[np.int32]:
        """The cache slots of these positions [rows] of the rows' sequences."""
        blocks = self.batch.block_tables[self.batch.sequences, positions // KV_BLOCK]
        slots: NDArray[np.int32] = blocks * KV_BLOCK + positions % KV_BLOCK
        return slots

    def table(self, rope: Rope) -> Array:
        table = self._tables.get(id(rope))
        if table is None:
            table = self._tables[id(rope)] = rope.table(self.batch.positions)
        return table

    def tiles(self, sequence: int, begin: int, end: int) -> list[Tile]:
        """The positions begin .. end - 1 of a sequence, cut into tiles."""
        tiles = self._tiles.get((sequence, begin, end))
        if tiles is None:
            tiles = self._tiles[sequence, begin, end] = []
            blocks = self.batch.block_tables[sequence]
            for start in range(begin, end, KEY_ROWS):
                span = np.arange(start, min(start + KEY_ROWS, end))
                slots = blocks[span // KV_BLOCK] * KV_BLOCK + span % KV_BLOCK
                contiguous = bool((np.diff(slots) == 1).all())
                tiles.append(Tile(span, slice(slots[0], slots[-1] + 1) if contiguous else slots))
        return tiles


def attention(
    op: Attention,
    at: Positions,
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    sinks: Array | None,
    kv_type: str,
) -> Array:
    """Stores k and v in the layer's cache (keys and values: [slots, kv heads, width]) and attends: graph.Attention."""
    rows = len(q)
    q = q.reshape(rows, op.n_heads, op.head_width)
    k = k.reshape(rows, op.n_kv_heads, op.head_width)
    if op.rope is not None:
        table = at.table(op.rope)
        q = rotate(q, op.rope, table, op.rope_start)
        k = rotate(k, op.rope, table, op.rope_start)
    keys[at.slots] = rounded(k, kv_type, keys=True)
    values[at.slots] = rounded(v.reshape(rows, op.n_kv_heads, op.v_head_width), kv_type)
    batch = at.batch
    out = np.empty((rows, op.n_heads, op.v_head_width), np.float32)
    for start, end in zip(at.starts, [*at.starts[1:], rows], strict=True):
        sequence = int(batch.sequences[start])
        for first in range(start, end, QUERY_ROWS):
            last = min(first + QUERY_ROWS, end)
            positions = batch.positions[first:last]
            if not op.causal:  # as if all of them came last
                positions = np.full_like(positions, batch.positions[end - 1])
            begin = max(0, int(positions[0]) - op.window + 1) if op.window else 0
            tiles = at.tiles(sequence, begin, int(positions[-1]) + 1)
            out[first:last] = _attend(op, q[first:last], keys, values, tiles, positions, sinks)
    return out.reshape(rows, -1)


def rounded(x: Array, kv_type: str, *, keys: bool = False) -> Array:
    """x [rows, heads, width] as a cache of the type gives it back, each head in blocks of 32; f16 changes nothing.

    keys: they are rotated before they are rounded to q4_0, as cl_kernels/cache.cl says; here they are rotated back.
    """
    if kv_type == "f16":
        return x
    quant, width = QuantType.by_name(kv_type), x.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (0, -width % quant.block_size)))
    rows = padded.reshape(-1, padded.shape[2])
    if not np.isfinite(rows).all():  # a broken model's; the types have no such numbers
        return x
    rotated = keys and kv_type == "q4_0"
    if rotated:
        rows = (rows.reshape(-1, 32) @ _HADAMARD).reshape(rows.shape)
    got = dequantize(quant, quantize(quant, np.ascontiguousarray(rows)))
    if rotated:
        got = got.reshape(-1, 32) @ _HADAMARD
    return got.reshape(padded.shape)[:, :, :width]


def rotate(x: Array, rope: Rope, table: Array, start: int) -> Array:
    """x [rows, heads, head_width], its columns from start on rotated by table [rows, 2, n_rotated / 2]."""
    half, end = rope.n_rotated // 2, start + rope.n_rotated
    first, second = (
        (np.s_[..., start:end:2], np.s_[..., start + 1 : end : 2])
        if rope.interleaved
        else (np.s_[..., start : start + half], np.s_[..., start + half : end])
    )
    cos, sin = table[:, None, 0], table[:, None, 1]
    out = x.copy()
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[first] * sin + x[second] * cos
    return out


def _attend(
    op: Attention,
    q: Array,
    keys: Array,
    values: Array,
    tiles: list[Tile],
    positions: NDArray[np.int32],
    sinks: Array | None,
) -> Array:
    """Attention of one sequence's query rows [n, heads, width] over the cached positions of the tiles."""
    group = op.n_heads // op.n_kv_heads
    n = len(q)
    # [kv heads, group * n, width]: the heads that share keys are one matrix product
    queries = q.reshape(n, op.n_kv_heads, group, -1).transpose(1, 2, 0, 3).reshape(op.n_kv_heads, group * n, -1)
    queries = queries * np.float32(op.scale)
    row_positions = np.tile(positions, group)[:, None] if n > 1 else positions[:, None]
    if sinks is None:
        best = np.full((op.n_kv_heads, group * n, 1), -np.inf, np.float32)
        total = np.zeros_like(best)
    else:  # a sink is a key seen first, whose value is zero
        best = np.repeat(sinks, n).reshape(op.n_kv_heads, group * n, 1)
        total = np.ones_like(best)
    out = np.zeros((op.n_kv_heads, group * n, op.v_head_width), np.float32)
    for tile in tiles:
        span = tile.span
        scores = queries @ keys[tile.where].transpose(1, 2, 0)
        if op.softcap:
            scores = np.float32(op.softcap) * np.tanh(scores / np.float32(op.softcap))
        if span[-1] > positions[0]:
            scores[:, row_positions < span] = -np.inf
        if op.window and row_positions[-1, 0] - span[0] >= op.window:
            scores[:, row_positions - span >= op.window] = -np.inf
        new_best = np.maximum(best, scores.max(axis=2, keepdims=True))
        scores = np.exp(scores - new_best)
        shrink = np.exp(best - new_best)
        total = total * shrink + scores.sum(axis=2, keepdims=True)
        out = out * shrink + scores @ values[tile.where].transpose(1, 0, 2)
        best = new_best
    out /= total
    return out.reshape(op.n_kv_heads, group, n, -1).transpose(2, 0, 1, 3).reshape(n, op.n_heads, -1)


def short_conv(at: Positions, x: Array, weight: Array, cache: Array) -> Array:
    """Stores x in the layer's cache [slots, width] and convolves; weight [width, taps]; see graph.ShortConv."""
    cache[at.slots] = x
    taps = weight.shape[1]
    out = x * weight[:, taps - 1]
    for back in range(1, taps):
        earlier = at.batch.positions - back
        seen = cache[at.slots_of(np.maximum(earlier, 0))]
        out += np.where(earlier[:, None] >= 0, seen, np.float32(0)) * weight[:, taps - 1 - back]
    return out
