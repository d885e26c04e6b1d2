"""The plain floats, and ggml's first block formats: 32 values with one scale and perhaps one minimum.

In the blocks below, byte l holds value l in its low half and value l + 16 in its high half; a fifth bit lies in a
32-bit word apart. All results are bit-exact with ggml: a product of an F16 scale with so short an integer fits a
float32, so only the addition rounds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.quants.bits import Blocks, Values, fields, half_bytes, halves, inverse, pack_fields, scaled

# ---- plain numbers

_F16_NUMBERS = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def decode_f32(blocks: Blocks, out: Values) -> None:
    np.copyto(out, blocks.view(np.float32))


def decode_f16(blocks: Blocks, out: Values) -> None:
    """By a table of all 65,536 numbers, which is three times as fast as numpy's conversion."""
    np.take(_F16_NUMBERS, blocks.view(np.uint16), out=out, mode="clip")


def decode_bf16(blocks: Blocks, out: Values) -> None:
    """The upper half of a float32."""
    np.left_shift(blocks.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)


def decode_i8(blocks: Blocks, out: Values) -> None:
    np.copyto(out, blocks.view(np.int8))


def decode_i16(blocks: Blocks, out: Values) -> None:
    np.copyto(out, blocks.view(np.int16))


def decode_i32(blocks: Blocks, out: Values) -> None:
    np.copyto(out, blocks.view(np.int32), casting="same_kind")


def decode_i64(blocks: Blocks, out: Values) -> None:
    np.copyto(out, blocks.view(np.int64), casting="same_kind")


def decode_f64(blocks: Blocks, out: Values) -> None:
    np.copyto(out, blocks.view(np.float64), casting="same_kind")


def encode_f32(values: Values) -> Blocks:
    return values.view(np.uint8)


def encode_f16(values: Values) -> Blocks:
    return half_bytes(values)


def encode_bf16(values: Values) -> Blocks:
    """Rounds to nearest, ties to even; a NaN stays one (made quiet)."""
    bits = values.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    upper = np.where(nan, bits | np.uint32(0x00400000), rounded) >> 16
    return upper.astype(np.uint16).view(np.uint8)


# ---- blocks of 32


def decode_q4_0(blocks: Blocks, out: Values) -> None:
    """d (F16), 16 bytes: d * (q - 8)."""
    q = fields(blocks[:, 2:], 4).view(np.int8)
    q -= 8
    scaled(out, q, halves(blocks, 0))


def decode_q4_1(blocks: Blocks, out: Values) -> None:
    """d, m (F16), 16 bytes: d * q + m."""
    out_blocks = scaled(out, fields(blocks[:, 4:], 4), halves(blocks, 0))
    out_blocks += halves(blocks, 2)[:, :, None]


def decode_q5_0(blocks: Blocks, out: Values) -> None:
    """d (F16), fifth bits (32-bit word), 16 bytes: d * (q - 16)."""
    q = _with_fifth_bits(blocks, 2, 6).view(np.int8)
    q -= 16
    scaled(out, q, halves(blocks, 0))


def decode_q5_1(blocks: Blocks, out: Values) -> None:
    """d, m (F16), fifth bits (32-bit word), 16 bytes: d * q + m."""
    out_blocks = scaled(out, _with_fifth_bits(blocks, 4, 8), halves(blocks, 0))
    out_blocks += halves(blocks, 2)[:, :, None]


def decode_q8_0(blocks: Blocks, out: Values) -> None:
    """d (F16), 32 int8: d * q."""
    scaled(out, blocks[:, 2:].view(np.int8), halves(blocks, 0))


def decode_q8_1(blocks: Blocks, out: Values) -> None:
    """d, s (F16), 32 int8: d * q. s is d times the sum of q, which dot products use."""
    scaled(out, blocks[:, 4:].view(np.int8), halves(blocks, 0))


def _with_fifth_bits(blocks: Blocks, high_at: int, low_at: int) -> NDArray[np.uint8]:
    """uint8 [n, 32] of five bits."""
    q = np.unpackbits(blocks[:, high_at : high_at + 4], axis=1, bitorder="little")
    q <<= 4
    q |= fields(blocks[:, low_at:], 4).reshape(-1, 32)
    return q


# ---- quantising, by rounding to nearest as ggml's *_ref functions do


def encode_q4_0(values: Values) -> Blocks:
    d, q = _rounded_to_extreme(values, 8)
    return np.concatenate([half_bytes(d), _low_nibbles(q)], axis=1)


def encode_q4_1(values: Values) -> Blocks:
    d, minimum, q = _rounded_to_range(values, 15)
    return np.concatenate([half_bytes(d), half_bytes(minimum), _low_nibbles(q)], axis=1)


def encode_q5_0(values: Values) -> Blocks:
    d, q = _rounded_to_extreme(values, 16)
    return np.concatenate([half_bytes(d), _fifth_bits(q), _low_nibbles(q)], axis=1)


def encode_q5_1(values: Values) -> Blocks:
    d, minimum, q = _rounded_to_range(values, 31)
    return np.concatenate([half_bytes(d), half_bytes(minimum), _fifth_bits(q), _low_nibbles(q)], axis=1)


def encode_q8_0(values: Values) -> Blocks:
    d = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled_values = values * inverse(d)
    q = np.trunc(scaled_values + np.copysign(np.float32(0.5), scaled_values))  # halves away from zero
    return np.concatenate([half_bytes(d), q.astype(np.int8).view(np.uint8)], axis=1)


def _rounded_to_extreme(values: Values, levels: int) -> tuple[Values, NDArray[np.uint8]]:
    """d with which the value furthest from 0 is exactly -levels, and q with d * (q - levels) near the values."""
    furthest = np.abs(values).argmax(axis=1)[:, None]
    d = np.take_along_axis(values, furthest, axis=1) / np.float32(-levels)
    q = np.trunc(values * inverse(d) + np.float32(levels + 0.5))
    return d, np.minimum(q, 2 * levels - 1).astype(np.uint8)


def _rounded_to_range(values: Values, steps: int) -> tuple[Values, Values, NDArray[np.uint8]]:
    """d, minimum and q with d * q + minimum near the values."""
    minimum = values.min(axis=1, keepdims=True)
    d = (values.max(axis=1, keepdims=True) - minimum) / np.float32(steps)
    q = np.trunc((values - minimum) * inverse(d) + np.float32(0.5))
    return d, minimum, np.minimum(q, steps).astype(np.uint8)


def _low_nibbles(q: NDArray[np.uint8]) -> Blocks:
    return pack_fields((q & 15).reshape(-1, 2, 16), 4)


def _fifth_bits(q: NDArray[np.uint8]) -> Blocks:
    return np.packbits(q >> 4, axis=1, bitorder="little")
