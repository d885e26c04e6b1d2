"""Where adapters are tried."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["numpy", "opencl", "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """gpu: the executor for GPUs, on whatever device there is."""
    if request.param == "gpu":
        monkeypatch.setenv("REALM_EXECUTOR", "gpu")
        return "opencl"
    return str(request.param)
