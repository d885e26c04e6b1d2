"""An adapter as numbers, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.api import AdapterInfo
from engine.errors import AdapterError

Array = NDArray[np.float32]

MAX_RANK = 2048
"""Larger ranks than any adapter has: a file that claims one is damaged."""

MAX_ALPHA = 1e9


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to one matrix: y += strength * scale * b @ (a @ x) (LoRA, arXiv 2106.09685).

    a: float32 [rank, columns]. b: float32 [rows, rank]. scale: alpha / rank, or alpha / sqrt(rank) for rslora
    (arXiv 2312.03732).
    For an embedding table a is [n_vocab, rank], a row for each token, and y += strength * scale * b @ a[token].
    For a stack of experts a is [experts, rank, columns] and b [experts, rows, rank]: a row that goes to expert e gets
    what a[e] and b[e] add.
    """

    a: Array
    b: Array
    scale: float

    @property
    def rank(self) -> int:
        return int(self.b.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what it is added to, where that is no embedding table: [rows, columns], or [experts, rows, columns]."""
        return (*self.b.shape[:-1], self.a.shape[-1])


@dataclass(frozen=True, eq=False)
class Adapter:
    """A file understood, not yet matched with a model.

    matrices: name of the tensor that it acts on, as a GGUF model names it without ".weight" ("blk.0.attn_q") ->
        what it adds.
    from_peft: rows of queries and keys are in the order of the transformers library, which GGUF models of some
        architectures permute.
    parameters: those of the matrices that act on one parameter of all experts (parameters.py), which may be written the
        other way round, and are where only is_swapped can tell.
    """

    info: AdapterInfo
    matrices: Mapping[str, LowRank]
    from_peft: bool
    parameters: frozenset[str] = frozenset()
    is_swapped: bool = False


def low_rank(path: Path, name: str, a: Array, b: Array, scale: float) -> LowRank:
    """One matrix's share, checked: shapes that fit each other, ranks that can be, numbers that are finite.

    name: for messages. Raises AdapterError.
    """
    for part, values in (("A", a), ("B", b)):
        if values.ndim not in (2, 3) or 0 in values.shape:
            raise AdapterError(
                f"{path.name}: the {part} matrix for {name!r} has the shape {list(values.shape)}, "
                "but it has to be a matrix, or one for each expert.",
                DAMAGED,
            )
    if a.shape[:-2] != b.shape[:-2]:
        raise AdapterError(
            f"{path.name}: A and B for {name!r} are not for as many experts: their shapes are {list(a.shape)} and "
            f"{list(b.shape)}.",
            DAMAGED,
        )
    embedding = name == "token_embd" and a.ndim == 2
    rank_a = a.shape[-1 if embedding else -2]
    if rank_a != b.shape[-1]:
        raise AdapterError(
            f"{path.name}: the two matrices for {name!r} do not fit together: A is {list(a.shape)} and B is "
            f"{list(b.shape)}, so their ranks are {rank_a} and {b.shape[-1]}.",
            DAMAGED,
        )
    if rank_a > MAX_RANK:
        raise AdapterError(f"{path.name}: {name!r} has the rank {rank_a}; ranks go up to {MAX_RANK}.", DAMAGED)
    for part, values in (("A", a), ("B", b)):
        if not np.isfinite(values).all():
            wrong = values[~np.isfinite(values)][0]
            raise AdapterError(
                f"{path.name}: the {part} matrix for {name!r} holds {wrong}, which is not a number to compute with.",
                DAMAGED,
            )
    return LowRank(np.ascontiguousarray(a), np.ascontiguousarray(b), scale)


def stacked(path: Path, name: str, experts: Mapping[int, LowRank]) -> LowRank:
    """One for a stack of experts, of those that act on some of them, by their numbers; the others stay as they are.

    Raises AdapterError where they are of different sizes.
    """
    some = next(iter(experts.values()))
    shapes = {low.shape for low in experts.values()}
    if len(shapes) > 1:
        one, other = sorted(shapes)[:2]
        raise AdapterError(
            f"{path.name}: the experts of {name!r} differ in size: {list(one)} and {list(other)}.", DAMAGED
        )
    count, rank = 1 + max(experts), max(low.rank for low in experts.values())
    rows, columns = some.shape
    a, b = np.zeros((count, rank, columns), np.float32), np.zeros((count, rows, rank), np.float32)
    for number, low in experts.items():
        a[number, : low.rank] = low.a
        b[number, :, : low.rank] = low.b * np.float32(low.scale / some.scale)
    return LowRank(a, b, some.scale)


DAMAGED = "The file is damaged or was written wrongly; download it again."

MERGE = "Merge it into its model (merge_and_unload of PEFT), convert the result to GGUF and load that as a model."
"""What to do with an adapter that is more than plain LoRA."""
