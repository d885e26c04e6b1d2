"""A clock that the tests of drafts set themselves."""

from __future__ import annotations

import pytest

from tests.drafts.simulation import CLOCKS, Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in CLOCKS:
        monkeypatch.setattr(name, clock)
    return clock
