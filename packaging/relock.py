"""Write requirements.lock (to run) and requirements-dev.lock (to run, build, test and check) anew from pyproject.toml.

Takes uv, which is not a dependency of the project: `python -m pip install uv`, then `make lock`. The locks hold every
platform and Python that pyproject.toml allows, with hashes, and name no index. `--upgrade` moves to newest versions;
without it what is locked stays where it still fits.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def compile_lock(name: str, extras: list[str], *more: str) -> None:
    command = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--quiet", "--output-file", name, *more]
    for extra in extras:
        command += ["--extra", extra]
    subprocess.run(command, cwd=PROJECT, check=True)


def main(arguments: list[str]) -> None:
    compile_lock("requirements-dev.lock", ["build", "dev"], *arguments)
    # The smaller lock takes its versions from the larger one, so that what is tested is what runs.
    compile_lock("requirements.lock", ["build"], "--constraint", "requirements-dev.lock")


if __name__ == "__main__":
    main(sys.argv[1:])
