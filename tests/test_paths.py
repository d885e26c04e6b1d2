from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from app import paths


def test_folders_are_the_platforms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REALM_DATA_DIR")
    monkeypatch.delenv("REALM_CACHE_DIR")
    assert paths.data_dir() == Path(platformdirs.user_data_dir("Realm", appauthor=False))
    assert paths.cache_dir() == Path(platformdirs.user_cache_dir("Realm", appauthor=False))
    assert paths.log_dir() == Path(platformdirs.user_log_dir("Realm", appauthor=False))
    assert paths.models_dir() == paths.data_dir() / "models"


def test_the_environment_moves_them_and_nothing_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REALM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("REALM_CACHE_DIR", str(tmp_path / "cache"))
    assert paths.data_dir() == tmp_path / "data"
    assert paths.models_dir() == tmp_path / "data" / "models"
    assert paths.log_dir() == tmp_path / "data" / "logs"
    assert paths.cache_dir() == tmp_path / "cache"
    assert list(tmp_path.iterdir()) == []
