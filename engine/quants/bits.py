"""Pieces that the block formats are made of. `blocks` is uint8 [n, block_bytes] throughout, one block per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]
Values = NDArray[np.float32]

Decode = Callable[[Blocks, Values], None]
"""Writes float32 [n, block_size], given uint8 [n, block_bytes]."""

Encode = Callable[[Values], Blocks]
"""Gives uint8 [n, block_bytes], given float32 [n, block_size]."""


def halves(blocks: Blocks, at: int, count: int = 1) -> Values:
    """float32 [n, count]: the F16 numbers from byte `at` on."""
    return blocks[:, at : at + 2 * count].view(np.float16).astype(np.float32)


def half_bytes(values: Values) -> Blocks:
    """uint8 [n, 2 * count]: float32 [n, count] as F16. Too large a number becomes infinite, as in ggml."""
    return values.astype(np.float16).view(np.uint8)


_SMALLEST_INVERTIBLE = np.float32(2.0**-127)


def inverse(d: Values) -> Values:
    """1 / d, and 0 where d is 0 or so small that the inverse is infinite."""
    return np.divide(1, d, out=np.zeros_like(d), where=np.abs(d) > _SMALLEST_INVERTIBLE)


def fields(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Takes bytes [..., m] apart into [..., 8 / bits, m]: the low `bits` of every byte, then the next ones, and so on.

    This is ggml's usual order: one byte holds values that lie m apart.
    """
    parts, run = 8 // bits, packed.shape[-1]
    out = np.empty((*packed.shape[:-1], parts, run), np.uint8)
    if run in _WORDS:
        _fields_of_short_runs(packed, bits, out, _WORDS[run])
    else:
        for part in range(parts):
            np.right_shift(packed, bits * part, out=out[..., part, :])
        np.bitwise_and(out, (1 << bits) - 1, out=out)
    return out


_WORDS: dict[int, type[np.generic]] = {8: np.uint64, 16: np.complex128}
"""Run length in bytes -> a type of that size; nothing is computed with it, it is only moved."""


def _fields_of_short_runs(packed: NDArray[np.uint8], bits: int, out: NDArray[np.uint8], word: type[np.generic]) -> None:
    """Moves each run as one word and computes on contiguous bytes: three times as fast where numpy would loop over
    8 or 16 bytes at a time."""
    gathered = np.ascontiguousarray(packed.view(word)).view(np.uint64)
    mask = np.uint64(0x0101010101010101 * ((1 << bits) - 1))
    part_of_run = np.empty_like(gathered)
    for part in range(8 // bits):
        np.right_shift(gathered, np.uint64(bits * part), out=part_of_run)
        np.bitwise_and(part_of_run, mask, out=part_of_run)
        out[..., part, :].view(word)[...] = part_of_run.view(word)


def pack_fields(values: NDArray[np.integer[Any]], bits: int) -> NDArray[np.uint8]:
    """The reverse of fields(): [..., 8 / bits, m] of at most `bits` bits each to [..., m]."""
    packed = values[..., 0, :].astype(np.uint8)
    for part in range(1, 8 // bits):
        packed |= values[..., part, :].astype(np.uint8) << (bits * part)
    return packed


def scaled(out: Values, quants: NDArray[np.uint8] | NDArray[np.int8], scales: Values) -> Values:
    """out = quants * scales, each scale for an equal run of values.

    out: float32 [n, k], contiguous. quants: n * k integers. scales: float32 [n, groups].
    Returns out as [n, groups, k / groups], for a decoder that has something to add.
    """
    n, groups = scales.shape
    grouped = out.reshape(n, groups, -1)
    np.copyto(grouped, quants.reshape(grouped.shape))
    np.multiply(grouped, scales[:, :, None], out=grouped)
    return grouped
