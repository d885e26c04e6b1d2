"""An answer reaches the database while it streams, and its writer never waits for that."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.store import ChatStore, MessageState
from app.store import database as database_module
from engine.errors import StoreError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatStore]:
    monkeypatch.setattr(database_module.connect, "__kwdefaults__", {"timeout": 0.05})
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        yield store


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_text_is_in_the_database_soon_after_it_came(store: ChatStore) -> None:
    chat = store.create_chat()
    journal = store.begin_answer(chat.id)
    text = ""
    for number in range(20):
        text += f"{number} "
        journal.append(f"{number} ")
        time.sleep(0.01)
    wait_for(lambda: store.messages(chat.id)[0].content == text, 1.0)
    assert store.messages(chat.id)[0].state is MessageState.STREAMING


def test_only_journaled_text_does_without_waiting_for_the_disk(store: ChatStore) -> None:
    def level() -> int:
        return int(store._database._writer.execute("PRAGMA synchronous").fetchone()[0])

    full, normal = 2, 1
    seen: list[int] = []

    def remember(_: str) -> None:
        seen.append(level())

    store._database._writer.create_function("folded", 1, remember)
    store._database._writer.executescript(
        "CREATE TEMP TRIGGER message AFTER INSERT ON messages BEGIN SELECT folded('message'); END;"
        "CREATE TEMP TRIGGER piece AFTER INSERT ON answer_pieces BEGIN SELECT folded('piece'); END;"
    )
    chat = store.create_chat()
    store.add_message(chat.id, "user", "question")
    journal = store.begin_answer(chat.id)
    journal.append("text")
    wait_for(lambda: len(seen) == 3)
    journal.finish(MessageState.COMPLETE)
    store.add_message(chat.id, "user", "next")
    assert seen == [full, normal, normal, full]


def test_append_does_not_wait_for_a_locked_database(store: ChatStore) -> None:
    chat = store.create_chat()
    journal = store.begin_answer(chat.id)
    store._database._writer.execute("PRAGMA busy_timeout = 500")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        longest = 0.0
        for _ in range(50):
            begun = time.monotonic()
            journal.append("text ")
            longest = max(longest, time.monotonic() - begun)
            time.sleep(0.005)
        assert longest < 0.4  # less than the locked writer waits
        wait_for(lambda: journal.problem() is not None)
        problem = journal.problem()
        assert problem is not None
        assert "locked" in problem.message
        with pytest.raises(StoreError, match="locked"):
            journal.finish(MessageState.COMPLETE)
        other.execute("ROLLBACK")
    wait_for(lambda: journal.problem() is None)
    assert journal.finish(MessageState.COMPLETE).content == "text " * 50
    assert store.messages(chat.id)[0].content == "text " * 50


def test_a_finished_answer_takes_no_more_text(store: ChatStore) -> None:
    journal = store.begin_answer(store.create_chat().id)
    journal.append("done")
    journal.finish(MessageState.CANCELLED)
    with pytest.raises(ValueError, match="finished"):
        journal.append("more")


def test_closing_the_store_keeps_what_streams(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    with ChatStore.open(path) as store:
        chat = store.create_chat()
        store.begin_answer(chat.id).append("half an ans")
    with ChatStore.open(path) as store:
        [message] = store.messages(chat.id)
        assert (message.content, message.state) == ("half an ans", MessageState.INTERRUPTED)
        assert store.notices == ()


def test_a_streaming_answer_is_not_purged_with_its_deleted_chat(store: ChatStore) -> None:
    chat = store.create_chat()
    journal = store.begin_answer(chat.id)
    journal.append("still coming")
    store.delete_chat(chat.id)
    assert store.purge_deleted() == 0
    journal.finish(MessageState.COMPLETE)
    store.undelete_chat(chat.id)
    assert store.messages(chat.id)[0].content == "still coming"
