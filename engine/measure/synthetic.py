"""A model file that exists in memory only, with made-up weights: what backends need of a GGUFFile to be timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.gguf import TensorInfo
from engine.graph import Activation, Graph, Rope, Weight, rope_frequencies
from engine.quants import QuantType


class SyntheticFile:
    """Holds the bytes of each type and shape once, however many weights have them.

    Weights are random bits of which every scale, in whatever format, is a number.
    """

    path = Path("made-up weights")

    def __init__(self) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self._data: dict[tuple[str, int, int], NDArray[np.uint8]] = {}

    def add(self, type_name: str, rows: int, columns: int) -> Weight:
        """A new matrix, or a vector where rows is 1. Raises ValueError where columns are no whole number of blocks."""
        quant = QuantType.by_name(type_name)
        key = quant.name, rows, columns
        if key not in self._data:
            # below 0x3c in each byte: a half, a bfloat16 or a float made of such is below 1
            bits = np.random.default_rng(1).integers(0, 0x3C, (rows, quant.row_bytes(columns)), np.uint8)
            self._data[key] = bits
        name = f"{len(self.tensors)}"
        shape = (rows, columns) if rows > 1 else (columns,)
        self.tensors[name] = TensorInfo(name, shape, quant, 0, self._data[key].nbytes)
        return Weight(name, rows, columns)

    def data(self, name: str) -> NDArray[np.uint8]:
        info = self.tensors[name]
        return self._data[info.type.name, *_rows_and_columns(info.shape)]


def _rows_and_columns(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1])


def llama_8b() -> tuple[SyntheticFile, Graph]:
    """A model of Llama 3 8B's shape with made-up weights, in the types of a Q4_K_M file: half of the layers have
    values and down projections in Q6_K."""
    file, width, kv_width, feed_forward, layers, n_vocab = SyntheticFile(), 4096, 1024, 14336, 32, 128256
    graph = Graph(n_vocab=n_vocab, n_layers=layers, n_kv_heads=8, head_width=128)
    rope = Rope(rope_frequencies(128, 500000.0), interleaved=True)
    norm = file.add("F32", 1, width)
    h = graph.embed(file.add("Q4_K", n_vocab, width))
    for layer in range(layers):
        more = "Q6_K" if layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2 else "Q4_K"
        n = graph.rms_norm(h, norm, 1e-5)
        q, k, v = (
            graph.linear(n, file.add(name, rows, width))
            for name, rows in (("Q4_K", width), ("Q4_K", kv_width), (more, kv_width))
        )
        a = graph.attention(q, k, v, layer=layer, n_heads=32, scale=128**-0.5, rope=rope)
        h = graph.add(h, graph.linear(a, file.add("Q4_K", width, width)))
        if layer == layers - 1:
            h = graph.select_rows(h)
        n = graph.rms_norm(h, norm, 1e-5)
        gate, up = (graph.linear(n, file.add("Q4_K", feed_forward, width)) for _ in range(2))
        m = graph.gate(gate, up, Activation.SILU)
        h = graph.add(h, graph.linear(m, file.add(more, width, feed_forward)))
    graph.linear(graph.rms_norm(h, norm, 1e-5), file.add("Q6_K", n_vocab, width))
    return file, graph
