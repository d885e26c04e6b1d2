"""ggml's k-quants: super-blocks of 256 values in groups of 16 or 32, whose scales are quantised in turn.

All results are bit-exact with ggml: F16 scale * 6-bit scale * short integer fits a float32 without rounding, so only
the subtraction of a minimum rounds.
"""

from __future__ import annotations

import numpy as np

from engine.quants.bits import Blocks, Values, fields, halves, scaled


def decode_q2_k(blocks: Blocks, out: Values) -> None:
    """16 bytes (scale, minimum: 4 bits each), 64 bytes of 2 bits, d, dmin (F16): d * scale * q - dmin * minimum."""
    scales = blocks[:, :16]
    groups = scaled(out, fields(blocks[:, 16:80].reshape(-1, 2, 32), 2), halves(blocks, 80) * (scales & 15))
    groups -= (halves(blocks, 82) * (scales >> 4))[:, :, None]


def decode_q3_k(blocks: Blocks, out: Values) -> None:
    """32 bytes of third bits, 64 bytes of 2 bits, 12 bytes of 6-bit scales, d (F16): d * (scale - 32) * (q - 4)."""
    q = fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    q |= fields(blocks[:, :32], 1) << 2
    q = q.view(np.int8)
    q -= 4
    scaled(out, q, halves(blocks, 108) * q3_k_scales(blocks[:, 96:108]))


def q3_k_scales(packed: Blocks) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """int8 [n, 16] of -32..31 out of 12 bytes: 8 bytes hold the low 4 bits, 4 bytes the upper 2."""
    low = fields(packed[:, :8], 4).reshape(-1, 16)
    high = fields(packed[:, 8:], 2).reshape(-1, 16)
    return (low | high << 4).view(np.int8) - np.int8(32)


def decode_q4_k(blocks: Blocks, out: Values) -> None:
    """d, dmin (F16), 12 bytes of scales and minimums, 128 bytes of 4 bits: d * scale * q - dmin * minimum."""
    _decode_with_minimums(blocks, fields(blocks[:, 16:].reshape(-1, 4, 32), 4), out)


def decode_q5_k(blocks: Blocks, out: Values) -> None:
    """As Q4_K, with 32 bytes of fifth bits before the 128 bytes."""
    q = fields(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    q |= fields(blocks[:, 16:48], 1) << 4
    _decode_with_minimums(blocks, q, out)


def _decode_with_minimums(blocks: Blocks, q: Blocks, out: Values) -> None:
    scales, minimums = scales_and_minimums(blocks[:, 4:16])
    groups = scaled(out, q, halves(blocks, 0) * scales)
    groups -= (halves(blocks, 2) * minimums)[:, :, None]


def scales_and_minimums(packed: Blocks) -> tuple[Blocks, Blocks]:
    """uint8 [n, 8] each, of 6 bits, out of the 12 bytes of Q4_K and Q5_K.

    Bytes 0-3 and 4-7 hold the first four scales and minimums; their upper two bits, with the halves of bytes 8-11, make
    the last four.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minimums = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minimums


def decode_q6_k(blocks: Blocks, out: Values) -> None:
    """128 bytes of 4 bits, 64 bytes of 2 upper bits, 16 int8 scales, d (F16): d * scale * (q - 32)."""
    q = fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    q |= fields(blocks[:, 128:192].reshape(-1, 2, 32), 2) << 4
    q = q.view(np.int8)
    q -= 32
    scaled(out, q, halves(blocks, 208) * blocks[:, 192:208].view(np.int8))


def decode_q8_k(blocks: Blocks, out: Values) -> None:
    """d (F32), 256 int8, 16 sums (int16, for dot products): d * q."""
    scaled(out, blocks[:, 4:260].view(np.int8), blocks[:, :4].view(np.float32))
