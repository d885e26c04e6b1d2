"""LoRA adapters in the memory of a GPU: all in one buffer, so that kernels are bound to it once and for all; places in
it are told to them in lines of 64 bytes (cl_kernels/simt_lora.cl). They have half precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter
from engine.adapters.runs import Run, adapter_runs
from engine.backends.opencl.adapter_layout import LINE, UNIT_ROWS, Kind, Piece, groups_of, lay_out
from engine.backends.opencl.formats import GROUP
from engine.backends.opencl.gpu_batch import UNIT_WORDS, LoraInput
from engine.backends.opencl.lowering import Program
from engine.batch import Batch
from engine.errors import OutOfMemoryError

SITE = np.dtype([("a", np.int32), ("b", np.int32), ("rank", np.int32), ("scale", np.float32)])
"""The struct LoraSite."""

UNIT = np.dtype(
    [("first", np.int32), ("rows", np.int32), ("table", np.int32), ("t", np.int32), ("strength", np.float32)]
)
"""The struct LoraUnit."""

LARGEST = 2.0**14
"""What the largest number of a matrix is brought to, as far as a power of two does: half precision ends at 65504, and
loses digits below 6e-5."""

PART_COLUMNS = 512
"""Columns of a row that one work-group sums: LORA_COLUMNS."""


def parts_of(k: int) -> int:
    """Parts that rows of k columns are summed in."""
    return -(-k // PART_COLUMNS)


def _power(matrix: NDArray[np.float32]) -> float:
    """The power of two that brings the largest number of a matrix near LARGEST."""
    largest = float(max(matrix.max(), -matrix.min()))
    return float(2.0 ** np.floor(np.log2(LARGEST / largest))) if largest > 1e-30 else 1.0


def halves(piece: Piece, power: float) -> NDArray[np.float16]:
    """A matrix in the order in which simt_lora.cl reads it, times a power; matrices of experts one after the other.

    A: for each 16 ranks the columns one after the other, 16 numbers each. B: for each 16 rows the ranks one after the
    other, 16 numbers each. A table: a row for each token.
    """
    *_, rows, columns = piece.values.shape
    if piece.kind == Kind.TABLE:
        return _padded(piece.values, rows, groups_of(columns) * GROUP, power)
    stack = piece.values.reshape(-1, rows, columns)
    rows = groups_of(rows) * GROUP
    if piece.kind == Kind.B:
        columns = groups_of(columns) * GROUP
    padded = np.concatenate([_padded(matrix, rows, columns, power) for matrix in stack])
    return np.ascontiguousarray(padded.reshape(-1, GROUP, columns).swapaxes(1, 2))


def _padded(matrix: NDArray[np.float32], rows: int, columns: int, power: float) -> NDArray[np.float16]:
    out = np.zeros((rows, columns), np.float16)
    np.multiply(matrix, np.float32(power), out=out[: matrix.shape[0], : matrix.shape[1]], casting="unsafe")
    return out


def halves_bytes(kind: Kind, values: NDArray[np.float32]) -> int:
    """What halves() of a matrix take."""
    rows, columns = map(int, values.shape[-2:])
    if kind != Kind.TABLE:
        rows = groups_of(rows) * GROUP
    if kind != Kind.A:
        columns = groups_of(columns) * GROUP
    count: int = math.prod(values.shape[:-2])
    return 2 * count * rows * columns


@dataclass(frozen=True)
class _Held:
    """In lines from the start of the buffer; rank: the largest."""

    first: int
    lines: int
    rank: int


class GpuAdapters:
    """The adapters of one model, and the buffers that the kernels find them and their t in."""

    def __init__(self, program: Program, queue: Any, moved: Callable[[], None]) -> None:
        """moved: called whenever the buffers are others than before."""
        self._sites = program.sites
        downs = [step for phase in program.phases for step in phase if step.kind == "lora"]
        self._t_per_rank = max((step.used * step.groups_used * parts_of(step.k) for step in downs), default=1)
        self._queue = queue
        self._moved = moved
        self._held: dict[int, _Held] = {}
        self._n_added = 0
        self.buffer: Any = None
        self._lines = 0
        self.t: Any = None
        self._t_floats = 0
        self._last: tuple[Any, tuple[LoraInput, LoraInput]] | None = None

    @property
    def n_bytes(self) -> int:
        return LINE * self._lines

    def add(self, adapter: BoundAdapter) -> int:
        """Raises AdapterError, OutOfMemoryError, and what pyopencl raises."""
        import pyopencl as cl

        layout = lay_out(adapter, self._sites, halves_bytes)
        table = np.zeros(len(self._sites), SITE)
        table_lines = groups_of(table.nbytes, LINE)
        lines = table_lines + groups_of(layout.n_bytes, LINE)
        first = self._find(lines)
        if LINE * (first + lines) > int(self._queue.device.max_mem_alloc_size):
            raise self._too_large(adapter, LINE * lines)
        for field, offsets in (("a", layout.a), ("b", layout.b)):
            table[field] = np.where(offsets < 0, 0, first + table_lines + offsets // LINE)
        data = np.zeros(layout.n_bytes, np.uint8)
        powers: dict[int, float] = {}
        for piece in layout.pieces:
            powers[piece.at] = _power(piece.values)
            packed = halves(piece, powers[piece.at]).reshape(-1).view(np.uint8)
            data[piece.at : piece.at + packed.nbytes] = packed
        table["rank"] = layout.ranks
        for i, low in enumerate(layout.lows):
            if low:
                table["scale"][i] = low.scale / (powers[int(layout.a[i])] * powers[int(layout.b[i])])
        try:
            if first + lines > self._lines:
                self._grow(first + lines)
            for part, line in ((table.view(np.uint8), first), (data, first + table_lines)):
                cl.enqueue_copy(self._queue, self.buffer, part, dst_offset=LINE * line, is_blocking=True)
        except cl.MemoryError as error:
            raise self._too_large(adapter, LINE * lines) from error
        self._n_added += 1
        self._held[self._n_added] = _Held(first, lines, int(layout.ranks.max()))
        return self._n_added

    def remove(self, number: int) -> None:
        """What takes its place later is written after all steps that still read it."""
        del self._held[number]
        self._last = None

    def close(self) -> None:
        for buffer in (self.buffer, self.t):
            if buffer is not None:
                buffer.release()
        self.buffer = self.t = None
        self._held.clear()

    def inputs(self, batch: Batch) -> tuple[LoraInput, LoraInput]:
        """What acts among a step's rows and among its logit rows. Decodes repeat those before."""
        key = (batch.adapters, batch.sequences.tobytes(), batch.logit_rows.tobytes())
        if self._last is None or self._last[0] != key:
            runs, logit_runs = adapter_runs(batch)
            rows, floats = self._cut(runs, 0)
            logit_rows, floats = self._cut(logit_runs, floats)
            if floats > self._t_floats:
                self._make_room(floats)
            self._last = (key, (rows, logit_rows))
        return self._last[1]

    def _cut(self, runs: list[Run], floats: int) -> tuple[LoraInput, int]:
        units: list[tuple[int, int, int, int, float]] = []
        chunks = []
        groups = 1
        for run in runs:
            for first in range(run.first, run.last, UNIT_ROWS):
                rows = min(UNIT_ROWS, run.last - first)
                chunks.append((len(units), len(run.uses)))
                for number, strength in run.uses:
                    held = self._held[number]
                    units.append((first, rows, held.first, floats, strength))
                    floats += rows * self._t_per_rank * held.rank
                    groups = max(groups, held.rank // GROUP)
        words = np.array(units, UNIT).view(np.int32).reshape(-1, UNIT_WORDS)
        return LoraInput(words, np.array(chunks, np.int32).reshape(-1, 2), groups), floats

    def _find(self, lines: int) -> int:
        """The first gap between adapters that is large enough, or the end. Line 0 stays free: it stands for nothing."""
        at = 1
        for held in sorted(self._held.values(), key=lambda held: held.first):
            if held.first - at >= lines:
                break
            at = held.first + held.lines
        return at

    def _grow(self, lines: int) -> None:
        import pyopencl as cl

        larger = max(lines, min(2 * self._lines, int(self._queue.device.max_mem_alloc_size) // LINE))
        buffer = cl.Buffer(self._queue.context, cl.mem_flags.READ_WRITE, LINE * larger)
        if self.buffer is not None:
            cl.enqueue_copy(self._queue, buffer, self.buffer, byte_count=LINE * self._lines)
            self._queue.finish()
            self.buffer.release()
        self.buffer, self._lines = buffer, larger
        if self.t is None:
            self._make_room(1)
        self._moved()

    def _make_room(self, floats: int) -> None:
        import pyopencl as cl

        if self.t is not None:
            self.t.release()
            self.t, self._t_floats = None, 0
        self.t = cl.Buffer(self._queue.context, cl.mem_flags.READ_WRITE, 8 * floats)
        self._t_floats = 2 * floats
        self._moved()

    def _too_large(self, adapter: BoundAdapter, n_bytes: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"The device has too little memory for {adapter.info.path.name}: it takes {n_bytes / 1e6:.0f} MB.",
            "Use fewer adapters at once.",
        )
