"""Adapters with random numbers, for measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.adapters.base import AdapterBase
from engine.gguf.write import GGUFWriter, NewTensor, float32_key, string_key
from engine.quants import QuantType

_ALIGNMENT = 32


def write_random_adapter(path: Path, base: AdapterBase, rank: int, seed: int) -> None:
    """Writes a GGUF adapter in F16 that acts a little on every matrix of the layers, as adapters for all linear layers
    do. Raises RealmError where the file cannot be written."""
    random = np.random.default_rng(seed)
    f16 = QuantType.by_name("F16")
    tensors, values = [], []
    for name, matrix in base.matrices.items():
        if not name.startswith("blk."):
            continue
        stack = matrix.shape[:-2]
        for half, shape in (("a", (*stack, rank, matrix.columns)), ("b", (*stack, matrix.rows, rank))):
            tensors.append(NewTensor(f"{name}.weight.lora_{half}", shape, f16))
            values.append((random.standard_normal(shape) * 0.01).astype(np.float16))
    keys = [
        string_key("general.architecture", base.architecture),
        string_key("general.type", "adapter"),
        string_key("adapter.type", "lora"),
        string_key("general.name", f"random, rank {rank}"),
        float32_key("adapter.lora.alpha", float(rank)),
    ]
    with GGUFWriter(path, keys, tensors, _ALIGNMENT) as writer:
        for part in values:
            writer.write(part.tobytes())
