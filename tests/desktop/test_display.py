"""What who cannot have a window is told, instead of Qt's abort."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.desktop import display

PROJECT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="X11 and Wayland are asked about on Linux")


def start_without(**variables: str) -> subprocess.CompletedProcess[str]:
    """`realm-desktop` with none of the session's display variables but these."""
    ours = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | variables
    environment["PATH"] = ""  # so that no box is shown on the screen of who runs the tests
    return subprocess.run(
        [sys.executable, "-m", "app.desktop.start"],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"DISPLAY": ":4242"},
        {"QT_QPA_PLATFORM": "wayland", "DISPLAY": ":0", "XDG_RUNTIME_DIR": "/nowhere"},
        {"QT_QPA_PLATFORM": "xcb"},
        {"WAYLAND_DISPLAY": "wayland-4242"},
        {"WAYLAND_DISPLAY": "/nowhere/wayland-0", "DISPLAY": ":4242"},
        {"QT_QPA_PLATFORM": "wayland;xcb", "WAYLAND_DISPLAY": "wayland-4242", "DISPLAY": ":4242"},
    ],
    ids=lambda variables: " ".join(variables) or "nothing",
)
def test_without_a_display_it_says_so_and_ends(variables: dict[str, str], data_dir: Path):
    done = start_without(**variables)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("realm-desktop: ")
    assert "`realm chat` works without a window" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_missing_libraries_are_named_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(display, "_load_error", lambda plugin: "gone")
    monkeypatch.setattr(display, "missing_libraries", lambda binaries: ["libxcb-icccm.so.4", "libxkbcommon-x11.so.0"])
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "dnf" else None)
    said = display.find_display({"DISPLAY": ":0"}).trouble
    assert "libxcb-icccm.so.4, libxkbcommon-x11.so.0" in said
    assert "sudo dnf install -y libxkbcommon-x11 xcb-util-wm\n" in said


def test_a_plugin_that_loads_on_wayland_needs_no_x11(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(display, "_load_error", lambda plugin: "gone" if "xcb" in str(plugin) else "")
    monkeypatch.setattr(display, "_wayland_answers", lambda path, patience_s: True)
    assert display.find_display({"WAYLAND_DISPLAY": "wayland-0"}) == display.Display()


def test_other_platforms_of_qt_are_not_asked_about():
    assert display.find_display({"QT_QPA_PLATFORM": "offscreen"}) == display.Display()


def test_x11_is_taken_where_wayland_is_named_but_dead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(display, "_load_error", lambda plugin: "")
    monkeypatch.setattr(display, "_display_answers", lambda: True)
    both = {"WAYLAND_DISPLAY": "wayland-0", "XDG_RUNTIME_DIR": str(tmp_path), "DISPLAY": ":0"}
    assert display.find_display(both) == display.Display("xcb")
    assert "wayland-0 does not answer" in display.find_display(both | {"QT_QPA_PLATFORM": "wayland"}).trouble


@pytest.mark.parametrize("answers", [True, False])
def test_a_wayland_display_has_to_answer(monkeypatch: pytest.MonkeyPatch, short_path: Path, answers: bool):
    """A compositor that hangs lets who comes connect: Qt would wait for it for ever."""
    monkeypatch.setattr(display, "_load_error", lambda plugin: "")
    monkeypatch.setattr(display, "ANSWER_S", 5.0 if answers else 0.2)

    def compositor() -> None:
        with listening.accept()[0] as client:
            display_id, size_and_sync, callback = struct.unpack("=III", client.recv(12))
            assert (display_id, size_and_sync) == (1, 12 << 16)
            client.sendall(struct.pack("=III", callback, 12 << 16, 0))

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(short_path / "wayland-7"))
        listening.listen()
        if answers:
            threading.Thread(target=compositor, daemon=True).start()
        found = display.find_display({"WAYLAND_DISPLAY": "wayland-7", "XDG_RUNTIME_DIR": str(short_path)})
    assert bool(found.trouble) is not answers


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A socket's path has at most 108 bytes, which pytest's own folders may exceed."""
    with tempfile.TemporaryDirectory(prefix="realm-") as folder:
        yield Path(folder)
