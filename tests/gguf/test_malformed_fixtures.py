"""The damaged files of the reference data: what the reader must refuse, and what is left to those who use the keys."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ModelFileError, RealmError
from engine.gguf import GGUFFile

USERS_JUDGE = {
    "arch_unknown": "which architectures there are is known to engine.architectures",
    "block_count_missing": "only an architecture knows that it needs the key",
    "embedding_float": "a float is a sound value of a key; who asks for an integer is told",
    "embedding_mismatch": "which tensor a key describes is known to the architecture",
    "head_count_no_divide": "the meaning of a key is known to the architecture",
    "head_count_kv_no_divide": "the meaning of a key is known to the architecture",
    "rope_dim_odd": "the meaning of a key is known to the architecture",
    "eps_missing": "only an architecture knows that it needs the key",
    "shape_transposed": "the shape is possible; the architecture knows the right one",
    "tensor_name_utf8": "any name is possible; the architecture finds its tensor missing",
    "tokens_missing": "only the tokenizer needs them; an adapter has none",
}
"""To be refused, but not by the reader, and why."""

NAMED = {
    "bad_magic": "b'GGUF'|older than GGUF",
    "magic_only": "version",
    "version_1": "version 1",
    "version_big_endian": "big-endian",
    "trunc_before_data": r"token_embd\.weight|tensor data",
    "trunc_last_byte": r"blk\.0\.ffn_down\.weight",
    "n_tensors_negative": "-1 tensors",
    "n_tensors_two_billion": "2147483648 tensors",
    "n_kv_negative": "-1 keys",
    "string_past_end": r"x\.y",
    "kv_type_13": r"x\.y.*13",
    "duplicate_key": r"llama\.block_count",
    "array_nested_deep": r"x\.y",
    "array_count_big": r"x\.y",
    "arch_array": r"general\.architecture",
    "align_zero": r"general\.alignment",
    "align_2_31": "alignment",
    "offset_wraps": r"blk\.0\.ffn_down\.weight",
    "offset_overlap": r"blk\.0\.attn_q\.weight",
    "dims_bytes_overflow": r"token_embd\.weight",
    "dim_zero": r"token_embd\.weight",
    "n_dims_huge": r"token_embd\.weight",
    "tensor_type_1000": r"token_embd\.weight.*1000",
    "block_not_dividing": r"token_embd\.weight.*Q4_K",
    "duplicate_tensor": r"output_norm\.weight",
}
"""What the message has to say."""


@pytest.fixture(scope="module")
def malformed(fixtures_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = fixtures_dir / "malformed" / "make_malformed_visible.py"
    if not script.is_file():
        pytest.skip(f"no {script}")
    folder = tmp_path_factory.mktemp("malformed")
    subprocess.run([sys.executable, "-B", script, folder], check=True, capture_output=True, timeout=120)
    return folder


def test_every_file_as_its_manifest_says(malformed: Path) -> None:
    manifest = json.loads((malformed / "manifest.json").read_text())
    wrong = []
    for entry in manifest:
        name = entry["file"].removesuffix(".gguf")
        try:
            GGUFFile.open(malformed / entry["file"])
            outcome = "accept"
        except RealmError:
            outcome = "reject"
        expected = "accept" if name in USERS_JUDGE else entry["expect"]
        if expected not in ("either", outcome):
            wrong.append(f"{name}: {outcome} instead of {expected} ({entry['description']})")
    assert len(manifest) == 49
    assert not wrong


@pytest.mark.parametrize("name", NAMED)
def test_the_message_names_the_trouble(malformed: Path, name: str) -> None:
    with pytest.raises(RealmError, match=NAMED[name]):
        GGUFFile.open(malformed / f"{name}.gguf")


def test_typed_getters_refuse_what_their_users_need(malformed: Path) -> None:
    with pytest.raises(ModelFileError, match=r"llama\.embedding_length must be an integer, but the file has float32"):
        GGUFFile.open(malformed / "embedding_float.gguf").int("llama.embedding_length")
    with pytest.raises(ModelFileError, match=r"llama\.block_count is missing"):
        GGUFFile.open(malformed / "block_count_missing.gguf").int("llama.block_count")
    with pytest.raises(ModelFileError, match=r"llama\.attention\.layer_norm_rms_epsilon is missing"):
        GGUFFile.open(malformed / "eps_missing.gguf").float("llama.attention.layer_norm_rms_epsilon")
    with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.tokens is missing"):
        GGUFFile.open(malformed / "tokens_missing.gguf").strings("tokenizer.ggml.tokens")


def test_sound_files_of_the_reference_data_open(fixtures_dir: Path) -> None:
    paths = sorted(fixtures_dir.glob("tiny_models/*.gguf")) + sorted(fixtures_dir.glob("tokenizers/*.gguf"))
    assert paths
    for path in paths:
        file = GGUFFile.open(path)
        assert file.architecture
        assert all(file.data(name).size == info.nbytes for name, info in file.tensors.items())


def test_the_starter_model_agrees_with_the_gguf_package(starter_model: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the gguf package is not installed")
    from gguf import GGUFReader

    file, reader = GGUFFile.open(starter_model), GGUFReader(starter_model)
    assert set(file.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        info = file.tensors[tensor.name]
        assert (info.type.id, info.offset, info.nbytes) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            found = file.metadata[key]
            wanted = field.contents()
            assert (found.tolist() if hasattr(found, "tolist") else found) == wanted, key
