"""Adapters on all experts as one parameter, as PEFT's target_parameters writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.adapters import AdapterBase, BoundAdapter, read_adapter
from engine.architectures import read_architecture
from engine.errors import AdapterError
from engine.gguf import GGUFFile
from tests.adapters.running import Running
from tests.adapters.writer import write_safetensors

F64 = NDArray[np.float64]
EXPERTS = "model.layers.1.mlp.experts"
RANK, ALPHA = 3, 6.0
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def base_of(path: Path) -> AdapterBase:
    with GGUFFile.open(path) as file:
        return AdapterBase.of(file, read_architecture(file).graph)


def write(
    folder: Path, parameters: Mapping[str, tuple[int, ...]], *, swap: bool, rank: int = RANK, **config: Any
) -> dict[str, F64]:
    """A folder as ParamWrapper saves it, and what its get_delta_weight adds to each parameter, in float64. parameters:
    by their names, in the order in which PEFT wraps them: their shapes. swap: as since 0.19, for models that do not
    keep experts transposed."""
    random = np.random.default_rng(5)
    tensors, deltas, module = {}, {}, f"base_model.model.{EXPERTS}"
    for name, (experts, first, second) in reversed(list(parameters.items())):
        inputs, outputs = (second, first) if swap else (first, second)
        a = random.standard_normal((rank * experts, inputs)).astype(np.float32)
        b = random.standard_normal((outputs, rank * experts)).astype(np.float32) / np.float32(np.sqrt(inputs))
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        module += ".base_layer"
        of_experts, ranks = a.reshape(experts, -1, inputs), b.reshape(outputs, -1, experts)
        how = "o r e, e r i -> e o i" if swap else "o r e, e r i -> e i o"
        deltas[name] = np.einsum(how, ranks.astype(np.float64), of_experts.astype(np.float64)) * ALPHA / rank
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "target_modules": []}
    settings |= {"target_parameters": sorted(parameters), **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return deltas


def added(bound: BoundAdapter) -> dict[str, F64]:
    return {
        weight.name.split(".")[2]: low.scale * (low.b.astype(np.float64) @ low.a.astype(np.float64))
        for weight, low in bound.linear.items()
    }


@pytest.mark.parametrize("version", ["0.17.1", "0.18.1", "0.19.0", "0.20.0"])
@pytest.mark.parametrize("which", [(DOWN, GATE_UP), (GATE_UP,), (DOWN,)])
@pytest.mark.parametrize("model", ["qwen3moe", "gpt-oss"])
def test_each_expert_gets_what_peft_adds_to_it(
    fixtures_dir: Path, tmp_path: Path, model: str, which: tuple[str, ...], version: str
) -> None:
    """Square matrices too: of one model gate and up together, of the other one down."""
    base = base_of(fixtures_dir / "tiny_models" / f"{model}.gguf")
    transposed = model == "gpt-oss"
    experts, rows, columns = base.matrices["blk.1.ffn_up_exps"].shape
    sizes = {GATE_UP: (2 * rows, columns), DOWN: (columns, rows)}
    shapes = {name: (experts, *(sizes[name][::-1] if transposed else sizes[name])) for name in which}
    swap = not transposed and version >= "0.19"
    told: dict[str, Any] = {"peft_version": version} if version >= "0.18" else {}
    deltas = write(tmp_path / "a", shapes, swap=swap, **told)
    if transposed:
        deltas = {name: delta.swapaxes(1, 2) for name, delta in deltas.items()}
    expected = {}
    if GATE_UP in which:
        both = deltas[GATE_UP]
        halves = (both[:, ::2], both[:, 1::2]) if transposed else (both[:, :rows], both[:, rows:])
        expected |= {"ffn_gate_exps": halves[0], "ffn_up_exps": halves[1]}
    if DOWN in which:
        expected["ffn_down_exps"] = deltas[DOWN]
    got = added(base.bind(read_adapter(tmp_path / "a")))
    assert got.keys() == expected.keys()
    for name, delta in expected.items():
        np.testing.assert_allclose(got[name], delta, atol=1e-5)


def test_it_acts(device: str, fixtures_dir: Path, tmp_path: Path) -> None:
    """As PEFT's module for each expert would, with the same numbers."""
    model = fixtures_dir / "tiny_models" / "qwen3moe.gguf"
    experts, rows, columns = base_of(model).matrices["blk.1.ffn_down_exps"].shape
    write(tmp_path / "all", {DOWN: (experts, rows, columns)}, swap=True)
    (low,) = read_adapter(tmp_path / "all").matrices.values()
    tensors = {}
    for e in range(experts):
        name = f"base_model.model.{EXPERTS}.{e}.down_proj"
        tensors |= {f"{name}.lora_A.weight": low.a[e].copy(), f"{name}.lora_B.weight": low.b[e].copy()}
    (tmp_path / "each").mkdir()
    write_safetensors(tmp_path / "each" / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["down_proj"]}
    (tmp_path / "each" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    running, prompt = Running(model, device), list(range(5, 30))
    one, each = (running.logits([prompt], [running.uses([(tmp_path / n, 1.0)])], 25)[0] for n in ("all", "each"))
    (without,) = running.logits([prompt], [()], 25)
    np.testing.assert_array_equal(one, each)
    assert np.abs(one - without).max() > 0.01
    running.close()


def test_a_matrix_of_its_own_may_be_named_as_a_parameter(fixtures_dir: Path, tmp_path: Path) -> None:
    """The router is a matrix that belongs to a module without others."""
    base = base_of(fixtures_dir / "tiny_models" / "qwen3moe.gguf")
    rows, columns = base.matrices["blk.1.ffn_gate_inp"].shape
    a, b = np.ones((RANK, columns), np.float32), np.ones((rows, RANK), np.float32)
    write(tmp_path / "a", {}, swap=True, target_parameters=["mlp.gate.weight"])
    name = "base_model.model.model.layers.1.mlp.gate"
    tensors = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    write_safetensors(tmp_path / "a" / "adapter_model.safetensors", tensors)
    assert list(added(base.bind(read_adapter(tmp_path / "a")))) == ["ffn_gate_inp"]


@pytest.mark.parametrize(
    ("shapes", "config", "says"),
    [
        ({DOWN: (8, 256, 128)}, {"target_parameters": [GATE_UP + "_bias"]}, "gate_up_proj_bias' in target_parameters"),
        ({DOWN: (8, 256, 128)}, {"target_parameters": [DOWN, GATE_UP]}, "1 pairs .* names 2"),
        ({DOWN: (8, 256, 128)}, {"r": 5}, "do not hold as many ranks"),
        ({DOWN: (8, 256, 128)}, {"target_parameters": "all"}, "has to be a list of names"),
        ({DOWN: (8, 256, 128), GATE_UP: (8, 96, 256)}, {}, "neither is twice as wide"),
        ({DOWN: (4, 256, 128)}, {}, "stand for one of 4 x 256 x 128"),
        ({DOWN: (8, 256, 64)}, {}, "stand for one of 8 x 256 x 64"),
        ({GATE_UP: (8, 128, 256)}, {}, "stand for one of 8 x 64 x 256"),
    ],
)
def test_what_does_not_fit_is_named(
    fixtures_dir: Path, tmp_path: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any], says: str
) -> None:
    base = base_of(fixtures_dir / "tiny_models" / "qwen3moe.gguf")
    write(tmp_path / "a", shapes, swap=True, **config)
    with pytest.raises(AdapterError, match=says):
        base.bind(read_adapter(tmp_path / "a"))
