"""The store against a plain-Python model of it, in any order of actions, with restarts in between."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from app.store import AnswerJournal, ChatStore, DeletedMessages, MessageState

texts = st.text(max_size=40)  # with NUL, combining characters and everything else that UTF-8 can hold
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=5,
)
final_states = st.sampled_from([MessageState.COMPLETE, MessageState.CANCELLED, MessageState.FAILED])


@dataclass
class ModelMessage:
    role: str
    content: str
    state: MessageState
    deleted: bool = False


@dataclass
class ModelChat:
    title: str
    deleted: bool = False
    messages: dict[int, ModelMessage] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    chats = Bundle("chats")
    messages = Bundle("messages")
    journals = Bundle("journals")
    deletions = Bundle("deletions")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = ChatStore.open(self.folder / "chats.sqlite3")
        self.model: dict[int, ModelChat] = {}
        self.settings: dict[str, object] = {}
        self.running: dict[int, tuple[AnswerJournal, int]] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def alive(self, chat_id: int) -> bool:
        return chat_id in self.model and not self.model[chat_id].deleted

    @rule(target=chats, title=texts)
    def create_chat(self, title: str) -> int:
        chat_id = self.store.create_chat(title).id
        assert chat_id not in self.model
        self.model[chat_id] = ModelChat(title)
        return chat_id

    @rule(chat_id=chats, title=texts)
    def rename_chat(self, chat_id: int, title: str) -> None:
        if self.alive(chat_id):
            self.store.rename_chat(chat_id, title)
            self.model[chat_id].title = title

    @rule(chat_id=chats)
    def delete_or_undelete_chat(self, chat_id: int) -> None:
        if self.alive(chat_id):
            self.store.delete_chat(chat_id)
            self.model[chat_id].deleted = True
        elif chat_id in self.model:
            self.store.undelete_chat(chat_id)
            self.model[chat_id].deleted = False

    @rule(target=messages, chat_id=chats, role=st.sampled_from(["system", "user", "assistant"]), content=texts)
    def add_message(self, chat_id: int, role: str, content: str) -> object:
        if not self.alive(chat_id):
            return multiple()
        message = self.store.add_message(chat_id, role, content)
        self.model[chat_id].messages[message.id] = ModelMessage(role, content, MessageState.COMPLETE)
        return chat_id, message.id

    @rule(target=journals, chat_id=chats, pieces=st.lists(texts, max_size=4))
    def begin_answer(self, chat_id: int, pieces: list[str]) -> object:
        if not self.alive(chat_id):
            return multiple()
        journal = self.store.begin_answer(chat_id)
        for piece in pieces:
            journal.append(piece)
        self.running[journal.message_id] = (journal, chat_id)
        self.model[chat_id].messages[journal.message_id] = ModelMessage(
            "assistant", "".join(pieces), MessageState.STREAMING
        )
        return journal.message_id

    @rule(message_id=consumes(journals), piece=texts, state=final_states)
    def finish_answer(self, message_id: int, piece: str, state: MessageState) -> None:
        if message_id in self.running:
            journal, chat_id = self.running.pop(message_id)
            journal.append(piece)
            journal.finish(state)
            message = self.model[chat_id].messages[message_id]
            message.content += piece
            message.state = state

    @rule(target=deletions, message=messages, tail=st.booleans())
    def delete_messages(self, message: tuple[int, int], tail: bool) -> object:
        chat_id, message_id = message
        if not self.alive(chat_id):
            return multiple()
        candidates = self.model[chat_id].messages
        chosen = [
            number
            for number, other in sorted(candidates.items())
            if not other.deleted and (number == message_id or (tail and number > message_id))
        ]
        if tail:
            deleted = self.store.delete_messages_from(chat_id, message_id)
        elif chosen:
            deleted = self.store.delete_message(message_id)
        else:
            return multiple()
        assert list(deleted.message_ids) == chosen
        for number in chosen:
            candidates[number].deleted = True
        return deleted

    @rule(deleted=consumes(deletions))
    def restore(self, deleted: DeletedMessages) -> None:
        if deleted.chat_id in self.model:
            self.store.restore(deleted)
            for message in deleted.messages:
                # one that streamed when it was deleted, and has been removed for good since, gets no further
                streamed = message.state is MessageState.STREAMING
                state = MessageState.INTERRUPTED if streamed else message.state
                known = self.model[deleted.chat_id].messages.setdefault(
                    message.id, ModelMessage(message.role, message.content, state)
                )
                known.deleted = False

    @precondition(lambda self: not self.running)
    @rule()
    def purge(self) -> None:
        self.store.purge_deleted()
        self.forget_deleted()

    def forget_deleted(self) -> None:
        for chat_id in [number for number, chat in self.model.items() if chat.deleted]:
            del self.model[chat_id]
        for chat in self.model.values():
            chat.messages = {number: message for number, message in chat.messages.items() if not message.deleted}

    @rule(key=st.sampled_from("abc"), value=json_values)
    def set_setting(self, key: str, value: object) -> None:
        self.store.settings.set(key, value)
        self.settings[key] = value

    @rule(chat_id=chats, key=st.sampled_from("abc"), value=json_values)
    def set_chat_setting(self, chat_id: int, key: str, value: object) -> None:
        if chat_id in self.model:
            self.store.chat_settings(chat_id).set(key, value)
            self.model[chat_id].settings[key] = value

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = ChatStore.open(self.folder / "chats.sqlite3")
        assert self.store.notices == ()
        for _, chat_id in self.running.values():
            for message in self.model[chat_id].messages.values():
                if message.state is MessageState.STREAMING:
                    message.state = MessageState.INTERRUPTED
        self.running.clear()
        self.forget_deleted()

    @rule(text=st.sampled_from(["a", "0", "A 0", "%"]))
    def search(self, text: str) -> None:
        found = {hit.chat.id for hit in self.store.search(text)}
        for chat_id, chat in self.model.items():
            texts = [message.content for message in chat.messages.values() if not message.deleted]
            streaming = any(message.state is MessageState.STREAMING for message in chat.messages.values())
            if not chat.deleted and not streaming and all(part.isascii() for part in [chat.title, *texts]):
                whole = [" ".join(part.casefold().split()) for part in [chat.title, *texts]]
                wanted = text.casefold()
                if not any("\0" in part for part in whole):
                    assert (chat_id in found) == any(wanted in part for part in whole)

    @invariant()
    def agrees(self) -> None:
        alive = {number: chat for number, chat in self.model.items() if not chat.deleted}
        assert {chat.id: chat.title for chat in self.store.chats()} == {
            number: chat.title for number, chat in alive.items()
        }
        for chat_id, chat in alive.items():
            expected = [(number, message) for number, message in sorted(chat.messages.items()) if not message.deleted]
            stored = self.store.messages(chat_id)
            assert [message.id for message in stored] == [number for number, _ in expected]
            for message, (_, wanted) in zip(stored, expected, strict=True):
                assert (message.role, message.state) == (wanted.role, wanted.state)
                if message.state is MessageState.STREAMING:
                    assert wanted.content.startswith(message.content)  # the rest is on its way
                else:
                    assert message.content == wanted.content
            assert self.store.chat_settings(chat_id).all() == chat.settings
        assert self.store.settings.all() == self.settings


def test_an_answer_that_ended_while_deleted_and_was_purged_comes_back_as_interrupted():
    state = StoreMachine()
    chat = state.create_chat(title="")
    message = state.add_message(chat_id=chat, content="", role="system")
    journal = state.begin_answer(chat_id=chat, pieces=[])
    deleted = state.delete_messages(message=message, tail=True)
    state.finish_answer(message_id=journal, piece="", state=MessageState.COMPLETE)
    state.purge()
    state.restore(deleted=deleted)
    state.agrees()
    state.teardown()


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
