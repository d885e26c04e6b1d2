"""Damaged files: each is refused with an error that names the place, whatever the damage asks for."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ModelFileError, RealmError
from engine.gguf import GGUFFile
from tests.gguf.builder import ARRAY, INT32, STRING, UINT8, UINT16, UINT32, Array, Model, Tensor, small_model, string

Change = Callable[[Model], object]


def set_key(key: str | bytes, kind: int, value: object) -> Change:
    return lambda model: model.keys.update({key: (kind, value)})


def set_raw(raw: bytes) -> Change:
    return lambda model: setattr(model, "raw_keys", raw)


def set_tensor(index: int, **changes: object) -> Change:
    return lambda model: vars(model.tensors[index]).update(changes)


CASES: list[tuple[str, Change, str]] = [
    ("version 0", lambda m: setattr(m, "version", 0), "version of the GGUF format is 0"),
    ("too many tensors", lambda m: setattr(m, "n_tensors", 2**31), "claims 2147483648 tensors"),
    ("negative tensors", lambda m: setattr(m, "n_tensors", 2**64 - 1), "claims -1 tensors"),
    ("too many keys", lambda m: setattr(m, "n_keys", 2**40), "claims 1099511627776 keys"),
    ("negative keys", lambda m: setattr(m, "n_keys", 2**64 - 5), "claims -5 keys"),
    ("empty key", set_key("", UINT8, 1), "name of key 20 of 20 is empty"),
    ("key past the end", set_raw(struct.pack("<Q", 2**63) + b"x"), "name of key 20 of 20 claims 9223372036854775808"),
    ("key twice", set_raw(string("llama.block_count") + struct.pack("<II", 4, 3)), "llama.block_count occurs twice"),
    ("value type", set_raw(string("x.y") + struct.pack("<IQ", 13, 0)), "x.y has the unknown value type 13"),
    ("element type", set_raw(string("x.y") + struct.pack("<IIQ", 9, 77, 0)), "x.y is an array of the unknown"),
    ("string value", set_raw(string("x.y") + struct.pack("<IQ", 8, 2**64 - 1)), "x.y claims 18446744073709551615"),
    ("array count", set_raw(string("x.y") + struct.pack("<IIQ", 9, 10, 2**61)), "x.y claims an array of 23058430"),
    ("string count", set_raw(string("x.y") + struct.pack("<IIQ", 9, 8, 2**33)), "x.y claims an array of 8589934592"),
    (
        "string in array",
        set_raw(string("x.y") + struct.pack("<IIQQ", 9, 8, 3, 0) + struct.pack("<Q", 10**9)),
        "string 2 of 3 in the key x.y runs past the end",
    ),
    ("architecture type", set_key("general.architecture", UINT32, 1), "general.architecture must be a string"),
    ("alignment 0", set_key("general.alignment", UINT32, 0), "general.alignment is 0"),
    ("alignment 48", set_key("general.alignment", UINT32, 48), "general.alignment is 48"),
    ("alignment 2**31", set_key("general.alignment", UINT32, 2**31), "alignment 2147483648"),
    ("alignment text", set_key("general.alignment", STRING, "32"), "general.alignment must be uint32, .* a string"),
    ("alignment int32", set_key("general.alignment", INT32, -32), "general.alignment must be uint32, .* int32"),
    ("alignment array", set_key("general.alignment", ARRAY, Array(UINT32, [32])), "general.alignment must be uint32"),
    ("unreadable key", set_raw(string(b"x.\xff\n") + struct.pack("<IQ", 13, 0)), r"the key x\.\\udcff\\n has the unk"),
    ("no tensor name", set_tensor(1, name=""), "name of tensor 2 of 3 has 0 bytes"),
    ("long tensor name", set_tensor(1, name="x" * 64), "name of tensor 2 of 3 has 64 bytes"),
    ("tensor twice", set_tensor(1, name="token_embd.weight"), "token_embd.weight occurs twice"),
    ("no dimensions", set_tensor(1, dims=[], n_dims=0), "output_norm.weight has 0 dimensions"),
    ("five dimensions", set_tensor(1, dims=[1, 1, 1, 1, 5]), "output_norm.weight has 5 dimensions"),
    ("n_dims", set_tensor(1, n_dims=2**32 - 1), "output_norm.weight has 4294967295 dimensions"),
    ("dimension 0", set_tensor(1, dims=[5, 0], data=b""), "output_norm.weight has a dimension of 0"),
    ("negative dimension", set_tensor(1, dims=[2**64 - 5], data=b""), "output_norm.weight has a dimension of -5"),
    ("bytes wrap", set_tensor(1, dims=[2**62], data=b""), "output_norm.weight of shape .* needs 18446744073709551616"),
    ("product wraps", set_tensor(1, dims=[2**32, 2**32], data=b""), "output_norm.weight of shape .* needs"),
    ("half a block", set_tensor(2, dims=[48, 2]), "ffn_down.weight has rows of 48 values, .* Q4_1 blocks of 32"),
    ("offset wraps", set_tensor(2, offset=2**64 - 32), "ffn_down.weight has the offset 18446744073709551584"),
    ("offset odd", set_tensor(2, offset=97), "ffn_down.weight has the offset 97, .* alignment 32"),
    ("overlap", set_tensor(2, offset=32), "ffn_down.weight has the offset 32, which overlaps"),
    ("gap", set_tensor(2, offset=128), "ffn_down.weight has the offset 128, but .* ends at 96"),
    ("past the end", set_tensor(2, dims=[64, 3]), "ffn_down.weight should end at byte"),
    ("split keys", set_key("split.count", STRING, "two"), "split.count must be an integer"),
    ("split number", lambda m: m.keys.update({"split.count": (UINT16, 2), "split.no": (UINT16, 5)}), "split.no is 5"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_damage_is_named(tmp_path: Path, change: Change, words: str) -> None:
    model = small_model()
    change(model)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(model))
    with pytest.raises(ModelFileError, match=words) as raised:
        GGUFFile.open(path)
    assert "damaged.gguf" in raised.value.message
    assert raised.value.hint


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = bytes(small_model())
    path = tmp_path / "cut.gguf"
    for length in range(len(whole) - 16):  # the last tensor ends 16 bytes before the padding does
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFileError):
            GGUFFile.open(path)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


EXTREMES = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)]
EXTREMES += [struct.pack("<I", n) for n in (0, 1, 8, 9, 13, 2**31 - 1, 2**32 - 1)]


def test_every_place_of_the_header_with_every_extreme(folder: Path) -> None:
    whole = bytes(small_model())
    for at in range(len(small_model().head())):
        for extreme in EXTREMES:
            open_or_refuse(folder, whole[:at] + extreme + whole[at + len(extreme) :])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound file with a few pieces overwritten, removed, repeated or inserted."""
    data = bytearray(bytes(small_model()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        piece = draw(st.one_of(st.binary(max_size=40), st.sampled_from(EXTREMES), st.just(bytes(data[at:][:length]))))
        data[at : at + draw(st.sampled_from([0, len(piece), length]))] = piece
    return bytes(data)


@settings(max_examples=400, deadline=2000)
@given(data=damaged())
def test_random_damage(folder: Path, data: bytes) -> None:
    open_or_refuse(folder, data)


@settings(max_examples=100, deadline=2000)
@given(data=damaged())
def test_damage_never_asks_for_much_memory(folder: Path, data: bytes) -> None:
    tracemalloc.start()
    try:
        open_or_refuse(folder, data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def open_or_refuse(folder: Path, data: bytes) -> None:
    """Opens and reads everything that the file offers; only RealmError may come out."""
    path = folder / "damaged.gguf"
    path.unlink(missing_ok=True)  # a new file: one that is still mapped must not shrink
    path.write_bytes(data)
    try:
        file = GGUFFile.open(path)
    except RealmError as error:
        str(error).encode()  # can be printed
        return
    for name, info in file.tensors.items():
        assert file.data(name).nbytes == info.nbytes
        assert int(file.data(name)[-1, -1]) >= 0  # the last byte is really there


def test_the_builder_makes_what_the_reader_takes(folder: Path) -> None:
    """So that what the tests above see refused is refused for the damage."""
    path = folder / "sound.gguf"
    path.write_bytes(bytes(Model(tensors=[Tensor("x", [3])])))
    assert GGUFFile.open(path).tensors["x"].shape == (3,)
