"""What fits, what is refused, and how near the plan comes to what a process takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine import memory_plan
from engine.api import DeviceInfo, LoadOptions
from engine.batch import MemoryUse
from engine.engine import Engine
from engine.errors import OutOfMemoryError, RealmError
from engine.loader import plan_model
from engine.memory_plan import available_memory_bytes, plan_memory, process_memory_bytes

GPU = DeviceInfo("fake", "Some GPU", "", "gpu", "", 10_000_000)
MB = 1_000_000


def predict(context: int, budget: int | None = None) -> MemoryUse:
    """4 MB of weights, 1 kB for each position, 1 MB beside."""
    if context > 20_000:
        raise OutOfMemoryError("One piece of it would be too large.")
    return MemoryUse(4 * MB, 1000 * context, MB)


def plan(free: int, wanted: int | None, default: int = 8192, limit: int | None = None) -> memory_plan.MemoryPlan:
    device = DeviceInfo(GPU.id, GPU.name, "", "gpu", "", free)
    return plan_memory(predict, device=device, name="Small", wanted=wanted, default=default, limit=limit)


def test_what_fits_is_taken_as_it_is() -> None:
    found = plan(20 * MB, None)
    assert (found.context_length, found.limited) == (8192, False)
    assert found.device_bytes == 4 * MB + 8192 * 1000 + MB
    assert plan(20 * MB, 3000).context_length == 3000


def test_the_longest_context_that_fits_is_chosen_where_none_was_asked_for() -> None:
    found = plan(8 * MB, None)
    assert found.limited
    assert found.context_length == 2560
    assert found.device_bytes <= 0.97 * 8 * MB < predict(found.context_length + 256 + 5).weight_bytes + 3.9 * MB


def test_a_context_that_was_asked_for_is_refused_with_the_one_that_fits() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        plan(8 * MB, 6000)
    assert "4.00 GB" not in str(caught.value)
    assert "Small needs 0.00 GB for its weights, 0.01 GB for a context of 6000 tokens" in str(caught.value)
    assert "A context of 2560 tokens fits" in str(caught.value)


def test_weights_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(OutOfMemoryError, match=r"context of 512 tokens .* Some GPU has 0\.00 GB for it.*smaller model"):
        plan(4 * MB, None, default=30_000)
    with pytest.raises(OutOfMemoryError, match="smaller model"):
        plan(4 * MB, 100)


def test_a_limit_counts_where_it_is_less_than_what_is_free() -> None:
    assert plan(100 * MB, None, limit=8 * MB).limited
    assert not plan(100 * MB, None, limit=80 * MB).limited
    assert plan(0, None, limit=8 * MB).context_length < 8192  # nothing is known of the device
    assert plan(0, None).context_length == 8192


def test_pieces_that_are_too_large_shorten_the_context_too() -> None:
    found = plan(1000 * MB, None, default=40_000)
    assert (found.context_length, found.limited) == (19968, True)
    with pytest.raises(OutOfMemoryError, match="19968 tokens fits"):
        plan(1000 * MB, 40_000)


def test_what_this_machine_says_of_its_memory() -> None:
    assert 1 << 26 < available_memory_bytes() < 1 << 50
    assert 1 << 22 < process_memory_bytes() < 1 << 40


@pytest.mark.parametrize("device", ["numpy", "opencl"])
def test_a_plan_says_what_loading_takes(fixtures_dir: Path, device: str) -> None:
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    planned = plan_model(path, LoadOptions(device=device, context_length=512))
    with Engine() as engine:
        info = engine.load(path, LoadOptions(device=device, context_length=512)).result(60)
        assert (planned.weight_bytes, planned.kv_bytes) == (info.weight_bytes, info.kv_bytes)
        assert planned.scratch_bytes == info.scratch_bytes
        assert info.predicted_peak_bytes > planned.device_bytes


def test_the_context_gives_way_to_a_limit(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "LEAST_CONTEXT", 128)
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    whole = plan_model(path, LoadOptions(device="numpy"))
    assert whole.context_length == 512
    with Engine() as engine:
        limit = whole.device_bytes - whole.kv_bytes // 4
        info = engine.load(path, LoadOptions(device="numpy", memory_limit=limit)).result(60)
        assert info.context_length == 256
        assert info.weight_bytes + info.kv_bytes + info.scratch_bytes <= limit
        assert any("the context is 256 tokens long" in note for note in info.notes)
        with pytest.raises(RealmError, match=r"needs .* GB for its weights"):
            engine.load(path, LoadOptions(device="numpy", memory_limit=1000)).result(60)


def test_what_one_answer_leaves_untouched_must_fit_but_is_not_in_the_peak() -> None:
    device = DeviceInfo("numpy", "A CPU", "", "cpu", "", 0)

    def with_idle(context: int, budget: int | None = None) -> MemoryUse:
        return MemoryUse(4 * MB, MB, 3 * MB, idle_bytes=2 * MB)

    found = plan_memory(with_idle, device=device, name="Small", wanted=100, default=100)
    assert found.device_bytes == 8 * MB
    assert found.peak_bytes == found.process_bytes + 6 * MB
    with pytest.raises(OutOfMemoryError, match=r"together 0\.01 GB"):
        plan_memory(with_idle, device=replace(GPU, memory_bytes=7 * MB), name="Small", wanted=100, default=100)


def _peak(model: Path, *more: str) -> tuple[int, int]:
    """Bytes at the peak of a process that measures the model, and bytes planned for it.

    In a process of its own, the whole context in use; the second one, when no kernel is compiled any more.
    """
    command = [sys.executable, "-m", "app.cli.main", "bench", "--model", str(model), *more]
    command += ["-p", "512", "-n", "2", "-r", "1", "--json"]
    for _ in range(2):
        answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=250).stdout)
    return answer["peak_memory_bytes"], answer["predicted_peak_bytes"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is only so on Linux")
def test_the_peak_is_not_that_of_the_program_that_started_this_one() -> None:
    mine = bytearray(b"x" * (300 * MB))
    command = [sys.executable, "-c", "from app.cli.memory import peak_memory_bytes; print(peak_memory_bytes())"]
    assert 5 * MB < int(subprocess.run(command, capture_output=True, check=True).stdout) < 200 * MB < len(mine)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["opencl", "numpy"])
def test_the_peak_is_predicted_within_5_percent(starter_model: Path, device: str) -> None:
    peak, planned = _peak(starter_model, "--device", device)
    assert peak == pytest.approx(planned, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("gemma-3-270m-q4_k_m.gguf", None),
        ("tinyllama-1.1b-chat-v1.0.IQ2_XXS.gguf", None),
        ("tinyllama-1.1b-chat-v1.0.IQ2_XXS.gguf", "300M"),  # streamed
        ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", None),
    ],
)
def test_the_peaks_of_larger_models_are_predicted_within_5_percent(
    models_dir: Path, name: str, limit: str | None
) -> None:
    if not (models_dir / name).is_file():
        pytest.skip(f"{name} is not in {models_dir}")
    peak, planned = _peak(models_dir / name, "--device", "opencl", *(["--memory-limit", limit] if limit else []))
    assert peak == pytest.approx(planned, rel=0.05)
