"""What a conversation needs of an engine; engine.engine.Engine offers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from engine.api import AdapterUse, EngineStatus, Event, GenerateRequest


class AnswerStream(Protocol):
    def poll(self) -> list[Event]:
        """The events since the last call, without waiting."""
        ...

    def cancel(self) -> None:
        """Asks the engine to stop; Finished with reason CANCELLED follows."""
        ...


class AdapterChange(Protocol):
    """The engine's job of changing adapters between two tokens."""

    def done(self) -> bool: ...
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Why it was refused; None when the adapters act."""
        ...


class AnswerEngine(Protocol):
    def submit(self, request: GenerateRequest) -> AnswerStream:
        """Raises RealmError, or answers with Failed, when the request cannot be served (no model, say)."""
        ...

    def status(self) -> EngineStatus: ...

    def set_adapters(self, stream: Any, adapters: Sequence[AdapterUse]) -> AdapterChange:
        """Has a running request go on with other adapters; `stream` is what `submit` gave."""
        ...
