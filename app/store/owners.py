"""Who writes into a chat history right now.

Each open store holds a lock on a file of its own. The operating system lets go of it when the process ends, however it
ends, so an answer whose owner's file can be locked has nobody to finish it. (Process ids would not do: they are used
again.)
"""

from __future__ import annotations

import uuid
from pathlib import Path

from filelock import FileLock, Timeout

OPENING_TIMEOUT_S = 15.0


class Owners:
    """The lock files beside one history. All but `release` are called while `opening()` is held. Raise OSError."""

    def __init__(self, history: Path) -> None:
        self._folder = history.with_name(history.name + "-owners")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.own_name = uuid.uuid4().hex
        self._own = self._lock(self._file(self.own_name))

    def opening(self) -> FileLock:
        """Only one process at a time checks, migrates and recovers a history. `acquire` raises filelock.Timeout."""
        return FileLock(self._folder / "opening.lock", timeout=OPENING_TIMEOUT_S, thread_local=False)

    def claim(self) -> None:
        """Makes this store one of the living."""
        self._own.acquire(timeout=OPENING_TIMEOUT_S)

    def others_alive(self) -> set[str]:
        """Names of the other stores whose process lives; removes the files of those whose process is gone."""
        alive = set()
        for file in self._folder.glob("*.owner"):
            if file.stem == self.own_name:
                continue
            lock = self._lock(file)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                alive.add(file.stem)
            else:
                lock.release()
                file.unlink(missing_ok=True)
        return alive

    def release(self) -> None:
        self._own.release()
        self._file(self.own_name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.owner"

    @staticmethod
    def _lock(file: Path) -> FileLock:
        return FileLock(file, thread_local=False)
