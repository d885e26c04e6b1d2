"""The lattices and tables of the types that store an index instead of a number.

The grids are constants of the GGUF format; the `gguf` package carries them packed. Everything else is derived.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""What the 16 codes of IQ4_NL and IQ4_XS stand for."""

FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the numbers of the E2M1 format (OCP Microscaling Formats 1.0)."""


@cache
def grid(name: str) -> NDArray[np.int8]:
    """The points of "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S" ([n, 8]), "IQ3_XXS", "IQ3_S" ([n, 4]) as int8."""
    from gguf import quants  # here, because importing it takes a while and few models need it

    packed = getattr(quants, name)
    packed.init_grid()
    points: NDArray[np.int8] = packed.grid.astype(np.int8).reshape(packed.grid_shape)
    points.flags.writeable = False
    return points


def _sign_rows() -> NDArray[np.int8]:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)


SIGNS = _sign_rows()
"""int8 [256, 8]: -1 where the bit of that place is set, else 1."""

EVEN_SIGNS = SIGNS[[code | (code.bit_count() & 1) << 7 for code in range(128)]]
"""int8 [128, 8]: seven signs are stored, the eighth makes the number of minus signs even."""


def _e8m0() -> NDArray[np.float32]:
    exponent = np.arange(256, dtype=np.float64) - 128
    return np.ldexp(1.0, exponent.astype(np.int64)).astype(np.float32)


E8M0_HALVED = _e8m0()
"""float32 [256]: half of 2 ** (code - 127), which goes with FP4_VALUES being doubled."""


def _ue4m3() -> NDArray[np.float32]:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, (code & 7).astype(np.float64)
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    value = np.where(exponent == 0, mantissa * 2.0**-9, normal) / 2
    value[(code & 127) == 127] = 0  # the NaN of E4M3
    return value.astype(np.float32)


UE4M3_HALVED = _ue4m3()
"""float32 [256]: half of the unsigned E4M3 number, for the same reason."""


def _pairs(values: NDArray[np.int8]) -> NDArray[np.uint16]:
    """uint16 [0x1000]: for two 4-bit codes in the bytes of a 16-bit index, the bytes of their two values."""
    codes = np.arange(0x1000, dtype=np.uint16).view(np.uint8) & 15
    table: NDArray[np.uint16] = values[codes].view(np.uint16)
    return table


IQ4_PAIRS = _pairs(IQ4_VALUES)
FP4_PAIRS = _pairs(FP4_VALUES)
"""The same values for look_up(), two at a time."""


def look_up(pairs: NDArray[np.uint16], codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The values (flat int8) of 4-bit codes. codes: contiguous uint8, an even number of them, each below 16."""
    return np.take(pairs, codes.reshape(-1).view(np.uint16), mode="clip").view(np.int8)
