"""One answer between its request and its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app.conversation.engine import AnswerStream
from app.conversation.events import AnswerText, ConversationEvent, PrefillProgress
from app.store import AnswerJournal, DeletedMessages, MessageState
from engine import api
from engine.errors import RealmError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerStart:
    """What there is already of an answer that goes on."""

    text: str
    drafted: tuple[tuple[int, int], ...] = ()


class RunningAnswer:
    """Moves what the engine says into the journal and into events.

    Attributes:
        end: how the engine ended it; None while it runs.
        figures: the latest that the engine measured.
        stopped_as: the state that it ends in once it has been cancelled.
        replaced: the answer it stands in for, which comes back if this one fails without any text.
        drafted: the parts of the answer that were guessed and accepted, as (start, end) in characters.
    """

    def __init__(
        self,
        journal: AnswerJournal,
        stream: AnswerStream,
        replaced: DeletedMessages | None = None,
        begun: AnswerStart | None = None,
    ) -> None:
        self.journal = journal
        self.end: api.Finished | api.Failed | None = None
        self.figures: api.Figures | None = None
        self.stopped_as: MessageState | None = None
        self.replaced = replaced
        self.has_text = False
        self.stream = stream
        self.drafted = list(begun.drafted) if begun else []
        self._length = len(begun.text) if begun else 0
        if begun:
            journal.append(begun.text)

    @property
    def message_id(self) -> int:
        return self.journal.message_id

    def stop(self, state: MessageState) -> None:
        """Cancels; the text so far stays. The first state asked for counts."""
        self.stopped_as = self.stopped_as or state
        self.stream.cancel()

    def advance(self) -> list[ConversationEvent]:
        """Takes what has come since the last call: at most one PrefillProgress and one AnswerText. Never waits."""
        progress: PrefillProgress | None = None
        pieces: list[str] = []
        for event in self._new_events():
            match event:
                case api.PrefillProgress(done, total):
                    progress = PrefillProgress(self.message_id, done, total)
                case api.Token(text=text, figures=figures, drafted=drafted):
                    pieces.append(text)
                    self._count(text, drafted)
                    self.figures = figures
                case api.Finished(text=text, figures=figures):
                    pieces.append(text)
                    self._count(text, drafted=False)
                    self.figures = figures
                    self.end = event
                case api.Failed():
                    self.end = event
        events: list[ConversationEvent] = [progress] if progress else []
        text = "".join(pieces)
        if text:
            self.has_text = True
            self.journal.append(text)
        if text or (pieces and not self.end):
            events.append(AnswerText(self.message_id, text, self.figures or api.Figures(), tuple(self.drafted)))
        return events

    def _count(self, text: str, drafted: bool) -> None:
        start, self._length = self._length, self._length + len(text)
        if not drafted or not text:
            return
        if self.drafted and self.drafted[-1][1] == start:
            start = self.drafted.pop()[0]
        self.drafted.append((start, self._length))

    def _new_events(self) -> list[api.Event]:
        try:
            return self.stream.poll()
        except Exception as error:
            log.exception("The engine's stream broke")
            return [api.Failed(error if isinstance(error, RealmError) else unexpected(error))]

    def final_state(self) -> MessageState:
        """The state to store once `end` is set."""
        if isinstance(self.end, api.Failed):
            return MessageState.FAILED
        if self.end is not None and self.end.reason is not api.StopReason.CANCELLED:
            return MessageState.COMPLETE
        return self.stopped_as or MessageState.INTERRUPTED  # cancelled by none of us: the engine is closing

    def figures_as_json(self) -> Mapping[str, Any] | None:
        if self.figures is None:
            return None
        reason = self.end.reason if isinstance(self.end, api.Finished) else None
        values = asdict(self.figures) | {"stop_reason": None if reason is None else str(reason)}
        return values | {"drafted": [list(part) for part in self.drafted]} if self.drafted else values


def unexpected(error: BaseException) -> RealmError:
    """An error that nobody foresaw, as a sentence; the log has its traceback."""
    return RealmError(f"Something unexpected went wrong: {error!r}.", "Try again; the log has the details.")
