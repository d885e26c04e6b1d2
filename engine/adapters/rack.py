"""The adapters that a loaded model holds: read when first named, kept for a while when nobody uses them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from engine.adapters.adapter import DAMAGED
from engine.adapters.base import AdapterBase
from engine.adapters.peft import WEIGHTS
from engine.adapters.peft_config import CONFIG
from engine.adapters.read import read_adapter
from engine.adapters.runs import AdapterSet
from engine.api import AdapterInfo, AdapterUse
from engine.batch import LoadedModel, TakesAdapters
from engine.errors import AdapterError, RequestError
from engine.strength import check_strength

MAX_USES = 16
"""Adapters that may act on one sequence together."""

IDLE_BYTES = 256 << 20
IDLE_COUNT = 16
"""Adapters that no sequence uses are kept up to so many bytes of their files, and so many of them."""

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Held:
    """number: the model's."""

    number: int
    info: AdapterInfo
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Resolved:
    """key: names the set and its strengths; b"" where nothing acts. Prefixes with different keys are never shared."""

    uses: AdapterSet = ()
    key: bytes = b""


class AdapterRack:
    """Adapters of one loaded model. Used from the engine's thread only."""

    def __init__(self, model: LoadedModel, base: AdapterBase | None) -> None:
        """base: None for a model that takes no adapters."""
        self._model = model
        self._base = base
        self._held: OrderedDict[Fingerprint, Held] = OrderedDict()

    def get(self, path: Path) -> Held:
        """The adapter at a path as it is now, read if need be. Raises AdapterError, ModelFileError, DeviceError."""
        model = self._model
        if self._base is None or not isinstance(model, TakesAdapters):
            raise AdapterError("This model takes no adapters.", "Choose another model.")
        path = Path(path)
        fingerprint = _fingerprint(path)
        held = self._held.get(fingerprint)
        if held is None:
            try:
                bound = self._base.bind(read_adapter(path))
            except MemoryError:
                raise AdapterError(f"There is not enough memory to read {path.name}.", DAMAGED) from None
            held = Held(model.add_adapter(bound), bound.info, fingerprint)
            self._held[fingerprint] = held
        self._held.move_to_end(fingerprint)
        return held

    def resolve(self, uses: Sequence[AdapterUse], in_use: Iterable[int] = ()) -> Resolved:
        """Looks up what a request names; an adapter of strength 0 is checked and then left out.

        in_use: numbers of adapters that sequences use; of the others those longest unused are dropped where there
        are too many.
        """
        strengths: dict[Fingerprint, float] = {}
        for path, strength in checked_uses(uses):
            held = self.get(path)
            strengths[held.fingerprint] = strengths.get(held.fingerprint, 0.0) + strength
        acting = sorted((fingerprint, strength) for fingerprint, strength in strengths.items() if strength)
        resolved = Resolved()
        if acting:
            resolved = Resolved(
                tuple((self._held[fingerprint].number, strength) for fingerprint, strength in acting),
                blake2b(repr(acting).encode(), digest_size=16).digest(),
            )
        self._trim({*in_use, *(number for number, _ in resolved.uses)})
        return resolved

    def _trim(self, in_use: set[int]) -> None:
        model = self._model
        count = size = 0
        for held in reversed(list(self._held.values())):
            if held.number in in_use:
                continue
            count += 1
            size += held.info.size_bytes
            if isinstance(model, TakesAdapters) and count > 1 and (count > IDLE_COUNT or size > IDLE_BYTES):
                model.remove_adapter(held.number)
                del self._held[held.fingerprint]


def checked_uses(uses: Sequence[AdapterUse]) -> list[tuple[Path, float]]:
    """Raises RequestError where something is no list of adapters with sensible strengths."""
    given: Any = uses
    if isinstance(given, str) or not all(isinstance(use, AdapterUse) for use in given):
        raise RequestError(f"adapters is {given!r:.80}, but it has to be a list of adapters.")
    if len(given) > MAX_USES:
        raise RequestError(f"{len(given)} adapters are too many to act together; {MAX_USES} can.")
    for use in given:
        check_strength(Path(use.path).name, use.strength)
    return [(Path(use.path), float(use.strength)) for use in given]


def _fingerprint(path: Path) -> Fingerprint:
    """What tells an adapter from another, and from itself after its files have changed."""
    try:
        folder = path.is_dir()
        files = [path / CONFIG, path / WEIGHTS] if folder else [path]
        if not folder and path.suffix.lower() == ".safetensors":
            files.append(path.parent / CONFIG)
        if not folder and path.name == CONFIG:
            files.append(path.parent / WEIGHTS)
        return tuple(
            (str(file.resolve()), *((status.st_size, status.st_mtime_ns) if (status := _status(file)) else (-1, -1)))
            for file in files
        )
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} could not be read: {error}.", "Check the path.") from error


def _status(file: Path) -> Any:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
