"""What is installed: the locked libraries, and the package itself with all of its data."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
MACHINES = [
    {"sys_platform": "linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_machine": "arm64"},
    {"sys_platform": "win32", "platform_machine": "AMD64"},
]


def locked(name: str) -> dict[str, Requirement]:
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line.removesuffix("\\")) for line in lines if re.match(r"[A-Za-z0-9]", line)]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_library_has_one_version_and_hashes(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        assert re.match(r"\S+==\S+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_names_an_index(name):
    assert "://" not in (PROJECT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: "-".join(machine.values()))
def test_the_locks_hold_what_the_project_asks_for_everywhere(machine, python):
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    where = {**machine, "python_version": python, "python_full_version": f"{python}.0"}
    run, dev = (locked(name) for name in LOCKS)
    extras = project["optional-dependencies"]
    for wanted, lock in [(project["dependencies"], run), (project["dependencies"] + extras["dev"], dev)]:
        for text in wanted:
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate(where):
                continue
            found = lock[canonicalize_name(requirement.name)]
            assert found.marker is None or found.marker.evaluate(where), text
            assert requirement.specifier.contains(next(iter(found.specifier)).version), text


def test_what_runs_is_what_is_tested():
    run, dev = (locked(name) for name in LOCKS)
    assert {name: dev[name].specifier for name in run} == {name: run[name].specifier for name in run}


def test_the_wheel_holds_the_programs_and_their_data(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = ("app", "engine", "cl_kernels", "resources")
    paths = [path for package in packages for path in (PROJECT / package).rglob("*") if path.is_file()]
    files = [path.relative_to(PROJECT).as_posix() for path in paths if "__pycache__" not in path.parts]
    missing = [name for name in files if name not in names]
    assert any(name.endswith(".cl") for name in files)
    assert missing == []
    assert not any(name.startswith(("tests/", "packaging/", "docs/")) for name in names)
    scripts = next(name for name in names if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(scripts).decode()
    assert "realm = app.cli.main:main" in text
    assert "realm-desktop = app.desktop.start:main" in text
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"Makefile", "packaging/bootstrap.py", "requirements.lock", "requirements-dev.lock"} <= inside
