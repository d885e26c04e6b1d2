"""What a conversation needs of an engine; engine.engine.Engine offers it."""

from __future__ import annotations

from typing import Protocol

from engine.api import EngineStatus, Event, GenerateRequest


class AnswerStream(Protocol):
    def poll(self) -> list[Event]:
        """The events since the last call, without waiting."""
        ...

    def cancel(self) -> None:
        """Asks the engine to stop; Finished with reason CANCELLED follows."""
        ...


class AnswerEngine(Protocol):
    def submit(self, request: GenerateRequest) -> AnswerStream:
        """Raises RealmError, or answers with Failed, when the request cannot be served (no model, say)."""
        ...

    def status(self) -> EngineStatus: ...
