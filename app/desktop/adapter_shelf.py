"""What is known of adapters: what each is, and whether it fits the loaded model. Nothing here waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal

from app.desktop.background import Background
from app.desktop.model_service import ModelService, as_realm_error
from engine.api import AdapterInfo

PARTS = {"attn": "attention", "ffn": "feed-forward", "token": "embedding", "output": "output"}


@dataclass(frozen=True)
class AdapterState:
    """info: what the adapter is, once it has been read. problem: why it cannot act, in a sentence; empty while it can.
    checking: neither is known yet."""

    info: AdapterInfo | None = None
    problem: str = ""
    hint: str = ""
    checking: bool = False


def adapter_name(path: Path) -> str:
    """What an adapter is called before it has been read, and everywhere where there is little room."""
    return path.stem if path.suffix.lower() in (".gguf", ".safetensors") else path.name


def adapter_line(info: AdapterInfo) -> str:
    """Kind, rank, size and targets in one line."""
    kind = {"gguf": "GGUF", "peft": "PEFT"}.get(info.kind, info.kind)
    size = f"{info.size_bytes / 1e6:.1f} MB" if info.size_bytes < 1e7 else f"{info.size_bytes / 1e6:.0f} MB"
    parts = dict.fromkeys(PARTS.get(target.split("_")[0], target) for target in info.targets)
    return " · ".join(["LoRA", kind, f"rank {info.rank}", size, ", ".join(parts)])


def is_adapter(path: Path) -> bool:
    """Whether a file or folder is meant as an adapter and not as a model. Reads the head of a GGUF file.

    Raises a RealmError for a GGUF file that cannot be read.
    """
    if path.suffix.lower() == ".safetensors" or path.name == "adapter_config.json" or path.is_dir():
        return True
    from engine.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        return bool(file.metadata.get("general.type") == "adapter")


class AdapterShelf(QObject):
    """Looks at adapters through the engine, each once per model."""

    changed = Signal()

    def __init__(self, service: ModelService, background: Background, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._service = service
        self._background = background
        self._states: dict[Path, AdapterState] = {}
        self._looked_at_for: Path | None = None

    def state(self, path: Path) -> AdapterState:
        """What is known of an adapter."""
        return self._states.get(path, AdapterState(checking=True))

    def look_at(self, paths: Iterable[Path]) -> None:
        """Has adapters read that are not known yet for the model that is loaded now."""
        model = self._service.model.path if self._service.model is not None else None
        if model != self._looked_at_for:
            self._looked_at_for = model
            self._states.clear()
        for path in paths:
            if path not in self._states:
                self._states[path] = AdapterState(checking=True)
                self._background.run_long(
                    partial(path.exists), partial(self._found, path, model), partial(self._failed, path, model)
                )

    def look_again(self, path: Path) -> None:
        """Reads an adapter anew, whose file may have changed."""
        self._states.pop(path, None)
        self.look_at([path])

    def _found(self, path: Path, model: Path | None, exists: bool) -> None:
        engine = self._service.engine
        if not exists:
            self._take(path, model, AdapterState(problem="It is no longer there.", hint=str(path)))
        elif engine is not None:
            job = engine.check_adapter(path)
            job.add_done_callback(lambda done: self._background.call(lambda: self._checked(path, model, done)))

    def _checked(self, path: Path, model: Path | None, job: Any) -> None:
        try:
            self._take(path, model, AdapterState(job.result(0)))
        except Exception as error:
            self._failed(path, model, error)

    def _failed(self, path: Path, model: Path | None, error: Exception) -> None:
        known = as_realm_error(error, "This adapter could not be read.")
        self._take(path, model, AdapterState(problem=known.message, hint=known.hint))

    def _take(self, path: Path, model: Path | None, state: AdapterState) -> None:
        if model == self._looked_at_for:
            self._states[path] = state
            self.changed.emit()
