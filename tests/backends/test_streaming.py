"""Models that do not fit: what is read from the file in every step gives the same bits as what stays in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.adapters import AdapterBase, read_adapter
from engine.adapters.synthetic import write_random_adapter
from engine.api import LoadOptions
from engine.architectures import read_architecture
from engine.backends import opencl
from engine.backends.opencl.weights import STAGING_BYTES
from engine.batch import LoadedModel
from engine.devices import choose_device
from engine.engine import Engine
from engine.errors import OutOfMemoryError
from engine.gguf import GGUFFile
from tests.backends.memory_file import one_sequence


def _load(path: Path, weight_budget: int | None = None, *, plan_only: bool = False) -> LoadedModel:
    file = GGUFFile.open(path)
    arguments: dict[str, Any] = {"progress": lambda *_: None, "cancelled": lambda: False, "n_blocks": 4}
    graph = read_architecture(file).graph
    arguments |= {"weight_budget": weight_budget, "plan_only": plan_only}
    return opencl.load(file, graph, device=choose_device("opencl"), **arguments)


@pytest.mark.parametrize("name", ["llama-q4_k_m", "qwen3moe", "gemma3"])
@pytest.mark.parametrize("share", [0.6, 0.0])
def test_a_streamed_model_gives_the_same_bits(fixtures_dir: Path, name: str, share: float) -> None:
    """Prefill, decode and hidden rows in turn, with some of the weights in memory and with as few as can be."""
    path = fixtures_dir / "tiny_models" / f"{name}.gguf"
    whole = _load(path)
    total = whole.memory().weight_bytes
    with pytest.raises(OutOfMemoryError, match="the least that its weights need"):
        _load(path, 2 * STAGING_BYTES, plan_only=True)
    least = next(n for n in range(0, total, total // 50) if _fits(path, 2 * STAGING_BYTES + n))
    budget = 2 * STAGING_BYTES + int(least + share * (total - least))
    streamed = _load(path, budget)
    use = streamed.memory()
    assert use.weight_bytes <= budget
    assert 0 < use.streamed_bytes < path.stat().st_size
    tokens = np.random.default_rng(0).integers(3, 400, 60).astype(np.int32)
    for start, stop in ((0, 40), (40, 41), (41, 60)):
        batch = one_sequence(tokens[start:stop], start, blocks=[2, 0])
        np.testing.assert_array_equal(streamed.forward(batch), whole.forward(batch))
        np.testing.assert_array_equal(streamed.hidden(batch), whole.hidden(batch))
    streamed.close()
    whole.close()


@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_adapters_act_on_a_streamed_model_as_on_a_whole_one(fixtures_dir: Path, tmp_path: Path, name: str) -> None:
    """One for all matrices of the layers, those of experts among them."""
    path = fixtures_dir / "tiny_models" / f"{name}.gguf"
    with GGUFFile.open(path) as file:
        base = AdapterBase.of(file, read_architecture(file).graph)
    write_random_adapter(tmp_path / "a.gguf", base, 16, seed=0)
    bound = base.bind(read_adapter(tmp_path / "a.gguf"))
    assert len(bound.linear) == sum(name.startswith("blk.") for name in base.matrices)
    least = next(n for n in range(0, path.stat().st_size, 1 << 14) if _fits(path, 2 * STAGING_BYTES + n))
    found = []
    for budget in (None, 2 * STAGING_BYTES + least):
        model: Any = _load(path, budget)
        acting = ((model.add_adapter(bound), 1.0),)
        tokens = np.random.default_rng(0).integers(3, 400, 60).astype(np.int32)
        for start, stop in ((0, 40), (40, 41), (41, 60)):
            batch = one_sequence(tokens[start:stop], start, blocks=[2, 0])
            found += [model.forward(replace(batch, adapters=(acting,))).copy(), model.hidden(batch).copy()]
        assert budget is None or model.memory().streamed_bytes
        assert not np.array_equal(model.forward(batch), found[-2])
        model.close()
    for whole, streamed in zip(found[:6], found[6:], strict=True):
        np.testing.assert_array_equal(streamed, whole)


def _fits(path: Path, budget: int) -> bool:
    try:
        _load(path, budget, plan_only=True)
    except OutOfMemoryError:
        return False
    return True


def test_a_limit_below_the_weights_makes_them_stream_and_says_so(starter_model: Path) -> None:
    options = LoadOptions(device="opencl", context_length=512)
    with Engine() as engine:
        whole = engine.load(starter_model, options).result(120)
        expected = engine.call(lambda model, _: model.forward(one_sequence([1, 2, 3])).copy()).result(120)
        together = whole.kv_bytes + whole.scratch_bytes
        limit = together + int(0.9 * whole.weight_bytes)
        small = engine.load(starter_model, LoadOptions(device="opencl", context_length=512, memory_limit=limit)).result(
            120
        )
        assert small.weight_bytes + small.kv_bytes + small.scratch_bytes <= limit
        assert any("read from the file in every step" in note for note in small.notes)
        got = engine.call(lambda model, _: model.forward(one_sequence([1, 2, 3])).copy()).result(120)
        np.testing.assert_array_equal(got, expected)


def test_numpy_keeps_to_a_limit_too(fixtures_dir: Path) -> None:
    path = fixtures_dir / "tiny_models" / "llama-q4_k_m.gguf"
    with Engine() as engine:
        whole = engine.load(path, LoadOptions(device="numpy")).result(60)
        expected = engine.call(lambda model, _: model.forward(one_sequence([1, 2, 3])).copy()).result(60)
        limit = whole.kv_bytes + whole.scratch_bytes + whole.weight_bytes // 2
        small = engine.load(path, LoadOptions(device="numpy", context_length=512, memory_limit=limit)).result(60)
        assert small.weight_bytes <= whole.weight_bytes // 2
        assert any("read from the file in every step" in note for note in small.notes)
        got = engine.call(lambda model, _: model.forward(one_sequence([1, 2, 3])).copy()).result(60)
        np.testing.assert_allclose(got, expected, atol=1e-4)
