"""Which model runs where: opening, fetching and loading, and what is said when that fails."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import QObject, Signal
from PySide6.QtWidgets import QFileDialog

from app.desktop.desk import Desk
from app.desktop.model_service import model_name
from app.desktop.notices import Way
from engine.api import ModelInfo
from engine.errors import DeviceError, ModelFileError, OutOfMemoryError, RealmError, UnsupportedModelError


class ModelControl(QObject):
    """Answers what the window asks of models."""

    ready = Signal()  # a model has been loaded
    given_up = Signal()  # what was waited for does not come
    settings_wanted = Signal()

    def __init__(self, desk: Desk, parent: QObject) -> None:
        super().__init__(parent)
        self._desk = desk
        self._window = desk.window
        self._service = desk.service
        window, service = desk.window, desk.service
        window.open_file_wanted.connect(self.choose_file)
        for part in (window.welcome, window.popup):
            part.fetch_wanted.connect(self.fetch_starter)
            part.open_wanted.connect(self.choose_file)
            part.cancel_wanted.connect(self.cancel_work)
            part.load_wanted.connect(self.load_model)
        window.popup.unload_wanted.connect(service.unload)
        window.popup.device_chosen.connect(self.choose_device)
        service.loaded.connect(self._model_loaded)
        service.load_failed.connect(self._load_failed)
        service.fetch_failed.connect(self._fetch_failed)
        service.changed.connect(self._show_placeholder)

    def load_model(self, path: Path) -> None:
        """Loads a model file with the device and context length that are set."""
        self.dismiss_notices()
        self._service.load(path)

    def dismiss_notices(self) -> None:
        """Takes away what was said of models before."""
        for key in ("model", "fetch", "no-model", "model-notes"):
            self._window.notices.dismiss(key)

    def choose_file(self) -> None:
        """Lets the person choose a model file; the dialog leaves the window alive."""
        dialog = QFileDialog(self._window, "Open a model file")
        dialog.setNameFilters(["GGUF models (*.gguf)", "All files (*)"])
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        if self._service.recent:
            dialog.setDirectory(str(Path(self._service.recent[0]).parent))
        dialog.fileSelected.connect(lambda name: self.load_model(Path(name)))
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def fetch_starter(self) -> None:
        """Fetches the starter model and loads it."""
        self.dismiss_notices()
        self._service.fetch_starter(self._desk.services.fetch_starter)

    def cancel_work(self) -> None:
        """Gives up the download or the load that runs."""
        self.given_up.emit()
        if self._service.fetching is not None:
            self._service.cancel_fetch()
        else:
            self._service.cancel_load()

    def choose_device(self, device: str) -> None:
        """Sets the device; a loaded model moves there."""
        self._service.device = device
        self._desk.preferences.set("device", device)
        self.reload()

    def reload(self) -> None:
        """Loads the model again, with the settings of now."""
        if self._service.model is not None:
            self.load_model(self._service.model.path)
        self._service.changed.emit()

    def _model_loaded(self, model: ModelInfo) -> None:
        self._desk.preferences.set("last_model", str(model.path))
        self._desk.preferences.set("recent_models", self._service.recent)
        self.dismiss_notices()
        if model.notes:
            self._window.notices.show_notice("model-notes", "info", model.notes[0], " ".join(model.notes[1:]))
        self.ready.emit()

    def _load_failed(self, error: RealmError, path: Path) -> None:
        self.given_up.emit()
        self.dismiss_notices()
        ways = [Way("Open another model…", self.choose_file)]
        if isinstance(error, DeviceError) and not isinstance(error, OutOfMemoryError):
            if self._service.device != "numpy":
                on_numpy = Way("Use numpy instead (slower)", lambda: self._service.load(path, "numpy"), primary=True)
                ways.insert(0, on_numpy)
            ways.append(Way("Try again", lambda: self.load_model(path)))
        elif isinstance(error, OutOfMemoryError):
            ways.append(Way("Change the context length…", self.settings_wanted.emit))
        elif isinstance(error, ModelFileError | UnsupportedModelError) or not path.is_file():
            ways[0] = Way("Open another model…", self.choose_file, primary=True)
            ways.append(Way("Fetch the starter model", self.fetch_starter))
        else:
            ways.insert(0, Way("Try again", lambda: self.load_model(path), primary=True))
        self._window.notices.show_notice("model", "error", error.message, error.hint, ways)

    def _fetch_failed(self, error: RealmError) -> None:
        self.given_up.emit()
        self._window.notices.show_notice(
            "fetch", "error", error.message, error.hint,
            (Way("Try again", self.fetch_starter, primary=True), Way("Open a model file…", self.choose_file)),
        )  # fmt: skip

    def _show_placeholder(self) -> None:
        model = self._service.model
        self._window.composer.set_placeholder(
            f"Message {model_name(model.path)}" if model is not None else "Message Realm"
        )

    def no_model_ways(self) -> tuple[Way, ...]:
        """The ways to a model when there is none."""
        ways = [Way("Open a model file…", self.choose_file)]
        known = self._service.models
        if known:
            ways.insert(0, Way(f"Load {known[0].name}", lambda: self.load_model(known[0].path), primary=True))
        else:
            ways.insert(0, Way("Fetch the starter model", self.fetch_starter, primary=True))
        return tuple(ways)
