"""Loading a model: what is said when it does not go as asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine import devices
from engine.api import LoadOptions
from engine.errors import RequestError
from engine.loader import load_model


def test_numpy_in_place_of_opencl_is_never_silent(fixtures_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [dataclasses.replace(d, problem="Its driver is lost.") for d in devices.list_devices() if d.id != "numpy"]
    monkeypatch.setattr(devices, "list_devices", lambda: [*broken, devices.numpy_device()])
    path = fixtures_dir / "tiny_models" / "llama.gguf"
    bundle = load_model(path, LoadOptions(), lambda *_: None)
    assert bundle.model.device.id == "numpy"
    assert any("Its driver is lost." in note for note in bundle.info.notes)


def test_a_context_that_cannot_be(starter_model: Path) -> None:
    with pytest.raises(RequestError, match="0 tokens"):
        load_model(starter_model, LoadOptions(device="numpy", context_length=0), lambda *_: None)
