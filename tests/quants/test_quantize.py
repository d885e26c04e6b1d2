"""What quantising and dequantising keeps, for any values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engine.quants import QUANT_TYPES, dequantize, quantize
from engine.quants.encode import ENCODERS

# The largest error of a value as a share of the block's largest magnitude: half a step of its scale, where nothing is
# clipped, and a whole one for the value that has no code; minimums make the steps up to twice as wide.
LARGEST_ERROR = {
    "F32": 0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q8_0": 1 / 254,
    "Q4_0": 1 / 8,
    "Q4_1": 1 / 15,
    "Q5_0": 1 / 16,
    "Q5_1": 1 / 31,
}
pytestmark = pytest.mark.filterwarnings("error")
K_QUANTS = [name for name in ENCODERS if name.endswith("_K")]

blocks = hnp.arrays(np.float32, (2, 256), elements=st.floats(-1e4, 1e4, width=32))


@pytest.mark.parametrize("name", LARGEST_ERROR)
@settings(max_examples=40, deadline=None)
@given(values=blocks)
def test_error_stays_within_the_step(name: str, values: NDArray[np.float32]) -> None:
    quant = QUANT_TYPES[name]
    error = np.abs(dequantize(quant, quantize(quant, values)) - values).reshape(-1, quant.block_size)
    largest = np.abs(values).reshape(-1, quant.block_size).max(axis=1, keepdims=True)
    # F16 scales are off by 2**-11 of themselves, or by 2**-25 where they are subnormal, times up to 128 codes.
    assert (error <= largest * (LARGEST_ERROR[name] + (2**-10 if quant.block_size > 1 else 0)) + 1e-5).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_zeros_stay_zeros(name: str) -> None:
    quant = QUANT_TYPES[name]
    assert not dequantize(quant, quantize(quant, np.zeros((3, 512), np.float32))).any()


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_do_not_depend_on_their_neighbours(name: str) -> None:
    quant = QUANT_TYPES[name]
    values = np.random.default_rng(1).standard_normal((140, 512)).astype(np.float32)  # more than one chunk
    together = quantize(quant, values)
    np.testing.assert_array_equal(quantize(quant, values[130:]), together[130:])
    np.testing.assert_array_equal(quantize(quant, values[:, ::2].copy()), quantize(quant, values[:, ::2]))


@pytest.mark.parametrize(("worse", "better"), [("Q2_K", "Q3_K"), ("Q3_K", "Q4_K"), ("Q4_K", "Q5_K"), ("Q5_K", "Q6_K")])
def test_more_bits_mean_a_smaller_error(worse: str, better: str) -> None:
    values = np.random.default_rng(2).standard_t(4, (16, 512)).astype(np.float32)
    errors = [
        np.square(dequantize(QUANT_TYPES[name], quantize(QUANT_TYPES[name], values)) - values).mean()
        for name in (worse, better)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("name", K_QUANTS)
@settings(max_examples=15, deadline=None)
@given(values=blocks)
def test_k_quants_take_any_values(name: str, values: NDArray[np.float32]) -> None:
    quant = QUANT_TYPES[name]
    restored = dequantize(quant, quantize(quant, values))
    assert np.isfinite(restored).all()
    assert np.square(restored - values).sum() <= np.square(values).sum() * 1.001 + 1e-6


def test_bf16_rounds_to_even_and_keeps_what_is_not_a_number() -> None:
    bits = np.array([[0x3F808000, 0x3F818000, 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF]], np.uint32)
    upper = quantize(QUANT_TYPES["BF16"], bits.view(np.float32)).view(np.uint16)
    assert upper.tolist() == [[0x3F80, 0x3F82, 0x7FC0, 0x7F80, 0xFF80, 0x7F80]]


def test_what_cannot_be_quantised_is_named() -> None:
    values = np.zeros((2, 256), np.float32)
    with pytest.raises(ValueError, match="Cannot quantise to IQ2_XS"):
        quantize(QUANT_TYPES["IQ2_XS"], values)
    with pytest.raises(ValueError, match=r"a multiple of 256\], not float32 \[2, 128\]"):
        quantize(QUANT_TYPES["Q4_K"], values[:, :128])
    with pytest.raises(ValueError, match="not float64"):
        quantize(QUANT_TYPES["Q4_0"], values.astype(np.float64))
    values[1, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        quantize(QUANT_TYPES["Q8_0"], values)
