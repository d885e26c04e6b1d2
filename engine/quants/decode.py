"""Rows of any tensor type to float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from engine.quants import iq, k_quants, legacy, low_bit
from engine.quants.bits import Decode
from engine.quants.types import QuantType

DECODERS: Mapping[str, Decode] = {
    "F32": legacy.decode_f32,
    "F16": legacy.decode_f16,
    "BF16": legacy.decode_bf16,
    "I8": legacy.decode_i8,
    "I16": legacy.decode_i16,
    "I32": legacy.decode_i32,
    "I64": legacy.decode_i64,
    "F64": legacy.decode_f64,
    "Q4_0": legacy.decode_q4_0,
    "Q4_1": legacy.decode_q4_1,
    "Q5_0": legacy.decode_q5_0,
    "Q5_1": legacy.decode_q5_1,
    "Q8_0": legacy.decode_q8_0,
    "Q8_1": legacy.decode_q8_1,
    "Q2_K": k_quants.decode_q2_k,
    "Q3_K": k_quants.decode_q3_k,
    "Q4_K": k_quants.decode_q4_k,
    "Q5_K": k_quants.decode_q5_k,
    "Q6_K": k_quants.decode_q6_k,
    "Q8_K": k_quants.decode_q8_k,
    "IQ2_XXS": iq.decode_iq2_xxs,
    "IQ2_XS": iq.decode_iq2_xs,
    "IQ2_S": iq.decode_iq2_s,
    "IQ3_XXS": iq.decode_iq3_xxs,
    "IQ3_S": iq.decode_iq3_s,
    "IQ1_S": iq.decode_iq1_s,
    "IQ1_M": iq.decode_iq1_m,
    "IQ4_NL": iq.decode_iq4_nl,
    "IQ4_XS": iq.decode_iq4_xs,
    "TQ1_0": low_bit.decode_tq1_0,
    "TQ2_0": low_bit.decode_tq2_0,
    "MXFP4": low_bit.decode_mxfp4,
    "NVFP4": low_bit.decode_nvfp4,
    "Q1_0": low_bit.decode_q1_0,
    "Q2_0": low_bit.decode_q2_0,
}

_CHUNK = 1 << 17
"""Values decoded at a time: what they need beside the result stays in the cache of one core."""


def dequantize(
    quant: QuantType, rows: NDArray[np.uint8], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Expands rows of quantised values, bit for bit as ggml does.

    rows: uint8 [n, row_bytes], rows of whole blocks; may be read-only and strided between rows.
    out: optional float32 [n, k], k = row_bytes / block_bytes * block_size, contiguous within rows; returned when given.
    Returns float32 [n, k]. Needs about a megabyte beside it. Raises ValueError for other shapes.
    """
    if rows.ndim != 2 or rows.dtype != np.uint8 or rows.shape[1] % quant.block_bytes:
        raise ValueError(
            f"Rows of {quant.name} are uint8 [n, a multiple of {quant.block_bytes}], not {_described(rows)}."
        )
    n, row_bytes = rows.shape
    k = row_bytes // quant.block_bytes * quant.block_size
    if out is None:
        out = np.empty((n, k), np.float32)
    elif out.shape != (n, k) or out.dtype != np.float32:
        raise ValueError(f"The result is float32 [{n}, {k}], but out is {_described(out)}.")
    decode = DECODERS[quant.name]
    with np.errstate(invalid="ignore", over="ignore"):  # a damaged scale gives NaN or infinity and no warning
        if rows.flags.c_contiguous and out.flags.c_contiguous:
            _decode_blocks(decode, quant, rows, out)
        else:
            for row, values in zip(rows, out, strict=True):
                _decode_blocks(decode, quant, np.ascontiguousarray(row), values)
    return out


def _decode_blocks(decode: Decode, quant: QuantType, data: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    blocks = data.reshape(-1, quant.block_bytes)
    values = out.reshape(-1, quant.block_size)
    step = max(1, _CHUNK // quant.block_size)
    for start in range(0, len(blocks), step):
        decode(blocks[start : start + step], values[start : start + step])


def _described(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} {list(array.shape)}"
