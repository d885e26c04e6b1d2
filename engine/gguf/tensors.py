"""What a GGUF file says about its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from engine.quants import QuantType


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        shape: slowest dimension first, the reverse of ggml's order; a matrix is (out_features, in_features).
        offset: of the first byte, from the start of the file (of the part, where the model is split).
        nbytes: without padding.
        part: which file of a split model holds it, from 0.
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType
    offset: int
    nbytes: int
    part: int = 0

    @property
    def n_values(self) -> int:
        return prod(self.shape)

    def has_shape(self, *shape: int) -> bool:
        """Whether the shapes agree, leading dimensions of 1 aside: ggml does not tell (32,) from (1, 32)."""
        return _without_leading_ones(self.shape) == _without_leading_ones(shape)


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]
