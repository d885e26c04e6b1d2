"""LoRA adapters in the memory of a device that a step can address; cl_kernels/lora.cl says how they lie there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter, LowRank
from engine.adapters.rack import MAX_USES
from engine.adapters.runs import Run, adapter_runs
from engine.backends.opencl.lowering import GROUP, Program, Site
from engine.backends.opencl.memory import address_of, allocate
from engine.backends.opencl.platforms import Device
from engine.batch import Batch
from engine.errors import AdapterError, OutOfMemoryError

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
UNIT_ROWS = 8

LARGEST = 2.0**14
"""What the largest number of a matrix is brought to, as far as a power of two does: half precision ends at 65504, and
loses digits below 6e-5."""


@dataclass(frozen=True)
class Packed:
    """An adapter's matrices as bytes, and for each site where A and B begin in them (below 0: it has none there)."""

    data: NDArray[np.uint8]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    ranks: NDArray[np.int32]
    scales: NDArray[np.float32]


def pack(adapter: BoundAdapter, sites: Sequence[Site]) -> Packed:
    """Raises AdapterError where the adapter acts on something that is no site."""
    places = {site.weight for site in sites if not site.is_table}
    tables = {site.weight for site in sites if site.is_table}
    for weight in [*(set(adapter.linear) - places), *(set(adapter.embedding) - tables)]:
        raise AdapterError(
            f"{adapter.info.path.name} acts on {weight.name!r}, to which the OpenCL kernels apply no adapters.",
            "Choose the device numpy.",
        )
    n = len(sites)
    a, b = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    ranks, scales = np.zeros(n, np.int32), np.zeros(n, np.float32)
    parts: list[NDArray[np.uint8]] = []
    at = 0
    known: dict[int, int] = {}  # a table's rows may serve several sites

    def place(key: NDArray[np.float32], packed: Callable[[], NDArray[np.float16]]) -> int:
        nonlocal at
        if id(key) not in known:
            raw = packed().reshape(-1).view(np.uint8)
            known[id(key)] = at
            parts.append(raw)
            at += raw.nbytes
            if raw.nbytes % 64:
                parts.append(np.zeros(64 - raw.nbytes % 64, np.uint8))
                at += parts[-1].nbytes
        return known[id(key)]

    # in the order in which a step reads them: what a phase's products need first, then what they need at their end
    for _, phase in groupby(range(n), lambda i: sites[i].phase):
        found = []
        for i in phase:
            low = (adapter.embedding if sites[i].is_table else adapter.linear).get(sites[i].weight)
            if low is not None:
                found.append((i, low, _flat(low), _power(low.a), _power(low.b)))
        for i, low, flat, down, _ in found:
            a[i] = place(low.a, partial(_packed_a, flat, down, sites[i].is_table))
        for i, low, flat, down, up in found:
            b[i] = place(low.b, partial(_packed_b, flat, up))
            ranks[i] = -(-low.rank // GROUP) * GROUP
            scales[i] = low.scale / (down * up)
    return Packed(np.concatenate(parts) if parts else np.zeros(64, np.uint8), a, b, ranks, scales)


def _flat(low: LowRank) -> LowRank:
    """Of a stack of experts one after the other, each with whole groups of ranks: as they lie on the device."""
    if low.b.ndim == 2:
        return low
    missing = -low.rank % GROUP
    a, b = np.pad(low.a, ((0, 0), (0, missing), (0, 0))), np.pad(low.b, ((0, 0), (0, 0), (0, missing)))
    return replace(low, a=a.reshape(-1, a.shape[2]), b=b.reshape(-1, b.shape[2]))


def _power(matrix: NDArray[np.float32]) -> float:
    """The power of two that brings the largest number of a matrix near LARGEST."""
    largest = float(max(matrix.max(), -matrix.min()))
    return float(2.0 ** np.floor(np.log2(LARGEST / largest))) if largest > 1e-30 else 1.0


def _padded(matrix: NDArray[np.float32], rows: int, columns: int, power: float) -> NDArray[np.float16]:
    out = np.zeros((rows, columns), np.float16)
    np.multiply(matrix, np.float32(power), out=out[: matrix.shape[0], : matrix.shape[1]], casting="unsafe")
    return out


def _packed_a(low: LowRank, power: float, is_table: bool) -> NDArray[np.float16]:
    rank = -(-low.rank // GROUP) * GROUP
    if is_table:
        return _padded(low.a, low.a.shape[0], rank, power)
    groups, columns = -(-low.a.shape[0] // GROUP), low.a.shape[1]
    padded = _padded(low.a, groups * GROUP, columns, power)
    return np.ascontiguousarray(padded.reshape(groups, GROUP, columns).swapaxes(1, 2))


def _packed_b(low: LowRank, power: float) -> NDArray[np.float16]:
    rank = -(-low.rank // GROUP) * GROUP
    groups = -(-low.b.shape[0] // GROUP)
    padded = _padded(low.b, groups * GROUP, rank, power)
    return np.ascontiguousarray(padded.reshape(groups, GROUP, rank).swapaxes(1, 2))


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

        packed = pack(adapter, self._sites)
        size = SITE.itemsize * len(self._sites)
        begin = -(-size // 64) * 64
        try:
            buffer = allocate(self._device, begin + packed.data.nbytes)
            address = address_of(self._device, buffer)
            table = np.zeros(len(self._sites), SITE)
            for field, offsets in (("a", packed.a), ("b", packed.b)):
                table[field] = np.where(offsets < 0, 0, offsets + address + begin)
            table["rank"], table["scale"] = packed.ranks, packed.scales
            cl.enqueue_copy(self._queue, buffer, table.view(np.uint8), is_blocking=True)
            cl.enqueue_copy(self._queue, buffer, packed.data, dst_offset=begin, is_blocking=True)
        except cl.MemoryError as error:
            raise OutOfMemoryError(
                f"The device has too little memory for {adapter.info.path.name}: "
                f"it takes {packed.data.nbytes / 1e6:.0f} MB.",
                "Use fewer adapters at once.",
            ) from error
        self._n_added += 1
        self._held[self._n_added] = _Held(buffer, address, int(packed.ranks.max()), begin + packed.data.nbytes)
        return self._n_added

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
                    floats += rows * self._slots * 2 * held.rank
        return np.array(cut, UNIT), floats

    def _make_room(self, floats: int) -> None:
        if self._t is not None:
            self._t.release()
        self._t_floats = 2 * floats
        self._t = allocate(self._device, 4 * self._t_floats)
        self._t_address = address_of(self._device, self._t)
