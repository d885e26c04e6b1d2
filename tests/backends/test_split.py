"""Some layers on one device and the rest on another."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import placement
from engine.adapters.runs import AdapterSet
from engine.api import GenerateRequest, LoadOptions, SamplingParams
from engine.architectures import read_architecture
from engine.backends.numpy_backend import NumpyModel
from engine.batch import Batch
from engine.devices import choose_device
from engine.engine import Engine
from engine.errors import OutOfMemoryError, RequestError
from engine.gguf import GGUFFile
from engine.graph import layer_starts, split
from tests.adapters.running import Running
from tests.adapters.writer import MODULES, write_peft
from tests.backends.memory_file import one_sequence
from tests.engine.generation import generate

MODELS = ["llama", "llama-q4_k_m", "gemma3", "deepseek2", "lfm2", "command-r", "qwen3moe"]


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_but_the_first_is_a_place_to_cut(fixtures_dir: Path, name: str) -> None:
    with GGUFFile.open(fixtures_dir / "tiny_models" / f"{name}.gguf") as file:
        graph = read_architecture(file).graph
    starts = layer_starts(graph)
    assert len(starts) == graph.n_layers - 1
    for n in range(1, graph.n_layers):
        first, second = split(graph, n)
        assert first.logits == first.hidden
        assert second.logits == graph.logits
        assert {w.name for w in first.weights()} | {w.name for w in second.weights()} == {
            w.name for w in graph.weights()
        }
        layers = [
            {int(w.name.split(".")[1]) for w in part.weights() if w.name.startswith("blk.")} for part in (first, second)
        ]
        assert layers == [set(range(n)), set(range(n, graph.n_layers))]


@pytest.mark.parametrize(
    ("device", "executor"), [("opencl=1,numpy", ""), ("numpy=1,opencl", ""), ("opencl=1,opencl", "gpu")]
)
def test_two_devices_give_what_one_gives(
    fixtures_dir: Path, device: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of many rows and of one, hidden rows, blocks read and written back, and an answer."""
    if executor:
        monkeypatch.setenv("REALM_EXECUTOR", executor)
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    tokens = np.random.default_rng(3).integers(3, 400, 150).astype(np.int32)
    wanted = np.arange(0, 150, 2, dtype=np.int32)  # more than one read of logits takes
    steps = [one_sequence(tokens, blocks=[3, 1, 4, 0, 6], logit_rows=wanted)]
    steps.append(one_sequence([7], 150, blocks=[3, 1, 4, 0, 6]))
    found = {}
    for where in ("numpy", device):
        with Engine() as engine:
            info = engine.load(path, LoadOptions(device=where)).result(120)

            def run(model: object, _: object) -> list[np.ndarray]:
                def one(step: Batch) -> list[np.ndarray]:
                    return [model.forward(step).copy(), model.hidden(step).copy()]  # type: ignore[attr-defined]

                results = [array for step in steps for array in one(step)]
                kept = model.read_blocks([3, 1, 4, 0, 6])  # type: ignore[attr-defined]
                model.write_blocks([3, 1, 4, 0, 6], np.zeros_like(kept))  # type: ignore[attr-defined]
                model.write_blocks([8, 2, 5, 9, 7], kept)  # type: ignore[attr-defined]
                return [*results, *one(one_sequence([7], 150, blocks=[8, 2, 5, 9, 7]))]

            arrays = engine.call(run).result(120)
            request = GenerateRequest(
                prompt_tokens=tokens[:40].tolist(),
                max_tokens=8,
                sampling=SamplingParams(temperature=0),
                ignore_eos=True,
            )
            found[where] = arrays, generate(engine, request).tokens, info
    (expected, answer, _), (got, other, info) = found.values()
    for a, b in zip(got, expected, strict=True):
        assert ((a - b) ** 2).sum() / (b**2).sum() < 5e-5
    np.testing.assert_array_equal(got[4], got[2])
    assert other == answer
    assert "=1," in info.device.id
    assert "1 layers" in info.device.name


@pytest.mark.parametrize(
    ("device", "executor"), [("numpy=1,numpy", ""), ("opencl=1,numpy", ""), ("opencl=1,opencl", "gpu")]
)
def test_adapters_act_in_both_parts(
    fixtures_dir: Path, tmp_path: Path, device: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on all matrices, one in the second part alone, both and none, as in the whole model; and they go again."""
    if executor:
        monkeypatch.setenv("REALM_EXECUTOR", executor)
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    last = {name: shape for name, shape in MODULES.items() if "embed" not in name and ".0." not in name}
    folders = [write_peft(tmp_path / "all", MODULES, rank=5), write_peft(tmp_path / "last", last, seed=1)]
    tokens = np.random.default_rng(3).integers(3, 400, 20).tolist()
    found = []
    for where in ("numpy", device):
        running = Running(path, where)
        before = running.model.memory().weight_bytes
        a, b = (running.uses([(folder, 1.0)])[0][0] for folder in folders)
        sets: list[AdapterSet] = [(), ((a, 1.0),), ((b, -0.5),), ((a, 0.7), (b, 1.0)), ((a, 0.3),)]
        found.append(running.logits([tokens] * len(sets), sets, 20))
        np.testing.assert_array_equal(found[-1][0], running.logits([tokens] * len(sets), [()] * len(sets), 20)[0])
        running.model.remove_adapter(a)
        (alone,) = running.logits([tokens], [((b, -0.5),)], 20)
        np.testing.assert_allclose(alone, found[-1][2], atol=1e-4)
        running.model.remove_adapter(b)
        assert executor or running.model.memory().weight_bytes == before
        running.close()
    for expected, got in zip(*found, strict=True):
        assert ((got - expected) ** 2).sum() / (expected**2).sum() < 1e-4  # a CPU keeps adapters in 8 bits
    assert all(((one - found[0][0]) ** 2).sum() / (found[0][0] ** 2).sum() > 1e-3 for one in found[0][1:])


def test_an_adapter_that_one_part_has_no_room_for_leaves_the_other_as_it_was(
    fixtures_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(fixtures_dir / "tiny_models" / "llama.gguf", "opencl=1,numpy")
    before = running.model.memory().weight_bytes

    def full(*_: object) -> int:
        raise OutOfMemoryError("The device has too little memory.")

    monkeypatch.setattr(NumpyModel, "add_adapter", full)
    with pytest.raises(OutOfMemoryError):
        running.uses([(write_peft(tmp_path / "all", MODULES), 1.0)])
    assert running.model.memory().weight_bytes == before
    running.close()


@pytest.mark.parametrize("device", ["opencl,numpy", "numpy=0,numpy", "numpy=9,numpy", "numpy=x,numpy"])
def test_what_cannot_be_cut_so_is_refused(fixtures_dir: Path, device: str) -> None:
    with Engine() as engine, pytest.raises(RequestError, match="how many layers.*can be cut after 1 to 1"):
        engine.load(fixtures_dir / "tiny_models" / "llama.gguf", LoadOptions(device=device)).result(60)


def test_a_gpu_that_is_too_small_takes_as_many_layers_as_fit(
    fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU device that says it is a GPU stands for one; its memory is limited."""
    path = fixtures_dir / "tiny_models" / "llama-q4_k_m.gguf"
    monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    gpu = replace(choose_device("opencl"), kind="gpu")
    monkeypatch.setattr(placement, "choose_device", lambda wanted: gpu)
    request = GenerateRequest(
        prompt_tokens=[50, 357, 282], max_tokens=4, sampling=SamplingParams(temperature=0), ignore_eos=True
    )
    with Engine() as engine:
        whole = engine.load(path, LoadOptions(context_length=512)).result(120)
        expected = generate(engine, request).tokens
        limit = whole.weight_bytes + whole.kv_bytes + whole.scratch_bytes - 1
        shared = engine.load(path, LoadOptions(context_length=512, memory_limit=limit)).result(120)
        assert re.search(r"=1,numpy$", shared.device.id)
        assert any("layers are on" in note for note in shared.notes)
        assert generate(engine, request).tokens == expected
        with pytest.raises(OutOfMemoryError, match="needs .* GB for its weights"):
            engine.load(path, LoadOptions(context_length=512, memory_limit=1 << 20)).result(120)
