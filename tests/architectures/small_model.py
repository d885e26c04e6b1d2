"""Small random models in memory, for families and variants that the reference data has no tiny model of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from engine.architectures import read_architecture
from engine.gguf import GGUFFile, TensorInfo
from engine.gguf.metadata import TypedKeys
from engine.measure.logits import sequence_batch
from engine.quants import QuantType
from tests.backends.memory_file import load

VOCAB, WIDTH, LAYERS, HEADS, KV_HEADS, HEAD, FF = 40, 32, 3, 4, 2, 8, 48
EPSILON = 1e-5

F64 = NDArray[np.float64]


class SmallModel(TypedKeys):
    """A file with the keys and tensors that nearly every family has; tests add the rest.

    w(name) gives a tensor in float64 for a test's own arithmetic.
    """

    def __init__(self, arch: str, *, norm: str = "rms", seed: int = 0, **keys: Any) -> None:
        self.path = Path("small.gguf")
        self.keys: dict[str, Any] = {"general.architecture": arch}
        self.metadata = self.keys
        self.tensors: dict[str, TensorInfo] = {}
        self._values: dict[str, NDArray[np.float32]] = {}
        self._random = np.random.default_rng(seed)
        self.set(
            context_length=512,
            embedding_length=WIDTH,
            block_count=LAYERS,
            feed_forward_length=FF,
        )
        self.set_path("attention.head_count", HEADS)
        self.set_path("attention.head_count_kv", KV_HEADS)
        self.set_path(f"attention.layer_norm_{'rms_' if norm == 'rms' else ''}epsilon", EPSILON)
        self.set(**keys)
        self.random("token_embd.weight", VOCAB, WIDTH)
        self.random("output.weight", VOCAB, WIDTH)

    @property
    def value_types(self) -> dict[str, str]:  # type: ignore[override]
        return {key: type(value).__name__ for key, value in self.keys.items()}

    def set(self, **values: Any) -> None:
        for name, value in values.items():
            self.set_path(name, value)

    def set_path(self, name: str, value: Any) -> None:
        self.keys[f"{self.keys['general.architecture']}.{name}"] = value

    def add(self, name: str, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, np.float32)
        self._values[name] = data
        self.tensors[name] = TensorInfo(name, data.shape, QuantType.by_name("F32"), 0, data.nbytes)

    def random(self, name: str, *shape: int) -> None:
        """A matrix whose products keep the size of what they are given, or a vector near 1 (norms) or 0 (biases)."""
        values = self._random.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith(".bias"):
            values *= 0.3
        else:
            values /= np.sqrt(shape[-1]) / 1.5
        self.add(name, values)

    def attention(self, *, bias: bool = False, head: int = HEAD) -> None:
        for layer in range(LAYERS):
            for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
                self.random(f"blk.{layer}.attn_{name}.weight", rows * head, WIDTH)
                if bias:
                    self.random(f"blk.{layer}.attn_{name}.bias", rows * head)
            self.random(f"blk.{layer}.attn_output.weight", WIDTH, HEADS * head)

    def feed_forward(self) -> None:
        for layer in range(LAYERS):
            self.random(f"blk.{layer}.ffn_gate.weight", FF, WIDTH)
            self.random(f"blk.{layer}.ffn_up.weight", FF, WIDTH)
            self.random(f"blk.{layer}.ffn_down.weight", WIDTH, FF)

    def norms(self, *names: str, bias: bool = False) -> None:
        """The last norm and these norms of each layer."""
        for name in ["output_norm", *(f"blk.{layer}.{name}" for layer in range(LAYERS) for name in names)]:
            self.random(f"{name}.weight", WIDTH)
            if bias:
                self.random(f"{name}.bias", WIDTH)

    def w(self, name: str) -> F64:
        return self._values[name].astype(np.float64)

    def data(self, name: str) -> NDArray[np.uint8]:
        values = self._values[name]
        return values.reshape(-1, values.shape[-1]).view(np.uint8)

    def read(self, context_length: int | None = None) -> Any:
        return read_architecture(cast("GGUFFile", self), context_length)

    def logits(self, tokens: NDArray[np.int32], context_length: int = 512, rows: int = 0) -> NDArray[np.float32]:
        """What the numpy backend makes of it, `rows` tokens at a time (0: all at once)."""
        model = load("numpy", cast("Any", self), self.read(context_length).graph, n_blocks=32)
        rows = rows or len(tokens)
        out = []
        for start in range(0, len(tokens), rows):
            stop = min(start + rows, len(tokens))
            batch = sequence_batch(tokens, start, stop, np.arange(stop - start, dtype=np.int32))
            out.append(model.forward(batch).copy())
        return np.concatenate(out)


def tokens(count: int = 40, seed: int = 1) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


# Plain arithmetic in float64, one position and one head at a time where that is the plainest.


def rms(x: F64, weight: F64) -> F64:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * weight


def layer_norm(x: F64, weight: F64, bias: F64 | float = 0.0) -> F64:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON) * weight + bias


def silu(x: F64) -> F64:
    return x / (1 + np.exp(-x))


def softmax(x: F64) -> F64:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def rotate(x: F64, frequencies: F64, *, interleaved: bool, magnitude: float = 1.0, start: int = 0) -> F64:
    """x [positions, heads, width] as complex numbers turned by position * frequency."""
    out = x.copy()
    n = len(frequencies)
    for j in range(n):
        a, b = (start + 2 * j, start + 2 * j + 1) if interleaved else (start + j, start + j + n)
        turned = (x[..., a] + 1j * x[..., b]) * np.exp(1j * np.arange(len(x)) * frequencies[j])[:, None] * magnitude
        out[..., a], out[..., b] = turned.real, turned.imag
    return out


def frequencies(n_rotated: int = HEAD, base: float = 10000.0) -> F64:
    return np.array([base ** (-2 * j / n_rotated) for j in range(n_rotated // 2)])


def attend(q: F64, k: F64, v: F64, *, scale: float, window: int | None = None) -> F64:
    """q [positions, heads, width]; k and v of fewer heads. Returns [positions, heads * value width]."""
    group = q.shape[1] // k.shape[1]
    out = np.zeros((len(q), q.shape[1], v.shape[2]))
    for position in range(len(q)):
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(q.shape[1]):
            seen_k = k[first : position + 1, head // group]
            seen_v = v[first : position + 1, head // group]
            out[position, head] = softmax(seen_k @ q[position, head] * scale) @ seen_v
    return out.reshape(len(q), -1)


def heads(x: F64, count: int) -> F64:
    return x.reshape(len(x), count, -1)


def nmse(got: NDArray[Any], expected: F64) -> float:
    return float(((got - expected) ** 2).sum() / ((expected - expected.mean()) ** 2).sum())
