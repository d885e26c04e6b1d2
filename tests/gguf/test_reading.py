"""What a sound file reads as."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ModelFileError, UnsupportedModelError
from engine.gguf import GGUFFile, TensorInfo
from engine.quants import QUANT_TYPES
from tests.gguf.builder import ARRAY, CODES, FLOAT32, STRING, UINT32, Array, Model, Tensor, small_model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(bytes(small_model()))
    return path


def write(folder: Path, model: Model, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(bytes(model))
    return path


def test_metadata_of_every_type(small: Path) -> None:
    file = GGUFFile.open(small)
    for kind in CODES:
        value = file.metadata[f"test.scalar.{kind}"]
        assert value == (True if kind == 7 else 7)
        assert type(value) is {6: float, 12: float, 7: bool}.get(kind, int)
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "bé", "\udcff\udcfe", ""]
    assert file.metadata["tokenizer.ggml.tokens"][2].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    scores = file.metadata["tokenizer.ggml.scores"]
    assert scores.dtype == np.float32
    assert scores.tolist() == [0.5, -1.0, 0.0, 2.0]
    assert file.metadata["test.flags"].tolist() == [True, False]
    assert file.metadata["test.flags"].dtype == bool
    assert file.metadata["test.empty"].size == 0
    assert (file.version, file.alignment, file.size) == (3, 32, small.stat().st_size)


def test_tensors_in_numpy_order_and_file_order(small: Path) -> None:
    file = GGUFFile.open(small)
    assert list(file.tensors) == ["token_embd.weight", "output_norm.weight", "blk.0.ffn_down.weight"]
    embd = file.tensors["token_embd.weight"]
    assert (embd.shape, embd.type, embd.nbytes, embd.n_values) == ((3, 4), QUANT_TYPES["F32"], 48, 12)
    assert small.read_bytes()[embd.offset : embd.offset + embd.nbytes] == file.data("token_embd.weight").tobytes()
    assert file.data("token_embd.weight").view(np.float32).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert file.data("output_norm.weight").shape == (1, 20)
    assert file.tensors["blk.0.ffn_down.weight"].type.name == "Q4_1"
    assert file.data("blk.0.ffn_down.weight").shape == (2, 40)
    assert file.data("blk.0.ffn_down.weight").tobytes() == bytes(range(80))


def test_rows_of_a_tensor_of_three_dimensions(tmp_path: Path) -> None:
    file = GGUFFile.open(write(tmp_path, Model(tensors=[Tensor("blk.0.ffn_down_exps.weight", [4, 3, 2])])))
    assert file.tensors["blk.0.ffn_down_exps.weight"].shape == (2, 3, 4)
    assert file.data("blk.0.ffn_down_exps.weight").shape == (6, 16)


def test_data_is_a_read_only_view_that_outlives_the_file(small: Path) -> None:
    with GGUFFile.open(small) as file:
        view = file.data("token_embd.weight")
        assert not view.flags.writeable
        assert np.shares_memory(view, file.data("token_embd.weight"))
    del file
    assert view.view(np.float32)[2, 3] == 11


def test_data_after_close_says_so(small: Path) -> None:
    file = GGUFFile.open(small)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.data("token_embd.weight")
    assert file.metadata["llama.block_count"] == 2


def test_shapes_compare_without_leading_ones() -> None:
    info = TensorInfo("x", (1, 1, 32), QUANT_TYPES["F32"], 0, 128)
    assert info.has_shape(32)
    assert info.has_shape(1, 32)
    assert not info.has_shape(32, 1)
    assert not info.has_shape(1, 32, 32)
    assert TensorInfo("x", (1,), QUANT_TYPES["F32"], 0, 4).has_shape(1, 1)


def test_version_2(tmp_path: Path) -> None:
    model = small_model()
    model.version = 2
    assert GGUFFile.open(write(tmp_path, model)).version == 2


@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_alignments(tmp_path: Path, alignment: int) -> None:
    model = small_model()
    model.alignment = alignment
    model.keys["general.alignment"] = (UINT32, alignment)
    file = GGUFFile.open(write(tmp_path, model))
    assert file.alignment == alignment
    assert all(info.offset % alignment == 0 for info in file.tensors.values())
    assert file.data("blk.0.ffn_down.weight").tobytes() == bytes(range(80))


def test_vocabulary_only_without_padding(tmp_path: Path) -> None:
    model = Model(keys={"general.architecture": (STRING, "llama"), "a.b": (STRING, "odd length")})
    model.alignment = 1
    file = GGUFFile.open(write(tmp_path, model))
    assert not file.tensors
    assert file.architecture == "llama"


def test_no_architecture_opens_and_says_so_when_asked(tmp_path: Path) -> None:
    file = GGUFFile.open(write(tmp_path, Model(keys={"general.type": (STRING, "adapter")})))
    with pytest.raises(ModelFileError, match=r"general\.architecture is missing"):
        _ = file.architecture


@pytest.mark.parametrize("name", ["", "lla\udcffma"])
def test_unreadable_architecture(tmp_path: Path, name: str) -> None:
    model = Model(keys={"general.architecture": (STRING, name.encode("utf-8", "surrogateescape"))})
    file = GGUFFile.open(write(tmp_path, model))
    with pytest.raises(ModelFileError, match=r"general\.architecture") as raised:
        _ = file.architecture
    str(raised.value).encode()  # can be printed


def test_bytes_after_the_last_tensor_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "tail.gguf"
    path.write_bytes(bytes(small_model()) + b"tail")
    assert len(GGUFFile.open(path).tensors) == 3


def test_the_last_tensor_needs_no_padding(tmp_path: Path) -> None:
    path = tmp_path / "unpadded.gguf"
    path.write_bytes(bytes(small_model())[:-16])  # 80 bytes are padded to 96
    assert GGUFFile.open(path).data("blk.0.ffn_down.weight").tobytes() == bytes(range(80))


def test_a_large_vocabulary_opens_quickly(tmp_path: Path) -> None:
    tokens: list[object] = [f"token {i}" for i in range(300_000)]
    path = write(tmp_path, Model(keys={"tokenizer.ggml.tokens": (ARRAY, Array(STRING, tokens))}))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        file = GGUFFile.open(path)
        seconds.append(time.process_time() - start)
        assert file.strings("tokenizer.ggml.tokens") == tokens
    assert min(seconds) < 0.3


def test_not_there_not_a_file_empty(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"There is no file .*nothing\.gguf"):
        GGUFFile.open(tmp_path / "nothing.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        GGUFFile.open(tmp_path)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelFileError, match="is empty"):
        GGUFFile.open(str(tmp_path / "empty.gguf"))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"GGML" + bytes(64), "older than GGUF"),
        (b"PK\x03\x04" + bytes(64), "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"\x89PNG\r\n\x1a\n", "starts with b'\\x89PNG'"),
        (b"GG", "starts with b'GG'"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, start: bytes, words: str) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(start)
    with pytest.raises(ModelFileError) as raised:
        GGUFFile.open(path)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("version", "words"),
    [(1, "version 1 .* too old"), (3 << 24, "big-endian"), (2 << 24, "big-endian"), (4, "version 4")],
)
def test_versions_that_are_not_supported(tmp_path: Path, version: int, words: str) -> None:
    model = small_model()
    model.version = version
    with pytest.raises(UnsupportedModelError, match=words):
        GGUFFile.open(write(tmp_path, model))


@pytest.mark.parametrize(("type_id", "words"), [(1000, "unknown type 1000"), (4, "Q4_2"), (31, "Q4_0_4_4")])
def test_tensor_types_that_are_not_supported(tmp_path: Path, type_id: int, words: str) -> None:
    model = small_model()
    model.tensors[0].type = type_id
    with pytest.raises(UnsupportedModelError, match=f"token_embd.weight.*{words}"):
        GGUFFile.open(write(tmp_path, model))


def test_an_array_of_arrays_is_not_supported(tmp_path: Path) -> None:
    model = small_model()
    model.keys["x.nested"] = (ARRAY, Array(ARRAY, [Array(FLOAT32, [1.0])]))
    with pytest.raises(UnsupportedModelError, match=r"x\.nested is an array of arrays"):
        GGUFFile.open(write(tmp_path, model))


def test_the_starter_model(starter_model: Path) -> None:
    file = GGUFFile.open(starter_model)
    assert file.architecture == "llama"
    assert file.int("llama.block_count") == 30
    assert len(file.strings("tokenizer.ggml.tokens")) == 49152
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    last = max(file.tensors.values(), key=lambda info: info.offset)
    assert last.offset + last.nbytes <= file.size
