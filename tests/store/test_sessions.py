from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.store import ChatStore, SessionFolder


def write(folder: SessionFolder, chat_id: int, size: int, age: float) -> Path:
    path = folder.file(chat_id)
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"REALMKV1".ljust(size))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    return SessionFolder(tmp_path / "sessions", 1000)


def test_sessions_unused_longest_go_when_there_are_too_many(folder: SessionFolder) -> None:
    oldest, middle, newest = (write(folder, n, 400, age) for n, age in ((1, 300), (2, 200), (3, 100)))
    assert folder.used_bytes == 1200
    assert folder.file(1) == oldest  # it is used again: now another one is the oldest
    assert [path.exists() for path in (oldest, middle, newest)] == [True, False, True]
    folder.budget_bytes = 500
    assert [path.exists() for path in (oldest, newest)] == [True, False]
    folder.budget_bytes = 0
    assert folder.used_bytes == 0
    assert folder.file(1) is None


def test_the_session_in_use_stays_even_when_it_is_too_large(folder: SessionFolder) -> None:
    path = write(folder, 7, 5000, 10)
    assert folder.file(7) == path
    assert path.exists()
    folder.trim()
    assert not path.exists()


def test_a_session_damaged_at_its_start_makes_way(folder: SessionFolder) -> None:
    """The engine would keep it, taking it for something else."""
    path = write(folder, 7, 50, 10)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert folder.file(7) == path
    assert not path.exists()


def test_only_sessions_are_touched(folder: SessionFolder) -> None:
    write(folder, 1, 10, 0)
    other = folder.path / "notes.txt"
    other.write_bytes(bytes(9999))
    part = folder.path / "chat-1.session.77.part"
    part.write_bytes(bytes(10))
    folder.keep_only({1})
    folder.trim()
    assert other.exists()
    assert not part.exists()
    assert folder.used_bytes == 10


def test_a_folder_that_is_not_there_has_no_sessions(tmp_path: Path) -> None:
    folder = SessionFolder(tmp_path / "file" / "sessions", 10)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    folder.remove(1)
    folder.keep_only(())
    assert folder.used_bytes == 0


def test_a_deleted_chats_session_goes_at_once(tmp_path: Path) -> None:
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        kept, gone = store.create_chat("kept"), store.create_chat("gone")
        paths = [write(store.sessions, chat.id, 10, 0) for chat in (kept, gone)]
        store.delete_chat(gone.id)
        assert [path.exists() for path in paths] == [True, False]


def test_what_was_deleted_is_purged_when_nobody_can_bring_it_back(tmp_path: Path) -> None:
    file = tmp_path / "chats.sqlite3"
    with ChatStore.open(file) as store:
        chat = store.create_chat("gone")
        store.add_message(chat.id, "user", "a very private sentence")
        store.delete_chat(chat.id)
        with ChatStore.open(file):  # the first may still take it back
            store.undelete_chat(chat.id)
            store.delete_chat(chat.id)
        path = write(store.sessions, 99, 10, 0)  # of a chat that is not in the history
    with ChatStore.open(file) as store:
        assert store.purge_deleted() == 0
        assert not path.exists()
    assert b"private" not in file.read_bytes()


def test_the_budget_is_a_setting(tmp_path: Path) -> None:
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        chat = store.create_chat()
        store.set_session_budget(0)
        assert store.sessions.file(chat.id) is None
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        assert store.sessions.budget_bytes == 0
