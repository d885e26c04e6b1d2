"""What `make run`, `make test` and the others do. Standard library only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import environment
from console import fail, say
from environment import PROJECT
from system_needs import provide_for_pocl, provide_for_qt

_INVISIBLE = ("offscreen", "minimal")
_PROBE = "from PySide6.QtGui import QGuiApplication; QGuiApplication([])"
_BUILT = ["dist", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache"]


def run(arguments: list[str]) -> int:
    environment.ensure("run")
    provide_for_pocl()
    problem = "there is no display here"
    if may_have_display():
        provide_for_qt(environment.site_packages(), window=True)
        problem = display_problem()
    _fetch_starter()
    if not problem:
        return _become([environment.script("realm-desktop"), *arguments])
    say(f"No window, as {problem}: the same chat opens in this terminal.")
    return _become([environment.script("realm"), "chat", *arguments])


def test(arguments: list[str]) -> int:
    environment.ensure("dev")
    provide_for_pocl()
    provide_for_qt(environment.site_packages(), window=False)
    _fetch_starter()
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    # compiling kernels takes most of the time and one core: the whole suite runs in two processes
    together = [] if arguments else ["-n", "2", "--dist", "worksteal"]
    return _become([environment.python(), "-m", "pytest", *together, *arguments])


def check(arguments: list[str]) -> int:
    environment.ensure("dev")
    checks = (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports"],
    )
    failed = []
    for words in checks:
        say(" ".join(words))
        if subprocess.run([environment.script(words[0]), *words[1:]], check=False, cwd=PROJECT).returncode != 0:
            failed.append(" ".join(words))
    say("damaged model files")
    command = [environment.python(), "-m", "tests.fuzz.gguf", "--seconds", "15"]
    if subprocess.run(command, check=False, cwd=PROJECT).returncode != 0:
        failed.append("damaged model files")
    if failed:
        fail(f"Not in order: {'; '.join(failed)}")
    return 0


def fuzz(arguments: list[str]) -> int:
    environment.ensure("dev")
    return _become([environment.python(), "-m", "tests.fuzz.gguf", *arguments])


def conformance(arguments: list[str]) -> int:
    environment.ensure("dev")
    provide_for_pocl()
    _fetch_starter()
    return _become([environment.python(), "-m", "tests.tools.conformance", *arguments])


def fetch_models(arguments: list[str]) -> int:
    environment.ensure("dev")
    return _become([environment.python(), str(PROJECT / "packaging" / "fetch_models.py"), *arguments])


def bench(arguments: list[str]) -> int:
    environment.ensure("run")
    provide_for_pocl()
    _fetch_starter()
    return _become(
        [environment.python(), "-m", "tests.tools.performance", "--numpy", "--kernels", "--lora", *arguments]
    )


def package(arguments: list[str]) -> int:
    environment.ensure("run")
    shutil.rmtree(PROJECT / "dist", ignore_errors=True)
    command = [environment.python(), "-m", "hatchling", "build", "-d", "dist", *arguments]
    if subprocess.run(command, check=False, cwd=PROJECT, capture_output=not arguments).returncode != 0:
        fail(f"The package could not be built; see: {' '.join(command)}")
    for path in sorted((PROJECT / "dist").iterdir()):
        say(f"dist/{path.name}  {path.stat().st_size / 1e6:.2f} MB")
    return 0


def lock(arguments: list[str]) -> int:
    return subprocess.run(
        [sys.executable, str(PROJECT / "packaging" / "relock.py"), *arguments], check=False
    ).returncode


def clean(arguments: list[str]) -> int:
    folders = [PROJECT / name for name in [*_BUILT, ".venv"]]
    folders += [
        path for name in ("app", "engine", "packaging", "tests") for path in (PROJECT / name).rglob("__pycache__")
    ]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    say("Removed what was built here. Models and chats stay in the data folder.")
    return 0


TASKS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "test": test,
    "check": check,
    "bench": bench,
    "fuzz": fuzz,
    "conformance": conformance,
    "fetch-models": fetch_models,
    "package": package,
    "lock": lock,
    "clean": clean,
}


def may_have_display() -> bool:
    """Whether a window is worth a try. On Linux a display server names itself in the environment."""
    if os.environ.get("QT_QPA_PLATFORM", "").split(":")[0] in _INVISIBLE:
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("QT_QPA_PLATFORM"))


def display_problem() -> str:
    """Why Qt cannot open the display, or nothing. Qt ends the process when it cannot, so another one asks."""
    try:
        result = subprocess.run(
            [environment.python(), "-c", _PROBE], check=False, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "the display does not answer"
    if result.returncode == 0:
        return ""
    said = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    for line in said:
        if "could not connect to display" in line or "cannot open shared object file" in line:
            return f"Qt says: {line}"
    return f"Qt says: {said[0]}" if said else f"Qt ends with status {result.returncode}"


def _fetch_starter() -> None:
    """The window and the tests say themselves what they lack without it."""
    command = [environment.script("realm"), "fetch-starter"]
    if subprocess.run(command, check=False, cwd=PROJECT, stdout=subprocess.DEVNULL).returncode != 0:
        say("Going on without the starter model.")


def _become(command: list[str]) -> int:
    """Run a command as this process's last act, so that Ctrl-C reaches it and nothing else."""
    sys.stdout.flush()
    os.chdir(PROJECT)
    if os.name == "posix":
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.run(command, check=False).returncode
