"""However many rows a step has, each comes to the same bits: whichever tiles or panels it went through."""

from __future__ import annotations

import numpy as np

from engine.graph import Graph, Piece
from engine.quants import dequantize
from engine.quants.types import QuantType
from tests.backends.memory_file import MemoryFile, load, one_sequence

TYPES = ["F32", "BF16", "Q4_0", "Q4_1", "Q2_K", "Q6_K", "Q8_0", "IQ4_XS"]
"""One or two of each way to scale."""

COLUMNS = 768
"""More than a panel holds, and no multiple of it."""

WIDTH = 144
"""Nine groups of rows: a panel of one group comes after those of two."""


def test_a_row_is_the_same_alone_and_among_others() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(0, 1, (150, COLUMNS)).astype(np.float32)
    file, pieces, expected = MemoryFile(), [], []
    graph = Graph(n_vocab=WIDTH * len(TYPES), n_layers=0, n_kv_heads=1, head_width=16)
    inputs = graph.embed(file.add("x", "F32", x, COLUMNS))
    for name in TYPES:
        quant = QuantType.by_name(name)
        raw = rng.integers(0, 256, (WIDTH, quant.row_bytes(COLUMNS)), np.uint8) & np.uint8(
            0x3B
        )  # no scale is not a number
        weight = file.add(name, name, raw, COLUMNS)
        pieces.append(Piece(graph.linear(inputs, weight), 1, 0, WIDTH))
        expected.append(dequantize(quant, raw).reshape(WIDTH, COLUMNS).astype(np.float64))
    graph.select_rows(graph.join(*pieces, heads=1))
    model = load("opencl", file, graph, n_blocks=8)
    alone = np.concatenate([model.forward(one_sequence([row])).copy() for row in range(len(x))])
    for i, name in enumerate(TYPES):
        part = slice(WIDTH * i, WIDTH * (i + 1))
        sizes = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(expected[i], axis=1))
        assert (np.abs(alone[:, part] - x @ expected[i].T) <= 6e-5 * sizes).all(), name
    for count in (2, 3, 4, 5, 7, 9, 12, 16, 17, 33, 66, 150):
        wanted = np.arange(count)[-64:]
        got = model.forward(one_sequence(np.arange(count), logit_rows=wanted))
        np.testing.assert_array_equal(got, alone[wanted], str(count))
    model.close()


def test_more_groups_than_have_their_sums_side_by_side() -> None:
    """A chunk of 18 groups, and at the end one of 17, for more rows than a panel serves."""
    rng = np.random.default_rng(9)
    width, rows = 71 * 16, 135
    x = rng.normal(0, 1, (rows, COLUMNS)).astype(np.float32)
    file, products = MemoryFile(), []
    graph = Graph(n_vocab=2 * width, n_layers=0, n_kv_heads=1, head_width=16)
    inputs = graph.embed(file.add("x", "F32", x, COLUMNS))
    for name in ("Q4_0", "Q5_1"):
        raw = rng.integers(0, 256, (width, QuantType.by_name(name).row_bytes(COLUMNS)), np.uint8) & np.uint8(0x3B)
        products.append(Piece(graph.linear(inputs, file.add(name, name, raw, COLUMNS)), 1, 0, width))
    graph.select_rows(graph.join(*products, heads=1))
    model = load("opencl", file, graph, n_blocks=8)
    wanted = np.array([0, 1, 66, 67, 68, 133, 134])
    alone = np.concatenate([model.forward(one_sequence([row])).copy() for row in wanted])
    got = model.forward(one_sequence(np.arange(rows), logit_rows=wanted))
    np.testing.assert_array_equal(got, alone)
    model.close()
