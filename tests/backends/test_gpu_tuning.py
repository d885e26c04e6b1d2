"""What is chosen by measuring on a GPU: once per device, driver and shape, and never to another result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.architectures import read_architecture
from engine.backends.opencl import gpu_choices, gpu_model, gpu_tuning, platforms
from engine.backends.opencl.gpu_model import GpuModel
from engine.backends.opencl.gpu_tuning import Tuner
from engine.gguf import GGUFFile
from engine.kept import keep_in
from tests.backends.memory_file import load, one_sequence


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("REALM_EXECUTOR", "gpu")
    keep_in(tmp_path)
    yield tmp_path
    keep_in(None)


def _device() -> platforms.Device:
    return platforms.devices()[0]


def _measured(*took: float) -> Any:
    """Seconds of the ways "0", "1", ..."""
    return lambda way: took[int(way)]


def _never(*_: Any) -> float:
    raise AssertionError("measured again")


def test_the_fastest_is_chosen_once() -> None:
    tuner = Tuner(_device())
    assert tuner.choose("a", ["0", "1", "2"], _measured(3.0, 1.0, 2.0)) == "1"
    assert tuner.choose("b", ["0", "1"], _measured(1.0, 0.99)) == "0"  # may be chance
    assert tuner.choose("a", ["0", "1", "2"], _never) == "1"
    tuner.keep()
    later = Tuner(_device())
    assert [later.choose(what, ["0", "1"], _never) for what in "ab"] == ["1", "0"]
    assert later.measured == 0
    assert later.choose("a", ["0", "2"], _measured(2.0, 0.0, 1.0)) == "2"  # what was chosen is no longer there


def test_what_was_measured_of_something_else_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = Tuner(_device())
    tuner.choose("a", ["0", "1"], _measured(3.0, 1.0))
    tuner.keep()
    (path,) = (folder / "kernels").iterdir()
    whole = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(gpu_tuning, "VERSION", 2)
        assert Tuner(_device()).choose("a", ["0", "1"], _measured(1.0, 1.0)) == "0"
    about = json.loads(whole)
    for broken in (
        "",
        "[]",
        "{",
        whole[:-9],
        json.dumps({**about, "driver": "older"}),
        json.dumps({**about, "chosen": 3}),
    ):
        path.write_text(broken)
        assert Tuner(_device()).choose("a", ["0", "1"], _measured(1.0, 1.0)) == "0"


def test_measuring_ends_with_its_budget() -> None:
    tuner = Tuner(_device(), budget_s=0.0)
    assert tuner.choose("a", ["0", "1"], _never) == "0"
    tuner.keep()
    assert Tuner(_device()).choose("a", ["0", "1"], _never) == "0"  # and does not go on in front of the user again


@pytest.mark.parametrize("name", ["llama-q4_k_m", "qwen3moe"])  # with steps of one kernel, and without
def test_a_tuned_model_computes_the_same(fixtures_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = GGUFFile.open(fixtures_dir / "tiny_models" / f"{name}.gguf")
    graph = read_architecture(file).graph
    tokens = np.random.default_rng(1).integers(3, graph.n_vocab, 70)

    def loaded() -> GpuModel:
        model = load("opencl", file, graph)  # type: ignore[arg-type]
        assert isinstance(model, GpuModel)
        return model

    monkeypatch.setattr(gpu_model, "tunes", lambda device: False)
    usual = loaded()
    expected = usual.forward(one_sequence(tokens)).copy()
    usual.close()
    monkeypatch.setattr(gpu_model, "tunes", lambda device: True)
    left = [1000.0]

    def faster_each_time(_: Any, run: Callable[[], object]) -> float:
        run()
        left[0] *= 0.9
        return left[0]

    monkeypatch.setattr(gpu_choices, "shortest", faster_each_time)
    monkeypatch.setattr(gpu_model, "shortest", faster_each_time)
    monkeypatch.setattr(gpu_tuning, "BUDGET_S", 60.0)
    tuned = loaded()
    chosen = tuned._plan.choices
    assert any(kernel == "matmul_4" for kernel in chosen.kernels.values())
    assert bool(chosen.slices) == (name == "qwen3moe")
    assert ("kernel-by-kernel" in tuned.device.variants) == (name == "llama-q4_k_m")
    got = tuned.forward(one_sequence(tokens)).copy()
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())
    rows = tuned.forward(one_sequence(tokens[:16])).copy()
    for n in (1, 6):  # whichever kernels take them
        np.testing.assert_array_equal(tuned.forward(one_sequence(tokens[:n])), rows[:n])
    tuned.close()
    monkeypatch.setattr(gpu_choices, "shortest", _never)
    monkeypatch.setattr(gpu_model, "shortest", _never)
    again = loaded()
    assert again._plan.choices == chosen
    assert again.device.variants == tuned.device.variants
    again.close()
