"""The adapters of an answer that is being written."""

from __future__ import annotations

from collections.abc import Sequence

from app.conversation.answer import unexpected
from app.conversation.engine import AdapterChange, AnswerEngine, AnswerStream
from app.conversation.events import AdaptersInForce
from engine.api import AdapterUse
from engine.errors import RealmError


class RunningAdapters:
    """Hands changes to the engine one at a time. A change that has been overtaken by another is never made: each costs
    the computation of all tokens so far."""

    def __init__(self, engine: AnswerEngine, stream: AnswerStream, adapters: Sequence[AdapterUse]) -> None:
        self._engine = engine
        self._stream = stream
        self._in_force = tuple(adapters)
        self._asked = self._in_force  # by the change under way, or the last one
        self._wanted = self._in_force
        self._change: AdapterChange | None = None

    def want(self, adapters: Sequence[AdapterUse]) -> None:
        """Sets what the answer is to be written with, as soon as may be."""
        self._wanted = tuple(adapters)

    def advance(self) -> list[AdaptersInForce]:
        """Moves on without waiting; tells what acts now whenever that has changed or was refused."""
        events = []
        if self._change is not None and self._change.done():
            error, self._change = self._change.exception(0), None
            if error is None:
                self._in_force = self._asked
                events.append(AdaptersInForce(self._in_force))
            else:
                events.append(self._refused(error))
        if self._change is None and self._wanted != self._asked:
            self._asked = self._wanted
            try:
                self._change = self._engine.set_adapters(self._stream, self._wanted)
            except Exception as error:
                events.append(self._refused(error))
        return events

    def _refused(self, error: BaseException) -> AdaptersInForce:
        sentence = error if isinstance(error, RealmError) else unexpected(error)
        return AdaptersInForce(self._in_force, sentence.message, sentence.hint)
