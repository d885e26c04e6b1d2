"""A model on an OpenCL device that runs each step as one launch of cl_kernels/step.cl."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter
from engine.api import DeviceInfo
from engine.backends.opencl.adapters import UNIT_WORDS, DeviceAdapters, most_units
from engine.backends.opencl.formats import FORMATS
from engine.backends.opencl.kv_blocks import KV_LAYOUT, read_blocks, write_blocks
from engine.backends.opencl.lowering import (
    MAX_QUERIES,
    MOST_TOP,
    TOP,
    Buffer,
    Cache,
    Kind,
    Program,
    Step,
    heads_per_tile,
    lower,
    padded16,
    padded32,
)
from engine.backends.opencl.memory import View, address_of, allocate_pieces
from engine.backends.opencl.memory import allocate as allocate_buffer
from engine.backends.opencl.platforms import devices
from engine.backends.opencl.segments import cut_attention, whole_tiles
from engine.backends.opencl.source import step_source
from engine.backends.opencl.tools import tools
from engine.backends.opencl.weights import DeviceWeights
from engine.batch import (
    KV_BLOCK,
    Batch,
    MemoryUse,
    Progress,
    TopLogits,
    given_to_parts,
    nothing,
    split_logit_rows,
    step_rows,
)
from engine.errors import DeviceError, OutOfMemoryError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Graph, Rope, Weight

MAX_ROWS = 512
"""Rows of one step: the length of a prefill chunk."""

MAX_LOGIT_ROWS = 64

PARTIAL_SLOTS = 512
"""Results of segments of attention that one step can hold; see segments.py."""

KINDS = {kind: number for number, kind in enumerate(get_args(Kind))}

OP_INTEGERS = (
    "kind", "type", "logit_rows", "n", "k", "chunk", "heads", "kv_heads", "head_width", "value_width", "how", "act",
    "gather", "table", "start", "window", "experts", "used", "shared", "renormalise", "groups", "groups_used",
    "out_stride", "whole", "site", "bounds",
)  # fmt: skip
OP_FLOATS = ("epsilon", "scale", "cap")
OP = np.dtype(
    [*((name, np.int32) for name in OP_INTEGERS), *((name, np.float32) for name in OP_FLOATS), ("p", np.int64, 8)],
    align=True,
)
"""One operation; the struct Op of step.cl. Fields have the names of Step's."""

HEADER_WORDS = 23
"""Words at the start of a step's input; IN_* in step.cl. The offsets of the rope tables follow from word 13."""

TILE_WORDS = 8
"""Words of a tile of attention, as in step.cl."""

LORA_WORD = 16
"""Where the words about adapters begin."""

TOGETHER_WORD = 20
"""Whether tiles of attention take all key/value heads that fit; see _fill_input."""

TOP_WORD = 21
"""Where the words about the largest logits begin."""

MAX_ROPES = 3

MOST_PARTS = 4
"""Parts that the chunks of a phase are cut into, each with its counter; who finds none in one looks at all of them."""

ROPE_POSITIONS = 1024
"""Positions whose cosines and sines are computed together."""

_NOTHING: NDArray[Any] = np.empty(0)


class OpenCLModel:
    """A LoadedModel (engine/batch.py) on an OpenCL device whose memory this process can address: a CPU."""

    def __init__(
        self,
        file: GGUFFile,
        graph: Graph,
        *,
        device: DeviceInfo,
        n_blocks: int,
        kv_type: str = "f16",
        progress: Progress,
        cancelled: Callable[[], bool],
        plan_only: bool = False,
        weight_budget: int | None = None,
        lent: DeviceWeights | None = None,
    ) -> None:
        """plan_only: nothing is allocated; of the model only memory() serves.

        weight_budget: bytes that weights may take; what does not fit is read from the file in every step.
        lent: weights of another model of the same file on this device.
        """
        import pyopencl as cl

        self.device = device
        self._on = next(d for d in devices() if f"opencl:{d.index}" == device.id)
        self.n_vocab = graph.n_vocab
        self.n_blocks = n_blocks
        self.max_rows = step_rows(graph, n_blocks, MAX_ROWS)
        self.hidden_width = graph.hidden.width if graph.hidden else 0
        self.meanwhile: Callable[[], None] = nothing
        self._bandwidth: float | None = None
        self._buffers: list[Any] = []
        self.weights = DeviceWeights(file, self._on, graph, lent=lent)
        is_float = {name: FORMATS[name].is_float for name in self.weights.format_names()}
        self._program = _lowered(graph, self.weights.types, is_float, self._on.workers, kv_type)
        self._parts = self.weights.stream(self._program.phases, weight_budget)
        self._ends_hidden = graph.ends_hidden
        self.kept_width = graph.kept.width if graph.kept else 0
        self._earlier: list[NDArray[np.float32]] = []  # rows kept of the parts of a step that ran before the last
        self._n_rows = 0
        self._max_logit_rows = self.max_rows if graph.ends_hidden else MAX_LOGIT_ROWS
        if len(self._program.ropes) > MAX_ROPES:
            raise UnsupportedModelError(
                f"This model has {len(self._program.ropes)} kinds of rotary embedding; "
                f"the OpenCL kernels take up to {MAX_ROPES}.",
                "Choose the device numpy.",
            )
        attentions = self._program.attentions
        widest = max((padded32(max(op.head_width, op.v_head_width)) for op in attentions), default=32)
        self.weight_bytes_per_token = self.weights.bytes_per_token(graph)
        self._adapters: DeviceAdapters | None = None
        self._rope_blocks: dict[Rope, tuple[int, NDArray[np.float32]]] = {}
        self._plan_memory()
        if plan_only:
            return
        try:
            names = self.weights.format_names()
            progress("compiling", 0.0, ", ".join(names))
            # the last product is asked again by what looks for the largest logits, so its weights must stay
            last = self._program.phases[-2:-1] if len(self._parts) == 1 else []
            bounded = "".join(step.type for phase in last for step in phase if step.bounds)
            program = self._on.build(step_source(names, self._on.relax, widest, kv_type, bounded))
            self._whole, self._to_hidden = (
                [_Replay([cl.Kernel(program, "run_step") for _ in self._parts]) for _ in range(2)] for _ in range(2)
            )
            self._adapters = DeviceAdapters(self._program, self._on)
            progress("compiling", 0.3, ", ".join(names))
            self._compile(self._whole[0].kernels[0])
            progress("compiling", 1.0, ", ".join(names))
            self.weights.load(progress, cancelled)
            self._allocate()
            self._set_up(names)
            if not cancelled():
                progress("measuring", 0.0, "read bandwidth")
                self._bandwidth = self._measure_bandwidth()
        except cl.MemoryError as error:
            self.close()
            memory = self.memory()
            wanted = memory.total_bytes
            raise OutOfMemoryError(
                f"{self._on.handle.name.strip()} has too little memory for this model: it needs {wanted / 1e9:.1f} GB.",
                "Choose a smaller model, a shorter context, or the device numpy.",
            ) from error
        except cl.Error as error:
            self.close()
            raise _device_error(error) from error

    @property
    def block_bytes(self) -> int:
        return KV_BLOCK * sum(self._program.cache_bytes.values())

    @property
    def kv_layout(self) -> str:
        sizes = ",".join(str(size) for size in self._program.cache_bytes.values())
        return f"opencl step {KV_LAYOUT} {sizes}"

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        import pyopencl as cl

        try:
            return read_blocks(self._on.queue, self._block_caches(), blocks, mapped=True)
        except cl.Error as error:
            raise _device_error(error) from error

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        import pyopencl as cl

        try:
            write_blocks(self._on.queue, self._block_caches(), blocks, data, mapped=True)
        except cl.Error as error:
            raise _device_error(error) from error

    def _block_caches(self) -> list[tuple[Any, int]]:
        return [(self._caches[cache], KV_BLOCK * size) for cache, size in self._program.cache_bytes.items()]

    def add_adapter(self, adapter: BoundAdapter) -> int:
        import pyopencl as cl

        assert self._adapters
        try:
            return self._adapters.add(adapter)
        except cl.Error as error:
            raise _device_error(error) from error

    def remove_adapter(self, number: int) -> None:
        assert self._adapters
        self._adapters.remove(number)

    def memory(self) -> MemoryUse:
        scratch = self._program.scratch_bytes_per_row * self.max_rows
        logits = self._program.logit_bytes_per_row * self._max_logit_rows
        idle = 0 if self._ends_hidden else logits - self._program.logit_bytes_per_row
        weights = self.weights.total_bytes + (self._adapters.n_bytes if self._adapters else 0)
        scratch += logits + self._partial_bytes + 4 * self._in_words
        return MemoryUse(weights, self._kv_bytes, scratch, self.weights.streamed_bytes, idle)

    def read_bandwidth(self) -> float | None:
        return self._bandwidth

    def close(self) -> None:
        self.weights.close()
        if self._adapters:
            self._adapters.close()
        for buffer in self._buffers:
            buffer.release()
        self._buffers = []
        self._logits = self._input = self._scratch_floats = _NOTHING  # logits that somebody still has stay

    def forward(self, batch: Batch, given: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        parts = split_logit_rows(batch, self._max_logit_rows)
        rows = given_to_parts(parts, given)
        turns = zip(self._in_turn(parts), rows, strict=True)
        if len(parts) == 1:
            return self._forward(*next(turns))
        return np.concatenate([self._forward(part, own).copy() for part, own in turns])

    def _in_turn(self, parts: list[Batch]) -> Iterator[Batch]:
        """The parts of a step, each to be run before the next comes."""
        self._earlier = []
        for index, part in enumerate(parts):
            if index and self.kept_width:
                self._earlier.append(self._last_kept().copy())
            yield part

    def kept(self) -> NDArray[np.float32]:
        last = self._last_kept()
        return np.concatenate([*self._earlier, last]) if self._earlier else last

    def _last_kept(self) -> NDArray[np.float32]:
        assert self._program.kept
        begin = self._program.kept.offset * self.max_rows // 4
        return self._scratch_floats[begin : begin + self._n_rows * self.kept_width].reshape(-1, self.kept_width)

    def _forward(self, batch: Batch, given: NDArray[np.float32] | None) -> NDArray[np.float32]:
        self._run(batch, self._whole, given)
        return self._logits[: len(batch.logit_rows)]

    @property
    def most_top(self) -> int:
        return MOST_TOP if self._program.top else 0

    def top(self, batch: Batch, count: int, among: int) -> list[TopLogits]:
        assert self._program.top
        count = min(count, among)
        begin = self._program.top.offset * self.max_rows // 4
        found: list[TopLogits] = []
        for part in self._in_turn(split_logit_rows(batch, self._max_logit_rows)):
            self._run(part, self._whole, None, (count, among))
            words = len(part.logit_rows) * TOP.itemsize // 4
            rows = self._scratch_floats[begin : begin + words].view(TOP)
            ids, logits = rows["ids"][:, :count].astype(np.int64), rows["logits"][:, :count].copy()
            found += map(TopLogits, ids, logits, (rows["finite"] != 0).tolist())
        return found

    def hidden(self, batch: Batch, given: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        if self._ends_hidden:
            return self._forward(batch, given)
        assert self._program.hidden is not None
        self._run(batch, self._to_hidden, given)
        rows, begin = len(batch.logit_rows), self._program.hidden.offset * self.max_rows // 4
        return self._scratch_floats[begin : begin + rows * self.hidden_width].reshape(rows, self.hidden_width).copy()

    def _run(
        self,
        batch: Batch,
        steps: list[_Replay],
        given: NDArray[np.float32] | None,
        top: tuple[int, int] = (0, 0),
    ) -> None:
        """Runs a step, the one without or the one with adapters. Its input is written where the device reads it, and
        what comes out is read where it lies: a copy of either would be a command that the step waits for."""
        import pyopencl as cl

        step = steps[any(batch.adapters)]
        self._fill_input(batch, step.parity)
        self._input[TOP_WORD : TOP_WORD + 2] = top
        if given is not None and self._program.given:
            at = self._program.given.offset * self.max_rows // 4
            self._scratch_floats[at : at + given.size] = given.ravel()
        try:
            for part in range(step.n_parts):
                self.weights.bring(part)
                cl.enqueue_nd_range_kernel(self._on.queue, step.kernels[part], (4 * self._on.workers,), (1,))
            self._on.queue.flush()
            self.meanwhile()
            self._on.queue.finish()
        except cl.Error as error:
            raise _device_error(error) from error
        step.parity = 1 - step.parity
        self._n_rows = len(batch.tokens)

    def _fill_input(self, batch: Batch, parity: int) -> None:
        """Writes the step's input."""
        rows, wanted = len(batch.tokens), len(batch.logit_rows)
        cut = (cut_attention if self._program.causal else whole_tiles)(batch, self._tile_rows, PARTIAL_SLOTS)
        a = self._input
        at = HEADER_WORDS
        offsets = []
        for part in (batch.tokens, batch.positions, batch.sequences, batch.logit_rows, cut.tiles, cut.combines):
            offsets.append(at)
            flat = np.asarray(part, np.int32).ravel()
            a[at : at + len(flat)] = flat
            at += len(flat)
        offsets.append(at)
        blocks = batch.block_tables
        a[at : at + blocks.size] = blocks.ravel()
        at += blocks.size
        for rope in self._program.ropes:
            offsets.append(at)
            table = self._rope_rows(rope, batch.positions).ravel()
            a[at : at + len(table)] = table.view(np.int32)
            at += len(table)
        a[:6] = (rows, wanted, len(cut.tiles), len(cut.combines), parity, blocks.shape[1])
        a[6 : 6 + len(offsets)] = offsets
        # heads of a block lie together, so one work-group had better read them all; a few tiles are shared out by heads
        enough = len(cut.tiles) >= 8 * self._on.workers
        a[TOGETHER_WORD] = enough and all(tile[1] == 1 for tile in cut.tiles)
        a[LORA_WORD : LORA_WORD + 4] = 0
        if self._adapters and any(batch.adapters):
            at += at % 2  # they hold addresses, which are aligned to 8 bytes
            for i, units in enumerate(self._adapters.units(batch)):
                a[LORA_WORD + i], a[LORA_WORD + 2 + i] = len(units), at
                flat = units.view(np.int32)
                a[at : at + len(flat)] = flat
                at += len(flat)

    def _rope_rows(self, rope: Rope, positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """rope.table(). Many positions are computed at once: after a step no cache of the processor's has numpy's code,
        and a few calls take as long as a quarter of a layer."""
        block = int(positions[0]) // ROPE_POSITIONS
        if len(positions) > 1 and (positions // ROPE_POSITIONS != block).any():
            return rope.table(positions)
        known = self._rope_blocks.get(rope)
        if known is None or known[0] != block:
            every = np.arange(block * ROPE_POSITIONS, (block + 1) * ROPE_POSITIONS, dtype=np.int32)
            known = self._rope_blocks[rope] = (block, rope.table(every))
        rows: NDArray[np.float32] = known[1][positions - block * ROPE_POSITIONS]
        return rows

    def _plan_memory(self) -> None:
        """The sizes of everything but the weights, before anything is allocated."""
        attentions = self._program.attentions
        self._kv_bytes = self.n_blocks * KV_BLOCK * sum(self._program.cache_bytes.values())
        widest = max((op.n_heads * (padded16(op.v_head_width) + 2) for op in attentions), default=0)
        self._partial_bytes = 4 * PARTIAL_SLOTS * widest
        self._tile_rows = min((max(1, MAX_QUERIES // heads_per_tile(op)) for op in attentions), default=1)
        rope_words = sum(rope.n_rotated for rope in self._program.ropes) * self.max_rows
        # a row's own words, its block table, and as many tiles as there may be
        own = self.max_rows * (4 + 3 + self.n_blocks)
        lora = 1 + UNIT_WORDS * (most_units(self.max_rows) + most_units(self._max_logit_rows))
        self._in_words = HEADER_WORDS + own + TILE_WORDS * (self.max_rows + PARTIAL_SLOTS) + rope_words + lora

    def _allocate(self) -> None:

        def allocate(size: int) -> Any:
            buffer = allocate_buffer(self._on, max(size, 64))
            self._buffers.append(buffer)
            return buffer

        positions = self.n_blocks * KV_BLOCK
        sizes = {cache: positions * size for cache, size in self._program.cache_bytes.items()}
        self._caches, pieces = allocate_pieces(self._on, sizes)
        self._buffers += pieces
        self._partials = allocate(self._partial_bytes)
        self._scratch = allocate(self._program.scratch_bytes_per_row * self.max_rows)
        self._scratch_floats = np.asarray(View(self._on, self._scratch, np.float32))
        self._logits_buffer = allocate_buffer(self._on, self._program.logit_bytes_per_row * self._max_logit_rows)
        logits = np.asarray(View(self._on, self._logits_buffer, np.float32))
        self._logits = logits.reshape(self._max_logit_rows, -1)
        self._in = allocate(4 * self._in_words)
        self._input = np.asarray(View(self._on, self._in, np.int32))

    def _compile(self, kernel: Any) -> None:
        """Runs a step of no phases. PoCL compiles a kernel to the end when it first runs: this one takes seconds, for
        which the first answer would wait, and nobody would know for what."""
        import pyopencl as cl

        nothing = cl.Buffer(self._on.context, cl.mem_flags.READ_WRITE, 4096)
        cl.enqueue_fill_buffer(self._on.queue, nothing, np.zeros(1, np.int32), 0, nothing.size)
        kernel.set_args(nothing, nothing, np.int32(0), nothing, nothing, np.int32(1))
        cl.enqueue_nd_range_kernel(self._on.queue, kernel, (4 * self._on.workers,), (1,))
        self._on.queue.finish()
        nothing.release()

    def _set_up(self, type_names: list[str]) -> None:
        """Writes the operations, phases and counters that every step replays."""
        import pyopencl as cl

        queue, context = self._on.queue, self._on.context
        weight_bases = {id(b): self._address(b) for b in self.weights.in_use}
        cache_bases = {key: self._address(b) for key, b in self._caches.items()}
        partials, scratch, logits = (self._address(b) for b in (self._partials, self._scratch, self._logits_buffer))

        def pointer(place: Any) -> int:
            if place is None:
                return 0
            if isinstance(place, Buffer):
                return logits if place is self._program.logits else scratch + place.offset * self.max_rows
            if isinstance(place, Cache):
                return cache_bases[place]
            if isinstance(place, Weight):
                buffer, offset = self.weights.located(place)
                return weight_bases[id(buffer)] + offset
            return partials

        steps: list[Step] = [step for phase in self._program.phases for step in phase]
        ops = np.zeros(len(steps), OP)
        for op, step in zip(ops, steps, strict=True):
            op["kind"] = KINDS[step.kind]
            op["type"] = type_names.index(step.type) if step.type else 0
            for name in (*OP_INTEGERS[2:], *OP_FLOATS):
                op[name] = getattr(step, name)
            op["p"][: len(step.places)] = [pointer(place) for place in step.places]
        counts = np.array([len(phase) for phase in self._program.phases], np.int32)
        phases = np.stack([np.cumsum(counts) - counts, counts], axis=1).astype(np.int32)
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        ops_buffer = cl.Buffer(context, flags, hostbuf=ops)
        self._buffers.append(ops_buffer)
        is_lora = np.array([phase[0].kind == "lora" for phase in self._program.phases])
        # a phase of adapters becomes one with that of the products which follow it: both read the same rows, and only
        # the ends of the products wait for what the adapters come to
        joined = phases.copy()
        joined[1:][is_lora[:-1], 0] -= 1
        joined[1:][is_lora[:-1], 1] += 1
        parts = min(self._on.workers, MOST_PARTS)
        for replays, length in ((self._whole, len(counts)), (self._to_hidden, self._program.hidden_phases)):
            for with_adapters, replay in enumerate(replays):
                for part, kernel in zip(self._parts, replay.kernels, strict=True):
                    of_part = slice(part.first, min(part.last, length))
                    some = (joined if with_adapters else phases)[of_part][~is_lora[of_part]]
                    if not len(some):
                        continue
                    clear = np.zeros(2 * (16 * (parts + 1) * len(some) + 16), np.int32)
                    counters = cl.Buffer(context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=clear)
                    phases_buffer = cl.Buffer(context, flags, hostbuf=np.ascontiguousarray(some))
                    self._buffers += [phases_buffer, counters]
                    kernel.set_args(ops_buffer, phases_buffer, np.int32(len(some)), self._in, counters, np.int32(parts))
                    replay.n_parts = self._parts.index(part) + 1
        queue.finish()

    def _address(self, buffer: Any) -> int:
        return address_of(self._on, buffer)

    def _measure_bandwidth(self) -> float:
        """Bytes per second of plain reading, over the weights themselves (or 64 MiB where they are smaller)."""
        import pyopencl as cl

        at_least = 64 << 20
        source, size = max(zip(self.weights.buffers, self.weights.sizes, strict=True), key=lambda b: b[1])
        temporary = None
        if size < at_least:
            temporary = allocate_buffer(self._on, at_least)
            cl.enqueue_fill_buffer(self._on.queue, temporary, np.ones(1, np.int32), 0, at_least)
            source, size = temporary, at_least
        groups = 4 * self._on.workers
        out = cl.Buffer(self._on.context, cl.mem_flags.WRITE_ONLY, 64 * groups)
        kernel = cl.Kernel(tools(self._on), "read_all")
        kernel.set_args(source, np.int64(size // 256), out)
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            cl.enqueue_nd_range_kernel(self._on.queue, kernel, (groups,), (1,))
            self._on.queue.finish()
            best = min(best, time.perf_counter() - began)
        if temporary is not None:
            temporary.release()
        return size // 256 * 256 / best


_last_lowered: tuple[Graph, tuple[Any, ...], Program] | None = None


def _lowered(graph: Graph, *arguments: Any) -> Program:
    """`lower`, once for the plan of a model's memory and for the model itself."""
    global _last_lowered
    known = _last_lowered
    if known is None or known[0] is not graph or known[1] != arguments:
        known = _last_lowered = (graph, arguments, lower(graph, *arguments))
    return known[2]


@dataclass
class _Replay:
    """A step over phases of the program: a kernel for each part, and which set of its counters is next."""

    kernels: list[Any]
    n_parts: int = 0  # that have anything to do
    parity: int = 0


def _device_error(error: Exception) -> DeviceError:
    return DeviceError(
        f"The OpenCL device failed: {error}.",
        "Load the model again; if it fails again, update the driver or choose the device numpy.",
    )
