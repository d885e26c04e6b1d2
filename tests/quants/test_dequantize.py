"""What holds for every type without reference data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from engine.quants import QUANT_TYPES, QuantType, dequantize
from engine.quants.decode import DECODERS


def test_every_type_can_be_dequantised() -> None:
    assert set(DECODERS) == set(QUANT_TYPES)


def test_lookups() -> None:
    assert QuantType.by_id(12).name == "Q4_K"
    assert QuantType.by_name("q4_k") is QUANT_TYPES["Q4_K"]
    with pytest.raises(KeyError):
        QuantType.by_id(4)
    with pytest.raises(KeyError):
        QuantType.by_name("Q9_9")
    assert len({quant.id for quant in QUANT_TYPES.values()}) == len(QUANT_TYPES)


def test_row_bytes() -> None:
    assert QUANT_TYPES["Q4_1"].row_bytes(576) == 360
    assert QUANT_TYPES["Q4_1"].bits_per_value == 5
    with pytest.raises(ValueError, match="48 values is not a whole number of Q4_1 blocks"):
        QUANT_TYPES["Q4_1"].row_bytes(48)


@pytest.mark.parametrize(
    ("name", "dtype"), [("F32", "f4"), ("F64", "f8"), ("I8", "i1"), ("I16", "i2"), ("I32", "i4"), ("I64", "i8")]
)
def test_plain_numbers(name: str, dtype: str) -> None:
    numbers = np.array([[1, -2, 100], [0, 7, -128]], dtype)
    values = dequantize(QUANT_TYPES[name], numbers.view(np.uint8))
    assert values.tolist() == numbers.tolist()


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_any_bytes_decode_without_a_warning(name: str) -> None:
    """Infinite and NaN scales among them: a damaged model must not fill the terminal."""
    quant = QUANT_TYPES[name]
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 256, (64, 4 * quant.block_bytes), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dequantize(quant, rows).shape == (64, 4 * quant.block_size)


@pytest.mark.parametrize("name", QUANT_TYPES)
def test_no_rows(name: str) -> None:
    quant = QUANT_TYPES[name]
    assert dequantize(quant, np.zeros((0, quant.block_bytes), np.uint8)).shape == (0, quant.block_size)


def test_wrong_shapes_are_named() -> None:
    quant = QUANT_TYPES["Q4_0"]
    with pytest.raises(ValueError, match=r"multiple of 18\], not uint8 \[2, 20\]"):
        dequantize(quant, np.zeros((2, 20), np.uint8))
    with pytest.raises(ValueError, match="not float32"):
        dequantize(quant, np.zeros((2, 18), np.float32))
    with pytest.raises(ValueError, match=r"float32 \[2, 32\], but out is float32 \[2, 31\]"):
        dequantize(quant, np.zeros((2, 18), np.uint8), np.zeros((2, 31), np.float32))
    with pytest.raises(ValueError, match="but out is float64"):
        dequantize(quant, np.zeros((2, 18), np.uint8), np.zeros((2, 32), np.float64))
