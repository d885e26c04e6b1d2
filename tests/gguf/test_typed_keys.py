"""The typed getters: values, defaults, and errors that name the key, the wanted type and the found one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.errors import ModelFileError
from engine.gguf import GGUFFile
from tests.gguf.builder import (
    ARRAY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT32,
    STRING,
    UINT16,
    UINT32,
    UINT64,
    Array,
    Model,
)

KEYS: dict[str | bytes, tuple[int, object]] = {
    "count": (UINT32, 12),
    "negative": (INT8, -3),
    "huge": (UINT64, 2**64 - 1),
    "ratio": (FLOAT32, 0.5),
    "precise": (FLOAT64, 1e-300),
    "nan": (FLOAT32, float("nan")),
    "flag": (BOOL, True),
    "name": (STRING, "é"),
    "names": (ARRAY, Array(STRING, ["a", "b"])),
    "heads": (ARRAY, Array(UINT16, [4, 8])),
    "bias": (ARRAY, Array(FLOAT32, [0.5, -0.5])),
    "infinite": (ARRAY, Array(FLOAT32, [float("inf")])),
    "too_large": (ARRAY, Array(UINT64, [2**63])),
    "empty": (ARRAY, Array(INT32, [])),
    "flags": (ARRAY, Array(BOOL, [True])),
}


@pytest.fixture
def file(tmp_path: Path) -> GGUFFile:
    path = tmp_path / "keys.gguf"
    path.write_bytes(bytes(Model(keys=KEYS)))
    return GGUFFile.open(path)


def test_values(file: GGUFFile) -> None:
    assert file.int("count") == 12
    assert file.int("negative", minimum=-3, maximum=-3) == -3
    assert file.int("huge") == 2**64 - 1
    assert file.float("ratio") == 0.5
    assert file.float("precise") == 1e-300
    assert file.bool("flag") is True
    assert file.str("name") == "é"
    assert file.strings("names") == ["a", "b"]
    assert file.ints("heads").tolist() == [4, 8]
    assert file.ints("heads").dtype == np.int64
    assert file.floats("bias").tolist() == [0.5, -0.5]
    assert file.ints("empty").size == 0


def test_one_number_for_all_layers(file: GGUFFile) -> None:
    assert file.ints("count", count=3).tolist() == [12, 12, 12]
    assert file.floats("ratio", count=2).tolist() == [0.5, 0.5]
    assert file.ints("heads", count=2).tolist() == [4, 8]
    with pytest.raises(ModelFileError, match="heads has 2 entries where 3 are needed"):
        file.ints("heads", count=3)
    with pytest.raises(ModelFileError, match="count must be an array of integers"):
        file.ints("count")
    with pytest.raises(ModelFileError, match="ratio must be an array of integers"):
        file.ints("ratio", count=2)


def test_defaults_stand_in_for_absent_keys_only(file: GGUFFile) -> None:
    assert file.int("absent", 5) == 5
    assert file.int("absent", None) is None
    assert file.float("absent", 1.5) == 1.5
    assert file.bool("absent", False) is False
    assert file.str("absent", "") == ""
    assert file.strings("absent", None) is None
    assert file.ints("absent", None) is None
    assert file.floats("absent", None) is None
    with pytest.raises(ModelFileError, match="name must be an integer"):
        file.int("name", 5)


@pytest.mark.parametrize("getter", ["int", "float", "bool", "str", "strings", "ints", "floats"])
def test_a_missing_key_is_named(file: GGUFFile, getter: str) -> None:
    with pytest.raises(ModelFileError, match=r"keys\.gguf: the key llama\.absent is missing"):
        getattr(file, getter)("llama.absent")


@pytest.mark.parametrize(
    ("getter", "key", "wanted", "found"),
    [
        ("int", "ratio", "an integer", "float32"),
        ("int", "flag", "an integer", "bool"),
        ("int", "heads", "an integer", "an array of 2 uint16 values"),
        ("float", "count", "a floating-point number", "uint32"),
        ("bool", "count", "a boolean", "uint32"),
        ("str", "names", "a string", "an array of 2 strings"),
        ("strings", "name", "an array of strings", "a string"),
        ("strings", "heads", "an array of strings", "an array of 2 uint16 values"),
        ("ints", "bias", "an array of integers", "an array of 2 float32 values"),
        ("ints", "flags", "an array of integers", "an array of 1 bool values"),
        ("ints", "names", "an array of integers", "an array of 2 strings"),
        ("floats", "heads", "an array of floating-point numbers", "an array of 2 uint16 values"),
    ],
)
def test_a_wrong_type_is_named(file: GGUFFile, getter: str, key: str, wanted: str, found: str) -> None:
    with pytest.raises(ModelFileError, match=f"the key {key} must be {wanted}, but the file has {found}"):
        getattr(file, getter)(key)


def test_ranges(file: GGUFFile) -> None:
    with pytest.raises(ModelFileError, match="count is 12, but must be at most 11"):
        file.int("count", maximum=11)
    with pytest.raises(ModelFileError, match="negative is -3, but must be at least 0"):
        file.int("negative", minimum=0)
    with pytest.raises(ModelFileError, match=r"ratio is 0\.5, but must be at least 1"):
        file.float("ratio", minimum=1)
    with pytest.raises(ModelFileError, match="heads is 8, but must be at most 7"):
        file.ints("heads", maximum=7)
    with pytest.raises(ModelFileError, match=r"bias is -0\.5, but must be at least 0"):
        file.floats("bias", minimum=0)


def test_numbers_that_cannot_be_used(file: GGUFFile) -> None:
    with pytest.raises(ModelFileError, match="nan is nan"):
        file.float("nan")
    with pytest.raises(ModelFileError, match="infinite holds a value that is not a finite number"):
        file.floats("infinite")
    with pytest.raises(ModelFileError, match="too_large holds 9223372036854775808"):
        file.ints("too_large")
