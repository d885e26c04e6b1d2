"""Every damaged adapter of the fixtures, read and matched with the model that it claims to be for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.adapters import AdapterBase, read_adapter
from engine.architectures import read_architecture
from engine.errors import AdapterError, RealmError
from engine.gguf import GGUFFile

NAMED = {
    "wrong_rank_shapes": "ranks are 8 and 4",
    "config_rank_mismatch": "says 16",
    "unknown_target_module": "z_proj",
    "unknown_tensor": "attn_z",
    "layer_out_of_range": "layers 0 to 29",
    "missing_lora": "no ",
    "nan_weights": "nan",
    "inf_weights": "inf",
    "different_base": "2048",
    "truncated": "",
    "empty": "is empty",
    "header_length_lie": "1152921504606846976",
    "offsets_past_end": "1000061440",
    "shape_overflow": "1099511627776",
    "integer_dtype": "I32",
    "no_tensors": "tensor",
    "config_missing_r": "lacks r",
    "config_missing_alpha": "lora_alpha",
    "config_r_": "r is ",
    "config_alpha_nan": "NaN",
    "config_not_json": "not JSON",
    "config_other_peft_type": "IA3",
    "config_missing_file": "adapter_config.json",
    "weights_missing_file": "adapter_model.safetensors",
    "unsupported_dora": "use_dora",
    "modules_to_save": "modules_to_save",
    "bad_suffix": "blk.0.attn_q.weight",
    "bad_magic": "GGUX",
    "wrong_arch": "qwen2",
    "type_": "general.type",
    "adapter_type_other": "ia3",
    "alpha_missing": "adapter.lora.alpha",
    "alpha_nan": "adapter.lora.alpha is nan",
}
"""What the refusal of a case has to name, by the start of the case's name."""


def test_every_damaged_adapter_is_refused_with_the_reason(fixtures_dir: Path, starter_model: Path) -> None:
    folder = fixtures_dir / "lora" / "malformed"
    with GGUFFile.open(starter_model) as file:
        base = AdapterBase.of(file, read_architecture(file).graph)
    wrong = []
    for name, case in json.loads((folder / "expected.json").read_text(encoding="utf-8")).items():
        try:
            base.bind(read_adapter(folder / name))
        except RealmError as error:
            word = next((word for start, word in NAMED.items() if Path(name).name.startswith(start)), None)
            if case["expect"] == "load" or word is None or word not in error.message:
                wrong.append(f"{name} ({case['why']}): {error}")
        else:
            if case["expect"] == "refuse":
                wrong.append(f"{name} loads, but: {case['why']}")
    assert not wrong


def test_a_file_that_is_no_gguf_is_told_to_be_no_adapter(fixtures_dir: Path) -> None:
    [path] = (fixtures_dir / "lora" / "malformed").rglob("*bad_magic*.gguf")
    with pytest.raises(AdapterError, match="GGUX") as caught:
        read_adapter(path)
    assert "adapter" in caught.value.hint
    assert "model" not in str(caught.value)


def test_a_pattern_of_ranks_gives_each_matrix_its_own_scale(fixtures_dir: Path) -> None:
    adapter = read_adapter(fixtures_dir / "lora" / "malformed" / "peft" / "01_control_rank_pattern")
    assert (adapter.matrices["blk.0.attn_q"].rank, adapter.matrices["blk.0.attn_q"].scale) == (4, 8.0)
    assert {(m.rank, m.scale) for name, m in adapter.matrices.items() if name != "blk.0.attn_q"} == {(8, 2.0)}


@pytest.mark.parametrize("names", [("pirate", "pirate-f32.gguf"), ("json-reply", "json-reply-f16.gguf")])
def test_the_same_adapter_is_the_same_from_either_form(
    fixtures_dir: Path, starter_model: Path, names: tuple[str, str]
) -> None:
    with GGUFFile.open(starter_model) as file:
        base = AdapterBase.of(file, read_architecture(file).graph)
    one, other = (base.bind(read_adapter(fixtures_dir / "lora" / name)).linear for name in names)
    assert one.keys() == other.keys()
    for weight, low in one.items():
        assert low.scale == pytest.approx(other[weight].scale)
        assert np.allclose(low.a, other[weight].a, atol=2e-4)
        assert np.allclose(low.b, other[weight].b, atol=2e-4)
