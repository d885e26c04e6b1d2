"""Where Realm keeps its files. Nothing is created here: whoever writes makes the folder.

`REALM_DATA_DIR` moves what belongs to the person (models, chats, settings, logs), `REALM_CACHE_DIR` what can be made
again (kernel choices and the like).
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

APP_NAME = "Realm"


def data_dir() -> Path:
    """Folder of models, chats and settings."""
    return _override("REALM_DATA_DIR") or Path(platformdirs.user_data_dir(APP_NAME, appauthor=False))


def cache_dir() -> Path:
    """Folder of what may be deleted at any time."""
    return _override("REALM_CACHE_DIR") or Path(platformdirs.user_cache_dir(APP_NAME, appauthor=False))


def models_dir() -> Path:
    """Folder of model files, inside of the data folder."""
    return data_dir() / "models"


def log_dir() -> Path:
    """Folder of log files; inside of the data folder where that was moved."""
    moved = _override("REALM_DATA_DIR")
    return moved / "logs" if moved else Path(platformdirs.user_log_dir(APP_NAME, appauthor=False))


def _override(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value).expanduser().absolute() if value else None
