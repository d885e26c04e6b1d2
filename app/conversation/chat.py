"""What a conversation does, step by step; all of it on the conversation's own thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.conversation.adapters import RunningAdapters
from app.conversation.answer import AnswerStart, RunningAnswer, unexpected
from app.conversation.engine import AnswerEngine, AnswerStream
from app.conversation.events import (
    AdaptersInForce,
    AnswerFailed,
    AnswerFinished,
    AnswerSaved,
    AnswerStarted,
    ChatCreated,
    ConversationEvent,
    ConversationLoaded,
    MessageAdded,
    MessagesRemoved,
    MessagesRestored,
    OptionsChanged,
    SavingFailed,
    TitleChanged,
)
from app.conversation.history import prompt_messages, title_from
from app.conversation.options import ChatOptions
from app.store import AnswerJournal, ChatStore, DeletedMessages, MessageState, StoredMessage
from engine import api
from engine.errors import RealmError, RequestError, StoreError

OPTIONS_KEY = "options"
CANCEL_GRACE_S = 2.0
"""How long closing waits for the engine to end an answer and give the last of its text."""


@dataclass(frozen=True)
class _UndoStep:
    removed: DeletedMessages
    added_from: int | None = None  # what the action added begins with this message


@dataclass(frozen=True)
class _Unsaved:
    """An answer whose end the database has not taken yet."""

    journal: AnswerJournal
    state: MessageState
    figures: Mapping[str, Any] | None
    error: str


class Chat:
    """The actions of one chat. Each tells what it did through `emit`; `deliver` hands that on at once.

    Actions raise RealmError (and have then changed nothing), except that what goes wrong with an answer becomes
    AnswerFailed.
    """

    def __init__(
        self,
        engine: AnswerEngine,
        store: ChatStore,
        chat_id: int | None,
        emit: Callable[[ConversationEvent], None],
        deliver: Callable[[], None],
        session: Path | None = None,
    ) -> None:
        """session: where its keys and values are kept; None: in the history's folder."""
        self.chat_id = chat_id
        self._session = session
        self.options = ChatOptions()
        self.answer: RunningAnswer | None = None
        self._adapters: RunningAdapters | None = None  # those of the answer that runs
        self.undo_steps: list[_UndoStep] = []
        self._unsaved: list[_Unsaved] = []
        self._saving_failed = False
        self._engine = engine
        self._store = store
        self._emit = emit
        self._deliver = deliver

    @property
    def has_unsaved(self) -> bool:
        return bool(self._unsaved)

    def load(self) -> None:
        if self.chat_id is None:
            self._emit(ConversationLoaded(None, (), self.options))
            return
        chat = self._store.chat(self.chat_id)
        self.options = ChatOptions.from_json(self._store.chat_settings(self.chat_id).get(OPTIONS_KEY))
        self._emit(ConversationLoaded(chat, tuple(self._store.messages(self.chat_id)), self.options))

    # Actions that are answered

    def send(self, text: str) -> None:
        self.save_unsaved()
        created = self.chat_id is None
        with self._store.transaction():
            chat_id = self._store.create_chat().id if self.chat_id is None else self.chat_id
            message = self._store.add_message(chat_id, "user", text)
            needs_title = not self._store.chat(chat_id).title
            if needs_title:
                self._store.rename_chat(chat_id, title_from(text))
            if created and self.options != ChatOptions():
                self._store.chat_settings(chat_id).set(OPTIONS_KEY, self.options.as_json())
        self.chat_id = chat_id
        self.undo_steps.clear()
        chat = self._store.chat(chat_id)
        if created:
            self._emit(ChatCreated(chat))
        self._emit(MessageAdded(message))
        if needs_title:
            self._emit(TitleChanged(chat_id, chat.title))
        self._deliver()
        self._begin_answer(chat_id)

    def regenerate(self) -> None:
        self.save_unsaved()
        chat_id, messages = self._messages()
        asked = [message.id for message in messages if message.role == "user"]
        if not asked:
            raise RequestError("There is no message to answer.", "Send one first.")
        old = [message.id for message in messages if message.id > asked[-1]]
        if not old:
            self._begin_answer(chat_id)
            return
        with self._store.transaction():
            removed = self._store.delete_messages_from(chat_id, old[0])
            journal = self._store.begin_answer(chat_id, self._model_name())
        self.undo_steps.append(_UndoStep(removed, journal.message_id))
        self._emit(MessagesRemoved(removed.message_ids, undoable=True))
        self._request_answer(chat_id, journal, replaced=removed)

    def go_on(self) -> None:
        """Takes up the last answer where it ended."""
        self.save_unsaved()
        chat_id, messages = self._messages()
        last = messages[-1] if messages else None
        if last is None or last.role != "assistant" or not last.content:
            raise RequestError("There is no answer to go on with.", "Send a message, or answer the last one again.")
        begun = AnswerStart(last.content, stored_drafted(last.figures))
        with self._store.transaction():
            removed = self._store.delete_message(last.id)
            journal = self._store.begin_answer(chat_id, self._model_name())
        self.undo_steps.append(_UndoStep(removed, journal.message_id))
        self._emit(MessagesRemoved(removed.message_ids, undoable=True))
        self._request_answer(chat_id, journal, replaced=removed, begun=begun)

    def edit_and_resend(self, message_id: int, text: str) -> None:
        self.save_unsaved()
        chat_id, messages = self._messages()
        if not any(message.id == message_id and message.role == "user" for message in messages):
            raise RequestError("Only a message of yours that is still in this chat can be edited.", "Choose another.")
        with self._store.transaction():
            removed = self._store.delete_messages_from(chat_id, message_id)
            message = self._store.add_message(chat_id, "user", text)
        self.undo_steps.append(_UndoStep(removed, message.id))
        self._emit(MessagesRemoved(removed.message_ids, undoable=True))
        self._emit(MessageAdded(message))
        self._deliver()
        self._begin_answer(chat_id)

    def _begin_answer(self, chat_id: int) -> None:
        try:
            journal = self._store.begin_answer(chat_id, self._model_name())
        except StoreError as problem:  # the prompt is stored; it can be answered by `regenerate`
            self._emit(AnswerFailed(None, problem.message, problem.hint))
        else:
            self._request_answer(chat_id, journal)

    def _request_answer(
        self,
        chat_id: int,
        journal: AnswerJournal,
        replaced: DeletedMessages | None = None,
        begun: AnswerStart | None = None,
    ) -> None:
        so_far = begun.text if begun else ""
        self._emit(AnswerStarted(replace(journal.message, content=so_far)))
        self._deliver()
        adapters = self.options.adapter_uses()
        stream: AnswerStream
        try:
            model = self._engine.status().model
            if model is not None and str(model.path) != self._store.chat(chat_id).model_path:
                self._store.set_chat_model(chat_id, str(model.path))
            stream = self._engine.submit(
                api.GenerateRequest(
                    messages=prompt_messages(self._store.messages(chat_id), self.options.system_prompt),
                    sampling=self.options.sampling,
                    max_tokens=self.options.max_tokens,
                    stop=self.options.stop,
                    plain_template=self.options.plain_template,
                    grammar=self.options.grammar,
                    json_schema=self.options.json_schema,
                    answer_so_far=so_far,
                    adapters=adapters,
                    draft=self.options.draft,
                    context_policy=self.options.context_policy,
                    session=self._session or self._store.sessions.file(chat_id),
                )
            )
        except Exception as error:
            stream = _FailedStream(error if isinstance(error, RealmError) else unexpected(error))
        self.answer = RunningAnswer(journal, stream, replaced, begun)
        self._adapters = RunningAdapters(self._engine, stream, adapters)
        if adapters:
            self._emit(AdaptersInForce(adapters))

    def advance(self) -> bool:
        """Moves the running answer on, if there is one; True when that has ended it."""
        answer = self.answer
        if answer is None:
            return False
        for event in answer.advance():
            self._emit(event)
        if self._adapters is not None and answer.end is None:
            for change in self._adapters.advance():
                self._emit(change)
        self._tell_saving(answer.journal.problem())
        if answer.end is None:
            return False
        self._end(answer)
        return True

    def stop(self) -> None:
        if self.answer is not None:
            self.answer.stop(MessageState.CANCELLED)

    def close(self) -> None:
        """Ends a running answer as `interrupted`."""
        answer = self.answer
        if answer is not None:
            answer.stop(MessageState.INTERRUPTED)
            deadline = time.monotonic() + CANCEL_GRACE_S
            while not self.advance() and time.monotonic() < deadline:
                time.sleep(0.01)
            if answer.end is None:
                self._end(answer)
        if self._unsaved:
            self.save_unsaved()

    def _end(self, answer: RunningAnswer) -> None:
        self.answer = self._adapters = None
        end, state = answer.end, answer.final_state()
        if isinstance(end, api.Failed) and self._bring_back_replaced(answer, end.error):
            self._emit(AnswerFailed(None, end.error.message, end.error.hint))
            return
        error = str(end.error) if isinstance(end, api.Failed) else ""
        figures = answer.figures_as_json()
        saved = True
        try:
            message = answer.journal.finish(state, figures, error)
        except StoreError as problem:
            saved = False
            message = replace(answer.journal.message, content=answer.journal.text, state=state, error=error)
            message = replace(message, figures=figures)
            self._unsaved.append(_Unsaved(answer.journal, state, figures, error))
            self._tell_saving(problem)
        if isinstance(end, api.Failed):
            self._emit(AnswerFailed(message, end.error.message, end.error.hint, saved))
        else:
            reason = api.StopReason.CANCELLED if end is None else end.reason
            self._emit(AnswerFinished(message, reason, answer.figures, saved))

    def _bring_back_replaced(self, answer: RunningAnswer, error: RealmError) -> bool:
        """Undoes a regenerate that came to nothing. False when there is nothing to undo or the database refuses."""
        if answer.replaced is None or answer.has_text:
            return False
        try:
            with self._store.transaction():
                self._store.delete_message(answer.message_id)
                self._store.restore(answer.replaced)
        except StoreError as problem:
            self._tell_saving(problem)
            return False
        with contextlib.suppress(StoreError):  # it is deleted already; closing the store ends it otherwise
            answer.journal.finish(MessageState.FAILED, error=str(error))
        self.undo_steps.pop()
        self._emit(MessagesRemoved((answer.message_id,), undoable=False))
        self._emit(MessagesRestored(answer.replaced.messages))
        return True

    # Saving what could not be saved at once

    def save_unsaved(self) -> None:
        """Tries again to store ended answers. Raises StoreError."""
        while self._unsaved:
            unsaved = self._unsaved[0]
            message = unsaved.journal.finish(unsaved.state, unsaved.figures, unsaved.error)
            self._unsaved.pop(0)
            self._saving_failed = False
            self._emit(AnswerSaved(message))

    def _tell_saving(self, problem: StoreError | None) -> None:
        """SavingFailed once per row of failures."""
        if problem is not None and not self._saving_failed:
            self._emit(SavingFailed(problem.message, problem.hint))
        self._saving_failed = problem is not None or bool(self._unsaved)

    # Other actions

    def delete_message(self, message_id: int) -> None:
        self.save_unsaved()
        _, messages = self._messages()
        if not any(message.id == message_id for message in messages):
            raise RequestError("This message is no longer in the chat.")
        removed = self._store.delete_message(message_id)
        self.undo_steps.append(_UndoStep(removed))
        self._emit(MessagesRemoved(removed.message_ids, undoable=True))

    def undo(self) -> None:
        self.save_unsaved()
        if not self.undo_steps:
            raise RequestError("There is nothing to take back.")
        step = self.undo_steps[-1]
        added: tuple[int, ...] = ()
        with self._store.transaction():
            if step.added_from is not None:
                added = self._store.delete_messages_from(step.removed.chat_id, step.added_from).message_ids
            self._store.restore(step.removed)
        self.undo_steps.pop()
        if added:
            self._emit(MessagesRemoved(added, undoable=False))
        self._emit(MessagesRestored(step.removed.messages))

    def rename(self, title: str) -> None:
        if self.chat_id is None:
            raise RequestError("This chat has no messages yet, so it has no name.", "Send a message first.")
        self._store.rename_chat(self.chat_id, title)
        self._emit(TitleChanged(self.chat_id, title))

    def set_options(self, options: ChatOptions) -> None:
        if self.chat_id is not None:
            self._store.chat_settings(self.chat_id).set(OPTIONS_KEY, options.as_json())
        self.options = options
        self._emit(OptionsChanged(options))
        if self._adapters is not None:
            self._adapters.want(options.adapter_uses())

    def _messages(self) -> tuple[int, list[StoredMessage]]:
        if self.chat_id is None:
            raise RequestError("This chat has no messages yet.", "Send one first.")
        return self.chat_id, self._store.messages(self.chat_id)

    def _model_name(self) -> str:
        model = self._engine.status().model
        return "" if model is None else model.name


def stored_drafted(figures: Mapping[str, Any] | None) -> tuple[tuple[int, int], ...]:
    """The guessed parts of an answer out of its stored figures; none where they are not as they should be."""
    try:
        return tuple((int(start), int(end)) for start, end in (figures or {}).get("drafted", ()))
    except (TypeError, ValueError):
        return ()


class _FailedStream:
    """The stream of a request that the engine did not take."""

    def __init__(self, error: RealmError) -> None:
        self._events: list[api.Event] = [api.Failed(error)]

    def poll(self) -> list[api.Event]:
        events, self._events = self._events, []
        return events

    def cancel(self) -> None:
        pass  # it has ended already
