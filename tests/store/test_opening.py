"""Opening a history: after a crash, after damage, from another version, beside another process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from app.store import ChatStore, MessageState, opening
from app.store.schema import MIGRATIONS, SCHEMA_VERSION
from engine.errors import StoreError

STREAMING_CHILD = """
import sys, time
from pathlib import Path
from app.store import ChatStore
store = ChatStore.open(Path(sys.argv[1]))
chat = store.create_chat("child")
store.add_message(chat.id, "user", "question")
journal = store.begin_answer(chat.id)
journal.append("half an answer")
while store.messages(chat.id)[-1].content != "half an answer":
    time.sleep(0.01)
print(chat.id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "chats.sqlite3"


def fill(path: Path, messages: int = 200) -> int:
    with ChatStore.open(path) as store:
        chat = store.create_chat("kept")
        with store.transaction():
            for number in range(messages):
                store.add_message(chat.id, "user", f"message {number} " + "x" * 300)
        return chat.id


def streaming_child(path: Path) -> tuple[subprocess.Popen[str], int]:
    child = subprocess.Popen(
        [sys.executable, "-c", STREAMING_CHILD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout is not None
    return child, int(child.stdout.readline())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_an_answer_of_a_killed_process_becomes_interrupted_and_keeps_its_text(path: Path) -> None:
    child, chat_id = streaming_child(path)
    with child:
        with ChatStore.open(path) as store:  # while its process lives the answer is left alone
            assert store.messages(chat_id)[-1].state is MessageState.STREAMING
            assert store.notices == ()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    with ChatStore.open(path) as store:
        question, answer = store.messages(chat_id)
        assert question.content == "question"
        assert (answer.content, answer.state) == ("half an answer", MessageState.INTERRUPTED)
        [notice] = store.notices
        assert "1 answer still streamed" in notice
    with ChatStore.open(path) as store:
        assert store.notices == ()
    assert [file.name for file in path.with_name("chats.sqlite3-owners").iterdir()] == ["opening.lock"]


def test_a_newer_history_is_refused_and_left_as_it_is(path: Path) -> None:
    chat_id = fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer version of Realm") as refusal:
        ChatStore.open(path)
    assert "Update Realm" in refusal.value.hint
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    with ChatStore.open(path) as store:
        assert len(store.messages(chat_id)) == 200


def test_an_older_history_is_migrated_and_a_migration_that_fails_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_id = fill(path)
    failing = "ALTER TABLE chats ADD COLUMN pinned INTEGER;\nINSERT INTO nowhere VALUES (1);"
    monkeypatch.setattr(opening, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(opening, "MIGRATIONS", (*MIGRATIONS, failing))
    with pytest.raises(StoreError, match="nowhere"):
        ChatStore.open(path)
    monkeypatch.setattr(opening, "MIGRATIONS", (*MIGRATIONS, "ALTER TABLE chats ADD COLUMN pinned INTEGER;"))
    with ChatStore.open(path) as store:
        assert len(store.messages(chat_id)) == 200
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
        assert connection.execute("SELECT pinned FROM chats").fetchall() == [(None,)]


def test_another_programs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        ChatStore.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["not a database", "cut off", "zeroed page"])
def test_a_damaged_history_is_moved_aside_and_what_can_be_read_is_kept(path: Path, damage: str) -> None:
    chat_id = fill(path)
    data = bytearray(path.read_bytes())
    if damage == "not a database":
        data = bytearray(b"this was never a database " * 400)
    elif damage == "cut off":
        del data[len(data) // 2 :]
    else:
        middle = len(data) // 2 // 4096 * 4096
        data[middle : middle + 4096] = bytes(4096)
    path.write_bytes(data)
    with ChatStore.open(path) as store:
        [notice] = store.notices
        [aside] = path.parent.glob("chats-damaged-*.sqlite3")
        assert str(aside) in notice
        assert "damaged" in notice
        assert aside.read_bytes() == data
        if damage != "not a database":
            contents = [message.content for message in store.messages(chat_id)]
            assert len(contents) > 50
            assert all(content.endswith("x" * 300) for content in contents)
            assert f"{len(contents)} messages" in notice
        store.add_message(store.create_chat("new").id, "user", "works")
    with ChatStore.open(path) as store:
        assert store.notices == ()
        assert store.chats()[0].title == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_damaged_history_is_not_taken_away_from_another_process(path: Path) -> None:
    child, _ = streaming_child(path)
    with child:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_master SET rootpage = 9999 WHERE name = 'messages'")
        with pytest.raises(StoreError, match="another Realm has it open"):
            ChatStore.open(path)
        assert path.exists()
        child.kill()


def test_an_empty_file_is_a_new_history(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with ChatStore.open(path) as store:
        assert store.chats() == []
        assert store.notices == ()


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be opened") as error:
        ChatStore.open(tmp_path / "file" / "chats.sqlite3")
    assert error.value.hint
    (tmp_path / "chats.sqlite3").mkdir()
    with pytest.raises(StoreError, match=r"chats\.sqlite3"):
        ChatStore.open(tmp_path / "chats.sqlite3")
