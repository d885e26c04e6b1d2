"""A model on numpy.

Memory: up to `budget_bytes` of weights are expanded to float32 once and kept; every other weight is expanded in
blocks of rows whenever it is used. Keys and values are float32, rounded to the type of the cache where that is q8_0
or q4_0, and allocated as sequences grow into them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter, LowRank
from engine.adapters.runs import Run as AdapterRun
from engine.adapters.runs import adapter_runs
from engine.api import DeviceInfo
from engine.backends.numpy_backend.attention import Positions, attention, short_conv
from engine.backends.numpy_backend.experts import Assignment, add_low_rank, expert_linear, expert_sum, route
from engine.backends.numpy_backend.rows import activate, gate, join, layer_norm, rms_norm
from engine.backends.numpy_backend.weights import BLOCK_VALUES, Weights, product
from engine.batch import KV_BLOCK, Batch, LoadedModel, MemoryUse, Progress, step_rows
from engine.gguf import GGUFFile
from engine.graph import (
    Activate,
    Add,
    Attention,
    Embed,
    ExpertLinear,
    ExpertSum,
    Gate,
    Graph,
    Index,
    Input,
    Join,
    LayerNorm,
    Linear,
    Operation,
    RmsNorm,
    Route,
    SelectRows,
    ShortConv,
    SoftCap,
    Value,
    Weight,
    inputs,
    weights_of,
)

Array = NDArray[np.float32]

LOGIT_ROWS = 64
"""Rows of logits that memory() counts: more than the answers that usually run at once."""


class Step:
    """One forward step: the batch and what has been computed so far."""

    def __init__(self, batch: Batch, n_values: int, given: Array | None) -> None:
        self.batch = batch
        self.given = given
        self.at = Positions(batch)
        self.values: list[Array | None] = [None] * n_values
        self._assignments: dict[int, Assignment] = {}
        self.runs, self.logit_runs = adapter_runs(batch)

    def __getitem__(self, value: Value) -> Array:
        array = self.values[value.id]
        assert array is not None
        return array

    def assignment(self, value: Value) -> Assignment:
        found = self._assignments.get(value.id)
        if found is None:
            found = self._assignments[value.id] = Assignment(self[value])
        return found


Run = Callable[[Step], Array]


class NumpyModel:
    """A LoadedModel (engine/batch.py) on numpy."""

    def __init__(
        self,
        file: GGUFFile,
        graph: Graph,
        *,
        n_blocks: int,
        kv_type: str = "f16",
        device: DeviceInfo,
        budget_bytes: int,
        progress: Progress,
        cancelled: Callable[[], bool],
        plan_only: bool = False,
        beside: LoadedModel | None = None,
    ) -> None:
        """plan_only: nothing is expanded; of the model only memory() serves.

        beside: another model of the same file, whose weights serve this one too as far as they are kept.
        """
        self.device = device
        self.n_vocab = graph.n_vocab
        self.n_blocks = n_blocks
        self.max_rows = step_rows(graph, n_blocks, 256)
        self.hidden_width = graph.hidden.width if graph.hidden else 0
        self.kept_width = graph.kept.width if graph.kept else 0
        self._kept = np.empty((0, self.kept_width), np.float32)
        self._graph = graph
        self._kv_type = kv_type
        self._adapters: dict[int, BoundAdapter] = {}
        self._n_adapters = 0  # ever added
        shares = _shares_read(graph)
        self.weights: Weights = Weights(
            file,
            shares,
            budget_bytes=budget_bytes,
            progress=progress,
            cancelled=cancelled,
            plan_only=plan_only,
            lent=beside.weights if isinstance(beside, NumpyModel) else None,
        )
        self.weight_bytes_per_token = int(
            sum(share * weight.rows * self.weights.row_bytes(weight) for weight, share in shares.items())
        )
        # float32 pages that nobody touched cost nothing: the operating system hands them out on first use
        self._caches = [
            (np.zeros((n_blocks * KV_BLOCK, keys), np.float32), np.zeros((n_blocks * KV_BLOCK, values), np.float32))
            for keys, values in graph.cache_widths()
        ]
        self._n_values = 1 + max(op.out.id for op in graph.operations)
        self._logits_begin = next(
            (i for i, op in enumerate(graph.operations) if isinstance(op, SelectRows)), len(graph.operations)
        )
        self._plan: list[tuple[int, Run, list[int]]] = []
        """For each operation its result, how it is computed, and the values that nobody needs after it."""
        if not cancelled() and not plan_only:
            last_uses = self._last_uses()
            self._plan = [
                (op.out.id, self._adapted(op, self._compile(op), i > self._logits_begin), done)
                for i, (op, done) in enumerate(zip(graph.operations, last_uses, strict=True))
            ]
        self._hidden_end = 1 + next((i for i, op in enumerate(graph.operations) if op.out == graph.hidden), -1)

    def add_adapter(self, adapter: BoundAdapter) -> int:
        self._n_adapters += 1
        self._adapters[self._n_adapters] = adapter
        return self._n_adapters

    def remove_adapter(self, number: int) -> None:
        del self._adapters[number]

    @property
    def block_bytes(self) -> int:
        return sum(cache[:KV_BLOCK].nbytes for caches in self._caches for cache in caches)

    @property
    def kv_layout(self) -> str:
        return f"numpy {self._kv_type} {','.join(str(cache.shape[1]) for caches in self._caches for cache in caches)}"

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        data = np.empty((len(blocks), self.block_bytes), np.uint8)
        for columns, cache in self._block_columns():
            data[:, columns] = cache[np.asarray(blocks, np.intp)]
        return data

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        for columns, cache in self._block_columns():
            cache[np.asarray(blocks, np.intp)] = data[:, columns]

    def _block_columns(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Where each cache's bytes stand in a block's, and the cache as bytes [n_blocks, bytes of a block]."""
        start = 0
        for cache in (cache for caches in self._caches for cache in caches if cache.size):
            view = cache.reshape(self.n_blocks, -1).view(np.uint8)
            yield slice(start, start + view.shape[1]), view
            start += view.shape[1]

    def memory(self) -> MemoryUse:
        kv = sum(keys.nbytes + values.nbytes for keys, values in self._caches)
        widest = max(op.out.width for op in self._graph.operations if op.out != self._graph.logits)
        scratch = 4 * BLOCK_VALUES + 4 * self.max_rows * widest + 4 * LOGIT_ROWS * self._graph.logits.width
        return MemoryUse(self.weights.nbytes, kv, scratch, self.weights.streamed_bytes)

    def read_bandwidth(self) -> float | None:
        return None

    def close(self) -> None:
        self.weights.clear()
        self._caches.clear()
        self._plan.clear()
        self._adapters.clear()

    def forward(self, batch: Batch, given: Array | None = None) -> Array:
        return self._run(batch, self._graph.logits, len(self._plan), given)

    def hidden(self, batch: Batch, given: Array | None = None) -> Array:
        assert self._graph.hidden is not None
        return self._run(batch, self._graph.hidden, self._hidden_end, given)

    def _run(self, batch: Batch, result: Value, end: int, given: Array | None) -> Array:
        """The value `result`, after the first `end` operations."""
        step = Step(batch, self._n_values, given)
        plan = self._plan[:end] if len(batch.logit_rows) else self._plan[: self._logits_begin]
        values = step.values
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            for out, run, done in plan:
                values[out] = run(step)
                for value in done:
                    values[value] = None
        if self._graph.kept is not None:
            self._kept = step[self._graph.kept]
        if not len(batch.logit_rows):
            return np.empty((0, result.width), np.float32)
        return step[result]

    def kept(self) -> Array:
        return self._kept

    def _last_uses(self) -> list[list[int]]:
        last = {value.id: i for i, op in enumerate(self._graph.operations) for value in inputs(op)}
        if self._graph.kept is not None:
            last.pop(self._graph.kept.id, None)
        done: list[list[int]] = [[] for _ in self._graph.operations]
        for value, i in last.items():
            done[i].append(value)
        return done

    def _compile(self, op: Operation) -> Run:
        """An operation as a function of the step, all that does not change between steps looked up."""
        weights = self.weights

        def optional(weight: Weight | None) -> Array | None:
            return None if weight is None else weights.vector(weight)

        match op:
            case Embed():
                return self._embed(op)
            case Input():
                return _given
            case Linear():
                return self._linear(op)
            case RmsNorm(_, x, weight, epsilon, heads):
                w = weights.vector(weight)
                return lambda s: rms_norm(s[x], w, epsilon, heads)
            case LayerNorm(_, x, weight, epsilon, bias, heads):
                w, b = weights.vector(weight), optional(bias)
                return lambda s: layer_norm(s[x], w, b, epsilon, heads)
            case Attention(_, q, k, v):
                keys = self._caches[op.layer][0].reshape(-1, op.n_kv_heads, op.head_width)
                values = self._caches[op.layer][1].reshape(-1, op.n_kv_heads, op.v_head_width)
                sinks = optional(op.sinks)
                kv_type = self._kv_type
                return lambda s: attention(op, s.at, s[q], s[k], s[v], keys, values, sinks, kv_type)
            case ShortConv(_, x, weight, layer):
                cache = self._caches[layer][0]
                return lambda s: short_conv(s.at, s[x], weights.rows(weight, 0, weight.rows), cache)
            case Gate(_, x, up, activation):
                return lambda s: gate(activation, s[x], s[up])
            case Activate(_, x, activation):
                return lambda s: activate(activation, s[x])
            case SoftCap(_, x, cap):
                return lambda s: np.float32(cap) * np.tanh(s[x] / np.float32(cap))
            case Add(_, x, y):
                return lambda s: s[x] + s[y]
            case Join(_, pieces, heads):
                return lambda s: join([(s[p.x], p.heads, p.start, p.width) for p in pieces], heads)
            case Route(_, logits, bias=bias):
                b = optional(bias)
                return lambda s: route(op, s[logits], b)
            case ExpertLinear(_, x, routed):
                return lambda s: expert_linear(op, s.assignment(routed), s[x], weights)
            case ExpertSum(_, x, routed):
                return lambda s: expert_sum(s[x], s[routed])
            case SelectRows(_, x):
                return lambda s: s[x][s.batch.logit_rows]

    def _adapted(self, op: Operation, run: Run, on_logits: bool) -> Run:
        """run, and after it what the adapters of the step's rows add."""
        if isinstance(op, Embed):
            if op.index is not Index.TOKENS:
                return run
            table, scale = op.table, np.float32(op.scale)

            def embedded(s: Step) -> Array:
                out = run(s)
                for rows, low, strength in self._shares(s.runs, "embedding", table):
                    out[rows] += low.a[s.batch.tokens[rows]] @ low.b.T * (strength * scale)
                return out

            return embedded
        if isinstance(op, ExpertLinear):

            def expert_adapted(s: Step) -> Array:
                out = run(s)
                for rows, low, strength in self._shares(s.logit_runs if on_logits else s.runs, "linear", op.weight):
                    add_low_rank(op, out[rows], s[op.route][rows], s[op.x][rows], low, strength)
                return out

            return expert_adapted
        if not isinstance(op, Linear):
            return run
        x, weight, factor, heads = op.x, op.weight, np.float32(op.scale), op.heads

        def adapted(s: Step) -> Array:
            out = run(s)
            for rows, low, strength in self._shares(s.logit_runs if on_logits else s.runs, "linear", weight):
                if heads == 1:
                    out[rows] += s[x][rows] @ low.a.T @ low.b.T * (strength * factor)
                    continue
                parts = s[x][rows].reshape(-1, heads, weight.columns).swapaxes(0, 1)
                added = parts @ low.a.swapaxes(1, 2) @ low.b.swapaxes(1, 2) * (strength * factor)
                out[rows] += added.swapaxes(0, 1).reshape(-1, weight.rows)
            return out

        return adapted

    def _shares(
        self, runs: list[AdapterRun], where: Literal["linear", "embedding"], weight: Weight
    ) -> Iterator[tuple[slice, LowRank, np.float32]]:
        """Rows, what an adapter adds to them at this weight, and how much of it."""
        for part in runs:
            for number, strength in part.uses:
                low = getattr(self._adapters[number], where).get(weight)
                if low is not None:
                    yield slice(part.first, part.last), low, np.float32(strength * low.scale)

    def _embed(self, op: Embed) -> Run:
        weights, table, scale = self.weights, op.table, np.float32(op.scale)
        match op.index:
            case Index.POSITIONS:
                return lambda s: weights.take(table, s.batch.positions) * scale
            case Index.FIRST:
                return lambda s: weights.take(table, np.zeros_like(s.batch.tokens)) * scale
        if scale == 1:
            return lambda s: weights.take(table, s.batch.tokens)
        return lambda s: weights.take(table, s.batch.tokens) * scale

    def _linear(self, op: Linear) -> Run:
        weights, x, weight, heads = self.weights, op.x, op.weight, op.heads
        bias = None if op.bias is None else weights.vector(op.bias)
        scale = np.float32(op.scale)
        if bias is None and scale == 1 and heads == 1:
            kept = weights.kept(weight)
            if kept is not None:
                return lambda s: product(s[x], kept)
            return lambda s: weights.multiply(s[x], weight, 0, weight.rows)

        def run(s: Step) -> Array:
            if heads == 1:
                out = weights.multiply(s[x], weight, 0, weight.rows)
            else:
                parts = s[x].reshape(-1, heads, weight.columns).transpose(1, 0, 2)
                matrices = weights.rows(weight, 0, weight.rows).reshape(heads, -1, weight.columns)
                products = parts @ matrices.transpose(0, 2, 1)
                out = products.transpose(1, 0, 2).reshape(-1, weight.rows)
            if bias is not None:
                out += bias
            if scale != 1:
                out *= scale
            return out

        return run


def _given(step: Step) -> Array:
    assert step.given is not None
    return step.given


def _shares_read(graph: Graph) -> dict[Weight, float]:
    """The part of each weight's rows that a step of one row reads."""
    shares: dict[Weight, float] = {}
    for op in graph.operations:
        for weight in weights_of(op):
            share = 1.0
            if isinstance(op, Embed):
                share = 1 / weight.rows
            elif isinstance(op, ExpertLinear):
                share = op.n_used / op.n_experts
            shares[weight] = max(share, shares.get(weight, 0.0))
    return shares
