from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.hub.download import Retry
from tests.hub.hub_server import FILE, HubServer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The local server is spoken to directly, and nobody's own login or mirror takes part."""
    monkeypatch.setenv("no_proxy", "*")
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def content() -> bytes:
    return random.Random(7).randbytes(1_000_003)


@pytest.fixture
def serve(content: bytes) -> Iterator[Callable[..., HubServer]]:
    servers: list[HubServer] = []

    def start(**behaviour: Any) -> HubServer:
        servers.append(HubServer(**{"content": content, **behaviour}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / FILE


@pytest.fixture
def quick() -> Retry:
    return Retry(attempts=4, first_delay_s=0.01, max_delay_s=0.05, contact_timeout_s=5.0, max_retry_after_s=2.0)
