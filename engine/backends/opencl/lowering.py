"""From a graph to the operations of cl_kernels/step.cl: fused, in phases, with a place for every buffer.

What is fused: norm or gate with the quantisation of its result, matrix product with bias and residual, rotary
embedding with writing keys and values. Products that read the same rows (Q, K, V; gate, up) share a phase.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from engine.backends.opencl.formats import FORMATS
from engine.errors import UnsupportedModelError
from engine.graph import (
    Activate,
    Activation,
    Add,
    Attention,
    Embed,
    ExpertLinear,
    ExpertSum,
    Gate,
    Gating,
    Graph,
    Index,
    Input,
    Join,
    LayerNorm,
    Linear,
    Operation,
    RmsNorm,
    Rope,
    Route,
    SelectRows,
    ShortConv,
    SoftCap,
    Value,
    Weight,
    inputs,
)

Kind = Literal[
    "embed", "prepare", "matmul", "store_kv", "attend", "combine", "add", "copy", "route", "sort", "experts",
    "expert_sum", "store_row", "convolve", "lora", "top", "lora_up", "lora_embed",
]  # fmt: skip
"""Those of step.cl in its order, and two that gpu_plan.py adds."""

COPY, RMS_NORM, LAYER_NORM, GATE, SCALAR_GATE, ACTIVATE = range(6)
ACTIVATIONS = {
    Activation.IDENTITY: 0,
    Activation.SILU: 1,
    Activation.GELU: 2,
    Activation.SIGMOID: 3,
    Activation.CLAMPED_SWIGLU: 4,
}
SOFTCAP = 5
INDICES = {Index.TOKENS: 0, Index.POSITIONS: 1, Index.FIRST: 2}
GATINGS = {Gating.SOFTMAX: 0, Gating.SIGMOID: 1, Gating.CHOSEN_SOFTMAX: 2}

MAX_QUERIES = 32
"""Query vectors that one tile of attention takes, as in attention.cl."""

CHUNK_BYTES = 128 << 10
"""Weights that a work-group reads before it looks for more to do: a new place in memory starts slowly."""

MAX_EXPERTS = 1024
"""As in experts.cl."""

MOST_TOP = 64
"""Of the largest logits of a row, so many can be had by themselves: as in top.cl."""

MOST_BOUNDED, MOST_BOUNDED_COLUMNS = 1 << 19, 32 * 256
"""Outputs and columns of a product that may give bounds: as in top.cl and bounds.cl."""

TOP = np.dtype([("finite", np.int32), ("ids", np.int32, MOST_TOP), ("logits", np.float32, MOST_TOP)])
"""What there is of them; the struct Top there."""

GROUP = 16
"""Rows of weights that lie together; outputs of stacked matrices must be a multiple."""


@dataclass(eq=False)
class Buffer:
    """Scratch memory of so many bytes per row of the batch, all rows of a buffer together.

    `offset` is given once all phases are known: bytes per row of the buffers before it.
    """

    row_bytes: int
    offset: int = -1


@dataclass(frozen=True)
class Cache:
    """The keys or values of a layer."""

    layer: int
    what: Literal["keys", "values"]


Place = Buffer | Cache | Weight | Literal["partials"] | None


@dataclass(frozen=True)
class Step:
    """One operation of step.cl; `places` become its pointers, the other fields its fields of the same name."""

    kind: Kind
    places: tuple[Place, ...]
    logit_rows: bool = False
    type: str = ""
    n: int = 0
    k: int = 0
    chunk: int = 1
    heads: int = 1
    kv_heads: int = 1
    head_width: int = 0
    value_width: int = 0
    how: int = 0
    act: int = 0
    gather: bool = False
    table: int = 0
    start: int = 0
    window: int = 0
    experts: int = 0
    used: int = 1
    shared: bool = False
    renormalise: bool = False
    groups: int = 1
    groups_used: int = 1
    out_stride: int = 0
    whole: bool = False
    site: int = -1
    bounds: bool = False
    epsilon: float = 0.0
    scale: float = 1.0
    cap: float = 0.0


@dataclass(frozen=True)
class Site:
    """A place where adapters act: a product with the weight, or the table that tokens are looked up in.

    phase: products with the same one read the same rows, at the same time.
    """

    weight: Weight
    phase: int
    is_table: bool = False


@dataclass
class Program:
    """Phases of steps. cache_bytes: bytes of one position in the cache of (layer, what).

    hidden: where Graph.hidden is after the first hidden_phases phases, if the graph has it.
    causal: of the graph. given: where the rows go that a step is given, if its graph has an Input.
    kept: where Graph.kept is after a step, if the graph has it.
    top: where the largest logits go when they are asked for; rows are the logits'. None for an encoder.
    sites: where adapters can act; steps name them by their number. lora_slots: most products that a row has in one
    phase, of experts as many as it goes to, of heads all. The phases that begin with a step of the kind "lora" have
    nothing to do where no adapters act.
    """

    phases: list[list[Step]]
    ropes: list[Rope]
    logits: Buffer
    scratch_bytes_per_row: int
    logit_bytes_per_row: int
    hidden: Buffer | None = None
    hidden_phases: int = 0
    causal: bool = True
    given: Buffer | None = None
    kept: Buffer | None = None
    attentions: list[Attention] = field(default_factory=list)
    cache_bytes: dict[Cache, int] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    lora_slots: int = 1
    top: Buffer | None = None


def prepared_bytes(k: int) -> int:
    """Bytes of a row of activations as integers; see prepare.cl."""
    return -(-(2 * k + k // 32 * 16 + k // 16 * 4) // 64) * 64


def padded16(width: int) -> int:
    return -(-width // 16) * 16


def padded32(width: int) -> int:
    return -(-width // 32) * 32


def cache_widths(kv_type: str, key_width: int, value_width: int) -> tuple[int, int]:
    """Bytes of one position of a head's keys and of its values, as cache.cl lays them out."""
    if kv_type == "f16":
        return 2 * key_width, 2 * padded16(value_width)
    per_32 = 34 if kv_type == "q8_0" else 18
    return padded32(key_width) // 32 * per_32, padded32(value_width) // 32 * per_32


def store_items(step: Step, kv_type: str) -> int:
    """Work-items that write a row's keys and values on a GPU: one for each column, of half precision fewer."""
    if kv_type == "f16":
        return max((step.heads + step.kv_heads) * step.head_width // 2, step.kv_heads * step.value_width)
    return (step.heads + step.kv_heads) * padded32(step.head_width) + step.kv_heads * padded32(step.value_width)


def lower(
    graph: Graph,
    types: dict[str, str],
    is_float: dict[str, bool],
    workers: int,
    kv_type: str = "f16",
    *,
    own_queries: bool = False,
) -> Program:
    """Lowers a graph. Raises UnsupportedModelError for shapes that the kernels do not take.

    types: tensor name -> quantisation type; is_float: type -> whether its product reads float32 rows.
    workers: how many work-groups run at once; the products of a phase are cut into two to sixteen chunks for each.
    kv_type: what keys and values are kept as, of KV_TYPES in engine/api.py.
    own_queries: attention reads queries in rows of their own, each head padded to a multiple of 32 columns.
    """
    return _Lowering(graph, types, is_float, workers, kv_type, own_queries).run()


class _Lowering:
    def __init__(
        self,
        graph: Graph,
        types: dict[str, str],
        is_float: dict[str, bool],
        workers: int,
        kv_type: str,
        own_queries: bool,
    ) -> None:
        self.kv_type = kv_type
        self.own_queries = own_queries
        self.graph = graph
        self.types = types
        self.is_float = is_float
        self.workers = workers
        self.users: dict[int, list[Operation]] = {}
        for op in graph.operations:
            for value in inputs(op):
                self.users.setdefault(value.id, []).append(op)
        self.phases: list[list[Step]] = []
        self.floats: dict[int, Buffer] = {}
        self.quantised: dict[tuple[int, int], Buffer] = {}  # (value, columns of one prepared row)
        self.sorted: dict[int, Buffer] = {}
        self.logit_values: set[int] = set()
        self.done: set[int] = set()
        self.ropes: list[Rope] = []
        self.given: Buffer | None = None
        self.cache_bytes: dict[Cache, int] = {}

    def run(self) -> Program:
        for op in self.graph.operations:
            if op.out.id not in self.done:
                self._lower(op)
        self._cut_products()
        sites, slots = self._add_adapters()
        logits = self.floats[self.graph.logits.id]
        top = None if self.graph.ends_hidden else Buffer(TOP.itemsize)
        if top:
            rows = self._give_bounds(logits)
            step = Step("top", (logits, top, rows), True, k=self.graph.n_vocab, bounds=rows is not None)
            self.phases.append([step])
        scratch, logit_bytes = self._assign_offsets(logits)
        attentions = [op for op in self.graph.operations if isinstance(op, Attention)]
        hidden = self.floats[self.graph.hidden.id] if self.graph.hidden else None
        ends = [i for i, phase in enumerate(self.phases, 1) for step in phase if hidden and hidden in step.places]
        return Program(
            self.phases,
            self.ropes,
            logits,
            scratch,
            logit_bytes,
            hidden,
            ends[0] if ends else 0,
            self.graph.causal,
            self.given,
            self.floats[self.graph.kept.id] if self.graph.kept else None,
            attentions,
            self.cache_bytes,
            sites,
            slots,
            top,
        )

    def _give_bounds(self, logits: Buffer) -> Place:
        """Lets the last product give bounds of the logits where only the largest are wanted (bounds.cl), if it can.
        Returns the rows that it reads, which are then read once more."""
        step = self.phases[-1][-1]
        if step.kind != "matmul" or step.places[2] is not logits or len(self.phases[-1]) > 1:
            return None
        format_ = FORMATS[step.type]
        plain = step.places[3] is None and step.places[4] is None and step.heads == 1
        fits = step.k <= MOST_BOUNDED_COLUMNS and step.n <= MOST_BOUNDED
        if not plain or not fits or format_.is_float or format_.has_minimum:
            return None
        self.phases[-1] = [replace(step, bounds=True)]
        return step.places[1]

    def _add_adapters(self) -> tuple[list[Site], int]:
        """Numbers the places where adapters act, and puts the phase for the products of each phase before it."""
        sites: list[Site] = []
        phases: list[list[Step]] = []
        slots = 1
        for phase in self.phases:
            first = phase[0]
            down = _lora_down(phase)
            if down:
                phases.append([replace(down, site=len(sites))])
                slots = max(slots, down.used * down.groups_used)
                phase = [replace(step, site=len(sites) + slot, start=slot) for slot, step in enumerate(phase)]
                sites += [Site(step.places[0], len(phases)) for step in phase if isinstance(step.places[0], Weight)]
            elif first.kind == "embed" and first.table == INDICES[Index.TOKENS] and isinstance(first.places[0], Weight):
                phase = [replace(first, site=len(sites))]
                sites.append(Site(first.places[0], len(phases), is_table=True))
            phases.append(phase)
        self.phases = phases
        return sites, slots

    def _lower(self, op: Operation) -> None:
        on_logits = isinstance(op, SelectRows) or any(v.id in self.logit_values for v in inputs(op))
        if on_logits:
            self.logit_values.add(op.out.id)
        row = Step("prepare", (), on_logits, k=op.out.width)
        match op:
            case Embed(out=out, table=table, scale=scale, index=index):
                places, type_ = (table, self._float(out)), self.types[table.name]
                self._emit(Step("embed", places, type=type_, k=table.columns, scale=scale, table=INDICES[index]))
            case Input(out=out):
                self.given = self._float(out)
            case RmsNorm() | LayerNorm():
                self._norm(op, row)
            case Gate(out=out, gate=gate, up=up, activation=activation):
                how = SCALAR_GATE if gate.width == 1 and up.width != 1 else GATE
                self._prepare(replace(row, how=how, act=ACTIVATIONS[activation]), out, gate, self.floats[up.id])
            case Activate(out=out, x=x, activation=activation):
                self._prepare(replace(row, how=ACTIVATE, act=ACTIVATIONS[activation]), out, x)
            case SoftCap(out=out, x=x, cap=cap):
                self._prepare(replace(row, how=ACTIVATE, act=SOFTCAP, cap=cap), out, x)
            case SelectRows(out=out, x=x):
                self._prepare(replace(row, gather=True), out, x)
            case Linear():
                self._linear(op, on_logits)
            case Attention():
                self._attention(op)
            case Add(out=out, a=a, b=b):
                places3 = (self.floats[a.id], self.floats[b.id], self._float(out))
                self._emit(Step("add", places3, on_logits, k=out.width))
            case Join():
                self._join(op, on_logits)
            case Route():
                self._route(op, on_logits)
            case ExpertLinear():
                self._expert_linear(op, on_logits)
            case ExpertSum(out=out, x=x, route=route):
                places3 = (self.floats[x.id], self.floats[route.id], self._float(out))
                self._emit(Step("expert_sum", places3, on_logits, k=out.width, used=route.width // 2))
            case ShortConv():
                self._short_conv(op)

    def _emit(self, step: Step) -> None:
        last = self.phases[-1] if self.phases else []
        together = ("matmul", "experts")
        if last and step.kind in together and last[0].kind == step.kind and last[0].places[1] is step.places[1]:
            last.append(step)
        else:
            self.phases.append([step])

    def _float(self, value: Value) -> Buffer:
        return self.floats.setdefault(value.id, Buffer(4 * value.width))

    def _norm(self, op: RmsNorm | LayerNorm, row: Step) -> None:
        width = op.out.width // op.heads
        bias = op.bias if isinstance(op, LayerNorm) else None
        how = LAYER_NORM if isinstance(op, LayerNorm) else RMS_NORM
        # `used` parts of the weight take turns: one for all heads, or each its own
        parts = op.weight.rows * op.weight.columns // width
        step = replace(row, how=how, k=width, heads=op.heads, used=parts, epsilon=op.epsilon)
        self._prepare(step, op.out, op.x, op.weight, bias)

    def _prepare(self, step: Step, out: Value, x: Value, second: Place = None, bias: Place = None) -> None:
        """Emits the step in the forms that the users of its result read: int8, float32 or both."""
        rows = {self._int8_columns(user, out) for user in self.users.get(out.id, [])}
        wanted = step.k if step.k in rows and step.heads == 1 else 0
        quantised = self.quantised.setdefault((out.id, wanted), Buffer(prepared_bytes(wanted))) if wanted else None
        read_later = out in (self.graph.hidden, self.graph.kept)
        plain = self._float(out) if rows != {wanted} or not wanted or read_later else None
        self._emit(replace(step, places=(self.floats[x.id], second, quantised, plain, bias)))

    def _int8_columns(self, user: Operation, value: Value) -> int:
        """How long the int8 rows are that the operation reads the value in, or 0 where it reads float32."""
        if not isinstance(user, Linear | ExpertLinear) or user.x.id != value.id:
            return 0
        return 0 if self.is_float[self.types[user.weight.name]] else user.weight.columns

    def _input(self, x: Value, weight: Weight, on_logits: bool) -> Buffer:
        """x in the form that a product with the weight reads, in rows as long as the weight's."""
        if self.is_float[self.types[weight.name]]:
            return self.floats[x.id]
        columns = weight.columns
        found = self.quantised.get((x.id, columns))
        if found is None:
            parts = x.width // columns
            found = self.quantised[x.id, columns] = Buffer(parts * prepared_bytes(columns))
            places = (self.floats[x.id], None, found, None, None)
            self._emit(Step("prepare", places, on_logits, k=columns, heads=parts))
        return found

    def _linear(self, op: Linear, on_logits: bool) -> None:
        type_ = self.types[op.weight.name]
        x = self._input(op.x, op.weight, on_logits)
        if op.heads > 1 and op.weight.rows // op.heads % GROUP:
            raise UnsupportedModelError(
                f"The tensor {op.weight.name!r} has {op.weight.rows // op.heads} rows per head; "
                f"the OpenCL kernels need a multiple of {GROUP}.",
                "Choose the device numpy.",
            )
        out, residual = op.out, None
        users = self.users.get(op.out.id, [])
        if len(users) == 1 and isinstance(users[0], Add):
            add = users[0]
            other = add.b if add.a is op.out else add.a
            if other.id in self.floats and other.id != op.out.id:
                out, residual = add.out, self.floats[other.id]
                self.done.add(add.out.id)
                if on_logits:
                    self.logit_values.add(add.out.id)
        self._emit(
            Step(
                "matmul",
                (op.weight, x, self._float(out), op.bias, residual),
                on_logits,
                type=type_,
                n=op.weight.rows,
                k=op.weight.columns,
                heads=op.heads,
                how=int(self.is_float[type_]),
                out_stride=FORMATS[type_].group_bytes(op.weight.columns),
                scale=op.scale,
            )
        )

    def _cut_products(self) -> None:
        """Gives the products of each phase their chunks: groups that a work-group takes at a time, as few as make the
        start of a chunk worth it."""
        for phase in self.phases:
            if phase[0].kind != "matmul":
                continue
            groups = [-(-step.n // GROUP) for step in phase]
            worth = -(-CHUNK_BYTES // max(step.out_stride for step in phase))
            most = min(max(worth, sum(groups) // (16 * self.workers)), sum(groups) // (2 * self.workers))

            def turns(chunk: int, groups: list[int] = groups) -> int:
                """What falls to a work-group that gets as many chunks as any."""
                return -(-sum(-(-n // chunk) for n in groups) // self.workers) * chunk

            # even numbers, for panels take two groups where there are many rows
            chunk = min(range(most - most % 2, 1, -2), key=turns, default=1)
            phase[:] = [replace(step, chunk=chunk) for step in phase]

    def _attention(self, op: Attention) -> None:
        table = 0
        if op.rope is not None:
            table = next((i for i, rope in enumerate(self.ropes) if rope is op.rope), len(self.ropes))
            if table == len(self.ropes):
                self.ropes.append(op.rope)
        q, k, v = (self.floats[value.id] for value in (op.q, op.k, op.v))
        keys, values = Cache(op.layer, "keys"), Cache(op.layer, "values")
        key_bytes, value_bytes = cache_widths(self.kv_type, op.head_width, op.v_head_width)
        self.cache_bytes[keys] = op.n_kv_heads * key_bytes
        self.cache_bytes[values] = op.n_kv_heads * value_bytes
        queries = Buffer(4 * op.n_heads * padded32(op.head_width)) if self.own_queries else q
        shape = Step(
            "store_kv",
            (q, k, v, keys, values, queries),
            n=op.rope.n_rotated if op.rope else 0,
            heads=op.n_heads,
            kv_heads=op.n_kv_heads,
            head_width=op.head_width,
            value_width=op.v_head_width,
            how=int(op.rope is not None and op.rope.interleaved),
            table=table,
            start=op.rope_start,
            window=op.window,
            whole=not op.causal,
            scale=op.scale,
            cap=op.softcap,
        )
        self._emit(shape)
        out = self._float(op.out)
        heads = heads_per_tile(op)
        places: tuple[Place, ...] = (queries, keys, values, out, "partials", op.sinks)
        self._emit(replace(shape, kind="attend", places=places, chunk=heads, used=heads_together(op)))
        together = max(1, op.n_heads // (2 * self.workers))
        self._emit(replace(shape, kind="combine", places=("partials", out, op.sinks), chunk=together))

    def _join(self, op: Join, on_logits: bool) -> None:
        out, at = self._float(op.out), 0
        steps = []
        for piece in op.pieces:
            steps.append(
                Step(
                    "copy",
                    (self.floats[piece.x.id], out),
                    on_logits,
                    n=piece.x.width // piece.heads,
                    k=piece.width,
                    heads=op.heads,
                    used=piece.heads,
                    start=piece.start,
                    table=at,
                    out_stride=op.out.width // op.heads,
                )
            )
            at += piece.width
        self.phases.append(steps)

    def _route(self, op: Route, on_logits: bool) -> None:
        if op.logits.width > MAX_EXPERTS:
            raise UnsupportedModelError(
                f"This model has {op.logits.width} experts; the OpenCL kernels take up to {MAX_EXPERTS}.",
                "Choose the device numpy.",
            )
        step = Step(
            "route",
            (self.floats[op.logits.id], self._float(op.out), op.bias),
            on_logits,
            how=GATINGS[op.gating],
            experts=op.logits.width,
            used=op.n_used,
            groups=op.groups,
            groups_used=op.groups_used,
            renormalise=op.renormalise,
            scale=op.scale,
        )
        self._emit(step)
        # room for the entries of each row, and for the numbers and beginnings of the experts even in one row
        self.sorted[op.out.id] = Buffer(4 * (op.n_used + 2 + 2 * op.logits.width))
        places = (self.floats[op.out.id], self.sorted[op.out.id])
        self._emit(replace(step, kind="sort", places=places))

    def _expert_linear(self, op: ExpertLinear, on_logits: bool) -> None:
        type_ = self.types[op.weight.name]
        outputs = op.weight.rows // op.n_experts
        if outputs % GROUP:
            raise UnsupportedModelError(
                f"The experts in {op.weight.name!r} have {outputs} rows each; "
                f"the OpenCL kernels need a multiple of {GROUP}.",
                "Choose the device numpy.",
            )
        x = self._input(op.x, op.weight, on_logits)
        self._emit(
            Step(
                "experts",
                (op.weight, x, self._float(op.out), op.bias, None, self.sorted[op.route.id]),
                on_logits,
                type=type_,
                n=outputs,
                k=op.weight.columns,
                chunk=max(1, outputs // GROUP // 4),
                how=int(self.is_float[type_]),
                experts=op.n_experts,
                used=op.n_used,
                shared=op.x.width == op.weight.columns,
            )
        )

    def _short_conv(self, op: ShortConv) -> None:
        cache = Cache(op.layer, "keys")
        self.cache_bytes[cache] = 4 * op.x.width
        self._emit(Step("store_row", (self.floats[op.x.id], cache), k=op.x.width))
        places = (cache, op.weight, self._float(op.out))
        self._emit(Step("convolve", places, n=op.weight.columns, k=op.x.width))

    def _assign_offsets(self, logits: Buffer) -> tuple[int, int]:
        """First fit over lifetimes: a buffer lives from its first phase to its last. Returns bytes per row."""
        born: dict[Buffer, int] = {self.given: 0} if self.given else {}
        dies: dict[Buffer, int] = {}
        for index, phase in enumerate(self.phases):
            for step in phase:
                for place in step.places:
                    if isinstance(place, Buffer):
                        born.setdefault(place, index)
                        dies[place] = index
        for buffer in self.sorted.values():
            # a work-group that fell behind still counts the chunks of phases that others have finished long ago
            dies[buffer] = len(self.phases)
        if self.graph.kept:
            dies[self.floats[self.graph.kept.id]] = len(self.phases)
        placed: list[Buffer] = []
        for buffer in sorted(born, key=lambda b: (born[b], -b.row_bytes)):
            if buffer is logits:
                continue
            size = -(-buffer.row_bytes // 64) * 64
            rivals = sorted(
                (b for b in placed if born[b] <= dies[buffer] and born[buffer] <= dies[b]), key=lambda b: b.offset
            )
            at = 0
            for rival in rivals:
                if at + size <= rival.offset:
                    break
                at = max(at, rival.offset + -(-rival.row_bytes // 64) * 64)
            buffer.offset = at
            placed.append(buffer)
        end = max(b.offset + -(-b.row_bytes // 64) * 64 for b in placed)
        return end, logits.row_bytes


def _lora_down(phase: list[Step]) -> Step | None:
    """What computes the adapters' Ax for the products of a phase, if these are such that adapters act on."""
    first, count = phase[0], len(phase)
    if first.kind == "matmul" and (all(step.heads == 1 for step in phase) or (count, first.scale) == (1, 1.0)):
        return replace(first, kind="lora", places=(first.places[1],), used=count, groups_used=first.heads, scale=1.0)
    if first.kind == "experts":
        places = (first.places[1], first.places[5])
        return replace(first, kind="lora", places=places, used=count, groups_used=first.used)
    return None


def heads_per_tile(op: Attention) -> int:
    """Query heads that one tile of attention takes together: those that share keys, as far as they fit."""
    group = op.n_heads // op.n_kv_heads
    return next(n for n in range(min(group, MAX_QUERIES), 0, -1) if group % n == 0)


def heads_together(op: Attention) -> int:
    """Key/value heads that a tile with one row takes together: as many as fit."""
    heads = heads_per_tile(op)
    if heads * op.n_kv_heads < op.n_heads:  # those that share keys do not fit
        return 1
    return next(n for n in range(min(op.n_kv_heads, MAX_QUERIES // heads), 0, -1) if op.n_kv_heads % n == 0)
