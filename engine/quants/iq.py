"""ggml's i-quants: super-blocks of 256 values; a few bits choose a point of a lattice, others its signs and scale.

All results are bit-exact with ggml: no product below has more than 24 significant bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.quants.bits import Blocks, Values, fields, halves, scaled
from engine.quants.codebooks import EVEN_SIGNS, IQ4_PAIRS, SIGNS, grid, look_up


def decode_iq2_xxs(blocks: Blocks, out: Values) -> None:
    """d (F16), then per 32 values four 8-bit points and a word of four 7-bit signs and a 4-bit scale."""
    words = _words(blocks[:, 2:], np.uint32).reshape(-1, 8, 2)
    points = words[:, :, :1].copy().view(np.uint8)
    _lattice(out, grid("IQ2_XXS"), points, EVEN_SIGNS, _signs7(words), _eighths(blocks, words[:, :, 1] >> 28))


def decode_iq2_xs(blocks: Blocks, out: Values) -> None:
    """d (F16), 32 words of a 9-bit point and 7-bit signs, 16 4-bit scales."""
    words = _words(blocks[:, 2:66], np.uint16)
    _lattice(out, grid("IQ2_XS"), words & 511, EVEN_SIGNS, words >> 9, _eighths(blocks, _nibbles(blocks[:, 66:])))


def decode_iq2_s(blocks: Blocks, out: Values) -> None:
    """d (F16), 32 bytes of points, 32 of signs, 8 of the points' upper 2 bits, 16 4-bit scales."""
    points = _joined(blocks[:, 2:34], blocks[:, 66:74], 2)
    _lattice(out, grid("IQ2_S"), points, SIGNS, blocks[:, 34:66], _eighths(blocks, _nibbles(blocks[:, 74:])))


def decode_iq3_xxs(blocks: Blocks, out: Values) -> None:
    """d (F16), 64 bytes of points, then per 32 values a word of four 7-bit signs and a 4-bit scale."""
    words = _words(blocks[:, 66:], np.uint32).reshape(-1, 8, 1)
    scales = 2 * _eighths(blocks, words[:, :, -1] >> 28)
    _lattice(out, grid("IQ3_XXS"), blocks[:, 2:66], EVEN_SIGNS, _signs7(words), scales)


def decode_iq3_s(blocks: Blocks, out: Values) -> None:
    """d (F16), 64 bytes of points, 8 of their ninth bits, 32 of signs, 8 4-bit scales: d * (1 + 2 * scale)."""
    points = _joined(blocks[:, 2:66], blocks[:, 66:74], 1)
    scales = halves(blocks, 0) * (1 + 2 * _nibbles(blocks[:, 106:]))
    _lattice(out, grid("IQ3_S"), points, SIGNS, blocks[:, 74:106], scales)


def decode_iq1_s(blocks: Blocks, out: Values) -> None:
    """d (F16), 32 bytes of points, per 32 values a word: four times 3 upper bits, a 3-bit scale, the sign of 1/8."""
    words = _words(blocks[:, 34:], np.uint16)
    points = blocks[:, 2:34] | (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 32) << 8
    scales = halves(blocks, 0) * (2 * (words >> 12 & 7) + 1)
    _ternary(out, points, words[:, :, None] >> 15, scales)


def decode_iq1_m(blocks: Blocks, out: Values) -> None:
    """32 bytes of points, 16 of their upper 3 bits and the sign of 1/8, four words of four 3-bit scales and a quarter
    of d (F16)."""
    words = _words(blocks[:, 48:], np.uint16)
    d = (words >> 12 << np.array([0, 4, 8, 12], np.uint16)).sum(axis=1, keepdims=True, dtype=np.uint16)
    upper = fields(blocks[:, 32:48, None], 4).reshape(-1, 32)
    points = blocks[:, :32] | (upper & 7).astype(np.uint16) << 8
    scales = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(-1, 16)
    _ternary(out, points, upper >> 3, d.view(np.float16).astype(np.float32) * (2 * scales + 1))


def decode_iq4_nl(blocks: Blocks, out: Values) -> None:
    """32 values; d (F16), 16 bytes of 4-bit codes."""
    scaled(out, look_up(IQ4_PAIRS, fields(blocks[:, 2:], 4)), halves(blocks, 0))


def decode_iq4_xs(blocks: Blocks, out: Values) -> None:
    """d (F16), upper 2 bits of eight scales (word), lower 4 bits (4 bytes), 128 bytes of 4-bit codes."""
    high = _words(blocks[:, 2:4], np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales = (_nibbles(blocks[:, 4:8]) | high << 4).astype(np.int8) - np.int8(32)
    scaled(out, look_up(IQ4_PAIRS, fields(blocks[:, 8:].reshape(-1, 8, 16), 4)), halves(blocks, 0) * scales)


# ---- shared by the lattices


def _lattice(
    out: Values,
    points: NDArray[np.int8],
    codes: NDArray[np.integer],
    sign_rows: NDArray[np.int8],
    sign_codes: NDArray[np.integer],
    scales: Values,
) -> None:
    """out = points[codes] * sign_rows[sign_codes] * scales."""
    q = _gather(points, codes)
    q *= _gather(sign_rows, sign_codes)
    scaled(out, q, scales)


def _ternary(out: Values, codes: NDArray[np.integer], negative: NDArray[np.integer], scales: Values) -> None:
    """out = (points[codes] + 1/8) * scales, or - 1/8 where negative; computed in eighths."""
    q = _gather(_ternary_eighths(), codes)
    shifts = (1 - 2 * negative.astype(np.int8)).astype(np.int8)
    q = q.reshape(*shifts.shape[:2], -1)
    q += shifts if shifts.ndim == 3 else shifts[:, :, None]
    scaled(out, q, scales * np.float32(0.125))


def _ternary_eighths() -> NDArray[np.int8]:
    return 8 * grid("IQ1_S")


def _gather(rows: NDArray[np.int8], codes: NDArray[np.integer]) -> NDArray[np.int8]:
    """rows[codes] as flat bytes; every row is moved as one word."""
    words = rows.view(np.dtype(f"u{rows.shape[1]}")).reshape(-1)
    return np.take(words, codes.reshape(-1), mode="clip").view(np.int8)


def _words(blocks: Blocks, dtype: type[np.uint16] | type[np.uint32]) -> NDArray[np.integer]:
    return np.ascontiguousarray(blocks).view(dtype)


def _nibbles(packed: Blocks) -> NDArray[np.uint8]:
    """[n, m] bytes to [n, 2 * m] 4-bit numbers, low half first."""
    return fields(packed[:, :, None], 4).reshape(len(packed), -1)


def _joined(low: Blocks, high: Blocks, bits: int) -> NDArray[np.uint16]:
    """Codes of 8 low bits and `bits` more; the fields of a byte of `high` belong to neighbouring codes."""
    per_byte = low.shape[1] // high.shape[1]
    shifts = np.arange(0, bits * per_byte, bits, dtype=np.uint16)
    upper = high[:, :, None] >> shifts & ((1 << bits) - 1)
    return (low | (upper << 8).reshape(low.shape)).astype(np.uint16, copy=False)


def _signs7(words: NDArray[np.integer]) -> NDArray[np.integer]:
    """The four 7-bit sign codes in the last word of each group."""
    return words[:, :, -1:] >> np.array([0, 7, 14, 21], np.uint32) & 127


def _eighths(blocks: Blocks, scales: NDArray[np.integer]) -> Values:
    """d * (1/2 + scale) / 4."""
    return halves(blocks, 0) * ((2 * scales + 1).astype(np.float32) * np.float32(0.125))
