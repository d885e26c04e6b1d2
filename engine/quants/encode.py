"""Float32 rows to quantised ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from engine.quants import k_quants_search, legacy
from engine.quants.bits import Encode
from engine.quants.types import QuantType

ENCODERS: Mapping[str, Encode] = {
    "F32": legacy.encode_f32,
    "F16": legacy.encode_f16,
    "BF16": legacy.encode_bf16,
    "Q8_0": legacy.encode_q8_0,
    "Q4_0": legacy.encode_q4_0,
    "Q4_1": legacy.encode_q4_1,
    "Q5_0": legacy.encode_q5_0,
    "Q5_1": legacy.encode_q5_1,
    "Q2_K": k_quants_search.encode_q2_k,
    "Q3_K": k_quants_search.encode_q3_k,
    "Q4_K": k_quants_search.encode_q4_k,
    "Q5_K": k_quants_search.encode_q5_k,
    "Q6_K": k_quants_search.encode_q6_k,
}
"""The types that quantize() can write, by name."""

_CHUNK = 1 << 16


def quantize(quant: QuantType, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantises rows. The plain and the legacy types come out byte for byte as from ggml; the k-quants do not, but
    their mean squared error is no larger.

    values: float32 [n, k], finite, k a multiple of the block size.
    Returns uint8 [n, row_bytes]. Raises ValueError for other shapes, for values that are not finite (except in the
    plain types) and for a type that cannot be written (see ENCODERS).
    """
    if quant.name not in ENCODERS:
        raise ValueError(f"Cannot quantise to {quant.name}; possible are {', '.join(ENCODERS)}.")
    if values.ndim != 2 or values.dtype != np.float32 or values.shape[1] % quant.block_size:
        raise ValueError(
            f"Values for {quant.name} are float32 [n, a multiple of {quant.block_size}],"
            f" not {values.dtype} {list(values.shape)}."
        )
    if quant.block_size > 1 and not np.isfinite(values).all():
        raise ValueError(f"Values for {quant.name} have to be finite.")
    n, k = values.shape
    out = np.empty((n, quant.row_bytes(k)), np.uint8)
    blocks = np.ascontiguousarray(values).reshape(-1, quant.block_size)
    encoded = out.reshape(-1, quant.block_bytes)
    step = max(1, _CHUNK // quant.block_size)
    encode = ENCODERS[quant.name]
    with np.errstate(over="ignore"):  # a scale too large for F16 becomes infinite, as in ggml
        for start in range(0, len(blocks), step):
            encoded[start : start + step] = encode(blocks[start : start + step])
    return out
