"""Every type against ggml's own dequantised rows, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.quants import QUANT_TYPES, QuantType, dequantize, quantize

TYPES = [name for name in QUANT_TYPES if name not in ("F32", "F64", "I8", "I16", "I32", "I64")]
BYTE_EQUAL = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
SEARCHED = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def reference(fixtures_dir: Path, name: str) -> Any:
    for path in (fixtures_dir / "quants").glob("*.npz"):
        if path.stem.upper() == name.upper():
            return np.load(path)
    pytest.skip(f"no reference data for {name} in {fixtures_dir / 'quants'}")


def bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """NaNs are alike whatever their payload."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


def test_no_file_of_the_reference_is_left_out(fixtures_dir: Path) -> None:
    stems = {path.stem.upper() for path in (fixtures_dir / "quants").glob("*.npz")}
    assert stems <= {name.upper() for name in TYPES}


@pytest.mark.parametrize("name", TYPES)
def test_layout(fixtures_dir: Path, name: str) -> None:
    data = reference(fixtures_dir, name)
    quant = QuantType.by_name(name)
    assert quant is QuantType.by_id(int(data["type_id"]))
    assert (quant.block_size, quant.block_bytes) == (int(data["block_size"]), int(data["block_bytes"]))
    assert quant.row_bytes(data["src"].shape[1]) == data["q"].shape[1]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", ["", "rnd_"], ids=["quantised", "random bytes"])
def test_dequantised_rows(fixtures_dir: Path, name: str, kind: str) -> None:
    data = reference(fixtures_dir, name)
    values = dequantize(QUANT_TYPES[name], data[f"{kind}q"])
    assert values.dtype == np.float32
    np.testing.assert_array_equal(bits(values), bits(data[f"{kind}deq"]))


@pytest.mark.parametrize("name", TYPES)
def test_many_rows_are_what_each_is_alone(fixtures_dir: Path, name: str) -> None:
    """Rows are decoded in chunks; a chunk ends inside of a row here."""
    data = reference(fixtures_dir, name)
    rows = np.tile(data["q"], (37, 3))
    out = np.full((rows.shape[0], 3 * 512), 7, np.float32)
    assert dequantize(QUANT_TYPES[name], rows, out) is out
    np.testing.assert_array_equal(bits(out), bits(np.tile(data["deq"], (37, 3))))


@pytest.mark.parametrize("name", TYPES)
def test_rows_that_lie_anywhere(fixtures_dir: Path, name: str) -> None:
    """Read-only, at an odd address, with gaps between the rows, into every other row of a larger buffer."""
    data = reference(fixtures_dir, name)
    n, row_bytes = data["q"].shape
    buffer = np.zeros((n, row_bytes + 3), np.uint8)
    buffer[:, 1:-2] = data["q"]
    buffer.flags.writeable = False
    out = np.zeros((2 * n, 512), np.float32)
    dequantize(QUANT_TYPES[name], buffer[:, 1:-2], out[::2])
    np.testing.assert_array_equal(bits(out[::2]), bits(data["deq"]))
    assert not out[1::2].any()


@pytest.mark.parametrize("name", BYTE_EQUAL)
def test_quantised_bytes(fixtures_dir: Path, name: str) -> None:
    data = reference(fixtures_dir, name)
    np.testing.assert_array_equal(quantize(QUANT_TYPES[name], data["src"]), data["q"])


@pytest.mark.parametrize("name", SEARCHED)
def test_error_of_the_searched_types(fixtures_dir: Path, name: str) -> None:
    """In no row more than 1.05 times the squared error of ggml, and not more over all rows."""
    data = reference(fixtures_dir, name)
    src = data["src"].astype(np.float64)
    ours = ((dequantize(QUANT_TYPES[name], quantize(QUANT_TYPES[name], data["src"])) - src) ** 2).sum(axis=1)
    ggml = ((data["deq"] - src) ** 2).sum(axis=1)
    assert (ours <= 1.05 * ggml).all(), ours / ggml
    assert (ours / np.maximum(ggml, 1e-300)).mean() <= 1
