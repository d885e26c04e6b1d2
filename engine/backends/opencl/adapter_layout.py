"""Where the matrices of an adapter lie in a device's memory: in the order in which a step reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from engine.adapters import BoundAdapter, LowRank
from engine.backends.opencl.formats import GROUP
from engine.backends.opencl.lowering import Site
from engine.errors import AdapterError

LINE = 64
"""Bytes; each matrix begins at a multiple."""

UNIT_ROWS = 8
"""Most rows of a unit: LORA_ROWS."""


class Kind(IntEnum):
    """A: float32 [rank, columns]. B: float32 [rows, rank]. TABLE: float32 [n_vocab, rank], the A of an embedding.

    A and B of a stack of experts have a dimension more, in front.
    """

    A = 0
    B = 1
    TABLE = 2


@dataclass(frozen=True)
class Piece:
    """A matrix as it was read, and the byte at which it begins on the device."""

    kind: Kind
    values: NDArray[np.float32]
    at: int


@dataclass(frozen=True)
class Layout:
    """pieces: all there is, each once. a, b: for each site where its matrices begin, -1 where it has none.

    lows: what acts on each site. ranks: of each site, padded to whole groups of GROUP.
    """

    pieces: list[Piece]
    n_bytes: int
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    lows: list[LowRank | None]
    ranks: NDArray[np.int32]


def groups_of(n: int, size: int = GROUP) -> int:
    return -(-n // size)


def lay_out(
    adapter: BoundAdapter, sites: Sequence[Site], bytes_of: Callable[[Kind, NDArray[np.float32]], int]
) -> Layout:
    """bytes_of: what a matrix takes on the device. Raises AdapterError where the adapter acts on no site."""
    places = {site.weight for site in sites if not site.is_table}
    tables = {site.weight for site in sites if site.is_table}
    for weight in [*(set(adapter.linear) - places), *(set(adapter.embedding) - tables)]:
        raise AdapterError(
            f"{adapter.info.path.name} acts on {weight.name!r}, to which the OpenCL kernels apply no adapters.",
            "Choose the device numpy.",
        )
    n = len(sites)
    a, b = np.full(n, -1, np.int64), np.full(n, -1, np.int64)
    ranks = np.zeros(n, np.int32)
    lows = [(adapter.embedding if site.is_table else adapter.linear).get(site.weight) for site in sites]
    pieces: dict[int, Piece] = {}  # a table's rows may serve several sites
    end = 0

    def place(kind: Kind, values: NDArray[np.float32]) -> int:
        nonlocal end
        if id(values) not in pieces:
            pieces[id(values)] = Piece(kind, values, end)
            end += groups_of(bytes_of(kind, values), LINE) * LINE
        return pieces[id(values)].at

    # what a phase's products need first, then what they need at their end
    for _, phase in groupby(range(n), lambda i: sites[i].phase):
        found = [(i, low) for i in phase if (low := lows[i]) is not None]
        for i, low in found:
            a[i] = place(Kind.TABLE if sites[i].is_table else Kind.A, low.a)
        for i, low in found:
            b[i] = place(Kind.B, low.b)
            ranks[i] = groups_of(low.rank) * GROUP
    return Layout(list(pieces.values()), max(end, LINE), a, b, lows, ranks)
