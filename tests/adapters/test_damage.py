"""Adapters damaged at random load or are refused in a sentence; nothing else happens."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.adapters import AdapterBase, is_adapter, read_adapter
from engine.architectures import read_architecture
from engine.errors import AdapterError, RealmError
from engine.gguf import GGUFFile
from tests.adapters.writer import write_gguf_adapter, write_peft, write_safetensors

SMALL = {"model.layers.0.self_attn.q_proj": (8, 8), "model.embed_tokens": (6, 8)}
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_peft(tmp_path / "adapter", SMALL)


@MANY
@given(place=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_weights(folder: Path, place: float, value: int, cut: bool) -> None:
    whole = write_peft(folder, SMALL) / "adapter_model.safetensors"
    data = bytearray(whole.read_bytes())
    at = int(place * (len(data) - 1))
    if cut:
        del data[at:]
    else:
        data[at] = value
    whole.write_bytes(data)
    with contextlib.suppress(RealmError):
        read_adapter(folder)


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "layers_to_transform", "use_rslora", "bias",
     "peft_type", "exclude_modules", "init_lora_weights", "modules_to_save", "base_model_name_or_path", "use_what"]
)  # fmt: skip


@MANY
@given(values=st.dictionaries(KEYS, JSON, min_size=1, max_size=3))
def test_a_configuration_with_anything_in_it(folder: Path, values: dict[str, Any]) -> None:
    config = write_peft(folder, SMALL) / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}), encoding="utf-8")
    with contextlib.suppress(RealmError):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("name", "shape", "offsets", "word"),
    [
        ("lora_A", [4, 8], [0, 64], "takes 128"),
        ("lora_A", [4, -8], [0, 128], "shape"),
        ("lora_A", [True, 32], [0, 128], "shape"),
        ("lora_A", [4, 8], [128, 0], "bytes 128 to 0"),
        ("lora_A", [4, 8], [0, 128, 0], "offsets"),
        ("lora_B", [8, 4], [0, 128], "overlap"),
        ("lora_B", [8, 4], [64, 192], "overlap"),
    ],
)
def test_a_header_that_lies_is_named(folder: Path, name: str, shape: list[int], offsets: list[int], word: str) -> None:
    path = write_peft(folder, {"model.layers.0.self_attn.q_proj": (8, 8)}) / "adapter_model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[f"base_model.model.model.layers.0.self_attn.q_proj.{name}.weight"] |= {
        "shape": shape,
        "data_offsets": offsets,
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(AdapterError, match=word):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True), ("lora_bias", True), ("bias", "all"), ("modules_to_save", ["norm"]), ("peft_type", "VERA"),
        ("init_lora_weights", "pissa_niter_4"), ("layer_replication", [[0, 1]]), ("trainable_token_indices", [1]),
        ("alora_invocation_tokens", [1]), ("use_qalora", True),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused_by_its_name(folder: Path, key: str, value: Any) -> None:
    write_peft(folder, SMALL, **{key: value})
    with pytest.raises(AdapterError, match=key):
        read_adapter(folder)


def test_what_is_more_than_lora_is_told_what_to_do_with(folder: Path, fixtures_dir: Path) -> None:
    """Whole copies of modules and of norms, and a LoRA for a norm."""
    write_peft(folder, SMALL, modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match=r"modules_to_save \(lm_head\): whole trained copies") as saved:
        read_adapter(folder)
    write_peft(folder, SMALL)
    norm = {"base_model.model.model.norm.weight": np.ones(8, np.float32)}
    write_safetensors(folder / "adapter_model.safetensors", norm)
    with pytest.raises(AdapterError, match="norm.weight' whole") as whole:
        read_adapter(folder)
    pair = {f"blk.0.attn_norm.weight.lora_{half}": np.ones(s, np.float32) for half, s in (("a", (2, 1)), ("b", (8, 2)))}
    path = write_gguf_adapter(folder / "norm.gguf", "llama", pair)
    with GGUFFile.open(fixtures_dir / "tiny_models" / "llama.gguf") as file:
        base = AdapterBase.of(file, read_architecture(file).graph)
    with pytest.raises(AdapterError, match="is no matrix that the model multiplies by") as vector:
        base.bind(read_adapter(path))
    for caught in (saved, whole, vector):
        assert "merge_and_unload" in caught.value.hint


def test_layers_and_modules_that_the_configuration_leaves_out_are_refused(folder: Path) -> None:
    for config, word in (
        ({"layers_to_transform": [3]}, "leaves layer 0 out"),
        ({"target_modules": ["k_proj", "embed_tokens"]}, "does not name"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules"),
    ):
        settings_ = {"target_modules": ["q_proj", "embed_tokens"], **config}
        write_peft(folder, SMALL)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings_}), encoding="utf-8")
        with pytest.raises(AdapterError, match=word):
            read_adapter(folder)


def test_other_files_are_told_apart(folder: Path, tmp_path: Path) -> None:
    assert is_adapter(folder)
    assert is_adapter(folder / "adapter_model.safetensors")
    (tmp_path / "adapter_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(AdapterError, match="can run code"):
        read_adapter(tmp_path / "adapter_model.bin")
    (tmp_path / "notes.txt").write_text("hello")
    assert not is_adapter(tmp_path / "notes.txt")
    with pytest.raises(AdapterError, match="no adapter that Realm knows"):
        read_adapter(tmp_path / "notes.txt")


def test_the_models_own_weights_below_an_adapter_are_passed_over(folder: Path) -> None:
    """PEFT saves them, too, where an adapter acts on the embedding or the output."""
    shapes = {**SMALL, "lm_head": (6, 8)}
    tensors = {}
    for module in ("model.embed_tokens", "lm_head"):
        tensors[f"base_model.model.{module}.base_layer.weight"] = np.ones((6, 8), np.float32)
    write_peft(folder, shapes, extra=tensors)
    adapter = read_adapter(folder)
    assert set(adapter.matrices) == {"blk.0.attn_q", "token_embd", "output"}
    assert adapter.info.notes == ("It repeats the model's own weights of lm_head, embed_tokens, which are not read.",)
    write_peft(folder, SMALL, extra=tensors)
    with pytest.raises(AdapterError, match="lm_head.weight' whole"):
        read_adapter(folder)
    tensors["base_model.model.lm_head.base_layer.weight"] = np.ones((7, 8), np.float32)
    write_peft(folder, shapes, extra=tensors)
    with pytest.raises(AdapterError, match=r"shape \[7, 8\], but its LoRA is for 6 x 8"):
        read_adapter(folder)


def test_tied_embeddings_of_which_the_file_holds_one_are_refused(folder: Path) -> None:
    write_peft(folder, SMALL, ensure_weight_tying=True)
    with pytest.raises(AdapterError, match="ensure_weight_tying: what the adapter learned of embed_tokens"):
        read_adapter(folder)
    write_peft(folder, {**SMALL, "lm_head": (6, 8)}, ensure_weight_tying=True)
    assert "output" in read_adapter(folder).matrices
