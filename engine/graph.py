"""The vocabulary in which architectures are written: a model is a straight list of operations over rows.

A row is one token of one sequence (see engine/batch.py). Every value is float32 [rows, width]. An architecture builds
a `Graph` once, when a model is opened; backends run it (numpy) or lower it to kernels (OpenCL). No operation here
knows about either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Weight:
    """A tensor of the model file, or some adjacent rows of one.

    Matrices are [rows = outputs, columns = inputs]; a stack of matrices (experts, heads) has the rows of all of them,
    one matrix after the other. Vectors, whatever the shape in the file, have rows 1.

    first: the tensor's row at which this weight begins (a vector's element). Two weights with the same name are
        different parts of one tensor (fused Q, K and V), or the same.
    """

    name: str
    rows: int
    columns: int
    first: int = 0


@dataclass(frozen=True)
class Value:
    """The result of an operation: float32 [rows of the batch, width]."""

    id: int
    width: int


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary position embedding, with every scaling scheme already folded into its frequencies.

    frequencies: float64 [n_rotated / 2], radians per position. magnitude scales cosine and sine (YaRN).
    interleaved: pairs are (0,1), (2,3) ... (ggml's NORM); otherwise (i, i + n_rotated / 2) (NEOX).
    """

    frequencies: NDArray[np.float64]
    interleaved: bool
    magnitude: float = 1.0

    @property
    def n_rotated(self) -> int:
        return 2 * len(self.frequencies)

    def table(self, positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """cos and sin for positions [rows]: float32 [rows, 2, n_rotated / 2]."""
        angles = positions[:, None].astype(np.float64) * self.frequencies[None, :]
        out = np.empty((len(positions), 2, len(self.frequencies)), np.float32)
        np.multiply(np.cos(angles), self.magnitude, out=out[:, 0], casting="unsafe")
        np.multiply(np.sin(angles), self.magnitude, out=out[:, 1], casting="unsafe")
        return out


class Activation(Enum):
    """What Gate and Activate apply.

    GELU is the approximation by tanh. CLAMPED_SWIGLU is gpt-oss's gate, with g limited to at most 7 and u to -7 .. 7:
    g * sigmoid(1.702 g) * (u + 1).
    """

    SILU = "silu"
    GELU = "gelu"
    SIGMOID = "sigmoid"
    IDENTITY = "identity"
    CLAMPED_SWIGLU = "clamped_swiglu"


class Gating(Enum):
    """How a router's logits become the weights of the experts it chooses.

    SOFTMAX and SIGMOID: over all experts, the largest are chosen. CHOSEN_SOFTMAX: the largest logits are chosen, the
    softmax is over these alone.
    """

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    CHOSEN_SOFTMAX = "chosen_softmax"


class Index(Enum):
    """What chooses the rows of a table."""

    TOKENS = "tokens"
    POSITIONS = "positions"
    FIRST = "first"  # every row of the batch takes the table's first one


@dataclass(frozen=True)
class Embed:
    """out = the rows of table that the batch's tokens (or their positions) choose, * scale"""

    out: Value
    table: Weight
    scale: float = 1.0
    index: Index = Index.TOKENS


@dataclass(frozen=True)
class Input:
    """out = rows that are given to the step: what another model, or part of one, made of the batch."""

    out: Value


@dataclass(frozen=True)
class RmsNorm:
    """out = x / sqrt(mean(x^2) + epsilon) * weight, over each of `heads` equal parts of a row by itself.

    weight: a vector as wide as one part, used for all of them, or as wide as the row.
    """

    out: Value
    x: Value
    weight: Weight
    epsilon: float
    heads: int = 1


@dataclass(frozen=True)
class LayerNorm:
    """out = (x - mean(x)) / sqrt(var(x) + epsilon) * weight (+ bias), over each of `heads` parts as in RmsNorm."""

    out: Value
    x: Value
    weight: Weight
    epsilon: float
    bias: Weight | None
    heads: int = 1


@dataclass(frozen=True)
class Linear:
    """out = (x @ weight.T (+ bias)) * scale

    heads: above 1 every head has a matrix of its own: x is [rows, heads * weight.columns], weight is a stack of
        `heads` matrices, and part h of out is part h of x times matrix h.
    """

    out: Value
    x: Value
    weight: Weight
    bias: Weight | None
    scale: float = 1.0
    heads: int = 1


@dataclass(frozen=True)
class Attention:
    """Rotates q and k, stores k and v in the cache of `layer`, then softmax(q k^T * scale) v, per sequence.

    q: [rows, n_heads * head_width]; k: [rows, n_kv_heads * head_width]; v: [rows, n_kv_heads * value_width];
    out: [rows, n_heads * value_width]. Query head h reads key/value head h // (n_heads / n_kv_heads).

    value_width: 0 means head_width.
    rope_start: the first column of a head that is rotated; rope.n_rotated columns from there on are.
    window: 0 for all positions; else position p reads p - window + 1 .. p only.
    softcap: above 0, scores s (after scale) become softcap * tanh(s / softcap), before masking.
    sinks: a vector [n_heads] of scores, one more term in the denominator of each head's softmax.
    causal: position p reads positions 0 .. p; else every position of its sequence up to the last one in the batch.
    """

    out: Value
    q: Value
    k: Value
    v: Value
    layer: int
    n_heads: int
    n_kv_heads: int
    head_width: int
    scale: float
    rope: Rope | None
    value_width: int = 0
    rope_start: int = 0
    window: int = 0
    softcap: float = 0.0
    sinks: Weight | None = None
    causal: bool = True

    @property
    def v_head_width(self) -> int:
        return self.value_width or self.head_width


@dataclass(frozen=True)
class ShortConv:
    """A causal convolution over the last weight.columns positions of a sequence, each column by itself.

    out[p] = sum over j of weight[:, j] * x[p - (taps - 1) + j], taps = weight.columns; x before position 0 is 0.
    weight: [x.width, taps]. x is stored, per position, in the cache of `layer` where attention has its keys; so what
    earlier steps, or another sequence with the same start, have computed is found through the block table.
    """

    out: Value
    x: Value
    weight: Weight
    layer: int


@dataclass(frozen=True)
class Gate:
    """out = activation(gate) * up (CLAMPED_SWIGLU: as said there). A gate of width 1 serves every column of up."""

    out: Value
    gate: Value
    up: Value
    activation: Activation


@dataclass(frozen=True)
class Activate:
    """out = activation(x)"""

    out: Value
    x: Value
    activation: Activation


@dataclass(frozen=True)
class SoftCap:
    """out = cap * tanh(x / cap)"""

    out: Value
    x: Value
    cap: float


@dataclass(frozen=True)
class Add:
    out: Value
    a: Value
    b: Value


@dataclass(frozen=True)
class Piece:
    """Columns start .. start + width - 1 of each of `heads` equal parts of x."""

    x: Value
    heads: int
    start: int
    width: int


@dataclass(frozen=True)
class Join:
    """Copies columns: part h of out is the pieces' part h, one piece after the other, for h = 0 .. heads - 1.

    A piece with 1 part gives that same part for every h. One piece alone is a slice.
    """

    out: Value
    pieces: tuple[Piece, ...]
    heads: int


@dataclass(frozen=True)
class Route:
    """Chooses n_used experts per row from a router's logits [rows, n_experts].

    out: [rows, 2 * n_used]: the numbers of the experts (whole numbers as float32), best first, ties to the lower
    number, then their weights. bias, a vector [n_experts], is added for choosing only, not to the weights.
    groups: above 1, the experts are so many equal groups; only those of the groups_used groups with the largest sum
        of their two best (biased) values are candidates.
    renormalise: weights are divided by their sum. Then they are multiplied by scale.
    """

    out: Value
    logits: Value
    n_used: int
    gating: Gating
    bias: Weight | None
    renormalise: bool
    scale: float
    groups: int = 1
    groups_used: int = 1


@dataclass(frozen=True)
class ExpertLinear:
    """For each row and each of its chosen experts e: x @ weight[e].T (+ bias[e]).

    weight: a stack of n_experts matrices; bias: [n_experts, outputs] as a vector of all.
    x: [rows, columns], the same for all chosen experts, or [rows, n_used * columns], a part for each.
    out: [rows, n_used * outputs], in the order of the route.
    """

    out: Value
    x: Value
    route: Value
    weight: Weight
    bias: Weight | None
    n_experts: int

    @property
    def n_used(self) -> int:
        return self.route.width // 2


@dataclass(frozen=True)
class ExpertSum:
    """out = the sum of x's n_used parts [rows, width], each times its weight of the route."""

    out: Value
    x: Value
    route: Value


@dataclass(frozen=True)
class SelectRows:
    """Keeps the rows whose logits are wanted (Batch.logit_rows)."""

    out: Value
    x: Value


Operation = (
    Embed
    | Input
    | RmsNorm
    | LayerNorm
    | Linear
    | Attention
    | ShortConv
    | Gate
    | Activate
    | SoftCap
    | Add
    | Join
    | Route
    | ExpertLinear
    | ExpertSum
    | SelectRows
)


def inputs(op: Operation) -> list[Value]:
    """The values that an operation reads."""
    match op:
        case Attention(q=q, k=k, v=v):
            return [q, k, v]
        case Gate(gate=a, up=b) | Add(a=a, b=b):
            return [a, b]
        case ExpertLinear(x=x, route=route) | ExpertSum(x=x, route=route):
            return [x, route]
        case Route(logits=x):
            return [x]
        case Join(pieces=pieces):
            return [piece.x for piece in pieces]
        case Embed() | Input():
            return []
    return [op.x]


def weights_of(op: Operation) -> list[Weight]:
    """The tensors that an operation reads."""
    found: list[Weight | None] = []
    match op:
        case Embed(table=w) | RmsNorm(weight=w) | ShortConv(weight=w):
            found = [w]
        case LayerNorm(weight=w, bias=b) | Linear(weight=w, bias=b) | ExpertLinear(weight=w, bias=b):
            found = [w, b]
        case Attention(sinks=w) | Route(bias=w):
            found = [w]
    return [w for w in found if w is not None]


@dataclass
class Graph:
    """A model as a list of operations; the last operation's result are the logits [len(logit_rows), n_vocab].

    n_layers: layers that keep something of each position, in a cache each.
    n_kv_heads and head_width: of the widest layer; cache_widths says what each layer keeps.
    causal: of an encoder False: its positions read later ones too, so a text goes through in one batch, nothing is
        kept for the next, and the last operation's result is `hidden`.
    hidden: what an embedding is made of, [len(logit_rows), width]: after the last norm, before the output matrix.
    kept: a value of every row that a LoadedModel holds ready after a step (KeepsRows in engine/batch.py).
    """

    n_vocab: int
    n_layers: int
    n_kv_heads: int
    head_width: int
    causal: bool = True
    hidden: Value | None = None
    kept: Value | None = None
    operations: list[Operation] = field(default_factory=list)
    _next: int = 0

    def _value(self, width: int) -> Value:
        self._next += 1
        return Value(self._next - 1, width)

    def embed(self, table: Weight, *, scale: float = 1.0, index: Index = Index.TOKENS) -> Value:
        out = self._value(table.columns)
        self.operations.append(Embed(out, table, scale, index))
        return out

    def input(self, width: int) -> Value:
        out = self._value(width)
        self.operations.append(Input(out))
        return out

    def rms_norm(self, x: Value, weight: Weight, epsilon: float, *, heads: int = 1) -> Value:
        out = self._value(x.width)
        self.operations.append(RmsNorm(out, x, weight, epsilon, heads))
        return out

    def layer_norm(self, x: Value, weight: Weight, epsilon: float, bias: Weight | None, *, heads: int = 1) -> Value:
        out = self._value(x.width)
        self.operations.append(LayerNorm(out, x, weight, epsilon, bias, heads))
        return out

    def linear(
        self, x: Value, weight: Weight, bias: Weight | None = None, *, scale: float = 1.0, heads: int = 1
    ) -> Value:
        out = self._value(weight.rows)
        self.operations.append(Linear(out, x, weight, bias, scale, heads))
        return out

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        layer: int,
        n_heads: int,
        scale: float,
        rope: Rope | None,
        n_kv_heads: int = 0,
        rope_start: int = 0,
        window: int = 0,
        softcap: float = 0.0,
        sinks: Weight | None = None,
    ) -> Value:
        """n_kv_heads: of this layer, if not the graph's."""
        n_kv_heads = n_kv_heads or self.n_kv_heads
        head_width, value_width = q.width // n_heads, v.width // n_kv_heads
        out = self._value(n_heads * value_width)
        special = 0 if value_width == head_width else value_width
        self.operations.append(
            Attention(
                out,
                q,
                k,
                v,
                layer,
                n_heads,
                n_kv_heads,
                head_width,
                scale,
                rope,
                special,
                rope_start,
                window,
                softcap,
                sinks,
                self.causal,
            )
        )
        return out

    def short_conv(self, x: Value, weight: Weight, *, layer: int) -> Value:
        out = self._value(x.width)
        self.operations.append(ShortConv(out, x, weight, layer))
        return out

    def gate(self, gate: Value, up: Value, activation: Activation) -> Value:
        out = self._value(up.width)
        self.operations.append(Gate(out, gate, up, activation))
        return out

    def activate(self, x: Value, activation: Activation) -> Value:
        out = self._value(x.width)
        self.operations.append(Activate(out, x, activation))
        return out

    def soft_cap(self, x: Value, cap: float) -> Value:
        out = self._value(x.width)
        self.operations.append(SoftCap(out, x, cap))
        return out

    def add(self, a: Value, b: Value) -> Value:
        out = self._value(a.width)
        self.operations.append(Add(out, a, b))
        return out

    def join(self, *pieces: Piece, heads: int) -> Value:
        out = self._value(heads * sum(piece.width for piece in pieces))
        self.operations.append(Join(out, pieces, heads))
        return out

    def slice(self, x: Value, start: int, width: int, *, heads: int = 1) -> Value:
        """Columns start .. start + width - 1 of each of `heads` parts of x."""
        return self.join(Piece(x, heads, start, width), heads=heads)

    def route(
        self,
        logits: Value,
        *,
        n_used: int,
        gating: Gating,
        bias: Weight | None = None,
        renormalise: bool = False,
        scale: float = 1.0,
        groups: int = 1,
        groups_used: int = 1,
    ) -> Value:
        out = self._value(2 * n_used)
        self.operations.append(Route(out, logits, n_used, gating, bias, renormalise, scale, groups, groups_used))
        return out

    def expert_linear(self, x: Value, route: Value, weight: Weight, bias: Weight | None, n_experts: int) -> Value:
        out = self._value(route.width // 2 * (weight.rows // n_experts))
        self.operations.append(ExpertLinear(out, x, route, weight, bias, n_experts))
        return out

    def expert_sum(self, x: Value, route: Value) -> Value:
        out = self._value(x.width // (route.width // 2))
        self.operations.append(ExpertSum(out, x, route))
        return out

    def select_rows(self, x: Value) -> Value:
        out = self._value(x.width)
        self.operations.append(SelectRows(out, x))
        return out

    @property
    def logits(self) -> Value:
        return self.operations[-1].out

    @property
    def ends_hidden(self) -> bool:
        """Whether there are no logits behind `hidden`."""
        return self.hidden == self.logits

    def weights(self) -> list[Weight]:
        """Every weight the graph reads, in the order of first use, each once."""
        return list(dict.fromkeys(weight for op in self.operations for weight in weights_of(op)))

    def cache_widths(self) -> list[tuple[int, int]]:
        """What each layer keeps of a position: numbers of keys and of values (a convolution's inputs count as keys)."""
        widths = [(0, 0)] * self.n_layers
        for op in self.operations:
            if isinstance(op, Attention):
                widths[op.layer] = (op.n_kv_heads * op.head_width, op.n_kv_heads * op.v_head_width)
            elif isinstance(op, ShortConv):
                widths[op.layer] = (op.x.width, 0)
        return widths


def layer_starts(graph: Graph) -> list[int]:
    """Where the layers begin, from the second one on: an operation before which one value is all that is needed."""
    last_use = {value.id: i for i, op in enumerate(graph.operations) for value in inputs(op)}
    alive: set[int] = set()
    single: list[int] = []
    caches = [i for i, op in enumerate(graph.operations) if isinstance(op, Attention | ShortConv)]
    for i, op in enumerate(graph.operations):
        if len(alive) == 1:
            single.append(i)
        alive = {value for value in (*alive, op.out.id) if last_use.get(value, -1) > i}
    found = [max((i for i in single if a < i <= b), default=0) for a, b in pairwise(caches)]
    return found if all(found) else []


def split(graph: Graph, n_layers: int) -> tuple[Graph, Graph]:
    """The first n_layers layers, whose last operation gives every row, and the rest, which begins with these rows.

    Raises ValueError where the graph cannot be cut there.
    """
    starts = layer_starts(graph)
    if not 1 <= n_layers <= len(starts):
        raise ValueError(f"the graph can be cut after 1 to {len(starts)} layers")
    at = starts[n_layers - 1]
    between = {value.id: value for op in graph.operations[at:] for value in inputs(op)}
    made = {op.out.id for op in graph.operations[:at]}
    (rows,) = (value for value in between.values() if value.id in made)
    first = replace(graph, operations=graph.operations[:at], hidden=rows, kept=None)
    second = replace(graph, operations=[Input(rows), *graph.operations[at:]])
    return first, second


def rope_frequencies(
    n_rotated: int, base: float, *, factors: Sequence[float] | NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """base^(-2i/n) for i = 0 .. n/2-1, each divided by its factor (llama 3's `rope_freqs` tensor)."""
    i = np.arange(n_rotated // 2, dtype=np.float64)
    frequencies = base ** (-2.0 * i / n_rotated)
    return frequencies if factors is None else frequencies / np.asarray(factors, np.float64)


def yarn(
    frequencies: NDArray[np.float64],
    *,
    base: float,
    factor: float,
    original_context: int,
    beta_fast: float,
    beta_slow: float,
) -> NDArray[np.float64]:
    """YaRN (arXiv 2309.00071): blends interpolated and original frequencies.

    Fast dimensions keep their frequency, slow ones are divided by `factor`, with a linear ramp between.
    """
    n = 2 * len(frequencies)

    def dimension(rotations: float) -> float:
        return n * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(dimension(beta_fast)))
    high = min(n - 1.0, math.ceil(dimension(beta_slow)))
    ramp = 1.0 - np.clip((np.arange(n // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    blended: NDArray[np.float64] = frequencies / factor * (1.0 - ramp) + frequencies * ramp
    return blended
