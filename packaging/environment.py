"""The project's own virtual environment in .venv, installed from the lock and left alone while nothing changed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from console import Status, fail, say
from system_needs import install

from app.system_libraries import find_manager

PROJECT = Path(__file__).resolve().parent.parent
VENV = PROJECT / ".venv"
_STAMP = VENV / "realm-installed.json"
_LOG = VENV / "install.log"
_LOCKS = {"run": PROJECT / "requirements.lock", "dev": PROJECT / "requirements-dev.lock"}
_ABOUT = {"run": "about 600 MB", "dev": "about 750 MB"}
_BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
_PYTHON = _BIN / ("python.exe" if os.name == "nt" else "python")


def python() -> str:
    """The environment's interpreter."""
    return str(_PYTHON)


def script(name: str) -> str:
    """A command that the environment has, such as `realm`."""
    return str(_BIN / (f"{name}.exe" if os.name == "nt" else name))


def site_packages() -> Path:
    if os.name == "nt":
        return VENV / "Lib" / "site-packages"
    return next(iter(sorted((VENV / "lib").glob("python3.*/site-packages"))), VENV / "lib")


def ensure(kind: str) -> None:
    """Make .venv hold what `kind` ("run" or "dev") needs. Quick and without network when it already does.

    Exits with a message when it cannot.
    """
    wanted = {name: _fingerprint(lock) for name, lock in _LOCKS.items()}
    found = _stamp() if _works() else {}
    if found.get(kind) == wanted[kind]:
        return
    if not _works():
        _create()
    lock = _LOCKS[kind]
    if _stamp():
        say(f"Bringing .venv up to date with {lock.name}")
    else:
        say(f"Installing the libraries of {lock.name} into .venv (once; {_ABOUT[kind]} on disk)")
    _pip(["install", "--require-hashes", "-r", str(lock)], _package_count(lock))
    _pip(["install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", str(PROJECT)], 0)
    # Development has all that running takes, in the same versions.
    installed = {"run", "dev"} if kind == "dev" else {"run"}
    kept = {name: value for name, value in found.items() if name not in installed and value == wanted.get(name)}
    stamp = {**kept, **{name: wanted[name] for name in installed}}
    _STAMP.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


def _fingerprint(lock: Path) -> str:
    """Changes with the lock, pyproject.toml, the interpreter and the folder (scripts and .pth files hold its path)."""
    digest = hashlib.sha256()
    for part in (lock.read_bytes(), (PROJECT / "pyproject.toml").read_bytes(), sys.version.encode(), bytes(PROJECT)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _stamp() -> dict[str, str]:
    try:
        stamp = json.loads(_STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _works() -> bool:
    """Whether .venv has an interpreter of this one's version that starts and has pip."""
    if not _PYTHON.exists():
        return False
    probe = "import sys, importlib.util as u; sys.exit(0 if u.find_spec('pip') else 1)"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        text = (VENV / "pyvenv.cfg").read_text(encoding="utf-8")
        same = re.search(rf"^version(_info)? *= *{re.escape(version)}\b", text, re.MULTILINE) is not None
        return same and subprocess.run([python(), "-c", probe], check=False).returncode == 0
    except OSError:
        return False


def _create() -> None:
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        _provide_venv()
    say(f"Creating .venv with Python {sys.version.split()[0]}")
    shutil.rmtree(VENV, ignore_errors=True)
    result = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        fail(f"Python could not create a virtual environment:\n{(result.stdout + result.stderr).strip()}")


def _provide_venv() -> None:
    """Some distributions pack venv apart from Python."""
    manager = find_manager()
    package = f"python3.{sys.version_info.minor}-venv"
    if manager is None or manager.install[0] != "apt-get":
        fail(
            "This Python lacks the modules venv and ensurepip: install your system's package for them, then try again."
        )
    elif not install(manager, [package]):
        fail("This Python lacks the modules venv and ensurepip: type the line above, then the same command again.")


def _pip(arguments: list[str], packages: int) -> None:
    """Run pip; its words go to a log, and one line tells how far it is."""
    command = [python(), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, "--progress-bar", "off"]
    status = Status()
    collected = 0
    with _LOG.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            log.write(line)
            lines.append(line.rstrip())
            words = line.split()
            if line.startswith("Collecting ") and packages:
                collected += 1
                status.update(f"{collected} of {packages}: {words[1].split('==')[0]}")
            elif line.startswith("Installing collected packages"):
                status.update("unpacking")
    status.clear()
    if process.wait() != 0:
        tail = "\n".join([line for line in lines if not line.startswith("WARNING: ")][-12:])
        fail(
            f"{tail}\n\nThe libraries could not be installed; all that pip said is in {_LOG}.\n"
            "Check the network connection, then run the same command again."
        )


def _package_count(lock: Path) -> int:
    return sum(1 for line in lock.read_text(encoding="utf-8").splitlines() if re.match(r"[A-Za-z0-9].*==", line))
