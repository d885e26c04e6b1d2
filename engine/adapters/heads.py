"""Adapters on deepseek2's attn_kv_b, in models that hold its two halves head by head.

Of each head attn_kv_b has the rows that make keys of a latent row, then those that make values. Newer files have the
former as attn_k_b, transposed (queries go the other way through it), the latter as attn_v_b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from engine.adapters.adapter import Array, LowRank

WHOLE = "attn_kv_b"


def halves_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str] | None:
    """The names of the two halves, where the model has these and not the whole. shapes: of the model's matrices."""
    keys, values = (name.replace(WHOLE, half) for half in ("attn_k_b", "attn_v_b"))
    whole = name.rpartition(".")[2] == WHOLE and name not in shapes
    return (keys, values) if whole and keys in shapes and values in shapes else None


def whole_shape(keys: tuple[int, ...], values: tuple[int, ...]) -> tuple[int, int]:
    """Of the whole: keys is [heads, latent, columns of a key], values [heads, columns of a value, latent]."""
    heads, latent, key = keys
    return heads * (key + values[1]), latent


def by_heads(low: LowRank, heads: int, key: int) -> tuple[LowRank, LowRank]:
    """What acts on the halves. low: on the whole, of the right shape. key: columns of a head's key that come of it."""
    b = low.b.reshape(heads, -1, low.rank)
    a = np.broadcast_to(low.a, (heads, *low.a.shape))
    keys = replace(low, a=_turned(b[:, :key]), b=_turned(a))
    return keys, replace(low, a=np.ascontiguousarray(a), b=np.ascontiguousarray(b[:, key:]))


def _turned(stack: Array) -> Array:
    return np.ascontiguousarray(stack.swapaxes(1, 2))
