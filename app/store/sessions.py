"""The folder of chats' session files, within a budget.

The engine writes and reads the files (engine/sessions); here they get their names, the ones unused longest go when
there are too many, and those of chats that are gone go too. All of it is a cache: what cannot be done is logged.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from engine.sessions import is_foreign

log = logging.getLogger(__name__)

DEFAULT_BUDGET_BYTES = 2 << 30

_NAME = re.compile(r"chat-(\d+)\.session(\..*\.part)?")


class SessionFolder:
    """Thread-safe, and several processes may use the same folder. No method raises OSError."""

    def __init__(self, path: Path, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        """budget_bytes: 0 keeps no sessions. The folder is made when the first session is written."""
        self.path = path
        self._budget = budget_bytes

    @property
    def budget_bytes(self) -> int:
        return self._budget

    @budget_bytes.setter
    def budget_bytes(self, value: int) -> None:
        self._budget = value
        self.trim()

    @property
    def used_bytes(self) -> int:
        return sum(size for _, size, _ in self._files())

    def file(self, chat_id: int) -> Path | None:
        """Where the chat's session is kept, marked as used now; None where no sessions are kept."""
        if self._budget <= 0:
            return None
        path = self.path / f"chat-{chat_id}.session"
        with suppress(OSError):
            if is_foreign(path):  # damaged at its start: the engine would not write over it
                path.unlink()
            os.utime(path)
        self.trim(spare=path)
        return path

    def trim(self, spare: Path | None = None) -> None:
        """Removes the sessions unused longest until the others fit the budget; `spare` stays."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._budget:
                break
            if path != spare and _remove(path):
                total -= size

    def remove(self, chat_id: int) -> None:
        _remove(self.path / f"chat-{chat_id}.session")

    def keep_only(self, chat_ids: Collection[int]) -> None:
        """Removes the sessions of all other chats, and what a process that is gone has not finished writing."""
        for _, _, path in self._files():
            match = _NAME.fullmatch(path.name)
            if match and (match[2] or int(match[1]) not in chat_ids):
                _remove(path)

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each was used, its size, and where it is."""
        found = []
        try:
            for path in self.path.iterdir():
                with suppress(OSError):  # gone meanwhile
                    if _NAME.fullmatch(path.name):
                        status = path.stat()
                        found.append((status.st_mtime, status.st_size, path))
        except OSError:  # there are no sessions yet
            pass
        return found


def _remove(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("The session %s could not be removed: %s", path, error)
        return False
    return True
