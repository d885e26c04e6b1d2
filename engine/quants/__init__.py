"""Quantised tensor rows: what the types are, and how rows of each turn into float32 and back."""

from engine.quants.decode import dequantize
from engine.quants.encode import quantize
from engine.quants.types import QUANT_TYPES, QuantType

__all__ = ["QUANT_TYPES", "QuantType", "dequantize", "quantize"]
