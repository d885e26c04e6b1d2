"""The numbers of an adapter as the CPU's kernels keep them, which cl_kernels/lora.cl describes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.adapters import LowRank
from engine.backends.opencl.model import OpenCLModel

Array = NDArray[np.float32]


def as_kept(low: LowRank, model: Any, is_table: bool = False) -> LowRank:
    """is_table: it belongs to an embedding. Models on other devices keep more than a test can see missing."""
    if not isinstance(model, OpenCLModel):
        return low
    return replace(low, a=_bf16(low.a) if is_table else _bytes(low.a, 32), b=_bytes(low.b, 16))


def _bytes(values: Array, block: int) -> Array:
    """Whole numbers up to 127 times a scale in bf16, rounded up, for each block of a row."""
    *shape, columns = values.shape
    padded = np.pad(values, [(0, 0)] * len(shape) + [(0, -columns % block)]).reshape(*shape, -1, block)
    scale = np.abs(padded).max(axis=-1, keepdims=True) / np.float32(127)
    scale = ((scale.view(np.uint32) + 0xFFFF) & 0xFFFF0000).view(np.float32)
    numbers = padded / np.where(scale, scale, 1)
    kept = np.trunc(numbers + np.copysign(np.float32(0.5), numbers)) * scale
    return np.ascontiguousarray(kept.reshape(*shape, -1)[..., :columns])


def _bf16(values: Array) -> Array:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
