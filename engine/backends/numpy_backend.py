"""The reference backend: runs a graph with numpy in float32. Plain, exact, and slow next to OpenCL.

Memory: up to `budget_bytes` of weights are expanded to float32 once, largest first, and kept; every other weight is
expanded in blocks of rows whenever it is used. Keys and values are float32 and allocated as sequences grow into them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.api import DeviceInfo
from engine.batch import KV_BLOCK, Batch, MemoryUse, Progress
from engine.gguf import GGUFFile
from engine.graph import Activation, Add, Attention, Embed, Gate, Graph, Linear, RmsNorm, Rope, SelectRows, Weight
from engine.quants import dequantize

Array = NDArray[np.float32]

BLOCK_VALUES = 1 << 22
"""Weights expanded at a time when they are not kept: 16 MiB of float32."""

QUERY_ROWS = 64
KEY_ROWS = 512
"""Attention works on tiles of this many query and key positions, with an online softmax between key tiles."""


class NumpyModel:
    """A LoadedModel (engine/batch.py) on numpy."""

    def __init__(
        self,
        file: GGUFFile,
        graph: Graph,
        *,
        n_blocks: int,
        device: DeviceInfo,
        budget_bytes: int,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self.device = device
        self.n_vocab = graph.n_vocab
        self.n_blocks = n_blocks
        self.max_rows = 256
        self._file = file
        self._graph = graph
        weights = graph.weights()
        self.weight_bytes_per_token = 0
        self._kept: dict[str, Array] = {}
        budget = budget_bytes
        for i, weight in enumerate(sorted(weights, key=lambda w: w.rows == 1, reverse=True)):
            if cancelled():
                return
            progress("weights", i / len(weights), weight.name)
            size = 4 * weight.rows * weight.columns
            if weight.rows == 1 or size <= budget:
                budget -= size
                info = file.tensors[weight.name]
                self._kept[weight.name] = dequantize(info.type, file.data(weight.name))
                self.weight_bytes_per_token += size
            else:
                self.weight_bytes_per_token += file.tensors[weight.name].nbytes
        # float32 pages that nobody touched cost nothing: the operating system hands them out on first use
        shape = (n_blocks * KV_BLOCK, graph.n_kv_heads, graph.head_width)
        self._keys = [np.zeros(shape, np.float32) for _ in range(graph.n_layers)]
        self._values = [np.zeros(shape, np.float32) for _ in range(graph.n_layers)]

    def memory(self) -> MemoryUse:
        kept = sum(a.nbytes for a in self._kept.values())
        kv = sum(a.nbytes for a in self._keys) * 2
        widest = max(op.out.width for op in self._graph.operations)
        return MemoryUse(kept, kv, 4 * BLOCK_VALUES + 4 * self.max_rows * widest)

    def read_bandwidth(self) -> float | None:
        return None

    def close(self) -> None:
        self._kept.clear()
        self._keys.clear()
        self._values.clear()

    def forward(self, batch: Batch) -> Array:
        values: dict[int, Array] = {}
        last_use = self._last_uses()
        for index, op in enumerate(self._graph.operations):
            match op:
                case Embed(out, table):
                    values[out.id] = self._embed(table, batch.tokens)
                case RmsNorm(out, x, weight, epsilon):
                    v = values[x.id]
                    values[out.id] = _rms_norm(v, epsilon) * self._vector(weight)
                case Linear(out, x, weight, bias):
                    values[out.id] = self._linear(values[x.id], weight)
                    if bias is not None:
                        values[out.id] += self._vector(bias)
                case Attention(out, q, k, v):
                    values[out.id] = self._attention(op, batch, values[q.id], values[k.id], values[v.id])
                case Gate(out, gate, up, activation):
                    values[out.id] = _activate(activation, values[gate.id]) * values[up.id]
                case Add(out, a, b):
                    values[out.id] = values[a.id] + values[b.id]
                case SelectRows(out, x):
                    values[out.id] = values[x.id][batch.logit_rows]
                    if len(batch.logit_rows) == 0:
                        return np.empty((0, self.n_vocab), np.float32)
            for done in last_use[index]:
                values.pop(done, None)
        return values[self._graph.logits.id]

    def _last_uses(self) -> list[list[int]]:
        last: dict[int, int] = {}
        for index, op in enumerate(self._graph.operations):
            match op:
                case RmsNorm(x=x) | Linear(x=x) | SelectRows(x=x):
                    last[x.id] = index
                case Attention(q=q, k=k, v=v):
                    last[q.id] = last[k.id] = last[v.id] = index
                case Gate(gate=a, up=b) | Add(a=a, b=b):
                    last[a.id] = last[b.id] = index
        out: list[list[int]] = [[] for _ in self._graph.operations]
        for value, index in last.items():
            out[index].append(value)
        return out

    def _vector(self, weight: Weight) -> Array:
        return self._kept[weight.name][0]

    def _embed(self, table: Weight, tokens: NDArray[np.int32]) -> Array:
        kept = self._kept.get(table.name)
        if kept is not None:
            return np.take(kept, tokens, axis=0)
        return dequantize(self._file.tensors[table.name].type, self._file.data(table.name)[tokens])

    def _linear(self, x: Array, weight: Weight) -> Array:
        kept = self._kept.get(weight.name)
        if kept is not None:
            return _multiply(x, kept)
        data = self._file.data(weight.name)
        quant = self._file.tensors[weight.name].type
        out = np.empty((len(x), weight.rows), np.float32)
        step = max(1, BLOCK_VALUES // weight.columns)
        for start in range(0, weight.rows, step):
            out[:, start : start + step] = _multiply(x, dequantize(quant, data[start : start + step]))
        return out

    def _attention(self, op: Attention, batch: Batch, q: Array, k: Array, v: Array) -> Array:
        rows = len(q)
        q = q.reshape(rows, op.n_heads, op.head_width)
        k = k.reshape(rows, op.n_kv_heads, op.head_width)
        if op.rope is not None:
            table = op.rope.table(batch.positions)
            q = _rotate(q, op.rope, table)
            k = _rotate(k, op.rope, table)
        slots = batch.block_tables[batch.sequences, batch.positions // KV_BLOCK] * KV_BLOCK + batch.positions % KV_BLOCK
        keys, values = self._keys[op.layer], self._values[op.layer]
        keys[slots] = k
        values[slots] = v.reshape(rows, op.n_kv_heads, op.head_width)
        out = np.empty_like(q)
        starts = np.flatnonzero(np.diff(batch.sequences, prepend=-1))
        for start, end in zip(starts, [*starts[1:], rows], strict=True):
            blocks = batch.block_tables[batch.sequences[start]]
            for first in range(start, end, QUERY_ROWS):
                last = min(first + QUERY_ROWS, end)
                out[first:last] = _attend(op, q[first:last], keys, values, blocks, batch.positions[first:last])
        return out.reshape(rows, -1)


def _multiply(x: Array, weight: Array) -> Array:
    """x @ weight.T; one row goes as matrix-vector, which BLAS does faster that way round."""
    product: Array = (weight @ x[0])[None, :] if len(x) == 1 else x @ weight.T
    return product


def _rms_norm(x: Array, epsilon: float) -> Array:
    normed: Array = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(epsilon))
    return normed


def _activate(activation: Activation, x: Array) -> Array:
    match activation:
        case Activation.SILU:
            with np.errstate(over="ignore"):
                activated: Array = x / (np.float32(1.0) + np.exp(-x))
                return activated


def _rotate(x: Array, rope: Rope, table: Array) -> Array:
    """x [rows, heads, head_width] rotated by table [rows, 2, n_rotated / 2]."""
    half = rope.n_rotated // 2
    first, second = (
        (np.s_[..., 0 : 2 * half : 2], np.s_[..., 1 : 2 * half : 2])
        if rope.interleaved
        else (np.s_[..., :half], np.s_[..., half : 2 * half])
    )
    cos, sin = table[:, None, 0], table[:, None, 1]
    out = x.copy()
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[first] * sin + x[second] * cos
    return out


def _attend(
    op: Attention, q: Array, keys: Array, values: Array, blocks: NDArray[np.int32], positions: NDArray[np.int32]
) -> Array:
    """Attention of one sequence's query rows [n, heads, width] over the cached positions 0 .. positions[-1]."""
    group = op.n_heads // op.n_kv_heads
    n, length = len(q), int(positions[-1]) + 1
    # [kv heads, group * n, width]: the heads that share keys are one matrix product
    queries = q.reshape(n, op.n_kv_heads, group, -1).transpose(1, 2, 0, 3).reshape(op.n_kv_heads, group * n, -1)
    queries = queries * np.float32(op.scale)
    row_positions = np.tile(positions, group)
    best = np.full((op.n_kv_heads, group * n, 1), -np.inf, np.float32)
    total = np.zeros_like(best)
    out = np.zeros_like(queries)
    for start in range(0, length, KEY_ROWS):
        span = np.arange(start, min(start + KEY_ROWS, length))
        slots = blocks[span // KV_BLOCK] * KV_BLOCK + span % KV_BLOCK
        contiguous = slots[-1] - slots[0] == len(slots) - 1 and bool((np.diff(slots) == 1).all())
        where = slice(slots[0], slots[-1] + 1) if contiguous else slots
        scores = queries @ keys[where].transpose(1, 2, 0)
        if span[-1] > positions[0]:
            scores[:, row_positions[:, None] < span[None, :]] = -np.inf
        new_best = np.maximum(best, scores.max(axis=2, keepdims=True))
        scores = np.exp(scores - new_best)
        shrink = np.exp(best - new_best)
        total = total * shrink + scores.sum(axis=2, keepdims=True)
        out = out * shrink + scores @ values[where].transpose(1, 0, 2)
        best = new_best
    out /= total
    return out.reshape(op.n_kv_heads, group, n, -1).transpose(2, 0, 1, 3).reshape(n, op.n_heads, -1)
