"""The engine as the window sees it: loading, devices, known files and the starter model, without ever waiting."""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PySide6.QtCore import QObject, QTimer, Signal

from app.desktop.background import Background
from engine.api import (
    AdapterUse,
    DeviceInfo,
    EngineState,
    EngineStatus,
    GenerateRequest,
    LoadOptions,
    LoadProgress,
    ModelInfo,
)
from engine.errors import RealmError

log = logging.getLogger(__name__)
POLL_MS = 80
_NAME_TAIL = re.compile(r"(?:[-._](?:I?Q\d\w*|B?F(?:16|32)|MXFP4\w*|\d{5}-of-\d{5}))+$", re.IGNORECASE)
RECENT_LIMIT = 12


class EngineLike(Protocol):
    """What the window needs of engine.engine.Engine."""

    def load(self, path: Path, options: LoadOptions) -> Any: ...
    def unload(self) -> Any: ...
    def submit(self, request: GenerateRequest) -> Any: ...
    def set_adapters(self, stream: Any, adapters: Sequence[AdapterUse]) -> Any: ...
    def check_adapter(self, path: Path) -> Any: ...
    def load_draft(self, path: Path, options: LoadOptions) -> Any: ...
    def unload_draft(self) -> Any: ...
    def status(self) -> EngineStatus: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class KnownModel:
    """A model file on this machine."""

    path: Path
    size: int

    @property
    def name(self) -> str:
        return model_name(self.path)


def model_name(path: Path) -> str:
    """What people call a model: its file's name without the quantisation type and the number of its part.

    The name inside of a file is often that of a training run.
    """
    return _NAME_TAIL.sub("", path.stem) or path.stem


class ModelService(QObject):
    """Owns the engine once there is one. All signals come on the window's thread."""

    changed = Signal()  # status, fetch or lists
    loaded = Signal(object)  # ModelInfo
    load_failed = Signal(object, object)  # RealmError, Path
    fetch_failed = Signal(object)  # RealmError

    def __init__(self, background: Background, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._background = background
        self.engine: EngineLike | None = None
        self.status = EngineStatus(EngineState.EMPTY)
        self.devices: list[DeviceInfo] = []
        self.models: list[KnownModel] = []
        self.recent: list[str] = []
        self.device = "auto"
        self.context_length: int | None = None
        self.fetching: tuple[int, int] | None = None
        self.loading: Path | None = None
        self._folder: Path | None = None
        self._fetch_cancel: threading.Event | None = None
        self._job: Any = None
        self._poll = QTimer(self, interval=POLL_MS)
        self._poll.timeout.connect(self.refresh)

    def attach(self, engine: EngineLike) -> None:
        """Takes the engine, which was made on another thread."""
        self.engine = engine
        self.refresh()

    @property
    def model(self) -> ModelInfo | None:
        return self.status.model

    @property
    def progress(self) -> LoadProgress | None:
        """Of the load that runs; None when none does."""
        if self.loading is None:
            return None
        found = self._job.progress() if self._job is not None else None
        return found or self.status.progress or LoadProgress("reading", 0.0)

    def refresh(self) -> None:
        """Reads the engine's status, which costs next to nothing."""
        if self.engine is not None:
            self.status = self.engine.status()
        if self.loading is None and self.fetching is None:
            self._poll.stop()
        self.changed.emit()

    # Loading

    def load(self, path: Path, device: str | None = None) -> None:
        """Loads a file in place of the model that is loaded. device: for this once, instead of the one chosen."""
        if self.engine is None:
            return
        self.loading = path
        gc.unfreeze()
        self._poll.start()
        try:
            job = self.engine.load(path, LoadOptions(device or self.device, self.context_length))
        except RealmError as error:
            self._load_ended(None, path, error)
            return
        self._job = job
        job.add_done_callback(lambda done: self._background.call(lambda: self._load_done(done, path)))
        self.refresh()

    def _load_done(self, job: Any, path: Path) -> None:
        try:
            job.result(0)
        except Exception as error:
            self._load_ended(job, path, error)
        else:
            self._load_ended(job, path, None)

    def _load_ended(self, job: Any, path: Path, error: Exception | None) -> None:
        if job is not None and job is not self._job:
            return  # another load has taken its place
        self._job = None
        self.loading = None
        # Python's collector looks at all objects with its lock in hand: 25 to 50 ms with a model, amid an answer as
        # likely as not. What there is now stays until the next model comes, so it need not be looked at till then.
        gc.freeze()
        self.refresh()
        if error is None:
            self.note_recent(path)
            if self.status.model is not None:
                self.loaded.emit(self.status.model)
        elif job is None or not job.cancelled():
            self.load_failed.emit(as_realm_error(error, "The model could not be loaded."), path)

    def cancel_load(self) -> None:
        """Gives up the load that runs."""
        if self._job is not None:
            self._job.cancel()

    def unload(self) -> None:
        """Frees the model's memory."""
        if self.engine is not None and self.loading is None:
            gc.unfreeze()
            self.engine.unload().add_done_callback(lambda _job: self._background.call(self.refresh))

    def note_recent(self, path: Path) -> None:
        """Puts a file at the head of the recent ones."""
        name = str(path)
        self.recent = [name, *(other for other in self.recent if other != name)][:RECENT_LIMIT]
        self.find_models()

    # Lists

    def find_models(self, folder: Path | None = None) -> None:
        """Looks for the files of the models folder (the one named last) and the recent ones."""
        from app.paths import models_dir

        where = self._folder = folder or self._folder or models_dir()
        recent = list(self.recent)
        self._background.run_long(lambda: known_models(where, recent), self._take_models, _log_failure)

    def _take_models(self, models: list[KnownModel]) -> None:
        self.models = models
        self.changed.emit()

    def find_devices(self, list_devices: Callable[[], Iterable[DeviceInfo]]) -> None:
        """Asks for the devices; the first time that may take a while."""
        self._background.run_long(lambda: list(list_devices()), self._take_devices, _log_failure)

    def _take_devices(self, devices: list[DeviceInfo]) -> None:
        self.devices = devices
        self.changed.emit()

    # The starter model

    def fetch_starter(self, fetch: Callable[..., Path] | None = None) -> None:
        """Fetches the starter model, then loads it."""
        if self.fetching is not None:
            return
        cancel = threading.Event()
        self._fetch_cancel = cancel
        self.fetching = (0, 0)
        self._poll.start()

        def note(done: int, total: int) -> None:
            if self.fetching is not None:
                self.fetching = (done, total)

        def work() -> Path:
            from app.hub.starter import fetch_starter

            return (fetch or fetch_starter)(note, cancel)

        self._background.run_long(work, self._fetched, self._fetch_ended)
        self.changed.emit()

    def cancel_fetch(self) -> None:
        """Gives up the download; what has come is kept for the next try."""
        if self._fetch_cancel is not None:
            self._fetch_cancel.set()

    def _fetched(self, path: Path) -> None:
        self.fetching = None
        self.load(path)
        self.changed.emit()

    def _fetch_ended(self, error: Exception) -> None:
        cancelled = self._fetch_cancel is not None and self._fetch_cancel.is_set()
        self.fetching = None
        self.changed.emit()
        if not cancelled:
            self.fetch_failed.emit(as_realm_error(error, "The starter model could not be fetched."))


def known_models(folder: Path, recent: Iterable[str]) -> list[KnownModel]:
    """The recent files that still exist, the latest first, then the others of a folder by name."""
    paths = [Path(name) for name in recent]
    if folder.is_dir():
        paths += sorted(folder.rglob("*.gguf"), key=lambda path: path.name.lower())
    result: dict[Path, KnownModel] = {}
    for path in paths:
        try:
            if path not in result and path.is_file():
                result[path] = KnownModel(path, path.stat().st_size)
        except OSError:
            continue
    return list(result.values())


def as_realm_error(error: Exception, otherwise: str) -> RealmError:
    """The error itself if it is meant for people; else a sentence in its place, and the error in the log."""
    if isinstance(error, RealmError):
        return error
    log.error("unexpected error", exc_info=error)
    return RealmError(otherwise, f"{type(error).__name__}: {error}")


def _log_failure(error: Exception) -> None:
    log.error("a look at this machine failed", exc_info=error)
