"""One chat, joined to the engine: the only place where prompts and answers pass between engine and store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.conversation.engine import AnswerEngine
from app.conversation.events import ConversationEvent
from app.conversation.options import ChatOptions
from app.store import ChatStore

Listener = Callable[[Sequence[ConversationEvent]], None]


class Conversation:
    """Works on a thread of its own: no method waits for disk or engine; results come to the listener as events.

    The listener is called on that thread with batches of events, at most 25 times a second, in order. In a window it
    should emit one queued signal; it must not call `close` or `wait_idle`.
    """

    def __init__(
        self,
        engine: AnswerEngine,
        store: ChatStore,
        chat_id: int | None = None,
        listener: Listener | None = None,
    ) -> None:
        """chat_id None: the chat is created when the first message is sent (ChatCreated)."""
        raise NotImplementedError

    @property
    def chat_id(self) -> int | None:
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """True from `send` (or regenerate, edit_and_resend) until its AnswerFinished or AnswerFailed."""
        raise NotImplementedError

    @property
    def options(self) -> ChatOptions:
        """The options of the next answer (defaults until ConversationLoaded)."""
        raise NotImplementedError

    def send(self, text: str) -> None:
        """Stores the user's message, then has it answered.

        Raises RequestError for an empty text and while an answer streams.
        """
        raise NotImplementedError

    def regenerate(self) -> None:
        """Answers the last user message anew; the old answer goes (undo brings it back).

        Raises RequestError while an answer streams.
        """
        raise NotImplementedError

    def edit_and_resend(self, message_id: int, text: str) -> None:
        """Replaces a user message and all after it by a new one and has that answered; undo brings the old ones back.

        Raises RequestError for an empty text and while an answer streams.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the answer that streams, keeping its text; nothing happens when none does."""
        raise NotImplementedError

    def delete_message(self, message_id: int) -> None:
        """Raises RequestError while an answer streams."""
        raise NotImplementedError

    def undo(self) -> None:
        """Takes back the last delete, regenerate or edit since the last `send`.

        Raises RequestError while an answer streams.
        """
        raise NotImplementedError

    def rename(self, title: str) -> None:
        raise NotImplementedError

    def set_system_prompt(self, text: str) -> None:
        raise NotImplementedError

    def set_options(self, options: ChatOptions) -> None:
        """Raises RequestError for values that sampling cannot use."""
        raise NotImplementedError

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Waits until all that was asked for is done and told; False after `timeout` seconds. For terminals and tests."""
        raise NotImplementedError

    def close(self, timeout: float = 5.0) -> None:
        """Ends the thread. An answer that still streams is stored as `interrupted`."""
        raise NotImplementedError
