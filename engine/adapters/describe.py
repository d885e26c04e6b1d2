"""What to say of an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from engine.adapters.adapter import LowRank
from engine.api import AdapterInfo


def describe(
    path: Path,
    matrices: Mapping[str, LowRank],
    *,
    name: str,
    kind: str,
    architecture: str,
    base_model: str,
    alpha: float,
    size_bytes: int,
    notes: tuple[str, ...] = (),
) -> AdapterInfo:
    """matrices: at least one."""
    ranks = [matrix.rank for matrix in matrices.values()]
    largest = max(matrices.values(), key=lambda matrix: matrix.rank)
    targets = dict.fromkeys(re.sub(r"^blk\.\d+\.", "", target) for target in matrices)
    if len(set(ranks)) > 1:
        notes = (*notes, f"Its matrices have ranks from {min(ranks)} to {max(ranks)}.")
    return AdapterInfo(
        path=path,
        name=name,
        kind=kind,
        architecture=architecture,
        base_model=base_model,
        rank=max(ranks),
        alpha=alpha,
        scale=largest.scale,
        targets=tuple(targets),
        n_matrices=len(matrices),
        size_bytes=size_bytes,
        notes=notes,
    )
