"""An answer on its way into the database while it streams."""

from __future__ import annotations

from collections.abc import Mapping

from app.store.values import JsonValue, MessageState, StoredMessage
from engine.errors import StoreError


class AnswerJournal:
    """Writes one streaming answer. `append` may be called from any thread and never waits for the disk."""

    message_id: int
    message: StoredMessage  # the answer as it was begun: empty, state `streaming`

    def append(self, text: str) -> None:
        raise NotImplementedError

    def problem(self) -> StoreError | None:
        """Why the last attempt to write failed; None while all is well. Writing is tried again until `finish`."""
        raise NotImplementedError

    def finish(
        self, state: MessageState, figures: Mapping[str, JsonValue] | None = None, error: str = ""
    ) -> StoredMessage:
        """Stores the whole answer with its final state, durable on return. Raises StoreError; may be tried again."""
        raise NotImplementedError
