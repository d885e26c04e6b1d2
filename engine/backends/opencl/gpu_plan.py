"""A lowered program as a list of kernels whose arguments are bound once, replayed for every step.

Only how many work-groups run differs between steps. Matrix products have kernels for few rows and for many, so there
is one list for each class of row counts; a kernel is bound when a step first needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from engine.backends.opencl.adapter_layout import UNIT_ROWS
from engine.backends.opencl.formats import FORMATS, GROUP
from engine.backends.opencl.gpu_adapters import parts_of
from engine.backends.opencl.gpu_batch import LOGIT_ROWS_WORD, ROWS_WORD, Counts, LoraCounts
from engine.backends.opencl.gpu_source import TILE_COLUMNS, HeadShape, KernelSizes
from engine.backends.opencl.lowering import Place, Program, Step, store_items

Located: TypeAlias = tuple[Any, int]
"""A device buffer and a byte offset into it; below 0 where there is nothing."""

MATVEC_ROWS = (1, 2, 4, 8)
"""Numbers of rows that matrix-vector kernels take."""

FEW_ROWS = 32
"""Up to so many rows go through the smaller tile of the matrix-matrix kernel."""

MATRICES = 3
"""Matrices of one launch, as in cl_kernels/simt_arguments.cl."""

MOST_SLICES = 32

LORA_OUTPUTS = 64
"""Of a work-group, as in cl_kernels/simt_lora.cl."""

MATRIX_SIDE, MATRIX_THREADS = 128, 256
"""Rows, and columns, of a tile of the product on tensor cores, and its work-items: as in cl_kernels/simt_tensor.cl."""

ROWS_INTEGER, ROWS_FLOAT, ROWS_HALF = range(3)
"""What the rows are that a product reads, as in cl_kernels/simt_lora.cl."""

LORA_KINDS = ("lora", "lora_up", "lora_embed")
"""Steps that have nothing to do where no adapters act."""


@dataclass(frozen=True)
class Launch:
    """A bound kernel. groups: how many work-groups (or work-items, without local sizes) the second dimension has."""

    kernel: Any
    across: int  # work-items in the first dimension
    local: tuple[int, int] | None
    groups: Callable[[Counts], int]

    def sizes(self, counts: Counts) -> tuple[int, int]:
        """Work-items in both dimensions; the second is 0 where there is nothing to do."""
        return self.across, self.groups(counts) * (self.local[1] if self.local else 1)


@dataclass(frozen=True)
class Sizes:
    """What a device's limits decide."""

    kernels: KernelSizes
    max_rows: int
    most_sharing: dict[str, int]  # type -> most work-items that share a row of weights
    wanted_items: int  # work-items that keep the device busy
    tensor_cores: bool = False  # for products of many rows


@dataclass
class Choices:
    """What was found to be the fastest here (gpu_choices.py), before any step has run.

    slices: by shape of products, work-items that share a row of weights. kernels: by shape and class of row counts, the
    kernel for it, which comes to the same bits as the usual one. tensor_cores_from: rows of a step.
    """

    slices: dict[str, int] = field(default_factory=dict)
    kernels: dict[tuple[str, str], str] = field(default_factory=dict)
    tensor_cores_from: int = FEW_ROWS + 1


@dataclass(frozen=True)
class Rows:
    """Rows first .. first + n - 1 of a weight, which lie together."""

    first: int
    n: int
    at: Located


@dataclass(frozen=True)
class _At:
    """An argument that is a place: its buffer and offset, some bytes further on."""

    place: Place
    further: int = 0


class Plan:
    """Replays a program. kernel(name): a new kernel object. locate(place): where it lies in device memory.
    rows(weight): where all rows of a matrix lie, of one that is larger than a buffer may be in several."""

    def __init__(
        self,
        program: Program,
        *,
        kernel: Callable[[str], Any],
        locate: Callable[[Place], Located],
        rows: Callable[[Place], list[Rows]],
        input_buffer: Any,
        partials: Any,
        sizes: Sizes,
        adapters: Callable[[], tuple[Any, Any]],
        kv_type: str,
    ) -> None:
        """adapters: the buffers of adapters and of their t, as they are now; where they are others than before,
        `rebind_adapters` has to be called."""
        self._program = program
        self._kernel = kernel
        self._locate = locate
        self._rows = rows
        self._in = input_buffer
        self._partials = partials
        self._sizes = sizes
        self._adapters = adapters
        self._kv_type = kv_type
        self.choices = Choices()
        phases = [phase for phase in program.phases if phase[0].kind != "top"]  # which gpu_top.py does
        self._sites = [site for phase in phases for site in _sites(phase)]
        self._hidden_sites = sum(len(_sites(phase)) for phase in program.phases[: program.hidden_phases])
        self._bound: dict[tuple[int, str], list[Launch]] = {}
        self._lists: dict[tuple[str, str, int, bool], list[Launch]] = {}

    def launches(self, counts: Counts, *, hidden: bool = False) -> list[Launch]:
        """The kernels of a step with so many rows, in order; hidden: only as far as the program's `hidden`.

        Where adapters act on no row, these are the kernels of a model without any.
        """
        n_sites = self._hidden_sites if hidden else len(self._sites)
        many = self.choices.tensor_cores_from if self._sizes.tensor_cores else None
        classes = (row_class(counts.rows, many), row_class(counts.logit_rows, many))
        adapters = counts.lora.units > 0
        if (*classes, n_sites, adapters) not in self._lists:
            self._lists[*classes, n_sites, adapters] = [
                launch
                for index, site in enumerate(self._sites[:n_sites])
                if adapters or site[0].kind not in LORA_KINDS
                for launch in self._bind(index, site, classes[site[0].logit_rows])
            ]
        return self._lists[*classes, n_sites, adapters]

    def rebind_adapters(self) -> None:
        """Their buffers are others than before."""
        self._bound = {
            key: bound for key, bound in self._bound.items() if self._sites[key[0]][0].kind not in LORA_KINDS
        }
        self._lists = {key: launches for key, launches in self._lists.items() if not key[-1]}

    def _bind(self, index: int, site: list[Step], rows: str) -> list[Launch]:
        if not rows:
            return []
        step = site[0]
        by_rows = ("matmul", "experts", "sort", "prepare", "lora")
        key = (index, rows if step.kind in by_rows else "")
        if key not in self._bound:
            if step.kind == "matmul":
                launches = self._bind_matmul(site, rows)
            elif step.kind == "experts":
                launches = [self._bind_experts(step, rows)]
            elif step.kind == "sort":
                launches = [self._bind_sort(step, rows)]
            elif step.kind == "prepare":
                launches = [self._bind_prepare(step, rows)]
            elif step.kind == "lora":
                launches = [self._bind_lora_down(step, rows)]
            elif step.kind == "lora_up":
                launches = [self._bind_lora_up(site)]
            else:
                launches = _BINDERS[step.kind](self, step)
            self._bound[key] = launches
        return self._bound[key]

    def _new(self, name: str, *arguments: Any) -> Any:
        """A kernel with its arguments: numbers of Python are int32, places become (buffer, offset)."""
        flat: list[Any] = []
        for argument in arguments:
            if isinstance(argument, _At):
                buffer, offset = self._locate(argument.place)
                flat += [buffer, np.int64(offset + argument.further if offset >= 0 else offset)]
            elif isinstance(argument, Rows):
                flat += [argument.at[0], np.int64(argument.at[1])]
            elif isinstance(argument, float):
                flat.append(np.float32(argument))
            else:
                flat.append(np.int32(argument) if isinstance(argument, int) else argument)
        kernel = self._kernel(name)
        kernel.set_args(*flat)
        return kernel

    def _cache(self, place: Place) -> Any:
        return self._locate(place)[0]

    def _columns(self, step: Step, columns: int, name: str, *arguments: Any) -> list[Launch]:
        """A kernel with a work-item for each column of each row."""
        return [Launch(self._new(name, *arguments), _rounded(columns, 64), (64, 1), _rows_of(step))]

    def _embed(self, step: Step) -> list[Launch]:
        items = step.k if FORMATS[step.type].is_float else step.k // 32
        table, out = step.places[:2]
        return [
            launch
            for rows in self._rows(table)
            for launch in self._columns(
                step, items, f"embed_{step.type}", self._in, step.table, rows, rows.first, rows.n, step.k,
                float(step.scale), _At(out),
            )
        ]  # fmt: skip

    def _bind_prepare(self, step: Step, rows: str) -> Launch:
        x, second, quantised, plain, bias = step.places[:5]
        kernel = self._new(
            "prepare_rows", self._in, step.how, step.act, int(step.gather), int(rows == "mma"), step.k, step.heads,
            step.used, float(step.epsilon), float(step.cap), _At(x), _At(second), _At(bias), _At(quantised), _At(plain),
        )  # fmt: skip
        size, count = self._sizes.kernels.prepare, _rows_of(step)
        return Launch(kernel, _rounded(-(-step.k // 4), size), (size, 1), lambda counts: count(counts) * step.heads)

    def _add(self, step: Step) -> list[Launch]:
        a, b, out = step.places[:3]
        return self._columns(step, step.k, "add_rows", step.k, _At(a), _At(b), _At(out))

    def _copy(self, step: Step) -> list[Launch]:
        x, out = step.places[:2]
        return self._columns(
            step, step.k * step.heads, "copy_columns", step.k, step.heads, step.used, step.n, step.start, step.table,
            step.out_stride, _At(x), _At(out),
        )  # fmt: skip

    def _expert_sum(self, step: Step) -> list[Launch]:
        x, route, out = step.places[:3]
        return self._columns(step, step.k, "sum_experts", step.k, step.used, _At(x), _At(route), _At(out))

    def _store_row(self, step: Step) -> list[Launch]:
        x, cache = step.places[:2]
        return self._columns(step, step.k, "store_float_row", self._in, step.k, _At(x), self._cache(cache))

    def _convolve(self, step: Step) -> list[Launch]:
        cache, weight, out = step.places[:3]
        return self._columns(
            step, step.k, "convolve_rows", self._in, step.k, step.n, self._cache(cache), _At(weight), _At(out)
        )

    def _store_kv(self, step: Step) -> list[Launch]:
        q, k, v, keys, values, queries = step.places[:6]
        return self._columns(
            step, store_items(step, self._kv_type), "store_keys_and_values", self._in, _At(q), _At(k), _At(v),
            self._cache(keys), self._cache(values), _At(queries), step.heads, step.kv_heads, step.head_width,
            step.value_width, step.n, step.start, step.how, step.table,
        )  # fmt: skip

    def _attend(self, step: Step) -> list[Launch]:
        q, keys, values, out, _, sinks = step.places[:6]
        shape = HeadShape.of(step.heads, step.kv_heads, step.head_width, step.value_width)
        arguments = (
            self._in, _At(q), self._cache(keys), self._cache(values), _At(out), _At(sinks), step.heads, step.kv_heads,
            step.window, float(step.scale), float(step.cap),
        )  # fmt: skip
        single = self._new(f"attend_single_{shape.name}", *arguments, self._partials)
        kind = "mma" if self._sizes.tensor_cores and shape.on_tensor_cores else "tile"
        tile = self._new(f"attend_{kind}_{shape.name}", *arguments)
        threads = self._sizes.kernels.single
        return [
            Launch(single, threads * step.heads // shape.single_heads, (threads, 1), lambda counts: counts.singles),
            Launch(tile, 128 * step.heads // shape.tile_heads, (128, 1), lambda counts: counts.tiles),
        ]

    def _combine(self, step: Step) -> list[Launch]:
        _, out, sinks = step.places[:3]
        shape = HeadShape.of(step.heads, step.kv_heads, step.head_width, step.value_width)
        kernel = self._new(f"join_parts_{shape.name}", self._in, self._partials, _At(out), _At(sinks), step.heads)
        columns = _rounded(step.heads * step.value_width, 64)
        return [Launch(kernel, columns, (64, 1), lambda counts: counts.combines)]

    def _route(self, step: Step) -> list[Launch]:
        logits, out, bias = step.places[:3]
        kernel = self._new(
            "route_rows", step.experts, step.used, step.how, step.groups, step.groups_used, int(step.renormalise),
            float(step.scale), _At(logits), _At(bias), _At(out),
        )  # fmt: skip
        return [Launch(kernel, 128, (128, 1), _rows_of(step))]

    def _bind_sort(self, step: Step, rows: str) -> Launch:
        route, out = step.places[:2]
        tile_rows = 0 if rows.startswith("matvec") else self._expert_tile_rows(step)
        kernel = self._new(
            "sort_entries", self._in, _rows_word(step), step.experts, step.used, tile_rows, _At(route), _At(out)
        )
        return Launch(kernel, 128, (128, 1), lambda counts: 1)

    def _bind_experts(self, step: Step, rows: str) -> Launch:
        is_matvec, count, used = rows.startswith("matvec"), _rows_of(step), step.used
        tile_rows, height = self._expert_tile_rows(step), self._sizes.kernels.tile_height
        name = "expert_matvec" if is_matvec else f"expert_matmul_{tile_rows // height}"
        slices = self.slices([step])
        parts = [(step, Rows(0, step.n, self._locate(step.places[0])))]
        kernel = self._product(f"{name}_{step.type}", parts, slices, sorted_entries=step.places[5])
        if is_matvec:
            return Launch(kernel, step.n, (GROUP, self._sharing(step, slices)), lambda counts: count(counts) * used)

        def tiles(counts: Counts) -> int:
            """At most so many: each expert's last tile may have few rows."""
            entries = count(counts) * used
            return min(step.experts, entries) + entries // tile_rows

        return Launch(kernel, 16 * -(-step.n // TILE_COLUMNS), (16, height), tiles)

    def _expert_tile_rows(self, step: Step) -> int:
        """Rows of a tile for experts, by how many each one gets of a full batch."""
        height = self._sizes.kernels.tile_height
        return 4 * height if self._sizes.max_rows * step.used >= 4 * height * step.experts else height

    def _bind_matmul(self, site: list[Step], rows: str) -> list[Launch]:
        """A launch for all products of a site, or several where so many matrices are in pieces."""
        return self.products(site, self.choices.kernels.get((shape_of(site), rows), rows), self.slices(site))

    def products(self, site: list[Step], rows: str, slices: int) -> list[Launch]:
        parts = [(step, piece) for step in site for piece in self._rows(step.places[0])]
        return [self._bind_product(parts[i : i + MATRICES], rows, slices) for i in range(0, len(parts), MATRICES)]

    def _bind_product(self, parts: list[tuple[Step, Rows]], rows: str, slices: int) -> Launch:
        first = parts[0][0]
        if rows == "mma" and FORMATS[first.type].is_float:
            rows = "matmul_4"

        def tiles(side: int) -> int:
            return sum(step.heads * -(-(piece.n // step.heads) // side) for step, piece in parts)

        count = _rows_of(first)
        if rows == "mma":
            kernel = self._product(f"matmul_mma_{first.type}", parts, slices)
            across = MATRIX_THREADS * tiles(MATRIX_SIDE)
            return Launch(kernel, across, (MATRIX_THREADS, 1), lambda counts: -(-count(counts) // MATRIX_SIDE))
        kernel = self._product(f"{rows}_{first.type}", parts, slices)
        name, _, per = rows.partition("_")
        if name == "matvec":
            groups = sum(-(-piece.n // GROUP) for _, piece in parts)
            return Launch(kernel, GROUP * groups, (GROUP, self._sharing(first, slices)), lambda counts: 1)
        height = self._sizes.kernels.tile_height
        tile_rows = height * int(per)
        return Launch(kernel, 16 * tiles(TILE_COLUMNS), (16, height), lambda counts: -(-count(counts) // tile_rows))

    def _product(self, name: str, parts: list[tuple[Step, Rows]], slices: int, sorted_entries: Place = None) -> Any:
        """A kernel of a matrix product with its arguments, as in cl_kernels/simt_arguments.cl."""
        first = parts[0][0]
        residual = next((step.places[4] for step, _ in parts if step.places[4] is not None), None)
        matrices: list[Any] = []
        for i in range(MATRICES):
            step, rows = parts[min(i, len(parts) - 1)]
            _, _, out, bias, added = step.places[:5]
            n = rows.n if i < len(parts) else 0
            begin = 4 * rows.first
            at = self._locate(added)[1]
            matrices += [rows, n, step.n, _At(out, begin), _At(bias, begin), np.int64(at + begin if at >= 0 else at)]
        return self._new(
            name, self._in, _rows_word(first), _At(first.places[1]), first.k, -(-first.k // (32 * slices)),
            first.heads, float(first.scale), first.used, int(first.shared), _At(sorted_entries),
            self._locate(residual)[0], *matrices,
        )  # fmt: skip

    def _bind_lora_down(self, step: Step, rows: str) -> Launch:
        adapters, t = self._adapters()
        form = ROWS_FLOAT if step.how else ROWS_HALF if rows == "mma" else ROWS_INTEGER
        if step.experts or step.heads > 1:
            return self._bind_expert_lora_down(step, form)
        kernel = self._new(
            "lora_down", self._in, int(step.logit_rows), _At(step.places[0]), form, step.k, step.site, step.used,
            adapters, t,
        )  # fmt: skip
        acting = _lora_of(step)
        across = GROUP * step.used * parts_of(step.k)
        return Launch(kernel, across, (GROUP, 8), lambda counts: acting(counts).units * acting(counts).groups)

    def _bind_lora_up(self, site: list[Step]) -> Launch:
        first = site[0]
        if first.experts or first.heads > 1:
            return self._bind_expert_lora_up(first)
        matrices: list[Any] = []
        for i in range(MATRICES):
            step = site[min(i, len(site) - 1)]
            matrices += [step.n if i < len(site) else 0, step.site, step.start, _At(step.places[2])]
        arguments = (int(first.logit_rows), first.k, float(first.scale))
        kernel = self._new("lora_up", self._in, *arguments, *self._adapters(), *matrices)
        acting = _lora_of(first)
        across = sum(_rounded(step.n, LORA_OUTPUTS) for step in site)
        return Launch(kernel, across, (LORA_OUTPUTS, 1), lambda counts: acting(counts).chunks)

    def _bind_expert_lora_down(self, step: Step, form: int) -> Launch:
        x, sorted_ = (*step.places, step.places[0])[:2]  # what stands for nothing is read nowhere
        kernel = self._new(
            "expert_lora_down", self._in, int(step.logit_rows), _At(x), form, step.k, step.site, step.groups_used,
            int(step.shared), int(step.heads > 1), _At(sorted_), *self._adapters(),
        )  # fmt: skip
        acting = _lora_of(step)
        across = GROUP * step.used * parts_of(step.k)
        entries = UNIT_ROWS * step.groups_used
        return Launch(kernel, across, (GROUP, 8), lambda counts: acting(counts).units * acting(counts).groups * entries)

    def _bind_expert_lora_up(self, step: Step) -> Launch:
        """Of heads too: each row goes to all of them."""
        used, n = (step.used, step.n) if step.experts else (step.heads, step.n // step.heads)
        sorted_ = step.places[5] if step.experts else step.places[1]
        kernel = self._new(
            "expert_lora_up", self._in, int(step.logit_rows), step.k, n, step.site, step.start, used,
            int(step.heads > 1), _At(sorted_), *self._adapters(), _At(step.places[2]),
        )  # fmt: skip
        acting = _lora_of(step)
        entries = UNIT_ROWS * used
        across = _rounded(n, LORA_OUTPUTS)
        return Launch(kernel, across, (LORA_OUTPUTS, 1), lambda counts: acting(counts).chunks * entries)

    def _lora_embed(self, step: Step) -> list[Launch]:
        out = step.places[1]
        kernel = self._new(
            "lora_embed", self._in, step.k, step.site, float(step.scale), self._adapters()[0], _At(out)
        )  # fmt: skip
        return [Launch(kernel, _rounded(step.k, LORA_OUTPUTS), (LORA_OUTPUTS, 1), lambda counts: counts.lora.chunks)]

    def slices(self, site: list[Step]) -> int:
        """Parts of a row of weights, each summed by a work-item. Depends on the matrices alone: it decides the order of
        sums.

        Where whole steps are one kernel, on the length of the rows alone: its work-groups have all matrices of a phase.
        """
        if self._sizes.kernels.step:
            k = site[0].k
            return 32 if k >= 4096 else 16 if k >= 2048 else 8 if k >= 512 else 4
        chosen = self.choices.slices.get(shape_of(site))
        if chosen:
            return chosen
        groups = sum(-(-step.n // GROUP) for step in site)
        slices = 4
        most = self.most_slices(site)
        while 2 * slices <= most and GROUP * groups * slices < self._sizes.wanted_items:
            slices *= 2
        return slices

    def most_slices(self, site: list[Step]) -> int:
        return min(MOST_SLICES, -(-site[0].k // 32))

    def _sharing(self, step: Step, slices: int) -> int:
        """Work-items that share a row of weights, where it has so many slices."""
        return min(slices, self._sizes.most_sharing[step.type])

    def products_by_shape(self) -> dict[str, list[list[Step]]]:
        """The products of the program that have a shape, those with the largest matrices first."""
        found: dict[str, list[list[Step]]] = {}
        for site in self._sites:
            if site[0].kind == "matmul":
                found.setdefault(shape_of(site), []).append(site)
        return dict(sorted(found.items(), key=lambda item: -sum(step.n * step.k for step in item[1][0])))


_BINDERS: dict[str, Callable[[Plan, Step], list[Launch]]] = {
    "embed": Plan._embed,
    "add": Plan._add,
    "copy": Plan._copy,
    "store_kv": Plan._store_kv,
    "attend": Plan._attend,
    "combine": Plan._combine,
    "route": Plan._route,
    "expert_sum": Plan._expert_sum,
    "store_row": Plan._store_row,
    "convolve": Plan._convolve,
    "lora_embed": Plan._lora_embed,
}


def shape_of(site: list[Step]) -> str:
    """Of the matrices that go through one launch."""
    first = site[0]
    stacked = f" of {first.heads}" if first.heads > 1 else ""
    return f"{first.type} {'+'.join(str(step.n) for step in site)}x{first.k}{stacked}"


def row_class(rows: int, tensor_cores_from: int | None = None) -> str:
    """The kernel of matrix products for so many rows; empty for none."""
    if rows == 0:
        return ""
    for most in MATVEC_ROWS:
        if rows <= most:
            return f"matvec_{most}"
    if rows <= FEW_ROWS:
        return "matmul_1"
    return "mma" if tensor_cores_from is not None and rows >= tensor_cores_from else "matmul_4"


def _sites(phase: list[Step]) -> list[list[Step]]:
    """The steps of a phase by launches: products of one type that read the same rows go together, and what adapters
    add to them comes after them."""
    if phase[0].kind == "embed" and phase[0].site >= 0:
        return [phase, [replace(phase[0], kind="lora_embed")]]
    if phase[0].kind == "experts":
        return [[step] for step in phase] + [[replace(step, kind="lora_up")] for step in phase]
    if phase[0].kind != "matmul":
        return [[step] for step in phase]
    alike: dict[tuple[Any, ...], list[Step]] = {}
    for index, step in enumerate(phase):
        alone = index if step.heads > 1 else -1
        alike.setdefault((step.type, step.logit_rows, step.scale, alone), []).append(step)
    sites = [steps[i : i + MATRICES] for steps in alike.values() for i in range(0, len(steps), MATRICES)]
    ups = [[replace(step, kind="lora_up") for step in site] for site in sites if site[0].site >= 0]
    return sites + ups


def _rows_of(step: Step) -> Callable[[Counts], int]:
    return _logit_rows if step.logit_rows else _rows


def _lora_of(step: Step) -> Callable[[Counts], LoraCounts]:
    return (lambda counts: counts.logit_lora) if step.logit_rows else (lambda counts: counts.lora)


def _rows(counts: Counts) -> int:
    return counts.rows


def _logit_rows(counts: Counts) -> int:
    return counts.logit_rows


def _rows_word(step: Step) -> int:
    return LOGIT_ROWS_WORD if step.logit_rows else ROWS_WORD


def _rounded(items: int, size: int) -> int:
    return -(-items // size) * size
