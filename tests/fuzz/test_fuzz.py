"""The fuzzer sees what it is there to see, and finds nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from engine.architectures import read_architecture
from engine.gguf import GGUFFile
from tests.fuzz import worker as worker_module
from tests.fuzz.content import Content
from tests.fuzz.gguf import Summary, Worker, fuzz, told
from tests.fuzz.inputs import sources
from tests.fuzz.worker import answer, input_bytes, open_and_use


@pytest.fixture(scope="module")
def files() -> list[tuple[str, Content]]:
    return sources()


def test_what_it_damages_is_sound(files: list[tuple[str, Content]], tmp_path: Path) -> None:
    """So that what is refused is refused for the damage. The small file is no whole model."""
    path = tmp_path / "sound.gguf"
    for name, content in files[:5]:
        path.unlink(missing_ok=True)
        path.write_bytes(content.to_bytes())
        with GGUFFile.open(path) as file:
            assert len(file.tensors) == len(content.tensors)
            assert len(file.metadata) == len(content.keys)
            if name != "small":
                assert read_architecture(file).name == "llama"
        if name != "small":
            assert list(open_and_use(path)) == [], name


def test_every_change_is_seen_and_none_reaches_the_source(files: list[tuple[str, Content]]) -> None:
    before = [content.to_bytes() for _, content in files]
    inputs = [input_bytes(5, index, files) for index in range(200)]
    assert [content.to_bytes() for _, content in files] == before
    assert inputs == [input_bytes(5, index, files) for index in range(200)]
    assert len({data for _, data in inputs}) > 180
    assert input_bytes(6, 0, files) != inputs[0]


def test_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[tuple[str, Content]]) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(files[1][1].to_bytes())
    assert answer(path)["refused"] == []

    def fails(error: Exception) -> Any:
        def stage(_: object) -> None:
            raise error

        return stage

    summary = Summary()
    for index, error in enumerate((KeyError("x"), MemoryError(), KeyError("y"))):
        with monkeypatch.context() as patch:
            patch.setattr(worker_module, "_facts", fails(error))
            summary.add(index, {**answer(path), "source": "x"})
    summary.add(3, {"refused": [], "seconds": 2.5, "source": "x"})
    assert sorted((what, len(indices)) for (what, _), indices in summary.findings.items()) == [
        ("KeyError", 2),
        ("MemoryError", 1),
        ("slow", 1),
    ]
    text = told(summary, 1, 1.0, tmp_path)
    assert "FOUND KeyError" in text
    assert "2 times, first in input 0" in text


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through the system's own accounting")
def test_a_process_that_takes_too_much_is_stopped() -> None:
    import subprocess

    program = (
        "from tests.fuzz.worker import limit_memory; import numpy as np; limit_memory()\n"
        "np.ones(100 << 20, np.uint8); print('little', flush=True)\n"
        "np.ones(1100 << 20, np.uint8); print('much')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.stdout == "little\n"
    assert "MemoryError" in result.stderr


def test_a_process_that_dies_is_a_finding(tmp_path: Path) -> None:
    worker = Worker(1, tmp_path)
    try:
        assert "refused" in worker.ask(0)
        worker._process.kill()
        assert worker.ask(1)["finding"] == "crash"
    finally:
        worker.close()


def test_some_seconds_of_damage_find_nothing(tmp_path: Path) -> None:
    summary = fuzz(5, seed=77, save=tmp_path)
    assert not summary.findings, told(summary, 77, 5, tmp_path)
    assert summary.inputs > 50
    assert summary.accepted
    assert len(summary.refused) >= 2
