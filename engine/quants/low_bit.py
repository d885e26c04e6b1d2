"""Formats of few values: one bit, two bits, ternary, and the 4-bit floats of the microscaling standards.

All results are bit-exact with ggml: each is one product of a scale with a small integer.
"""

from __future__ import annotations

import numpy as np

from engine.quants.bits import Blocks, Values, fields, halves, scaled
from engine.quants.codebooks import E8M0_HALVED, FP4_PAIRS, UE4M3_HALVED, look_up


def decode_q1_0(blocks: Blocks, out: Values) -> None:
    """128 values; d (F16), 16 bytes of bits: d where set, else -d."""
    q = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").view(np.int8)
    q += q
    q -= 1
    scaled(out, q, halves(blocks, 0))


def decode_q2_0(blocks: Blocks, out: Values) -> None:
    """64 values; d (F16), 16 bytes of 2 bits: d * (q - 1)."""
    q = fields(blocks[:, 2:, None], 2).view(np.int8)
    q -= 1
    scaled(out, q, halves(blocks, 0))


_POWERS_OF_3 = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]


def decode_tq1_0(blocks: Blocks, out: Values) -> None:
    """256 values; 48 bytes of five ternary digits, 4 of four, d (F16): d * (digit - 1).

    A byte is the digits as a fraction of 243, scaled to 256: multiplied by a power of 3 it drops the digits before, and
    the next digit is what overflows when it is multiplied by 3 once more.
    """
    n = len(blocks)
    parts = ((blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4))
    digits = np.concatenate([(part[:, None] * _POWERS_OF_3[:m]).reshape(n, -1) for part, m in parts], axis=1)
    q = (digits.astype(np.uint16) * 3 >> 8).astype(np.int8)
    q -= 1
    scaled(out, q, halves(blocks, 52))


def decode_tq2_0(blocks: Blocks, out: Values) -> None:
    """256 values; 64 bytes of 2 bits, d (F16): d * (q - 1)."""
    q = fields(blocks[:, :64].reshape(-1, 2, 32), 2).view(np.int8)
    q -= 1
    scaled(out, q, halves(blocks, 64))


def decode_mxfp4(blocks: Blocks, out: Values) -> None:
    """32 values; a power of two (E8M0), 16 bytes of E2M1 floats."""
    scaled(out, look_up(FP4_PAIRS, fields(blocks[:, 1:], 4)), E8M0_HALVED[blocks[:, :1]])


def decode_nvfp4(blocks: Blocks, out: Values) -> None:
    """64 values; four scales (unsigned E4M3), 32 bytes of E2M1 floats, 8 to a scale."""
    scaled(out, look_up(FP4_PAIRS, fields(blocks[:, 4:].reshape(-1, 4, 8), 4)), UE4M3_HALVED[blocks[:, :4]])
