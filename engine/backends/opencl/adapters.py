"""LoRA adapters in the memory of a device that a step can address; cl_kernels/lora.cl says how they lie there
and lora_pack.cl brings them into that form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter
from engine.adapters.rack import MAX_USES
from engine.adapters.runs import Run, adapter_runs
from engine.backends.opencl.adapter_layout import LINE, UNIT_ROWS, Kind, Piece, groups_of, lay_out
from engine.backends.opencl.lowering import Program
from engine.backends.opencl.memory import address_of, allocate
from engine.backends.opencl.platforms import Device
from engine.backends.opencl.tools import tools
from engine.batch import Batch
from engine.errors import OutOfMemoryError

SITE = np.dtype([("a", np.int64), ("b", np.int64), ("rank", np.int32), ("scale", np.float32)])
"""The struct LoraSite."""

UNIT = np.dtype(
    [
        ("first", np.int32),
        ("rows", np.int32),
        ("table", np.int64),
        ("strength", np.float32),
        ("unused", np.int32),
        ("t", np.int64),
    ]
)
"""The struct LoraUnit."""

UNIT_WORDS = UNIT.itemsize // 4

MATRIX = np.dtype(
    [
        ("from", np.int64),
        ("to", np.int64),
        ("rows", np.int32),
        ("columns", np.int32),
        ("kind", np.int32),
        ("count", np.int32),
    ]
)
"""The struct LoraMatrix of lora_pack.cl."""

DOWN_BYTES, UP_BYTES = 544, 288
"""Of a block of A and of B: LORA_DOWN_BYTES and LORA_UP_BYTES."""


def packed_bytes(kind: Kind, values: NDArray[np.float32]) -> int:
    """What lora_pack.cl writes of a matrix, or of a stack of them."""
    rows, columns = map(int, values.shape[-2:])
    count: int = math.prod(values.shape[:-2])
    match kind:
        case Kind.A:
            return count * groups_of(rows) * groups_of(columns, 32) * DOWN_BYTES
        case Kind.B:
            return count * groups_of(rows) * groups_of(columns) * UP_BYTES
        case Kind.TABLE:
            return rows * groups_of(columns) * 32


def most_units(rows: int) -> int:
    return rows * MAX_USES


@dataclass(frozen=True)
class _Held:
    buffer: Any
    address: int  # of its table of sites
    rank: int
    n_bytes: int


class DeviceAdapters:
    """The adapters of one model. What a step needs to know of them are its units."""

    def __init__(self, program: Program, device: Device) -> None:
        self._sites = program.sites
        self._slots = program.lora_slots
        self._device = device
        self._queue = device.queue
        self._held: dict[int, _Held] = {}
        self._n_added = 0
        self._t: Any = None
        self._t_floats = 0
        self._t_address = 0
        self._last: tuple[Any, NDArray[Any], NDArray[Any]] | None = None

    @property
    def n_bytes(self) -> int:
        return sum(held.n_bytes for held in self._held.values())

    def add(self, adapter: BoundAdapter) -> int:
        import pyopencl as cl

        layout = lay_out(adapter, self._sites, packed_bytes)
        begin = groups_of(SITE.itemsize * len(self._sites), LINE) * LINE
        n_bytes = begin + layout.n_bytes
        try:
            buffer = allocate(self._device, n_bytes)
            address = address_of(self._device, buffer)
            table = np.zeros(len(self._sites), SITE)
            for field, offsets in (("a", layout.a), ("b", layout.b)):
                table[field] = np.where(offsets < 0, 0, offsets + address + begin)
            table["rank"], table["scale"] = layout.ranks, [low.scale if low else 0 for low in layout.lows]
            cl.enqueue_copy(self._queue, buffer, table.view(np.uint8), is_blocking=True)
            self._pack(layout.pieces, address + begin)
        except cl.MemoryError as error:
            raise OutOfMemoryError(
                f"The device has too little memory for {adapter.info.path.name}: it takes {n_bytes / 1e6:.0f} MB.",
                "Use fewer adapters at once.",
            ) from error
        self._n_added += 1
        self._held[self._n_added] = _Held(buffer, address, int(layout.ranks.max()), n_bytes)
        return self._n_added

    def _pack(self, pieces: Sequence[Piece], address: int) -> None:
        """Writes the matrices from there on. The kernel reads them where numpy has them: a CPU device can."""
        import pyopencl as cl

        values = [np.ascontiguousarray(piece.values, np.float32) for piece in pieces]
        matrices = np.array(
            [
                (array.ctypes.data, address + piece.at, *array.shape[-2:], piece.kind, math.prod(array.shape[:-2]))
                for array, piece in zip(values, pieces, strict=True)
            ],
            MATRIX,
        )
        flags = cl.mem_flags.READ_ONLY | cl.mem_flags.COPY_HOST_PTR
        jobs = cl.Buffer(self._device.context, flags, hostbuf=matrices)
        cl.Kernel(tools(self._device), "lora_pack")(self._queue, (len(pieces),), (1,), jobs)
        self._queue.finish()
        jobs.release()

    def remove(self, number: int) -> None:
        self._held.pop(number).buffer.release()
        self._last = None

    def close(self) -> None:
        for held in self._held.values():
            held.buffer.release()
        self._held.clear()
        if self._t is not None:
            self._t.release()
            self._t = None

    def units(self, batch: Batch) -> tuple[NDArray[Any], NDArray[Any]]:
        """The units of a step among its rows and among its logit rows: arrays of UNIT. Decodes repeat those before."""
        key = (batch.adapters, batch.sequences.tobytes(), batch.logit_rows.tobytes())
        if self._last is None or self._last[0] != key:
            self._last = (key, *self._units(batch))
        return self._last[1:]

    def _units(self, batch: Batch) -> tuple[NDArray[Any], NDArray[Any]]:
        runs, logit_runs = adapter_runs(batch)
        units, floats = self._cut(runs, 0)
        logit_units, floats = self._cut(logit_runs, floats)
        if floats > self._t_floats:
            self._make_room(floats)
        units["t"] += self._t_address
        logit_units["t"] += self._t_address
        return units, logit_units

    def _cut(self, runs: list[Run], floats: int) -> tuple[NDArray[Any], int]:
        cut = []
        for run in runs:
            for number, strength in run.uses:
                held = self._held[number]
                for first in range(run.first, run.last, UNIT_ROWS):
                    rows = min(UNIT_ROWS, run.last - first)
                    cut.append((first, rows, held.address, strength, 0, 4 * floats))
                    floats += rows * self._slots * held.rank
        return np.array(cut, UNIT), floats

    def _make_room(self, floats: int) -> None:
        if self._t is not None:
            self._t.release()
        self._t_floats = 2 * floats
        self._t = allocate(self._device, 4 * self._t_floats)
        self._t_address = address_of(self._device, self._t)
