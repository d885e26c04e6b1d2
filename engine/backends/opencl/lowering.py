"""From a graph to the operations of cl_kernels/step.cl: fused, in phases, with a place for every buffer.

What is fused: norm or gate with the quantisation of its result, matrix product with bias and residual, rotary
embedding with writing keys and values. Products that read the same rows (Q, K, V; gate, up) share a phase.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from engine.errors import UnsupportedModelError
from engine.graph import (
    Add,
    Attention,
    Embed,
    Gate,
    Graph,
    Linear,
    Operation,
    RmsNorm,
    Rope,
    SelectRows,
    Value,
    Weight,
)

Kind = Literal["embed", "prepare", "matmul", "store_kv", "attend", "combine", "add"]
PREPARE_COPY, PREPARE_NORM, PREPARE_SILU, GATHER = 0, 1, 2, 8

MAX_QUERIES = 32
"""Query vectors that one tile of attention takes, as in attention.cl."""


@dataclass(eq=False)
class Buffer:
    """Scratch memory, bytes per row; `offset` is given once all phases are known."""

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
    """One operation of step.cl; `places` become its pointers."""

    kind: Kind
    places: tuple[Place, ...]
    logit_rows: bool = False
    type: str = ""
    n: int = 0
    k: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_width: int = 0
    how: int = 0
    table: int = 0
    chunk: int = 1
    epsilon: float = 0.0
    scale: float = 0.0


@dataclass
class Program:
    phases: list[list[Step]]
    ropes: list[Rope]
    logits: Buffer
    scratch_bytes_per_row: int
    logit_bytes_per_row: int
    attentions: list[Attention] = field(default_factory=list)


def prepared_bytes(k: int) -> int:
    """Bytes of an int8 row of activations; see prepare.cl."""
    return -(-(k + k // 32 * 12 + k // 16 * 4) // 64) * 64


def lower(graph: Graph, types: dict[str, str], is_float: dict[str, bool], workers: int) -> Program:
    """Lowers a graph.

    types: tensor name -> quantisation type; is_float: type -> whether its product reads float32 rows.
    workers: how many work-groups run at once; products are cut into about eight chunks for each.
    """
    return _Lowering(graph, types, is_float, workers).run()


class _Lowering:
    def __init__(self, graph: Graph, types: dict[str, str], is_float: dict[str, bool], workers: int) -> None:
        self.graph = graph
        self.types = types
        self.is_float = is_float
        self.workers = workers
        self.users: dict[int, list[Operation]] = {}
        for op in graph.operations:
            for value in _inputs(op):
                self.users.setdefault(value.id, []).append(op)
        self.phases: list[list[Step]] = []
        self.floats: dict[int, Buffer] = {}
        self.quantised: dict[int, Buffer] = {}
        self.logit_values: set[int] = set()
        self.done: set[int] = set()
        self.ropes: list[Rope] = []

    def run(self) -> Program:
        for op in self.graph.operations:
            if op.out.id not in self.done:
                self._lower(op)
        logits = self.floats[self.graph.logits.id]
        scratch, logit_bytes = self._assign_offsets(logits)
        attentions = [op for op in self.graph.operations if isinstance(op, Attention)]
        return Program(self.phases, self.ropes, logits, scratch, logit_bytes, attentions)

    def _lower(self, op: Operation) -> None:
        on_logits = any(v.id in self.logit_values for v in _inputs(op)) or isinstance(op, SelectRows)
        if on_logits:
            self.logit_values.add(op.out.id)
        match op:
            case Embed(out, table):
                self._emit(Step("embed", (table, self._float(out)), type=self.types[table.name], k=table.columns))
            case RmsNorm(out, x, weight, epsilon):
                self._prepare(out, x, weight, PREPARE_NORM, on_logits, epsilon)
            case Gate(out, gate, up):
                self._prepare(out, gate, self.floats[up.id], PREPARE_SILU, on_logits)
            case SelectRows(out, x):
                self._prepare(out, x, None, PREPARE_COPY | GATHER, True)
            case Linear():
                self._linear(op, on_logits)
            case Attention():
                self._attention(op)
            case Add(out, a, b):
                places = (self.floats[a.id], self.floats[b.id], self._float(out))
                self._emit(Step("add", places, on_logits, k=out.width))
            case _:
                raise UnsupportedModelError(
                    f"This model needs the operation {type(op).__name__}, for which Realm has no OpenCL kernel yet.",
                    "Choose the device numpy.",
                )

    def _emit(self, step: Step) -> None:
        last = self.phases[-1] if self.phases else []
        if step.kind == "matmul" and last and last[0].kind == "matmul" and last[0].places[1] is step.places[1]:
            last.append(step)
        else:
            self.phases.append([step])

    def _float(self, value: Value) -> Buffer:
        return self.floats.setdefault(value.id, Buffer(4 * value.width))

    def _prepare(self, out: Value, x: Value, second: Place, how: int, on_logits: bool, epsilon: float = 0.0) -> None:
        forms = {self._form(user) for user in self.users.get(out.id, [])}
        quantised = self.quantised.setdefault(out.id, Buffer(prepared_bytes(out.width))) if "int8" in forms else None
        plain = self._float(out) if forms != {"int8"} else None
        places = (self.floats[x.id], second, quantised, plain)
        self._emit(Step("prepare", places, on_logits, k=out.width, how=how, epsilon=epsilon))

    def _form(self, user: Operation) -> str:
        if isinstance(user, Linear) and not self.is_float[self.types[user.weight.name]]:
            return "int8"
        return "float"

    def _linear(self, op: Linear, on_logits: bool) -> None:
        type_ = self.types[op.weight.name]
        if self.is_float[type_]:
            x = self.floats[op.x.id]
        else:
            if op.x.id not in self.quantised:
                self.quantised[op.x.id] = Buffer(prepared_bytes(op.x.width))
                places = (self.floats[op.x.id], None, self.quantised[op.x.id], None)
                self._emit(Step("prepare", places, on_logits, k=op.x.width, how=PREPARE_COPY))
            x = self.quantised[op.x.id]
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
        groups = -(-op.weight.rows // 16)
        self._emit(
            Step(
                "matmul",
                (op.weight, x, self._float(out), op.bias, residual),
                on_logits,
                type=type_,
                n=op.weight.rows,
                k=op.weight.columns,
                chunk=max(1, groups // (8 * self.workers)),
            )
        )

    def _attention(self, op: Attention) -> None:
        table = 0
        if op.rope is not None:
            table = next((i for i, rope in enumerate(self.ropes) if rope is op.rope), len(self.ropes))
            if table == len(self.ropes):
                self.ropes.append(op.rope)
        q, k, v = (self.floats[value.id] for value in (op.q, op.k, op.v))
        keys, values = Cache(op.layer, "keys"), Cache(op.layer, "values")
        shape = Step(
            "store_kv",
            (q, k, v, keys, values),
            n=op.rope.n_rotated if op.rope else 0,
            heads=op.n_heads,
            kv_heads=op.n_kv_heads,
            head_width=op.head_width,
            how=int(op.rope is not None and op.rope.interleaved),
            table=table,
            scale=op.scale,
        )
        self._emit(shape)
        out = self._float(op.out)
        heads = heads_per_tile(op)
        self._emit(replace(shape, kind="attend", places=(q, keys, values, out, "partials"), chunk=heads))
        self._emit(replace(shape, kind="combine", places=("partials", out)))

    def _assign_offsets(self, logits: Buffer) -> tuple[int, int]:
        """First fit over lifetimes: a buffer lives from its first phase to its last. Returns bytes per row."""
        born: dict[Buffer, int] = {}
        dies: dict[Buffer, int] = {}
        for index, phase in enumerate(self.phases):
            for step in phase:
                for place in step.places:
                    if isinstance(place, Buffer):
                        born.setdefault(place, index)
                        dies[place] = index
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


def heads_per_tile(op: Attention) -> int:
    """Query heads that one tile of attention takes together: those that share keys, as far as they fit."""
    group = op.n_heads // op.n_kv_heads
    return next(n for n in range(min(group, MAX_QUERIES), 0, -1) if group % n == 0)


def _inputs(op: Operation) -> list[Value]:
    match op:
        case RmsNorm(x=x) | Linear(x=x) | SelectRows(x=x):
            return [x]
        case Attention(q=q, k=k, v=v):
            return [q, k, v]
        case Gate(gate=a, up=b) | Add(a=a, b=b):
            return [a, b]
    return []
