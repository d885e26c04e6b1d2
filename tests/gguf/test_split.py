"""Models in several files read as one, or say which part is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.errors import ModelFileError
from engine.gguf import GGUFFile
from tests.gguf.builder import INT32, STRING, UINT16, Model, Tensor

FIRST = "model-00001-of-00003.gguf"


def part(number: int, count: int = 3, total: int = 5) -> Model:
    """Part `number` (from 0) of a model with one or two tensors a part."""
    names = {0: ["a"], 1: ["b", "c"], 2: ["d", "e"]}[number]
    model = Model(tensors=[Tensor(name, [number + 2, 2]) for name in names])
    model.keys = {"split.no": (UINT16, number), "split.count": (UINT16, count), "split.tensors.count": (INT32, total)}
    if number == 0:
        model.keys["general.architecture"] = (STRING, "llama")
    return model


def write(folder: Path, parts: dict[int, Model]) -> Path:
    for number, model in parts.items():
        (folder / f"model-{number + 1:05d}-of-00003.gguf").write_bytes(bytes(model))
    return folder / FIRST


@pytest.fixture
def parts() -> dict[int, Model]:
    return {number: part(number) for number in range(3)}


def test_all_parts_read_as_one(tmp_path: Path, parts: dict[int, Model]) -> None:
    file = GGUFFile.open(write(tmp_path, parts))
    assert list(file.tensors) == ["a", "b", "c", "d", "e"]
    assert file.architecture == "llama"
    assert file.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert [info.part for info in file.tensors.values()] == [0, 1, 1, 2, 2]
    for name, columns in {"a": 2, "c": 3, "e": 4}.items():
        assert file.data(name).view(np.float32).tolist() == np.arange(2.0 * columns).reshape(2, columns).tolist()


def test_a_missing_part_is_named(tmp_path: Path, parts: dict[int, Model]) -> None:
    del parts[1]
    with pytest.raises(ModelFileError, match=r"needs model-00002-of-00003\.gguf, which is not beside it"):
        GGUFFile.open(write(tmp_path, parts))


def test_several_missing_parts(tmp_path: Path, parts: dict[int, Model]) -> None:
    del parts[1], parts[2]
    with pytest.raises(ModelFileError, match=r"needs model-00002-of-00003\.gguf and 1 more"):
        GGUFFile.open(write(tmp_path, parts))


def test_a_later_part_points_to_the_first(tmp_path: Path, parts: dict[int, Model]) -> None:
    write(tmp_path, parts)
    with pytest.raises(ModelFileError, match=f"is part 2 of 3 .* Open {FIRST} instead"):
        GGUFFile.open(tmp_path / "model-00002-of-00003.gguf")


def test_a_renamed_first_part(tmp_path: Path, parts: dict[int, Model]) -> None:
    renamed = write(tmp_path, parts).rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="is not named …-00001-of-00003.gguf"):
        GGUFFile.open(renamed)


def test_parts_that_were_exchanged(tmp_path: Path, parts: dict[int, Model]) -> None:
    parts[1], parts[2] = parts[2], parts[1]
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003.gguf: the key split.no is 2, but must be 1"):
        GGUFFile.open(write(tmp_path, parts))


def test_a_part_of_another_split(tmp_path: Path, parts: dict[int, Model]) -> None:
    parts[2] = part(2, count=4)
    with pytest.raises(ModelFileError, match=r"model-00003-of-00003.gguf: the key split.count is 4, but must be 3"):
        GGUFFile.open(write(tmp_path, parts))


def test_a_part_that_is_not_one(tmp_path: Path, parts: dict[int, Model]) -> None:
    parts[2].keys.clear()
    with pytest.raises(ModelFileError, match=r"model-00003-of-00003.gguf: the key split.no is None"):
        GGUFFile.open(write(tmp_path, parts))


def test_a_damaged_part_is_named(tmp_path: Path, parts: dict[int, Model]) -> None:
    path = write(tmp_path, parts)
    (tmp_path / "model-00003-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"model-00003-of-00003\.gguf: it ends inside the version"):
        GGUFFile.open(path)


def test_a_tensor_in_two_parts(tmp_path: Path, parts: dict[int, Model]) -> None:
    parts[2].tensors[0].name = "b"
    with pytest.raises(ModelFileError, match=r"tensor b is in model-00002-of-00003.gguf and in model-00003"):
        GGUFFile.open(write(tmp_path, parts))


def test_too_few_tensors(tmp_path: Path, parts: dict[int, Model]) -> None:
    parts[0] = part(0, total=6)
    with pytest.raises(ModelFileError, match=r"split.tensors.count is 6, but the parts hold 5 tensors"):
        GGUFFile.open(write(tmp_path, parts))
