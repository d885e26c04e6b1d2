"""What a person with nothing but Python meets first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import bootstrap
import environment
import pytest
import system_needs
import tasks

from app import system_libraries

PACKAGING = Path(bootstrap.__file__).parent


def test_an_old_python_can_read_the_file_that_turns_it_away(capsys, monkeypatch):
    source = Path(bootstrap.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "import annotations" not in source  # a syntax error in Python 3.6
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert bootstrap.main(["run"]) == 1
    assert "needs Python 3.11 or newer" in capsys.readouterr().err


def test_a_newer_python_beside_the_old_one_takes_over(monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr("shutil.which", lambda name: "/opt/python3.12" if name == "python3.12" else None)
    monkeypatch.setattr("os.execv", lambda program, arguments: ran.append([program, *arguments]))
    bootstrap.main(["test", "-k", "x"])
    assert ran == [["/opt/python3.12", "/opt/python3.12", bootstrap.__file__, "test", "-k", "x"]]


def test_an_unknown_command_is_told():
    result = subprocess.run(
        [sys.executable, str(PACKAGING / "bootstrap.py"), "nonsense"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "choose of run, test, check" in result.stderr


def test_every_command_exists_in_the_makefile():
    makefile = (PACKAGING.parent / "Makefile").read_text(encoding="utf-8")
    assert set(tasks.TASKS) == set(bootstrap.COMMANDS)
    assert f"{' '.join(bootstrap.COMMANDS)}:" in makefile


@pytest.fixture
def installs(tmp_path, monkeypatch):
    """An environment folder of its own; pip and venv are only written down."""
    done: list[str] = []
    monkeypatch.setattr(environment, "_STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(environment, "_works", lambda: "venv" in done)
    monkeypatch.setattr(environment, "_create", lambda: done.append("venv"))
    monkeypatch.setattr(environment, "_pip", lambda arguments, packages: done.append(arguments[-1]))
    return done


def test_installs_once_and_then_leaves_it_alone(installs):
    environment.ensure("run")
    assert [Path(name).name for name in installs] == ["venv", "requirements.lock", environment.PROJECT.name]
    environment.ensure("run")
    assert len(installs) == 3


def test_development_includes_running(installs):
    environment.ensure("dev")
    installs_before = len(installs)
    environment.ensure("run")
    assert len(installs) == installs_before


def test_running_does_not_include_development(installs):
    environment.ensure("run")
    environment.ensure("dev")
    assert "requirements-dev.lock" in {Path(name).name for name in installs}


def test_a_changed_lock_is_installed_again(installs, tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    lock.write_text("one==1\n")
    monkeypatch.setitem(environment._LOCKS, "run", lock)
    environment.ensure("run")
    before = len(installs)
    lock.write_text("one==2\n")
    environment.ensure("run")
    assert len(installs) > before


def test_what_ldd_misses_is_found_in_its_words():
    said = """
/x/libqxcb.so:
	linux-vdso.so.1 (0x00007ffd)
	libxcb-cursor.so.0 => not found
	libEGL.so.1 => not found
	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)
/x/libqoffscreen.so:
	libEGL.so.1 => not found
"""
    assert system_libraries.parse_missing(said) == ["libEGL.so.1", "libxcb-cursor.so.0"]


def test_without_root_the_line_to_type_is_printed(capsys, monkeypatch):
    monkeypatch.setattr(system_needs, "missing_libraries", lambda binaries: ["libEGL.so.1", "libxcb-cursor.so.0"])
    monkeypatch.setattr(system_needs, "has_fonts", lambda: False)
    monkeypatch.setattr("os.geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    for manager, line in [
        ("apt-get", "sudo apt-get install -y --no-install-recommends fonts-dejavu-core libegl1 libxcb-cursor0"),
        ("dnf", "sudo dnf install -y dejavu-sans-fonts libglvnd-egl xcb-util-cursor"),
        ("pacman", "sudo pacman -S --needed --noconfirm libglvnd ttf-dejavu xcb-util-cursor"),
        ("zypper", "sudo zypper install -y dejavu-fonts libEGL1 libxcb-cursor0"),
    ]:
        monkeypatch.setattr("shutil.which", lambda name, manager=manager: name if name == manager else None)
        system_needs.provide_for_qt(Path("/nowhere"), window=True)
        assert f"Please type:  {line}\n" in capsys.readouterr().out


def test_a_missing_linker_is_installed_or_named(capsys, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("os.geteuid", lambda: 1000, raising=False)
    monkeypatch.setattr("shutil.which", lambda name: name if name == "apt-get" else None)
    system_needs.provide_for_pocl()
    assert "Please type:  sudo apt-get install -y --no-install-recommends gcc libc6-dev\n" in capsys.readouterr().out


def test_apt_that_fails_does_not_stop_the_run(capsys, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0, raising=False)
    failed = subprocess.CompletedProcess([], 100, stdout="Reading...\nE: Unable to fetch some archives\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    assert not system_needs.install(system_libraries.MANAGERS["apt-get"], ["libegl1"])
    said = capsys.readouterr().out
    assert "Unable to fetch" in said
    assert "Please type:  apt-get install" in said


@pytest.fixture
def became(monkeypatch):
    """The command that the bootstrap ended in; the environment and the model count as there."""
    commands: list[list[str]] = []

    def become(command: list[str]) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(environment, "ensure", lambda kind: None)
    monkeypatch.setattr(tasks, "provide_for_pocl", lambda: None)
    monkeypatch.setattr(tasks, "provide_for_qt", lambda *_, **__: None)
    monkeypatch.setattr(tasks, "_fetch_starter", lambda: None)
    monkeypatch.setattr(tasks, "_become", become)
    return commands


def test_without_a_display_the_terminal_is_used(became, capsys, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert tasks.run([]) == 0
    assert became == [[environment.script("realm"), "chat"]]
    assert "no display here" in capsys.readouterr().out


def test_a_display_that_cannot_be_opened_is_told(became, capsys, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", ":4711")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("QT_QPA_PLATFORM")
    monkeypatch.setattr(environment, "python", lambda: sys.executable)
    tasks.run([])
    assert became[0][1:] == ["chat"]
    told = capsys.readouterr().out
    assert "No window, as Qt says:" in told
    # a machine without Qt's own X libraries is told that, before any display is tried
    assert "could not connect to display :4711" in told or "libxcb" in told
