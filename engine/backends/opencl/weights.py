"""Weights in device memory: repacked on the device, tensor by tensor, straight from the memory map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.opencl import gpu_source
from engine.backends.opencl.formats import FORMATS, GROUP
from engine.backends.opencl.lowering import Step
from engine.backends.opencl.memory import allocate
from engine.backends.opencl.platforms import Device
from engine.backends.opencl.streaming import Part, Streaming, cut_program
from engine.backends.opencl.tools import repacking
from engine.batch import Progress
from engine.errors import OutOfMemoryError, UnsupportedModelError
from engine.gguf import GGUFFile, release_pages, will_need
from engine.graph import Embed, ExpertLinear, Graph, Linear, Weight, weights_of
from engine.quants import dequantize

STAGING_BYTES = 4 << 20
"""Bytes of the file that are on their way to the device at a time. A CPU reads them where they lie in the memory map,
whose pages are let go then; for a GPU they are there twice, in the map and in a buffer."""

PIECE_ROWS = 128
"""A weight that has to be divided is divided at a multiple of so many rows: whole tiles of every kernel."""


@dataclass(frozen=True)
class Piece:
    """Rows first .. first + n - 1 of a weight, which lie together."""

    first: int
    n: int
    buffer: Any
    offset: int


class DeviceWeights:
    """All tensors of a model in one device buffer (or several, where the device limits their size).

    place: weight -> (buffer index, offset); of one that is larger than a buffer may be, and so lies in several pieces
    (on GPUs only), that of the first.
    """

    def __init__(
        self,
        file: GGUFFile,
        device: Device,
        graph: Graph,
        *,
        on_gpu: bool = False,
        lent: DeviceWeights | None = None,
    ) -> None:
        """lent: those of another model of the same file on the same device; they have to be closed later."""
        self.file = file
        self.on_gpu = on_gpu
        self.device = device
        self.matrices = _matrices(graph)
        everything = graph.weights()
        self._lent: dict[Weight, DeviceWeights] = {}
        if lent is not None:
            same = (w for w in everything if w in lent.place and (w in lent.matrices) == (w in self.matrices))
            self._lent = {w: lent for w in same if w not in lent.streamed}
        self.weights = weights = [w for w in everything if w not in self._lent]
        self.types = {w.name: self._type(w) for w in everything}
        self.place: dict[Weight, tuple[int, int]] = {}
        self._cuts: dict[Weight, list[tuple[int, int, int, int]]] = {}  # first row, rows, buffer index, offset
        self._divisible = _divisible(graph) if on_gpu else set()
        self.buffers: list[Any] = []
        self.sizes: list[int] = []
        self._arrange(weights)
        self._tables = {op.table for op in graph.operations if isinstance(op, Embed)}
        self._streaming = Streaming([])
        self._in_slot: int | None = None  # the part whose weights the slot holds
        self._staging: Any = None
        self._moving: list[tuple[NDArray[np.uint8], Any]] = []  # rows of the map that kernels read, and their buffers

    def stream(self, phases: Sequence[Sequence[Step]], budget: int | None) -> list[Part]:
        """Arranges the weights anew so that they take at most `budget` bytes; the parts in which the phases then run.

        Raises OutOfMemoryError where that cannot be.
        """
        if budget is not None:
            budget -= 2 * STAGING_BYTES
        movable = (self.matrices - self._tables) & set(self.weights)
        self._streaming = cut_program(phases, self.weights, movable, self._bytes, budget)
        moved = self._streaming.weights
        if moved:
            self._arrange([weight for weight in self.weights if weight not in moved])
            for part in self._streaming.parts:
                self.place.update({weight: (len(self.sizes), offset) for weight, offset in part.weights.items()})
            self.sizes.append(self._streaming.slot_bytes)
        return self._streaming.parts

    @property
    def streamed(self) -> set[Weight]:
        return self._streaming.weights

    @property
    def in_use(self) -> list[Any]:
        """The buffers that `located` names."""
        lent = [piece.buffer for weight in self._lent for piece in self.pieces_of(weight)]
        return [*self.buffers, *{id(buffer): buffer for buffer in lent}.values()]

    def located(self, weight: Weight) -> tuple[Any, int]:
        """The buffer that a weight is in, once they are loaded, and where in it."""
        first = self.pieces_of(weight)[0]
        return first.buffer, first.offset

    def pieces_of(self, weight: Weight) -> list[Piece]:
        """Where all rows of a weight are, once they are loaded."""
        if weight in self._lent:
            return self._lent[weight].pieces_of(weight)
        cuts = self._cuts.get(weight) or [(0, weight.rows, *self.place[weight])]
        return [Piece(first, n, self.buffers[index], offset) for first, n, index, offset in cuts]

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the file that a step reads again."""
        return sum(self._file_bytes(weight) for weight in self._streaming.weights)

    def _file_bytes(self, weight: Weight) -> int:
        info = self.file.tensors[weight.name]
        return int(info.nbytes / info.n_values * weight.rows * weight.columns)

    def _arrange(self, weights: Sequence[Weight]) -> None:
        limit = self.device.most_in_one_piece
        self.place, self._cuts = {}, {}
        sizes = [0]
        for weight in weights:
            cuts = []
            for first, rows in self._cut(weight, limit):
                size = self._bytes(weight) if rows == weight.rows else self._matrix_bytes(weight, rows)
                if sizes[-1] + size > min(limit, 1 << 30) and sizes[-1]:
                    sizes.append(0)
                cuts.append((first, rows, len(sizes) - 1, sizes[-1]))
                sizes[-1] += size
            self.place[weight] = cuts[0][2:]
            if len(cuts) > 1:
                self._cuts[weight] = cuts
        self.sizes = sizes

    def _cut(self, weight: Weight, limit: int) -> list[tuple[int, int]]:
        """First row and number of rows of each part of at most `limit` bytes.

        Raises OutOfMemoryError where the weight cannot be divided so.
        """
        size = self._bytes(weight)
        if size <= limit:
            return [(0, weight.rows)]
        rows = 0
        if weight in self._divisible:
            rows = limit // FORMATS[self.types[weight.name]].group_bytes(weight.columns) * GROUP
            rows = rows // PIECE_ROWS * PIECE_ROWS or rows
        if not rows:
            raise OutOfMemoryError(
                f"The tensor {weight.name!r} takes {size / 1e9:.1f} GB, "
                f"but {self.device.handle.name.strip()} allows {limit / 1e9:.1f} GB in one piece.",
                "Choose a smaller quantisation of the model, or the device numpy.",
            )
        return [(first, min(rows, weight.rows - first)) for first in range(0, weight.rows, rows)]

    @property
    def total_bytes(self) -> int:
        return sum(self.sizes) + (2 * STAGING_BYTES if self._streaming.slot_bytes else 0)

    def format_names(self) -> list[str]:
        """The types of the matrices, in the order in which operations number them."""
        return sorted({self.types[weight.name] for weight in self.matrices})

    def bytes_per_token(self, graph: Graph) -> int:
        """Bytes that a step of one row reads: of an embedding table one row, of experts those that are used."""
        shares: dict[Weight, float] = {}
        for op in graph.operations:
            for weight in weights_of(op):
                share = 1.0
                if isinstance(op, Embed):
                    share = 1.0 / weight.rows
                elif isinstance(op, ExpertLinear):
                    share = op.n_used / op.n_experts
                shares[weight] = max(share, shares.get(weight, 0.0))
        return int(sum(self._bytes(weight) * share for weight, share in shares.items()))

    def load(self, progress: Progress, cancelled: Callable[[], bool]) -> None:
        """Fills the buffers; the file's pages are let go as soon as they are read."""
        import pyopencl as cl

        context, queue = self.device.context, self.device.queue
        names = self.format_names()
        if self.on_gpu:
            program = self.device.build(gpu_source.repack_source(names), [])
        else:
            program = repacking(self.device, names)
        self.buffers = [allocate(self.device, size) for size in self.sizes]
        kernel_name = "repack_items" if self.on_gpu else "repack"
        self._kernels = kernels = {name: cl.Kernel(program, f"{kernel_name}_{name}") for name in names}
        if self.on_gpu:
            self._staging = cl.Buffer(context, cl.mem_flags.READ_ONLY, STAGING_BYTES)
        done = 0
        moved = self._streaming.weights
        # vectors first: each is a copy that waits for what is queued
        for weight in sorted(self.weights, key=lambda weight: weight in self.matrices):
            if cancelled():
                break
            if weight in moved:
                continue
            data = self.file.data(weight.name)
            if weight not in self.matrices:
                index, offset = self.place[weight]
                values = dequantize(self.file.tensors[weight.name].type, data).ravel()
                values = values[weight.first : weight.first + weight.rows * weight.columns]
                cl.enqueue_copy(queue, self.buffers[index], values, dst_offset=offset)
            else:
                data = self._rows(weight)
                for piece in self.pieces_of(weight):
                    rows = data[piece.first : piece.first + piece.n]
                    self._repack(kernels[self.types[weight.name]], rows, weight, piece.buffer, piece.offset)
            if self.on_gpu or weight not in self.matrices:
                release_pages(data)
            done += self._bytes(weight)
            progress("weights", done / self.total_bytes, weight.name)
        self._finish()
        if self._staging is not None:
            self._staging.release()
            self._staging = None

    def bring(self, index: int) -> None:
        """Brings the weights of a part from the file into the slot, and asks the system for those of the next."""
        parts = self._streaming.parts
        if self._in_slot == index or not parts[index].weights:
            return
        following = next(p for p in [*parts[index + 1 :], *parts] if p.weights)
        for weight in following.weights:
            will_need(self._rows(weight))
        for weight in parts[index].weights:
            buffer, offset = self.located(weight)
            data = self._rows(weight)
            self._repack(self._kernels[self.types[weight.name]], data, weight, buffer, offset)
        self._finish()
        self._in_slot = index

    def _rows(self, weight: Weight) -> NDArray[np.uint8]:
        return self.file.data(weight.name)[weight.first : weight.first + weight.rows]

    def close(self) -> None:
        for buffer in self.buffers:
            buffer.release()
        self.buffers = []

    def _repack(self, kernel: Any, data: NDArray[np.uint8], weight: Weight, buffer: Any, offset: int) -> None:
        """Queues a weight's way into its layout: it is there after _finish()."""
        import pyopencl as cl

        queue = self.device.queue
        group_bytes = FORMATS[self.types[weight.name]].group_bytes(weight.columns)
        rows_at_once = max(1, STAGING_BYTES // data.shape[1] // GROUP) * GROUP
        if data.shape[1] * GROUP > STAGING_BYTES:
            raise UnsupportedModelError(f"The rows of the tensor {weight.name!r} are too long ({data.shape[1]} bytes).")
        for first in range(0, len(data), rows_at_once):
            part = data[first : first + rows_at_once]
            groups = -(-len(part) // GROUP)
            if self.on_gpu:
                source = self._staging
                cl.enqueue_copy(queue, source, part, is_blocking=True)
                release_pages(part)
            else:
                flags = cl.mem_flags.READ_ONLY | cl.mem_flags.USE_HOST_PTR
                source = cl.Buffer(self.device.context, flags, hostbuf=part)
                self._moving.append((part, source))
            kernel.set_args(
                source,
                np.int32(len(part)),
                np.int32(weight.columns),
                buffer,
                np.int64(offset + first // GROUP * group_bytes),
            )
            if self.on_gpu:
                if len(part) % GROUP:
                    last = offset + (first // GROUP + groups - 1) * group_bytes
                    cl.enqueue_fill_buffer(queue, buffer, np.zeros(1, np.int32), last, group_bytes)
                format_ = FORMATS[self.types[weight.name]]
                items = weight.columns if format_.is_float else weight.columns // 32
                cl.enqueue_nd_range_kernel(queue, kernel, (GROUP * groups, items), (GROUP, 1))
                queue.finish()
            else:
                cl.enqueue_nd_range_kernel(queue, kernel, (groups,), (1,))
                queue.flush()
                if sum(rows.nbytes for rows, _ in self._moving) >= STAGING_BYTES:
                    self._finish()

    def _finish(self) -> None:
        """Waits for what _repack queued, and lets go of the pages that it read."""
        self.device.queue.finish()
        for rows, source in self._moving:
            source.release()
            release_pages(rows)
        self._moving.clear()

    def _bytes(self, weight: Weight) -> int:
        if weight not in self.matrices:
            return -(-weight.rows * weight.columns * 4 // 64) * 64
        return self._matrix_bytes(weight, weight.rows)

    def _matrix_bytes(self, weight: Weight, rows: int) -> int:
        return FORMATS[self.types[weight.name]].weight_bytes(rows, weight.columns)

    def _type(self, weight: Weight) -> str:
        name = self.file.tensors[weight.name].type.name
        if weight in self.matrices and name not in FORMATS:
            raise UnsupportedModelError(
                f"The tensor {weight.name!r} of {self.file.path.name} is of the type {name}, "
                "for which Realm has no OpenCL kernel yet.",
                "Choose the device numpy, or a model in one of " + ", ".join(FORMATS) + ".",
            )
        return name


def _divisible(graph: Graph) -> set[Weight]:
    """The matrices whose rows are read or multiplied one by one: no stacks."""
    found, stacks = set(), set()
    for op in graph.operations:
        match op:
            case Embed(table=weight) | Linear(weight=weight, heads=1):
                found.add(weight)
            case Linear(weight=weight) | ExpertLinear(weight=weight):
                stacks.add(weight)
    return found - stacks


def _matrices(graph: Graph) -> set[Weight]:
    """The weights that are read by rows or multiplied; all others are plain float32 vectors."""
    found = set()
    for op in graph.operations:
        match op:
            case Embed(table=weight) | Linear(weight=weight) | ExpertLinear(weight=weight):
                found.add(weight)
    return found
