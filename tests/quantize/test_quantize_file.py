"""Whole files: what is kept, what is converted, and that others can read them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from engine.architectures import read_architecture
from engine.errors import ModelFileError, RealmError, RequestError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.gguf.write import GGUFWriter
from engine.quantize import TARGETS, output_paths, plan_quantisation, quantize_file
from engine.quants import dequantize, quantize
from engine.quants.types import QuantType
from tests.backends.memory_file import load, one_sequence
from tests.gguf.builder import ARRAY, STRING, UINT32, Array, Model, Tensor, small_model

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K"]
CHANGED = ("general.file_type", "general.quantization_version")

# How far the logits of the tiny llama may move. Its weights are random, so rounding costs far more than in a trained
# model; the bounds are 1.3 times what the types that round to nearest, byte-equal to the reference, cost here.
LARGEST_NMSE = {
    "F32": 0,
    "F16": 0,
    "BF16": 1.5e-4,
    "Q8_0": 1.6e-3,
    "Q6_K": 0.017,
    "Q5_K": 0.06,
    "Q5_1": 0.072,
    "Q5_0": 0.1,
    "Q4_K": 0.2,
    "Q4_1": 0.25,
    "Q4_0": 0.35,
    "Q3_K": 0.73,
    "Q2_K": 1.4,
}


def quantized(source: Path, out: Path, target: str, **options: Any) -> list[Path]:
    with GGUFFile.open(source) as file:
        return quantize_file(file, plan_quantisation(file, target), out, **options)


def logits(path: Path, tokens: Any) -> Any:
    file = GGUFFile.open(path)
    return load("numpy", file, read_architecture(file).graph).forward(one_sequence(tokens))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama(fixtures_dir: Path) -> Path:
    return fixtures_dir / "tiny_models" / "llama.gguf"


@pytest.fixture(scope="module")
def prompt(fixtures_dir: Path) -> Any:
    with np.load(fixtures_dir / "tiny_models" / "llama.npz") as data:
        return data["prompt"]


@pytest.mark.parametrize("target", TYPES)
def test_every_matrix_gets_the_type_and_the_model_still_runs(
    llama: Path, prompt: Any, tmp_path: Path, target: str
) -> None:
    out = tmp_path / "out.gguf"

    assert quantized(llama, out, target) == [out]

    with GGUFFile.open(llama) as old, GGUFFile.open(out) as new:
        assert list(new.tensors) == list(old.tensors)
        for name, info in new.tensors.items():
            before = old.tensors[name]
            assert info.shape == before.shape
            if len(info.shape) == 1:
                assert info.type is before.type
                np.testing.assert_array_equal(new.data(name), old.data(name))
            else:
                assert info.type.name == target
                values = dequantize(before.type, old.data(name))
                np.testing.assert_array_equal(new.data(name), quantize(info.type, values), err_msg=name)
        assert new.int("general.file_type") == TARGETS[target]
        assert new.int("general.quantization_version") == 2
    expected, got = logits(llama, prompt).astype(float), logits(out, prompt).astype(float)
    nmse = ((got - expected) ** 2).sum() / (expected**2).sum()
    assert nmse <= LARGEST_NMSE[target]
    assert list(tmp_path.iterdir()) == [out]


def test_keys_are_copied_byte_for_byte(tmp_path: Path) -> None:
    """Every type of value, arrays, bytes that are no UTF-8, in their order."""
    model = small_model()
    model.keys["general.file_type"] = (UINT32, 3)
    model.keys["test.names"] = (ARRAY, Array(STRING, [b"\xff", "", "x"]))
    model.keys["split.count"] = (UINT32, 1)
    model.tensors[0].name = "blk.0.attn_q.weight"
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    source.write_bytes(bytes(model))

    quantized(source, out, "F16")

    with GGUFFile.open(source) as old, GGUFFile.open(out) as new:
        kept = [key for key in old.metadata if key not in (*CHANGED, "split.count")]
        assert [key for key in new.metadata if key not in CHANGED] == kept
        for key in kept:
            assert new.key_bytes(key) == old.key_bytes(key)
        assert list(new.metadata).index("general.file_type") == list(old.metadata).index("general.file_type")


def test_another_library_reads_the_same(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    quantized(llama, out, "Q4_0")

    reader = GGUFReader(out)

    assert reader.fields["GGUF.version"].contents() == 3
    assert reader.fields["general.file_type"].contents() == 2
    with GGUFFile.open(out) as file:
        assert reader.fields["tokenizer.ggml.tokens"].contents() == file.strings("tokenizer.ggml.tokens")
        assert [tensor.name for tensor in reader.tensors] == list(file.tensors)
        for tensor in reader.tensors:
            assert tensor.data.tobytes() == file.data(tensor.name).tobytes()


@pytest.mark.parametrize("alignment", [32, 256])
def test_split_files_in_and_out(llama: Path, tmp_path: Path, alignment: int) -> None:
    whole = tmp_path / "whole.gguf"
    quantized(llama, whole, "Q8_0")
    source = llama
    if alignment != 32:
        source = tmp_path / "aligned.gguf"
        with GGUFFile.open(llama) as file:
            source.write_bytes(_realigned(file, alignment))

    parts = quantized(source, tmp_path / "part.gguf", "Q8_0", split_max_bytes=300_000)

    assert [path.name for path in parts] == [f"part-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
    assert len(parts) > 2
    assert all(path.stat().st_size <= 300_000 for path in parts)
    for number, path in enumerate(parts):
        fields = GGUFReader(path).fields
        assert fields["split.no"].contents() == number
        assert fields["split.count"].contents() == len(parts)
        assert fields["split.tensors.count"].contents() == 21
        assert ("general.architecture" in fields) is (number == 0)
    joined = tmp_path / "joined.gguf"
    quantized(parts[0], joined, "Q8_0")
    if alignment == 32:
        assert joined.read_bytes() == whole.read_bytes()
    with GGUFFile.open(joined) as file, GGUFFile.open(whole) as other:
        assert file.alignment == alignment
        for name in other.tensors:
            np.testing.assert_array_equal(file.data(name), other.data(name))


def _realigned(file: GGUFFile, alignment: int) -> bytes:
    """The file with another general.alignment."""
    model = Model(alignment=alignment)
    keys = [file.key_bytes(key) for key in file.metadata]
    model.keys["general.alignment"] = (UINT32, alignment)
    model.raw_keys = b"".join(keys)
    model.n_keys = len(keys) + 1
    model.tensors = [
        Tensor(info.name, list(info.shape[::-1]), info.type.id, file.data(info.name).tobytes())
        for info in file.tensors.values()
    ]
    return bytes(model)


def test_a_limit_that_is_not_reached_splits_nothing(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"

    assert quantized(llama, out, "Q8_0", split_max_bytes=10**9) == [out]

    with GGUFFile.open(out) as file:
        assert "split.count" not in file.metadata


def test_sizes_are_known_before(llama: Path, tmp_path: Path) -> None:
    with GGUFFile.open(llama) as file:
        plan = plan_quantisation(file, "Q4_0")
        for most in (None, 200_000):
            expected = output_paths(file, plan, tmp_path / "out.gguf", most)
            paths = quantize_file(file, plan, tmp_path / "out.gguf", split_max_bytes=most)
            assert expected == [(path, path.stat().st_size) for path in paths]


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    import tracemalloc

    rows = np.random.default_rng(0).standard_normal((4000, 1024)).astype(np.float32)
    tensors = [Tensor(f"blk.{i}.attn_q.weight", [1024, 4000], 0, rows.tobytes()) for i in range(4)]
    source = tmp_path / "in.gguf"
    source.write_bytes(bytes(Model(keys={"general.architecture": (STRING, "llama")}, tensors=tensors)))
    del tensors, rows
    tracemalloc.start()
    try:
        quantized(source, tmp_path / "out.gguf", "Q8_0", threads=1)
        assert tracemalloc.get_traced_memory()[1] < 16_000_000 < source.stat().st_size / 4
    finally:
        tracemalloc.stop()


# ---- which type each matrix gets


def plan_of(tmp_path: Path, tensors: list[Tensor], target: str, **keys: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    values = {
        "general.architecture": (STRING, "llama"),
        **{f"llama.{key}": (UINT32, value) for key, value in keys.items()},
    }
    path = tmp_path / "plan.gguf"
    path.write_bytes(bytes(Model(keys=dict(values), tensors=tensors)))  # type: ignore[arg-type]
    with GGUFFile.open(path) as file:
        plan = plan_quantisation(file, target)
    return {tensor.source.name: tensor.type.name for tensor in plan.tensors}, plan.notes


def matrix(name: str, row: int = 256, rows: int = 2) -> Tensor:
    return Tensor(name, [row, rows], 1, bytes(2 * row * rows))


def test_rows_that_do_not_fit_fall_back_with_a_note(tmp_path: Path) -> None:
    tensors = [matrix("a.weight", 64), matrix("b.weight", 40), matrix("c.weight", 256)]
    for target, instead in (("Q2_K", "Q4_0"), ("Q3_K", "Q4_0"), ("Q4_K", "Q5_0"), ("Q5_K", "Q5_1"), ("Q6_K", "Q8_0")):
        types, notes = plan_of(tmp_path, tensors, target)
        assert types == {"a.weight": instead, "b.weight": "F16", "c.weight": target}
        assert any(f"1 matrix gets {instead} where {target}" in note and "a.weight" in note for note in notes)
        assert any(f"1 matrix gets F16 where {target}" in note and "b.weight" in note for note in notes)
    types, notes = plan_of(tmp_path, tensors, "Q8_0")
    assert types == {"a.weight": "Q8_0", "b.weight": "F16", "c.weight": "Q8_0"}
    assert len(notes) == 1


def test_small_and_touchy_matrices_stay(tmp_path: Path) -> None:
    kept = [
        "blk.0.attn_q_norm.weight",
        "blk.0.ffn_gate_inp.weight",
        "position_embd.weight",
        "blk.0.shortconv.conv.weight",
        "rope.table",
    ]
    types, _ = plan_of(tmp_path, [*map(matrix, kept), matrix("blk.0.ffn_gate.weight")], "Q4_0")
    assert types == {**dict.fromkeys(kept, "F16"), "blk.0.ffn_gate.weight": "Q4_0"}


def test_a_vector_with_a_second_dimension_of_one_is_a_vector(tmp_path: Path) -> None:
    types, _ = plan_of(tmp_path, [matrix("a.weight", 256, 1), matrix("b.weight")], "Q8_0")
    assert types == {"a.weight": "F16", "b.weight": "Q8_0"}


PARTS = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


def test_the_mix_of_a_model_of_sixteen_layers(tmp_path: Path) -> None:
    """Layers 0-1, 14-15 and every third between them get more, whatever the order of the file."""
    names = [f"blk.{layer}.{part}.weight" for layer in reversed(range(16)) for part in PARTS]
    tensors = [matrix("output.weight"), *map(matrix, names), matrix("token_embd.weight")]

    types, _ = plan_of(tmp_path, tensors, "Q4_K_M", block_count=16)

    more = {0, 1, 4, 7, 10, 13, 14, 15}
    expected = {"output.weight": "Q6_K", "token_embd.weight": "Q4_K"}
    for layer in range(16):
        for part in PARTS:
            richer = part in ("attn_v", "ffn_down") and layer in more
            expected[f"blk.{layer}.{part}.weight"] = "Q6_K" if richer else "Q4_K"
    assert types == expected


def test_a_tied_embedding_is_treated_as_the_output(tmp_path: Path) -> None:
    tensors = [matrix("token_embd.weight"), matrix("blk.0.attn_q.weight")]
    types, _ = plan_of(tmp_path, tensors, "Q4_K_M", block_count=1)
    assert types == {"token_embd.weight": "Q6_K", "blk.0.attn_q.weight": "Q4_K"}


def test_eight_experts_keep_their_shared_attention(tmp_path: Path) -> None:
    tensors = [matrix(f"blk.0.{part}.weight") for part in PARTS[:4]]
    types, _ = plan_of(tmp_path, tensors, "Q4_K_M", block_count=1, expert_count=8)
    assert list(types.values()) == ["Q4_K", "Q8_0", "Q8_0", "Q5_K"]


def test_requantising_is_told(fixtures_dir: Path) -> None:
    with GGUFFile.open(fixtures_dir / "tiny_models" / "starcoder2-q8_0.gguf") as file:
        assert any("already quantised (Q8_0)" in note for note in plan_quantisation(file, "Q4_0").notes)
        assert not any("already" in note for note in plan_quantisation(file, "Q8_0").notes)


# ---- what cannot be


def test_names_that_are_no_types(llama: Path) -> None:
    with GGUFFile.open(llama) as file:
        with pytest.raises(RequestError, match=r"'Q7_X'.*Choose of F32, F16"):
            plan_quantisation(file, "Q7_X")
        with pytest.raises(RequestError, match="IQ2_XS"):
            plan_quantisation(file, "IQ2_XS")
        with pytest.raises(RequestError, match="output matrix"):
            plan_quantisation(file, "Q8_0", output_type="Q4_K_M")
        assert plan_quantisation(file, "q8_0").target == "Q8_0"


def test_a_vocabulary_alone_is_refused(fixtures_dir: Path) -> None:
    with (
        GGUFFile.open(fixtures_dir / "tokenizers" / "ggml-vocab-gpt-2.gguf") as file,
        pytest.raises(UnsupportedModelError, match="no matrices"),
    ):
        plan_quantisation(file, "Q8_0")


def test_outputs_that_cannot_be(llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    shutil.copyfile(llama, source)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"mine")
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    for out, says in (
        (source, "is the model that is read"),
        (link, "is the model that is read"),
        (other, "exists already"),
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "x.gguf", "There is no folder"),
    ):
        with pytest.raises(RequestError, match=says):
            quantized(source, out, "Q8_0", overwrite=out != other)
    assert other.read_bytes() == b"mine"
    assert source.read_bytes() == llama.read_bytes()
    quantized(source, other, "Q8_0", overwrite=True)
    assert other.read_bytes()[:4] == b"GGUF"


def test_the_name_under_which_it_is_written_may_be_the_source(llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "x.gguf.part"
    shutil.copyfile(llama, source)
    with pytest.raises(RequestError, match=r"x\.gguf\.part is the model that is read"):
        quantized(source, tmp_path / "x.gguf", "Q8_0")
    assert source.read_bytes() == llama.read_bytes()


def test_a_split_that_fails_leaves_no_parts(llama: Path, tmp_path: Path) -> None:
    def fail_late(fraction: float, _: str) -> None:
        if fraction > 0.8:
            assert len(list(tmp_path.iterdir())) > 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantized(llama, tmp_path / "x.gguf", "Q8_0", split_max_bytes=200_000, progress=fail_late)
    assert list(tmp_path.iterdir()) == []


def test_parts_of_parts_are_numbered_once(llama: Path, tmp_path: Path) -> None:
    parts = quantized(llama, tmp_path / "x-00001-of-00002.gguf", "Q8_0", split_max_bytes=600_000)
    assert [path.name for path in parts] == [f"x-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]


def test_no_room_is_told_before_and_while_writing(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.gguf"
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(RequestError, match=r"needs 0\.00 GB, but .* has 0\.00 GB free"):
            quantized(llama, out, "Q8_0")

    def full(self: GGUFWriter, data: bytes) -> None:
        raise self._failed(OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(GGUFWriter, "_put", full)
    with pytest.raises(RealmError, match=r"out\.gguf could not be written: No space left on device"):
        quantized(llama, out, "Q8_0")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(RealmError, match="could not be written: File too large"):
            quantized(llama, tmp_path / "out.gguf", "Q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    weights = np.zeros((4, 64), np.float32)
    weights[2, 7] = value
    source, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    source.write_bytes(bytes(Model(tensors=[Tensor("bad.weight", [64, 4], 0, weights.tobytes())])))

    with pytest.raises(ModelFileError, match=r"bad\.weight of in\.gguf holds a value that is not a finite number"):
        quantized(source, out, "Q8_0")
    assert not out.exists()


def test_numbers_too_large_for_half_precision(tmp_path: Path) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(bytes(Model(tensors=[Tensor("big.weight", [4, 2], 0, np.full(8, 1e6, "f4").tobytes())])))
    with pytest.raises(RequestError, match=r"big\.weight holds 1e\+06, too large for F16\. Choose BF16"):
        quantized(source, tmp_path / "out.gguf", "F16")
    quantized(source, tmp_path / "out.gguf", "BF16")


def test_the_writer_counts() -> None:
    writer = GGUFWriter(Path("x"), [], [], 32)
    with pytest.raises(ValueError, match="more bytes"):
        writer.write(b"1")
    assert QuantType.by_name("Q8_0").row_bytes(32) == 34
