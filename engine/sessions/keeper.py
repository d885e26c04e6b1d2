"""Session files read and written beside the engine's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.kv import Key
from engine.sessions.file import Identity, Restored, read_session, write_session

log = logging.getLogger(__name__)


class SessionKeeper:
    """One thread does it all, in order: what was saved before is there when it is read."""

    def __init__(self, identity: Identity, wake: Callable[[], None]) -> None:
        """wake: called when something that was read is there."""
        self._identity = identity
        self._wake = wake
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sessions")
        self._on_disk: dict[Path, list[Key]] = {}
        self._problems: list[str] = []

    def read(self, path: Path, keys: Sequence[Key], first: int) -> Future[Restored]:
        """Begins to read the blocks from `first` on of the chat whose blocks have these keys."""

        def run() -> Restored:
            restored = read_session(path, self._identity, keys, first)
            if restored.note:
                log.info("%s", restored.note)  # Started tells it
            elif len(restored.data) and not self.n_on_disk(path, keys):
                self._on_disk[path] = list(keys[: first + len(restored.data)])
            return restored

        future = self._worker.submit(run)
        future.add_done_callback(lambda _: self._wake())
        return future

    def n_on_disk(self, path: Path, keys: Sequence[Key]) -> int:
        """How many of these blocks need not be saved again."""
        known = self._on_disk.get(path, [])
        same = 0
        while same < min(len(known), len(keys)) and known[same] == keys[same]:
            same += 1
        return same

    def save(self, path: Path, keys: Sequence[Key], first: int, data: NDArray[np.uint8]) -> None:
        """Begins to save the blocks with these keys; data: those from `first` on."""
        self._on_disk[path] = list(keys)

        def run() -> None:
            try:
                if write_session(path, self._identity, keys, first, data):
                    return
                problem = f"The session file {path.name} was changed by something else; the next answer saves it anew."
            except OSError as error:
                problem = f"The session file {path} could not be written ({error.strerror or error})."
            except Exception as error:
                log.exception("A session could not be saved")
                problem = f"The session file {path} could not be written ({type(error).__name__}: {error})."
            self._on_disk.pop(path, None)
            self._problems.append(problem)
            log.info("%s", problem)  # when_saved tells it

        self._worker.submit(run)

    def when_saved(self, then: Callable[[tuple[str, ...]], None]) -> None:
        """Calls then(sentences on what went wrong since the last time) once everything asked for is on disk."""

        def run() -> None:
            problems, self._problems = tuple(self._problems), []
            then(problems)

        self._worker.submit(run)

    def close(self) -> None:
        """Waits until everything is saved."""
        self._worker.shutdown(wait=True)
