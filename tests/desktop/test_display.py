"""What who cannot have a window is told, instead of Qt's abort."""

from __future__ import annotations

import os
import subprocess
import sys
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
    [{}, {"DISPLAY": ":4242"}, {"QT_QPA_PLATFORM": "wayland", "DISPLAY": ":0"}, {"QT_QPA_PLATFORM": "xcb"}],
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
    said = display.display_trouble({"DISPLAY": ":0"})
    assert said is not None
    assert "libxcb-icccm.so.4, libxkbcommon-x11.so.0" in said
    assert "sudo dnf install -y libxkbcommon-x11 xcb-util-wm\n" in said


def test_a_plugin_that_loads_on_wayland_needs_no_x11(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(display, "_load_error", lambda plugin: "gone" if "xcb" in str(plugin) else "")
    assert display.display_trouble({"WAYLAND_DISPLAY": "wayland-0"}) is None


def test_other_platforms_of_qt_are_not_asked_about():
    assert display.display_trouble({"QT_QPA_PLATFORM": "offscreen"}) is None
