"""Guessing ahead as the window sees it: which drafts fit, which one is loaded, which way is fastest. Never waits."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal

from app.conversation.fastest import Measured, Way, fastest, measure_ways
from app.desktop.background import Background
from app.desktop.model_service import KnownModel, ModelService, as_realm_error
from engine.api import DraftInfo, GenerateRequest, LoadOptions
from engine.drafts.fit import DraftFit, check_draft
from engine.errors import RealmError
from engine.job import JobCancelled


@dataclass(frozen=True)
class Candidate:
    """A model file that might draft. fit: None until its metadata has been read."""

    model: KnownModel
    fit: DraftFit | None = None


@dataclass(frozen=True)
class Trial:
    """The search for the fastest way, while it runs."""

    way: str
    share: float


class DraftService(QObject):
    """Looks at drafts, loads them and measures them. All signals come on the window's thread."""

    changed = Signal()
    loaded = Signal(object)  # DraftInfo
    load_failed = Signal(object, object)  # RealmError, Path
    trial_ended = Signal(object)  # the fastest Measured
    trial_failed = Signal(object)  # RealmError

    def __init__(self, service: ModelService, background: Background, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._service = service
        self._background = background
        self._fits: dict[tuple[Path, Path, int], DraftFit] = {}
        self._asked: set[tuple[Path, Path, int]] = set()
        self.loading: Path | None = None
        self._unloading = False
        self._job: Any = None
        self.trial: Trial | None = None
        self.results: list[Measured] = []
        self._results_for: Path | None = None
        self._cancel = threading.Event()
        service.changed.connect(self._model_may_have_changed)

    # What fits

    @property
    def draft(self) -> DraftInfo | None:
        """The draft model that is loaded, and is to stay so."""
        return None if self._unloading else self._service.status.draft

    @property
    def own_layer(self) -> Path | None:
        """The model's own file, where it carries a layer that can guess for it."""
        model = self._service.model
        return model.path if model is not None and model.predicts else None

    def candidates(self) -> list[Candidate]:
        """The other models of this computer, those that fit first; begins to read those not looked at yet."""
        model = self._service.model
        if model is None:
            return []
        found = []
        for known in self._service.models:
            if known.path == model.path:
                continue
            key = (model.path, known.path, known.size)
            if key not in self._asked:
                self._asked.add(key)
                self._look_at(key)
            found.append(Candidate(known, self._fits.get(key)))
        return sorted(found, key=lambda c: (c.fit is None or not c.fit.fits, c.model.size))

    def _look_at(self, key: tuple[Path, Path, int]) -> None:
        target, draft, _size = key

        def take(fit: DraftFit) -> None:
            self._fits[key] = fit
            self.changed.emit()

        def failed(error: Exception) -> None:
            known = as_realm_error(error, "This file could not be read.")
            take(DraftFit(False, known.message))

        self._background.run_long(lambda: check_draft(target, draft), take, failed)

    # Loading

    def load(self, path: Path) -> None:
        """Loads a draft model beside the model, in place of the one that is loaded."""
        engine = self._service.engine
        if engine is None:
            return
        self.loading = path
        try:
            job = self._job = engine.load_draft(path, LoadOptions(self._service.device))
        except RealmError as error:
            self._load_ended(None, path, error)
            return
        job.add_done_callback(lambda done: self._background.call(lambda: self._load_done(done, path)))
        self.changed.emit()

    def _load_done(self, job: Any, path: Path) -> None:
        try:
            job.result(0)
        except Exception as error:
            self._load_ended(job, path, error)
        else:
            self._load_ended(job, path, None)

    def _load_ended(self, job: Any, path: Path, error: Exception | None) -> None:
        if job is not self._job:
            return  # another load has taken its place
        self.loading = self._job = None
        self._service.refresh()
        self.changed.emit()
        if error is not None:
            self.load_failed.emit(as_realm_error(error, "The draft model could not be loaded."), path)
        elif self.draft is not None:
            self.loaded.emit(self.draft)

    def unload(self) -> None:
        """Frees the draft model's memory."""
        engine = self._service.engine
        if engine is not None:
            self._unloading = True
            engine.unload_draft().add_done_callback(lambda _job: self._background.call(self._unloaded))

    def _unloaded(self) -> None:
        self._unloading = False
        self._service.refresh()
        self.changed.emit()

    # Which is fastest

    def find_fastest(self, make_request: Any, ways: Sequence[Way]) -> None:
        """Measures the ways one after the other on another thread. make_request: gives the GenerateRequest there."""
        engine = self._service.engine
        if engine is None or self.trial is not None:
            return
        self._cancel = cancel = threading.Event()
        self.trial = Trial("", 0.0)
        self.results = []
        model = self._service.model
        load_options = LoadOptions(self._service.device)
        self._results_for = model.path if model is not None else None

        def report(way: Way, share: float) -> None:
            self._background.call(lambda: self._progress(Trial(way.name, share)))

        def work() -> list[Measured]:
            request: GenerateRequest = make_request()
            return measure_ways(engine, request, ways, report, cancel, load_options)

        self._background.run_long(work, self._measured, self._trial_ended)
        self.changed.emit()

    def _progress(self, trial: Trial) -> None:
        if self.trial is not None:
            self.trial = trial
            self.changed.emit()

    def _measured(self, results: list[Measured]) -> None:
        self.trial = None
        self.results = results
        self._service.refresh()
        best = fastest(results)
        self.changed.emit()
        if best is not None:
            self.trial_ended.emit(best)
        else:
            self.trial_failed.emit(RealmError(f"No way of answering could be measured: {results[0].problem}"))

    def _trial_ended(self, error: Exception) -> None:
        self.trial = None
        self._service.refresh()
        self.changed.emit()
        if not isinstance(error, JobCancelled):
            self.trial_failed.emit(as_realm_error(error, "The speeds could not be measured."))
        else:
            self.trial_failed.emit(None)

    def cancel_trial(self) -> None:
        """Gives up measuring; what was chosen before stays."""
        self._cancel.set()

    def _model_may_have_changed(self) -> None:
        model = self._service.model
        if self.results and (model.path if model is not None else None) != self._results_for:
            self.results = []
            self.changed.emit()
