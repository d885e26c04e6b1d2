"""What every test may ask for.

`fixtures_dir`   reference data (REALM_FIXTURES, else shared/fixtures beside the project folder)
`starter_model`  path of the starter model, fetched through the program's own code and kept in the person's data folder
`models_dir`     folder of larger real models (REALM_MODELS, else .models in the project: `make fetch-models`)
`data_dir`       this test's own data folder, empty; every test runs with REALM_DATA_DIR set to it
`data_dir_with_starter`  the same, with the starter model already in place

A test whose data is absent is skipped with the reason. Slow conformance runs carry `@pytest.mark.slow` and run only
when asked for: `.venv/bin/python -m pytest -m slow`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before anything imports Qt: tests never open a window on the person's screen.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import pytest

from app import paths
from app.hub.starter import STARTER, fetch_starter, starter_path
from app.hub.verification import record_verified
from engine.errors import DownloadError

PROJECT = Path(__file__).resolve().parent.parent
REAL_MODELS_DIR = paths.models_dir()  # the person's own, read before any test moves the data folder


@pytest.fixture(scope="session", autouse=True)
def _own_folders_for_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Wider fixtures write into a throw-away folder too; the cache is shared by the session, so kernels tune once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REALM_DATA_DIR", str(tmp_path_factory.mktemp("session-data")))
        patch.setenv("REALM_CACHE_DIR", str(tmp_path_factory.mktemp("session-cache")))
        yield


@pytest.fixture(autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("REALM_DATA_DIR", str(folder))
    return folder


@pytest.fixture
def data_dir_with_starter(data_dir: Path, starter_model: Path) -> Path:
    """For tests of whole programs that look for the starter model where they would find it at a person's."""
    path = starter_path()
    path.parent.mkdir(parents=True)
    try:
        os.link(starter_model, path)
    except OSError:  # the data folder is on another disk
        shutil.copyfile(starter_model, path)
    record_verified(path, STARTER.sha256)
    return data_dir


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    folder = Path(os.environ.get("REALM_FIXTURES") or PROJECT.parent / "shared" / "fixtures")
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set REALM_FIXTURES to its folder")
    return folder


@pytest.fixture(scope="session")
def starter_model() -> Path:
    try:
        return fetch_starter(directory=REAL_MODELS_DIR)
    except DownloadError as error:
        pytest.skip(f"{STARTER.file_name} could not be fetched: {error}")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    folder = Path(os.environ.get("REALM_MODELS") or PROJECT / ".models")
    if not folder.is_dir():
        pytest.skip("no folder of larger models; `make fetch-models` fetches them, REALM_MODELS names another folder")
    return folder
