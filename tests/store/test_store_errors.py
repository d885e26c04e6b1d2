"""What the disk or another program refuses becomes a sentence, and nothing half-done stays behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.store import ChatStore
from app.store import database as database_module
from engine.errors import StoreError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatStore]:
    monkeypatch.setattr(database_module.connect, "__kwdefaults__", {"timeout": 0.05})
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        yield store


def writer(store: ChatStore) -> sqlite3.Connection:
    """Limits on this connection make SQLite report what a full or read-only disk would."""
    return store._database._writer


def test_a_full_disk(store: ChatStore) -> None:
    chat = store.create_chat()
    store.add_message(chat.id, "user", "before")
    pages = writer(store).execute("PRAGMA page_count").fetchone()[0]
    writer(store).execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="disk is full") as error:
        store.add_message(chat.id, "user", "x" * 100_000)
    assert "Free some space" in error.value.hint

    def add_both() -> None:
        with store.transaction():
            store.add_message(chat.id, "user", "small")
            store.add_message(chat.id, "user", "x" * 100_000)

    with pytest.raises(StoreError, match="disk is full"):
        add_both()
    assert [message.content for message in store.messages(chat.id)] == ["before"]
    writer(store).execute("PRAGMA max_page_count = 1000000")
    store.add_message(chat.id, "user", "after")
    assert [message.content for message in store.messages(chat.id)] == ["before", "after"]


def test_a_locked_history_can_still_be_read(store: ChatStore) -> None:
    chat = store.create_chat()
    store.add_message(chat.id, "user", "before")
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked") as error:
            store.add_message(chat.id, "user", "refused")
        assert "try again" in error.value.hint
        assert [message.content for message in store.messages(chat.id)] == ["before"]
    store.add_message(chat.id, "user", "after")


def test_a_read_only_history_can_still_be_read(store: ChatStore) -> None:
    chat = store.create_chat("kept")
    writer(store).execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="read-only") as error:
        store.create_chat("refused")
    assert "writable" in error.value.hint
    assert [chat.id for chat in store.chats()] == [chat.id]


def test_damage_while_it_is_open(store: ChatStore) -> None:
    store.create_chat("lost")
    with store.transaction():
        writer(store).execute("PRAGMA writable_schema = ON")
        writer(store).execute("UPDATE sqlite_master SET rootpage = 9999 WHERE name = 'chats'")
    with closing(sqlite3.connect(store.path)) as other:  # makes every connection read the schema again
        other.execute("PRAGMA writable_schema = ON")
        other.execute("CREATE TABLE changed (x)")
        other.commit()
    with pytest.raises(StoreError, match="damaged") as error:
        store.chats()
    assert "moves the damaged file aside" in error.value.hint


def test_each_error_names_the_file(store: ChatStore) -> None:
    writer(store).execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match=str(store.path)):
        store.create_chat()
