"""A model on a GPU: each step replays a list of bound kernels (gpu_plan.py), its input written once.

Nothing is waited for but the logits: a prefill chunk that wants none is left to run, and at most two are on their way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter
from engine.api import DeviceInfo
from engine.backends.opencl.formats import FORMATS
from engine.backends.opencl.gpu_adapters import GpuAdapters
from engine.backends.opencl.gpu_batch import MAX_ROPES, fill_input, split_slots
from engine.backends.opencl.gpu_choices import (
    NEVER,
    choose_kernels,
    choose_tensor_cores,
    choose_whole_steps,
    shortest,
)
from engine.backends.opencl.gpu_memory import SMALLER, plan_room
from engine.backends.opencl.gpu_plan import MATVEC_ROWS, MOST_SLICES, Plan, Rows, Sizes
from engine.backends.opencl.gpu_source import STEP_THREADS, HeadShape, KernelSizes, simt_source
from engine.backends.opencl.gpu_step import Addresses, WholeSteps, can_run, step_table, step_workers, takes
from engine.backends.opencl.gpu_top import TopFinder
from engine.backends.opencl.gpu_tuning import Tuner, tunes
from engine.backends.opencl.gpu_variants import dot_variant, tensor_variant
from engine.backends.opencl.kv_blocks import KV_LAYOUT, read_blocks, write_blocks
from engine.backends.opencl.lowering import MOST_TOP, Buffer, Cache, Place, Program, lower
from engine.backends.opencl.platforms import devices
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
from engine.graph import Graph, Weight

MAX_ROWS = 512
"""Rows of one step, the length of a prefill chunk, where memory allows."""

ITEMS_PER_UNIT = 1024
"""Work-items that keep one compute unit busy reading weights."""

MEASURED_BYTES = 512 << 20
"""What the measurement of a GPU's read bandwidth reads: more than any cache holds."""


class GpuModel:
    """A LoadedModel (engine/batch.py) on an OpenCL device of any kind."""

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
        lent: DeviceWeights | None = None,
    ) -> None:
        """plan_only: nothing is allocated; of the model only memory() serves.

        lent: weights of another model of the same file on this device.
        """
        import pyopencl as cl

        self.device = device
        self.meanwhile: Callable[[], None] = nothing
        self._on = next(d for d in devices() if f"opencl:{d.index}" == device.id)
        self.n_vocab = graph.n_vocab
        self.n_blocks = n_blocks
        self.hidden_width = graph.hidden.width if graph.hidden else 0
        self.kept_width = graph.kept.width if graph.kept else 0
        self._earlier: list[NDArray[np.float32]] = []  # rows kept of the parts of a step that ran before the last
        self._n_rows = 0
        self._causal, self._ends_hidden = graph.causal, graph.ends_hidden
        self._bandwidth: float | None = None
        self._turn = 0  # which of two inputs the next step writes
        self._buffers: list[Any] = []
        self._whole: WholeSteps | None = None
        self._top: TopFinder | None = None
        self.weights = DeviceWeights(file, self._on, graph, on_gpu=True, lent=lent)
        names = self.weights.format_names()
        is_float = {name: FORMATS[name].is_float for name in names}
        self._kv_type = kv_type
        self._program = lower(
            graph, self.weights.types, is_float, self._on.workers, kv_type, own_queries=kv_type != "f16"
        )
        self.weight_bytes_per_token = self.weights.bytes_per_token(graph)
        self._adapters = GpuAdapters(self._program, self._on.queue, self._rebind_adapters)
        self._shapes = _head_shapes(self._program)
        self._tile_rows = min((shape.tile_rows for shape in self._shapes), default=1)
        if len(self._program.ropes) > MAX_ROPES:
            raise UnsupportedModelError(
                f"This model has {len(self._program.ropes)} kinds of rotary embedding; "
                f"the kernels for GPUs take up to {MAX_ROPES}.",
                "Choose the device numpy.",
            )
        self._room = plan_room(
            self._program,
            self._on,
            weight_bytes=self.weights.total_bytes,
            n_blocks=n_blocks,
            kv_type=kv_type,
            rows=step_rows(graph, n_blocks, MAX_ROWS),
            ends_hidden=self._ends_hidden,
        )
        self.max_rows = self._room.rows
        if plan_only:
            return
        try:
            progress("compiling", 0.0, ", ".join(names))
            self._compile(names)
            progress("compiling", 1.0, ", ".join(names))
            self.weights.load(progress, cancelled)
            self._plan = self._allocate()
            if tunes(self._on) and not cancelled():
                self._tune(progress)
            elif not self._on.is_cpu:  # where one work-group has nobody to wait for
                self._try_whole_step()
            if not cancelled():
                progress("measuring", 0.9, "read bandwidth")
                self._bandwidth = self._measure_bandwidth()
        except cl.MemoryError as error:
            self.close()
            raise OutOfMemoryError(
                f"{self._name} has too little free memory for this model: {self._room.wanted}.", SMALLER
            ) from error
        except cl.Error as error:
            self.close()
            raise _device_error(error) from error

    @property
    def _name(self) -> str:
        return str(self._on.handle.name).strip()

    @property
    def block_bytes(self) -> int:
        return KV_BLOCK * sum(self._program.cache_bytes.values())

    @property
    def kv_layout(self) -> str:
        sizes = ",".join(str(size) for size in self._program.cache_bytes.values())
        return f"opencl simt {KV_LAYOUT} {sizes}"

    def read_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        import pyopencl as cl

        try:
            return read_blocks(self._on.queue, self._block_caches(), blocks, mapped=False)
        except cl.Error as error:
            raise _device_error(error) from error

    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        import pyopencl as cl

        try:
            write_blocks(self._on.queue, self._block_caches(), blocks, data, mapped=False)
        except cl.Error as error:
            raise _device_error(error) from error

    def _block_caches(self) -> list[tuple[Any, int]]:
        return [(self._caches[cache], KV_BLOCK * size) for cache, size in self._program.cache_bytes.items()]

    def add_adapter(self, adapter: BoundAdapter) -> int:
        import pyopencl as cl

        try:
            return self._adapters.add(adapter)
        except cl.Error as error:
            raise _device_error(error) from error

    def remove_adapter(self, number: int) -> None:
        self._adapters.remove(number)

    def memory(self) -> MemoryUse:
        use = self._room.memory()
        return replace(use, weight_bytes=use.weight_bytes + self._adapters.n_bytes)

    def read_bandwidth(self) -> float | None:
        return self._bandwidth

    def close(self) -> None:
        self.weights.close()
        self._adapters.close()
        for buffer in self._buffers:
            buffer.release()
        self._buffers = []

    def forward(self, batch: Batch, given: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        if not self._causal:
            return self._forward(batch, given)
        parts = [part for some in split_logit_rows(batch, self._room.logit_rows) for part in split_slots(some)]
        turns = zip(self._in_turn(parts), given_to_parts(parts, given), strict=True)
        if len(parts) == 1:
            return self._forward(*next(turns))
        return np.concatenate([self._forward(part, own).copy() for part, own in turns])

    def _in_turn(self, parts: list[Batch]) -> Iterator[Batch]:
        """The parts of a step, each to be run before the next comes."""
        self._earlier = []
        for index, part in enumerate(parts):
            if index and self.kept_width:
                self._earlier.append(self._last_kept())
            yield part

    def kept(self) -> NDArray[np.float32]:
        return np.concatenate([*self._earlier, self._last_kept()])

    def _last_kept(self) -> NDArray[np.float32]:
        import pyopencl as cl

        assert self._program.kept
        rows = np.empty((self._n_rows, self.kept_width), np.float32)
        try:
            offset = self._program.kept.offset * self.max_rows
            cl.enqueue_copy(self._on.queue, rows, self._scratch, src_offset=offset, is_blocking=True)
        except cl.Error as error:
            raise _device_error(error) from error
        return rows

    def _forward(self, batch: Batch, given: NDArray[np.float32] | None) -> NDArray[np.float32]:
        return self._run(batch, self._logits[: len(batch.logit_rows)], self._logits_buffer, 0, given)

    @property
    def most_top(self) -> int:
        return MOST_TOP if self._top else 0

    def top(self, batch: Batch, count: int, among: int) -> list[TopLogits]:
        import pyopencl as cl

        assert self._top
        nothing, found = np.empty(0, np.float32), []
        parts = [part for some in split_logit_rows(batch, self._room.logit_rows) for part in split_slots(some)]
        for part in self._in_turn(parts):
            self._run(part, nothing, None, 0, None)
            try:
                rows = len(part.logit_rows)
                found += self._top.find(self._logits_buffer, rows, count, among) if rows else []
            except cl.Error as error:
                raise _device_error(error) from error
        return found

    def hidden(self, batch: Batch, given: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        if self._ends_hidden:
            return self.forward(batch, given)
        place = self._program.hidden
        assert place is not None
        parts = split_slots(batch)
        rows = [
            self._run(
                part,
                np.empty((len(part.logit_rows), self.hidden_width), np.float32),
                self._scratch,
                place.offset * self.max_rows,
                own,
                hidden=True,
            )
            for part, own in zip(parts, given_to_parts(parts, given), strict=True)
        ]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def _run(
        self,
        batch: Batch,
        out: NDArray[np.float32],
        result: Any,
        offset: int,
        given: NDArray[np.float32] | None,
        *,
        hidden: bool = False,
    ) -> NDArray[np.float32]:
        """Runs a step, only as far as the program's `hidden` where that is asked for, and reads `out` from a buffer."""
        import pyopencl as cl

        queue = self._on.queue
        self._turn = 1 - self._turn
        words, copied = self._inputs[self._turn], self._copied[self._turn]
        try:
            if copied is not None:
                copied.wait()  # the step before the last must have read it
            lora = self._adapters.inputs(batch) if any(batch.adapters) else ()
            n_words, counts = fill_input(words, batch, self._program.ropes, self._tile_rows, self._causal, lora)
            self._copied[self._turn] = cl.enqueue_copy(queue, self._in, words[:n_words], is_blocking=False)
            if given is not None and self._program.given:
                at = self._program.given.offset * self.max_rows
                cl.enqueue_copy(queue, self._scratch, np.ascontiguousarray(given), dst_offset=at, is_blocking=True)
            if self._whole and takes(counts):
                self._whole.enqueue(hidden=hidden)
            else:
                for launch in self._plan.launches(counts, hidden=hidden):
                    sizes = launch.sizes(counts)
                    if sizes[1]:
                        cl.enqueue_nd_range_kernel(queue, launch.kernel, sizes, launch.local)
            queue.flush()
            self.meanwhile()
            if len(out):
                cl.enqueue_copy(queue, out, result, src_offset=offset, is_blocking=True)
        except cl.Error as error:
            raise _device_error(error) from error
        self._n_rows = len(batch.tokens)
        return out

    def _compile(self, names: list[str]) -> None:
        import pyopencl as cl

        steps = [step for phase in self._program.phases for step in phase]
        experts = any(step.kind == "experts" for step in steps)
        heads = any(step.kind == "lora" and step.heads > 1 for step in steps)
        tensors = None if experts else tensor_variant(self._on)  # kernels for experts take rows of integers
        whole_steps = can_run(self._program, self._on)
        sizes = KernelSizes.of(int(self._on.handle.max_work_group_size), whole_steps=whole_steps)
        source = simt_source(
            names,
            self._shapes,
            sizes,
            experts=experts,
            heads=heads,
            tensor_cores=tensors is not None,
            kv_type=self._kv_type,
        )
        options = [*dot_variant(self._on).options, *(tensors.options if tensors else ())]
        self._kernels = self._on.build(source, options)

        def most_sharing(name: str) -> int:
            query = cl.kernel_work_group_info.WORK_GROUP_SIZE
            kinds = [f"matvec_{rows}" for rows in MATVEC_ROWS] + (["expert_matvec"] if experts else [])
            kernels = (cl.Kernel(self._kernels, f"{kind}_{name}") for kind in kinds)
            limits: list[Any] = [k.get_work_group_info(query, self._on.handle) for k in kernels]
            return int(min(MOST_SLICES, *(limit // 16 for limit in limits)))

        sharing = {name: most_sharing(name) for name in names}
        self._work = Sizes(sizes, self.max_rows, sharing, ITEMS_PER_UNIT * self._on.workers, tensors is not None)

    def _allocate(self) -> Plan:
        """Reserves the model's memory and binds kernels to it."""
        import pyopencl as cl

        def allocate(size: int) -> Any:
            buffer = cl.Buffer(self._on.context, cl.mem_flags.READ_WRITE, max(size, 64))
            self._buffers.append(buffer)
            return buffer

        self._caches = {cache: allocate(size) for cache, size in self._room.caches.items()}
        self._in = allocate(self._room.sizes["input"])
        self._scratch = scratch = allocate(self._room.sizes["scratch"])
        partials = allocate(self._room.sizes["partials"])
        self._logits_buffer = allocate(self._room.sizes["logits"])
        row_bytes = self._program.logit_bytes_per_row
        self._logits = np.empty((self._room.sizes["logits"] // row_bytes, row_bytes // 4), np.float32)
        if self._room.sizes["top"]:
            self._top = TopFinder(self._on, self._kernels, row_bytes // 4, self._room.logit_rows)
            self._buffers += self._top.buffers
        self._inputs = [np.zeros(self._room.sizes["input"] // 4, np.int32) for _ in range(2)]
        self._copied: list[Any] = [None, None]

        def locate(place: Place) -> tuple[Any, int]:
            if isinstance(place, Buffer):
                if place is self._program.logits:
                    return self._logits_buffer, 0
                return scratch, place.offset * self.max_rows
            if isinstance(place, Cache):
                return self._caches[place], 0
            if isinstance(place, Weight):
                return self.weights.located(place)
            return (scratch, -1) if place is None else (partials, 0)

        def rows(weight: Place) -> list[Rows]:
            assert isinstance(weight, Weight)
            return [
                Rows(piece.first, piece.n, (piece.buffer, piece.offset)) for piece in self.weights.pieces_of(weight)
            ]

        plan = Plan(
            self._program,
            kernel=lambda name: cl.Kernel(self._kernels, name),
            locate=locate,
            rows=rows,
            input_buffer=self._in,
            partials=partials,
            sizes=self._work,
            adapters=lambda: (self._adapters.buffer, self._adapters.t),
            kv_type=self._kv_type,
        )
        if self._work.kernels.step:
            address = Addresses(self._on, self._kernels)
            table = step_table(
                self._program,
                types=self.weights.format_names(),
                shapes=self._shapes,
                slices=lambda step: plan.slices([step]),
                address=lambda place: address.of(*locate(place)),
                rows=lambda weight: [(piece.first, piece.n, address.of(*piece.at)) for piece in rows(weight)],
                kv_type=self._kv_type,
                workers=step_workers(self._on),
            )
            if table is not None:
                whole = WholeSteps(self._on, self._kernels, table, self._in, partials)
                self._buffers += whole.buffers
                self._whole = whole if whole.most_threads >= STEP_THREADS else None
        return plan

    def _try_whole_step(self) -> None:
        """Keeps to a step as one kernel only if it comes to the bits of the same step kernel by kernel, here."""
        if self._whole is None:
            return
        at_once = self._run_rows(1).copy()
        whole, self._whole = self._whole, None
        if np.array_equal(at_once, self._run_rows(1), equal_nan=True):
            self._whole = whole

    def _tune(self, progress: Progress) -> None:
        """Chooses between kernels by what they take here; the device then says how steps are run."""
        import pyopencl as cl

        tuner, plan, queue, said = Tuner(self._on), self._plan, self._on.queue, []
        scratch = self._room.sizes["scratch"] // 4 * 4  # what is read before any step has run
        cl.enqueue_fill_buffer(queue, self._scratch, np.zeros(1, np.int32), 0, scratch)
        choose_kernels(
            tuner,
            plan,
            queue,
            self._in,
            most_rows=min(self.max_rows, self._room.logit_rows),
            with_slices=not self._work.kernels.step,  # then all products of a phase have them by one rule
            progress=progress,
        )
        self._try_whole_step()
        whole = self._whole
        if whole is not None:

            def step(at_once: bool) -> float:
                self._whole = whole if at_once else None
                return shortest(queue, lambda: self._run_rows(1))

            self._whole = whole if choose_whole_steps(tuner, plan, step) else None
            said.append("whole-steps" if self._whole else "kernel-by-kernel")
        most = min(self.max_rows, self.n_blocks * KV_BLOCK)
        if self._work.tensor_cores and most >= 128:

            def steps() -> float:
                return sum(shortest(queue, lambda rows=rows: self._run_rows(rows)) for rows in (64, 128, most))  # type: ignore[misc]

            rows = choose_tensor_cores(tuner, plan, steps)
            said.append("no-tensor-cores" if rows == NEVER else f"tensor-cores-from-{rows}-rows")
        tuner.keep()
        self.device = replace(self.device, variants=(*self.device.variants, *said))

    def _run_rows(self, rows: int) -> NDArray[np.float32]:
        """A step of so many rows, the same each time."""
        batch = Batch(
            tokens=np.zeros(rows, np.int32),
            positions=np.arange(rows, dtype=np.int32),
            sequences=np.zeros(rows, np.int32),
            block_tables=np.arange(-(-rows // KV_BLOCK), dtype=np.int32)[None],
            logit_rows=np.zeros(1, np.int32),
        )
        width = self._program.given.row_bytes // 4 if self._program.given else 0
        given = np.ones((rows, width), np.float32) if width else None  # else what is there by chance, and other in each
        return self.forward(batch, given)

    def _rebind_adapters(self) -> None:
        self._plan.rebind_adapters()

    def _measure_bandwidth(self) -> float:
        """Bytes per second of plain reading, over the weights or over more than the caches hold."""
        import pyopencl as cl

        queue, handle = self._on.queue, self._on.handle
        memory = self.memory()
        free = int(handle.global_mem_size) - memory.weight_bytes - memory.kv_bytes - memory.scratch_bytes
        at_least = min(64 << 20 if self._on.is_cpu else MEASURED_BYTES, self._on.most_in_one_piece, free // 2)
        source, size = max(zip(self.weights.buffers, self.weights.sizes, strict=True), key=lambda b: b[1])
        temporary = None
        if size < at_least:
            temporary = cl.Buffer(self._on.context, cl.mem_flags.READ_WRITE, at_least)
            cl.enqueue_fill_buffer(queue, temporary, np.ones(1, np.int32), 0, at_least // 4 * 4)
            source, size = temporary, at_least
        out = cl.Buffer(self._on.context, cl.mem_flags.WRITE_ONLY, 64)
        kernel = cl.Kernel(self._kernels, "read_all")
        kernel.set_args(source, np.int64(size // 16), out)
        best = float("inf")
        for _ in range(5):
            queue.finish()
            began = time.perf_counter()
            cl.enqueue_nd_range_kernel(queue, kernel, (128 * 16 * self._on.workers,), (128,))
            queue.finish()
            best = min(best, time.perf_counter() - began)
        out.release()
        if temporary is not None:
            temporary.release()
        return size // 16 * 16 / best


def _head_shapes(program: Program) -> list[HeadShape]:
    """The shapes of heads in the program, each once, in order."""
    found = (HeadShape.of(op.n_heads, op.n_kv_heads, op.head_width, op.v_head_width) for op in program.attentions)
    return list(dict.fromkeys(found))


def _device_error(error: Exception) -> DeviceError:
    return DeviceError(
        f"The OpenCL device failed: {error}.",
        "Load the model again; if it fails again, update the driver or choose the device numpy.",
    )
