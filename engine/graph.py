"""The vocabulary in which architectures are written: a model is a straight list of operations over rows.

A row is one token of one sequence (see engine/batch.py). Every value is float32 [rows, width]. An architecture builds
a `Graph` once, when a model is opened; backends run it (numpy) or lower it to kernels (OpenCL). No operation here
knows about either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Weight:
    """A tensor of the model file. Matrices are [rows = outputs, columns = inputs]; vectors have rows 1."""

    name: str
    rows: int
    columns: int


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
    SILU = "silu"


@dataclass(frozen=True)
class Embed:
    out: Value
    table: Weight


@dataclass(frozen=True)
class RmsNorm:
    out: Value
    x: Value
    weight: Weight
    epsilon: float


@dataclass(frozen=True)
class Linear:
    """out = x @ weight.T (+ bias)"""

    out: Value
    x: Value
    weight: Weight
    bias: Weight | None


@dataclass(frozen=True)
class Attention:
    """Rotates q and k, stores k and v in the cache of `layer`, then softmax(q k^T * scale) v, causal, per sequence.

    q: [rows, n_heads * head_width]; k and v: [rows, n_kv_heads * head_width]; out like q. Query head h reads
    key/value head h // (n_heads / n_kv_heads).
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


@dataclass(frozen=True)
class Gate:
    """out = activation(gate) * up"""

    out: Value
    gate: Value
    up: Value
    activation: Activation


@dataclass(frozen=True)
class Add:
    out: Value
    a: Value
    b: Value


@dataclass(frozen=True)
class SelectRows:
    """Keeps the rows whose logits are wanted (Batch.logit_rows)."""

    out: Value
    x: Value


Operation = Embed | RmsNorm | Linear | Attention | Gate | Add | SelectRows


@dataclass
class Graph:
    """A model as a list of operations; the last operation's result are the logits [len(logit_rows), n_vocab]."""

    n_vocab: int
    n_layers: int
    n_kv_heads: int
    head_width: int
    operations: list[Operation] = field(default_factory=list)
    _next: int = 0

    def _value(self, width: int) -> Value:
        self._next += 1
        return Value(self._next - 1, width)

    def embed(self, table: Weight) -> Value:
        out = self._value(table.columns)
        self.operations.append(Embed(out, table))
        return out

    def rms_norm(self, x: Value, weight: Weight, epsilon: float) -> Value:
        out = self._value(x.width)
        self.operations.append(RmsNorm(out, x, weight, epsilon))
        return out

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None) -> Value:
        out = self._value(weight.rows)
        self.operations.append(Linear(out, x, weight, bias))
        return out

    def attention(
        self, q: Value, k: Value, v: Value, *, layer: int, n_heads: int, scale: float, rope: Rope | None
    ) -> Value:
        out = self._value(q.width)
        self.operations.append(Attention(out, q, k, v, layer, n_heads, self.n_kv_heads, self.head_width, scale, rope))
        return out

    def gate(self, gate: Value, up: Value, activation: Activation) -> Value:
        out = self._value(gate.width)
        self.operations.append(Gate(out, gate, up, activation))
        return out

    def add(self, a: Value, b: Value) -> Value:
        out = self._value(a.width)
        self.operations.append(Add(out, a, b))
        return out

    def select_rows(self, x: Value) -> Value:
        out = self._value(x.width)
        self.operations.append(SelectRows(out, x))
        return out

    @property
    def logits(self) -> Value:
        return self.operations[-1].out

    def weights(self) -> list[Weight]:
        """Every tensor the graph reads, in the order of first use, each once."""
        seen: dict[str, Weight] = {}
        for op in self.operations:
            match op:
                case Embed(table=w) | RmsNorm(weight=w):
                    seen.setdefault(w.name, w)
                case Linear(weight=w, bias=b):
                    seen.setdefault(w.name, w)
                    if b is not None:
                        seen.setdefault(b.name, b)
        return list(seen.values())


def rope_frequencies(n_rotated: int, base: float, *, factors: Sequence[float] | None = None) -> NDArray[np.float64]:
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
) -> tuple[NDArray[np.float64], float]:
    """YaRN (arXiv 2309.00071): blends interpolated and original frequencies; returns them and the magnitude.

    Fast dimensions keep their frequency, slow ones are divided by `factor`, with a linear ramp between.
    """
    n = 2 * len(frequencies)

    def dimension(rotations: float) -> float:
        return n * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(dimension(beta_fast)))
    high = min(n - 1.0, math.ceil(dimension(beta_slow)))
    ramp = 1.0 - np.clip((np.arange(n // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    blended = frequencies / factor * (1.0 - ramp) + frequencies * ramp
    return blended, 1.0 + 0.1 * math.log(factor)
