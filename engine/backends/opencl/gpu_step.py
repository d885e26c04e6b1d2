"""A step of one row as one kernel launch (cl_kernels/simt_step.cl): its operations as a table in device memory.

Launching a kernel costs more than most of a lone row's operations take. Work-groups that all run at once walk through
the phases of the lowered program instead and wait for each other between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.opencl.formats import FORMATS, GROUP
from engine.backends.opencl.gpu_batch import COMBINES_WORD, LOGIT_ROWS_WORD, SINGLES_WORD, Counts
from engine.backends.opencl.gpu_source import STEP_THREADS, HeadShape
from engine.backends.opencl.lowering import Place, Program, Step, store_items
from engine.backends.opencl.platforms import Device

OP = np.dtype(
    [
        *((name, np.int32) for name in (
            "kind", "type", "tiles", "times", "n", "k", "heads", "kv_heads", "head_width", "value_width", "how", "act",
            "gather", "used", "table", "start", "window", "slices", "slice", "out_stride",
        )),
        *((name, np.float32) for name in ("epsilon", "cap", "scale")),
        ("tile_bytes", np.int32),
        ("p", np.uint64, 8),
    ]
)  # fmt: skip
"""The struct StepOp of cl_kernels/simt_op.cl."""

KINDS = ("embed", "prepare", "matmul", "store_kv", "attend", "combine", "add", "copy")
"""In the order of OP_* there."""

APART = ("lora", "top")
"""What others do, where it is wanted."""

ONCE = -1
"""In place of the word of the input that counts how often an operation's places come."""


TILE_GROUPS = 2
"""Groups of 16 rows of weights that a team of work-items takes, as in cl_kernels/simt_op.cl."""

AHEAD = np.dtype([(name, np.int32) for name in ("phase", "first", "last", "spare")])
"""The struct StepAhead of cl_kernels/simt_step.cl."""

AHEAD_BYTES, MOST_AHEAD_BYTES = 96 << 10, 192 << 10
"""Weights that a work-group asks for while others are waited for, and that have been asked for and not been read. Those
of all work-groups have to fit in a cache."""

MOST_OPS = 8
"""Operations of a phase, pieces of matrices among them."""

LOCAL_BYTES = 48 << 10
"""Local memory that the kernel takes at most."""


def can_run(program: Program, device: Device) -> bool:
    """Whether the program has only operations that the kernel knows, and the device room and work-groups for it."""
    kinds = {step.kind for phase in program.phases for step in phase}
    products = (step for phase in program.phases for step in phase if step.kind == "matmul")
    paired = all(step.heads == 1 or step.n // GROUP // step.heads % TILE_GROUPS == 0 for step in products)
    fits = device.is_cpu or int(device.handle.local_mem_size) >= LOCAL_BYTES
    return kinds <= {*KINDS, *APART} and program.causal and paired and device.runs_together > 0 and fits


def step_workers(device: Device) -> int:
    """Shares that the places of a phase are divided into."""
    return device.runs_together


def takes(counts: Counts) -> bool:
    """Whether one kernel can run a step with so much to do."""
    return counts.rows == 1 and counts.logit_rows <= 1 and counts.tiles == 0 and counts.lora.units == 0


@dataclass(frozen=True)
class StepTable:
    """The operations of a program for one row, without those of adapters. phases: where each begins, and the end.
    hidden_phases: as many lead to the program's `hidden`. ahead: what is asked for at the end of each phase. workers:
    whose shares they are."""

    ops: NDArray[Any]
    phases: NDArray[np.int32]
    ahead: NDArray[Any]
    hidden_phases: int
    workers: int


def step_table(
    program: Program,
    *,
    types: Sequence[str],
    shapes: Sequence[HeadShape],
    slices: Callable[[Step], int],
    address: Callable[[Place], int],
    rows: Callable[[Place], list[tuple[int, int, int]]],
    kv_type: str,
    workers: int,
) -> StepTable | None:
    """types, shapes: as the kernel numbers them. slices: how many work-items share a row of a product's weights.
    address: where a place lies in device memory; 0 for None. rows: of a matrix the first row, number of rows and
    address of each of its pieces. workers: who share the places of a phase. None where a phase has too many operations.
    """
    ops, starts, hidden = [], [0], 0
    for index, phase in enumerate(program.phases):
        if phase[0].kind not in APART:
            for step in phase:
                pieces = rows(step.places[0]) if step.kind in ("embed", "matmul") else [(0, 0, 0)]
                ops += [
                    _operation(step, piece, list(types), list(shapes), slices, address, kv_type) for piece in pieces
                ]
            starts.append(len(ops))
        if index < program.hidden_phases:
            hidden = len(starts) - 1
    if max(np.diff(starts)) > MOST_OPS:
        return None
    table = np.array(ops, OP)
    return StepTable(table, np.array(starts, np.int32), read_ahead(table, starts, workers), hidden, workers)


def read_ahead(ops: NDArray[Any], starts: list[int], workers: int) -> NDArray[Any]:
    """For each phase the products behind it, and which of their places each work-group asks for then."""
    ahead = np.zeros(len(starts) - 1, AHEAD)
    phases = [ops[begin:end] for begin, end in pairwise(starts)]
    products = [i for i, phase in enumerate(phases) if (phase["kind"] == KINDS.index("matmul")).all()]
    asked = dict.fromkeys(products, 0)  # rounds
    for index, entry in enumerate(ahead):
        waiting = 0
        for product in (i for i in products if i > index):
            tile_bytes = int(phases[product]["tile_bytes"].max())
            rounds = -(-int(phases[product]["tiles"].sum()) // workers)
            waiting += asked[product] * tile_bytes
            more = min(rounds - asked[product], max(1, AHEAD_BYTES // tile_bytes))
            if more and waiting + more * tile_bytes > MOST_AHEAD_BYTES:
                break
            if more:
                entry["phase"], entry["first"], entry["last"] = product, asked[product], asked[product] + more
                asked[product] += more
                break
    return ahead


def _operation(
    step: Step,
    piece: tuple[int, int, int],
    types: list[str],
    shapes: list[HeadShape],
    slices_of: Callable[[Step], int],
    address: Callable[[Place], int],
    kv_type: str,
) -> tuple[Any, ...]:
    places = list(step.places)
    tile_bytes = 0
    kind, tiles, times = step.kind, 1, LOGIT_ROWS_WORD if step.logit_rows else ONCE
    n, type_, slices, slice_ = step.n, 0, 1, 1
    start, used = step.start, step.used
    first, n_rows, at = piece
    if kind == "embed":
        type_, start, used = types.index(step.type), first, n_rows
        n = step.k if FORMATS[step.type].is_float else step.k // 32
        tiles = -(-n // STEP_THREADS)
    elif kind == "prepare":
        x, second, quantised, plain, bias = places
        places = [x, second, quantised, plain, bias]
        n = -(-step.k // (4 * STEP_THREADS))
        tiles = n * step.heads
    elif kind == "matmul":
        weight, x, out, bias, residual = places
        places = [x, weight, out, bias, residual]
        type_, slices = types.index(step.type), slices_of(step)
        slice_ = -(-step.k // (32 * slices))
        n = n_rows
        groups = -(-n // GROUP)
        in_tile = TILE_GROUPS * STEP_THREADS // GROUP // slices
        tiles = -(-groups // in_tile)
        tile_bytes = in_tile * FORMATS[step.type].group_bytes(step.k)
        end = at + groups * FORMATS[step.type].group_bytes(step.k)
    elif kind == "store_kv":
        tiles = -(-store_items(step, kv_type) // STEP_THREADS)
    elif kind in ("attend", "combine"):
        shape = HeadShape.of(step.heads, step.kv_heads, step.head_width, step.value_width)
        type_ = shapes.index(shape)
        if kind == "attend":
            q, keys, values, out, _, sinks = places
            tiles, times = step.heads // shape.single_heads, SINGLES_WORD
        else:
            _, out, sinks = places
            q = keys = values = None
            tiles, times = -(-step.heads * step.value_width // STEP_THREADS), COMBINES_WORD
        places = [q, keys, values, out, sinks]
    elif kind == "add":
        tiles = -(-step.k // STEP_THREADS)
    else:
        tiles = -(-step.heads * step.k // STEP_THREADS)
    addresses = [address(place) for place in places]
    if kind == "embed":
        addresses[0] = at
    elif kind == "matmul":
        addresses[1] = at
        addresses[2:] = [*(begin + 4 * first if begin else 0 for begin in addresses[2:]), end]
    return (
        KINDS.index(kind), type_, tiles, times, n, step.k, step.heads, step.kv_heads, step.head_width,
        step.value_width, step.how, step.act, int(step.gather), used, step.table, start, step.window,
        slices, slice_, step.out_stride, step.epsilon, step.cap, step.scale, tile_bytes,
        addresses + [0] * (8 - len(addresses)),
    )  # fmt: skip


class Addresses:
    """Where buffers lie in device memory, as the device itself says."""

    def __init__(self, device: Device, kernels: Any) -> None:
        import pyopencl as cl

        self._queue = device.queue
        self._begins: dict[int, int] = {}  # by the buffers' handles
        self._found = cl.Buffer(device.context, cl.mem_flags.WRITE_ONLY, 8)
        self._find = cl.Kernel(kernels, "address_of")

    def of(self, buffer: Any, offset: int) -> int:
        """0 where the offset is below 0: there is nothing."""
        import pyopencl as cl

        if offset < 0:
            return 0
        if buffer.int_ptr not in self._begins:
            out = np.zeros(1, np.uint64)
            self._find.set_args(buffer, self._found)
            cl.enqueue_nd_range_kernel(self._queue, self._find, (1,), (1,))
            cl.enqueue_copy(self._queue, out, self._found, is_blocking=True)
            self._begins[buffer.int_ptr] = int(out[0])
        return self._begins[buffer.int_ptr] + offset


class WholeSteps:
    """The kernel of steps of one row, bound to a table. buffers: what it has allocated, for its owner to release."""

    def __init__(self, device: Device, kernels: Any, table: StepTable, inputs: Any, partials: Any) -> None:
        import pyopencl as cl

        self._device = device
        readable = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        tables = [cl.Buffer(device.context, readable, hostbuf=a) for a in (table.ops, table.phases, table.ahead)]
        self.buffers = tables
        self._kernels = {}
        for hidden, n_phases in ((False, len(table.phases) - 1), (True, table.hidden_phases)):
            kernel = cl.Kernel(kernels, "run_step")
            kernel.set_args(inputs, *tables, np.int32(n_phases), np.int32(table.workers), partials)
            self._kernels[hidden] = kernel

    @property
    def most_threads(self) -> int:
        """Work-items that the device takes in a work-group of the kernel."""
        import pyopencl as cl

        limit: Any = self._kernels[False].get_work_group_info(
            cl.kernel_work_group_info.WORK_GROUP_SIZE, self._device.handle
        )
        return int(limit)

    def enqueue(self, *, hidden: bool) -> None:
        """Runs the step that was written to the input; hidden: only as far as the program's `hidden`."""
        import pyopencl as cl

        items = STEP_THREADS * self._device.runs_together
        cl.enqueue_nd_range_kernel(self._device.queue, self._kernels[hidden], (items,), (STEP_THREADS,))
