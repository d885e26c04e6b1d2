"""Rows of any tensor type to float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.quants.types import QuantType


def dequantize(
    quant: QuantType, rows: NDArray[np.uint8], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Expands rows of quantised values.

    rows: uint8 [n, row_bytes], rows of whole blocks; may be read-only and strided between rows.
    out: optional float32 [n, k] with k = row_bytes / block_bytes * block_size; returned when given.
    Returns float32 [n, k].
    """
    raise NotImplementedError(quant.name)
