"""One chat, joined to the engine: the only place where prompts and answers pass between engine and store."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.conversation.answer import unexpected
from app.conversation.chat import Chat
from app.conversation.engine import AnswerEngine
from app.conversation.events import ActionFailed, AnswerFailed, ConversationEvent
from app.conversation.options import ChatOptions
from app.store import ChatStore
from engine.errors import RealmError, RequestError

log = logging.getLogger(__name__)

Listener = Callable[[Sequence[ConversationEvent]], None]

TICK_S = 0.04
"""While an answer streams its text is passed on this often."""
SAVE_AGAIN_S = 2.0
"""How often an answer that the database refused is offered to it again."""


@dataclass(frozen=True)
class _Action:
    name: str
    run: Callable[[], None]
    answers: bool = False
    text: str = ""


class Conversation:
    """Works on a thread of its own: no method waits for disk or engine; results come to the listener as events.

    The listener is called on that thread with batches of events in order, while an answer streams at most 25 times a
    second. In a window it should emit one queued signal. It may call every method but `wait_idle` and `close`. The
    first batch (ConversationLoaded) may come before the constructor has returned.
    """

    def __init__(
        self,
        engine: AnswerEngine,
        store: ChatStore,
        chat_id: int | None = None,
        listener: Listener | None = None,
        session: Path | None = None,
    ) -> None:
        """chat_id None: the chat is created when the first message is sent (ChatCreated).

        session: where the chat's keys and values are kept, if not in the history's folder.
        """
        self._listener = listener
        self._events: list[ConversationEvent] = []
        self._chat = Chat(engine, store, chat_id, self._events.append, self._deliver, session)
        self._actions: queue.SimpleQueue[_Action] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._busy = False
        self._unfinished_actions = 0
        self._closing = False
        self._enqueue(_Action("load", self._chat.load))
        self._thread = threading.Thread(target=self._run, name="conversation", daemon=True)
        self._thread.start()

    @property
    def chat_id(self) -> int | None:
        """None until the chat has been created."""
        return self._chat.chat_id

    @property
    def busy(self) -> bool:
        """True from `send` (or regenerate, edit_and_resend) until its AnswerFinished, AnswerFailed or ActionFailed."""
        return self._busy

    @property
    def options(self) -> ChatOptions:
        """The options in force; they change with ConversationLoaded and OptionsChanged."""
        return self._chat.options

    @property
    def can_undo(self) -> bool:
        return bool(self._chat.undo_steps)

    def send(self, text: str) -> None:
        """Stores the user's message, then has it answered.

        Raises RequestError for an empty text and while an answer streams.
        """
        _check_text(text)
        self._enqueue(_Action("send", lambda: self._chat.send(text), answers=True, text=text))

    def regenerate(self) -> None:
        """Answers the last user message anew; the old answer goes (undo brings it back).

        If the new one fails before it has any text, the old one comes back by itself. Raises RequestError while an
        answer streams.
        """
        self._enqueue(_Action("regenerate", self._chat.regenerate, answers=True))

    def go_on(self) -> None:
        """Writes on at the end of the last answer, which may have been stopped or have met the end of the context.

        The longer answer takes the place of the shorter one (undo brings that back; so does a failure before any new
        text). Raises RequestError while an answer streams.
        """
        self._enqueue(_Action("go_on", self._chat.go_on, answers=True))

    def edit_and_resend(self, message_id: int, text: str) -> None:
        """Replaces a user message and all after it by a new one and has that answered; undo brings the old ones back.

        Raises RequestError for an empty text and while an answer streams.
        """
        _check_text(text)
        self._enqueue(
            _Action("edit_and_resend", lambda: self._chat.edit_and_resend(message_id, text), answers=True, text=text)
        )

    def stop(self) -> None:
        """Ends the answer that streams, keeping its text; nothing happens when none does."""
        self._enqueue(_Action("stop", self._chat.stop), while_busy=True)

    def delete_message(self, message_id: int) -> None:
        """Takes one message out of the chat; undo brings it back. Raises RequestError while an answer streams."""
        self._enqueue(_Action("delete_message", lambda: self._chat.delete_message(message_id)))

    def undo(self) -> None:
        """Takes back the last delete, regenerate or edit since the last `send`.

        Raises RequestError while an answer streams.
        """
        self._enqueue(_Action("undo", self._chat.undo))

    def rename(self, title: str) -> None:
        """Raises RequestError for an empty title."""
        title = " ".join(title.split())
        if not title:
            raise RequestError("A chat cannot have an empty title.", "Type a title.")
        self._enqueue(_Action("rename", lambda: self._chat.rename(title)), while_busy=True)

    def set_system_prompt(self, text: str) -> None:
        """Sets what the model is told before the chat, from the next answer on; "" for nothing."""
        self._enqueue(
            _Action(
                "set_system_prompt",
                lambda: self._chat.set_options(replace(self._chat.options, system_prompt=text)),
            ),
            while_busy=True,
        )

    def set_options(self, options: ChatOptions) -> None:
        """Sets how the next answers are made; other adapters act on the running answer too (AdaptersInForce says when).

        Raises RequestError, naming the field, for a value out of range.
        """
        options.check()
        self._enqueue(_Action("set_options", lambda: self._chat.set_options(options)), while_busy=True)

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Waits until all that was asked for is done and told; False after `timeout` seconds.

        For terminals and tests.
        """
        with self._state:
            return self._state.wait_for(lambda: not self._unfinished_actions, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Ends the thread, waiting at most `timeout` seconds. An answer that still streams is stored as `interrupted`.

        Close the conversation before its store and its engine.
        """
        with self._state:
            if not self._closing:
                self._closing = True
                self._unfinished_actions += 1
                self._actions.put(_Action("close", self._chat.close))
        self._thread.join(timeout)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _enqueue(self, action: _Action, *, while_busy: bool = False) -> None:
        with self._state:
            if self._closing:
                raise RequestError("This chat has been closed.", "Open it again.")
            if self._busy and not while_busy:
                raise RequestError(
                    "An answer is still being written in this chat.", "Wait for its end or stop it first."
                )
            self._busy = self._busy or action.answers
            self._unfinished_actions += 1
            self._actions.put(action)

    # What follows runs on the conversation's thread.

    def _run(self) -> None:
        next_tick = 0.0
        while True:
            action = self._next_action(next_tick - time.monotonic())
            if action is not None:
                self._perform(action)
                if action.name == "close":
                    break
            if self._chat.answer is not None and time.monotonic() >= next_tick:
                next_tick = time.monotonic() + TICK_S
                self._advance()
        with self._state:  # nothing that is still in the queue will be done
            self._busy = False
            self._unfinished_actions = 0
            self._state.notify_all()

    def _next_action(self, until_tick: float) -> _Action | None:
        timeout = None
        if self._chat.answer is not None:
            timeout = max(0.0, until_tick)
        elif self._chat.has_unsaved:
            timeout = SAVE_AGAIN_S
        try:
            return self._actions.get(timeout=timeout)
        except queue.Empty:
            pass
        if self._chat.answer is None:
            with contextlib.suppress(RealmError):  # it has been told, and there will be another try
                self._chat.save_unsaved()
            self._deliver()
        return None

    def _perform(self, action: _Action) -> None:
        try:
            action.run()
        except Exception as error:
            if not isinstance(error, RealmError):
                log.exception("%s failed", action.name)
                error = unexpected(error)
            self._events.append(ActionFailed(action.name, error.message, error.hint, action.text))
        if not action.answers:
            self._deliver()
            self._action_done()
        elif self._chat.answer is None:
            self._answer_done()

    def _advance(self) -> None:
        try:
            ended = self._chat.advance()
        except Exception as error:
            log.exception("An answer could not be carried on")
            self._chat.answer = None
            sentence = unexpected(error)
            self._events.append(AnswerFailed(None, sentence.message, sentence.hint, saved=False))
            ended = True
        if ended:
            self._answer_done()
        else:
            self._deliver()

    def _answer_done(self) -> None:
        self._busy = False  # before the listener hears of it, who may want to send the next message
        self._deliver()
        self._action_done()

    def _action_done(self) -> None:
        with self._state:
            self._unfinished_actions -= 1
            self._state.notify_all()

    def _deliver(self) -> None:
        batch = tuple(self._events)
        self._events.clear()
        if batch and self._listener is not None:
            try:
                self._listener(batch)
            except Exception:
                log.exception("A listener failed")


def _check_text(text: str) -> None:
    if not text.strip():
        raise RequestError("There is nothing to send.", "Type a message first.")
