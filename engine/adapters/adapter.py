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
    """

    a: Array
    b: Array
    scale: float

    @property
    def rank(self) -> int:
        return int(self.b.shape[1])


@dataclass(frozen=True, eq=False)
class Adapter:
    """A file understood, not yet matched with a model.

    matrices: name of the tensor that it acts on, as a GGUF model names it without ".weight" ("blk.0.attn_q") ->
        what it adds.
    from_peft: rows of queries and keys are in the order of the transformers library, which GGUF models of some
        architectures permute.
    """

    info: AdapterInfo
    matrices: Mapping[str, LowRank]
    from_peft: bool


def low_rank(path: Path, name: str, a: Array, b: Array, scale: float) -> LowRank:
    """One matrix's share, checked: shapes that fit each other, ranks that can be, numbers that are finite.

    name: for messages. Raises AdapterError.
    """
    for part, values in (("A", a), ("B", b)):
        if values.ndim != 2 or 0 in values.shape:
            raise AdapterError(
                f"{path.name}: the {part} matrix for {name!r} has the shape {list(values.shape)}, "
                "but it has to be a matrix.",
                DAMAGED,
            )
    embedding = name == "token_embd"
    rank_a = a.shape[1 if embedding else 0]
    if rank_a != b.shape[1]:
        raise AdapterError(
            f"{path.name}: the two matrices for {name!r} do not fit together: A is {list(a.shape)} and B is "
            f"{list(b.shape)}, so their ranks are {rank_a} and {b.shape[1]}.",
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


DAMAGED = "The file is damaged or was written wrongly; download it again."
