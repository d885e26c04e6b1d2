"""Float32 rows to quantised ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.quants.types import QuantType


def quantize(quant: QuantType, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantises float32 [n, k] to uint8 [n, row_bytes]; k is a multiple of the block size."""
    raise NotImplementedError(quant.name)
