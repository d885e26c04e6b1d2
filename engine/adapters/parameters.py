"""Experts whose matrices are one parameter: what recent versions of the transformers library have, and what PEFT adapts
when it is told to by `target_parameters`.

PEFT (peft/tuners/lora/layer.py, ParamWrapper) keeps for the parameter of all experts A [experts * rank, n], in whose
rows an expert's ranks lie together, and B [m, rank * experts], in whose columns a rank's experts do. n is what an
expert reads and m what it gives; before version 0.19 the other way round, but for models that keep these matrices
transposed. The parameters of one module are wrapped one around the other and saved without their names: sizes tell
which is which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.adapters.adapter import DAMAGED, MERGE, Array, LowRank
from engine.adapters.modules import layer_of
from engine.errors import AdapterError

_STACKS = {"down_proj": "ffn_down_exps", "gate_up_proj": "ffn_gate_up_exps"}
_TRANSPOSED = ("gpt-oss",)
"""Architectures that keep an expert's matrix as [inputs, outputs], with gate and up by turns instead of in halves."""

_WRAPPED = re.compile(r"(.+\.(?:mlp|block_sparse_moe|feed_forward)\.experts)((?:\.base_layer)*)")

Shape = tuple[int, ...]


def wrapped_experts(module: str) -> tuple[str, int] | None:
    """Of a module that stands for a parameter of all experts: the module that has it, and how many wrappers are around
    this one."""
    match = _WRAPPED.fullmatch(module)
    return (match[1], match[2].count(".")) if match and layer_of(match[1]) is not None else None


def parameters_of(path: Path, module: str, targets: Sequence[str]) -> list[str]:
    """Those of a module's parameters that target_parameters names. Raises AdapterError for others than experts'
    matrices. path: of the configuration."""
    found = set()
    for target in targets:
        where, _, name = target.rpartition(".")
        if where and module != where and not module.endswith(f".{where}"):
            continue
        if name not in _STACKS:
            raise AdapterError(
                f"{path.name} names {target!r:.80} in target_parameters; of the parameters of experts Realm applies "
                f"adapters to {' and '.join(_STACKS)}.",
                MERGE,
            )
        found.add(name)
    return sorted(found)


def stacks(
    path: Path, module: str, names: Sequence[str], pairs: Sequence[tuple[Array, Array]], ranks: Mapping[str, int]
) -> dict[str, tuple[Array, Array]]:
    """By the tensors that they act on: A [experts, rank, n] and B [experts, m, rank].

    names: of the parameters, as many as there are pairs of A and B. ranks: of each. Raises AdapterError.
    """
    if len(pairs) != len(names):
        raise AdapterError(
            f"{path.name} holds {len(pairs)} pairs of matrices for the parameters of {module!r}, but target_parameters "
            f"names {len(names)}.",
            DAMAGED,
        )
    if any(half.ndim != 2 or not half.size for pair in pairs for half in pair):
        raise AdapterError(f"{path.name}: A and B for {module!r} have to be matrices.", DAMAGED)
    if len(pairs) == 2:
        # gate and up together are twice as wide as what down reads
        down = [i for i in (0, 1) if _is_gate_and_up(pairs[1 - i], pairs[i])]
        if not down:
            sizes = " and ".join(f"{b.shape[0]} x {a.shape[1]}" for a, b in pairs)
            raise AdapterError(
                f"{path.name}: of the matrices for the experts {module!r}, which stand for {sizes}, neither is "
                "twice as wide as the other, as gate and up together are.",
                DAMAGED,
            )
        pairs = [pairs[down[0]], pairs[1 - down[0]]]
    found = {}
    for name, (a, b) in zip(names, pairs, strict=True):
        rank = ranks[name]
        if len(a) != b.shape[1] or len(a) % rank:
            raise AdapterError(
                f"{path.name}: A {list(a.shape)} and B {list(b.shape)} for {name!r} of {module!r} do not hold as many "
                f"ranks as experts of the rank {rank} have.",
                DAMAGED,
            )
        count = len(a) // rank
        found[f"blk.{layer_of(module)}.{_STACKS[name]}"] = (
            a.reshape(count, rank, -1),
            b.reshape(len(b), rank, count).transpose(2, 0, 1),
        )
    return found


def _is_gate_and_up(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    sizes, down = [(a.shape[1], len(b)) for a, b in (one, other)]
    return any(sizes[i] == down[j] and sizes[1 - i] == 2 * down[1 - j] for i in (0, 1) for j in (0, 1))


def fitted(
    name: str, low: LowRank, shapes: Mapping[str, Shape], architecture: str, is_swapped: bool
) -> dict[str, LowRank]:
    """A stack that acts on a parameter, as it acts on the tensors of a model, whether it fits or not.

    shapes: of the model's tensors. is_swapped: of a square matrix, that A and B were written the other way round.
    """
    parts = [name.replace("gate_up", part) for part in ("gate", "up")] if "gate_up" in name else []
    wanted = shapes.get(name)
    if wanted is None and all(part in shapes for part in parts):
        count, rows, columns = shapes[parts[0]]
        wanted = (count, 2 * rows, columns)
    swapped = replace(low, a=_turned(low.b), b=_turned(low.a))
    if swapped.shape == wanted and (low.shape != wanted or (is_swapped and architecture not in _TRANSPOSED)):
        low = swapped
    if not parts or wanted is None or (name in shapes and low.shape != wanted):
        return {name: low}
    rows = low.shape[1] // 2
    turns = architecture in _TRANSPOSED
    gate, up = (low.b[:, ::2], low.b[:, 1::2]) if turns else (low.b[:, :rows], low.b[:, rows:])
    if name in shapes:
        return {name: replace(low, b=np.concatenate([gate, up], axis=1))}
    return {part: replace(low, b=np.ascontiguousarray(b)) for part, b in zip(parts, (gate, up), strict=True)}


def _turned(stack: Array) -> Array:
    return np.ascontiguousarray(stack.swapaxes(1, 2))
