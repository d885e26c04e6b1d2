"""The tensor types of ggml: names, ids and block sizes.

Source: `enum ggml_type` and the block structs of ggml-common.h (ggml, MIT), whose layout is the GGUF file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class QuantType:
    """How the values of a tensor are stored: blocks of `block_size` values in `block_bytes` bytes.

    Attributes:
        name: ggml's name, "Q4_1".
        id: ggml's number, as tensor infos of a GGUF file give it.
        block_size: values per block; a row is a whole number of blocks.
        block_bytes: bytes per block.
    """

    name: str
    id: int
    block_size: int
    block_bytes: int

    def row_bytes(self, n_values: int) -> int:
        """Bytes of a row of n_values. Raises ValueError where that is not a whole number of blocks."""
        n_blocks, rest = divmod(n_values, self.block_size)
        if rest or n_values < 0:
            raise ValueError(
                f"A row of {n_values} values is not a whole number of {self.name} blocks ({self.block_size})."
            )
        return n_blocks * self.block_bytes

    @property
    def bits_per_value(self) -> float:
        return 8 * self.block_bytes / self.block_size

    @staticmethod
    def by_id(type_id: int) -> QuantType:
        """The type with ggml's number. Raises KeyError where there is none."""
        return _BY_ID[type_id]

    @staticmethod
    def by_name(name: str) -> QuantType:
        """The type with ggml's name, in capitals or not. Raises KeyError where there is none."""
        return QUANT_TYPES[_CANONICAL[name.upper()]]

    def __str__(self) -> str:
        return self.name


QUANT_TYPES: Mapping[str, QuantType] = MappingProxyType(
    {
        name: QuantType(name, type_id, block_size, block_bytes)
        for name, type_id, block_size, block_bytes in (
            ("F32", 0, 1, 4),
            ("F16", 1, 1, 2),
            ("Q4_0", 2, 32, 18),
            ("Q4_1", 3, 32, 20),
            ("Q5_0", 6, 32, 22),
            ("Q5_1", 7, 32, 24),
            ("Q8_0", 8, 32, 34),
            ("Q8_1", 9, 32, 36),
            ("Q2_K", 10, 256, 84),
            ("Q3_K", 11, 256, 110),
            ("Q4_K", 12, 256, 144),
            ("Q5_K", 13, 256, 176),
            ("Q6_K", 14, 256, 210),
            ("Q8_K", 15, 256, 292),
            ("IQ2_XXS", 16, 256, 66),
            ("IQ2_XS", 17, 256, 74),
            ("IQ3_XXS", 18, 256, 98),
            ("IQ1_S", 19, 256, 50),
            ("IQ4_NL", 20, 32, 18),
            ("IQ3_S", 21, 256, 110),
            ("IQ2_S", 22, 256, 82),
            ("IQ4_XS", 23, 256, 136),
            ("I8", 24, 1, 1),
            ("I16", 25, 1, 2),
            ("I32", 26, 1, 4),
            ("I64", 27, 1, 8),
            ("F64", 28, 1, 8),
            ("IQ1_M", 29, 256, 56),
            ("BF16", 30, 1, 2),
            ("TQ1_0", 34, 256, 54),
            ("TQ2_0", 35, 256, 66),
            ("MXFP4", 39, 32, 17),
            ("NVFP4", 40, 64, 36),
            ("Q1_0", 41, 128, 18),
            ("Q2_0", 42, 64, 18),
        )
    }
)
"""Every type of ggml that a model file can hold, by name. The plain integers and F64 are here because files may carry
them as side data; a weight is never one of them."""

_BY_ID = {quant.id: quant for quant in QUANT_TYPES.values()}
_CANONICAL = {name.upper(): name for name in QUANT_TYPES}
