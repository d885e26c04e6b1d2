"""Reading a file's rotary embedding: its base, its scaling, and factors that come as tensors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engine.architectures.tensors import vector
from engine.errors import ModelFileError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Rope, rope_frequencies, yarn
from engine.quants import dequantize

FACTOR_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that are read into the frequencies, when the graph is built."""


def read_rope(file: GGUFFile, head_width: int, context_length: int, *, interleaved: bool) -> Rope:
    """Rotary embedding with none, linear, llama 3 (`rope_freqs` tensor), longrope or YaRN scaling.

    context_length: the longest sequence that will run; longrope has one set of factors for sequences up to the
        original context and one for longer ones.
    """
    arch = file.architecture
    n_rotated = read_n_rotated(file, head_width)
    base = file.float(f"{arch}.rope.freq_base", 10000.0, minimum=1.0)
    trained = file.int(f"{arch}.context_length", minimum=1)
    original = file.int(f"{arch}.rope.scaling.original_context_length", trained, minimum=1)
    if "rope_freqs.weight" in file.tensors:
        factors = _factors(file, "rope_freqs.weight", n_rotated)
    else:
        which = "long" if context_length > original else "short"
        factors = _factors(file, f"rope_factors_{which}.weight", n_rotated)
    frequencies = rope_frequencies(n_rotated, base, factors=factors)
    magnitude = file.float(f"{arch}.rope.scaling.attn_factor", 1.0, minimum=0.0) or 1.0
    scaling = file.str(f"{arch}.rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "longrope", "yarn"):
        raise UnsupportedModelError(
            f"{file.path.name} scales its rotary embedding by {scaling!r} ({arch}.rope.scaling.type), "
            "which Realm does not know.",
            "It knows none, linear, longrope, yarn, and llama 3's factors.",
        )
    factor = read_scaling_factor(file)
    if scaling == "yarn":
        if base == 1.0:
            raise ModelFileError(f"{file.path.name}: {arch}.rope.freq_base is 1, which YaRN cannot scale.")
        frequencies = yarn(
            frequencies,
            base=base,
            factor=factor,
            original_context=original,
            beta_fast=file.float(f"{arch}.rope.scaling.yarn_beta_fast", 32.0, minimum=0.001),
            beta_slow=file.float(f"{arch}.rope.scaling.yarn_beta_slow", 1.0, minimum=0.001),
        )
        magnitude *= yarn_magnitude(factor)
    elif scaling != "none":
        frequencies = frequencies / factor
    return Rope(frequencies, interleaved=interleaved, magnitude=magnitude)


def read_n_rotated(file: GGUFFile, head_width: int) -> int:
    arch = file.architecture
    n_rotated = file.int(f"{arch}.rope.dimension_count", head_width, minimum=2, maximum=head_width)
    if n_rotated % 2:
        raise ModelFileError(f"{file.path.name}: {arch}.rope.dimension_count is {n_rotated}, which is odd.")
    return n_rotated


def read_scaling_factor(file: GGUFFile) -> float:
    """How many times longer the context was made; 1 where nothing is said."""
    arch = file.architecture
    factor = file.float(f"{arch}.rope.scaling.factor", 0.0, minimum=0.0)
    return factor or file.float(f"{arch}.rope.scale_linear", 1.0, minimum=0.0) or 1.0


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's scale of attention for a context made `factor` times longer (its m, section 3.4 of arXiv 2309.00071)."""
    return 1.0 if factor <= 1.0 else 1.0 + 0.1 * mscale * math.log(factor)


def _factors(file: GGUFFile, name: str, n_rotated: int) -> NDArray[np.float32] | None:
    """What frequencies are divided by, one number for each pair of dimensions."""
    if name not in file.tensors:
        return None
    vector(file, name, n_rotated // 2)
    factors = dequantize(file.tensors[name].type, file.data(name)).reshape(-1)
    if not (factors > 0).all() or not np.isfinite(factors).all():
        raise ModelFileError(f"The tensor {name!r} of {file.path.name} holds values that are not finite and above 0.")
    return factors
