"""Several threads and processes use one history at the same time."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.store import ChatStore, MessageState

WRITING_CHILD = """
import sys
from pathlib import Path
from app.store import ChatStore
with ChatStore.open(Path(sys.argv[1])) as store:
    for number in range(int(sys.argv[3])):
        store.add_message(int(sys.argv[2]), "user", f"{sys.argv[4]} {number}")
"""


def test_reading_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        chat = store.create_chat()
        store.add_message(chat.id, "user", "before")
        inside, read = threading.Event(), threading.Event()

        def write() -> None:
            with store.transaction():
                store.add_message(chat.id, "user", "uncommitted")
                inside.set()
                assert read.wait(10)

        writing = threading.Thread(target=write)
        writing.start()
        assert inside.wait(10)
        assert [message.content for message in store.messages(chat.id)] == ["before"]
        assert store.chats()[0].snippet == "before"
        read.set()
        writing.join()
        assert [message.content for message in store.messages(chat.id)] == ["before", "uncommitted"]


def test_readers_see_only_whole_turns_while_answers_stream(tmp_path: Path) -> None:
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        chat = store.create_chat()
        done = threading.Event()

        def write() -> None:
            for number in range(30):
                with store.transaction():
                    store.add_message(chat.id, "user", f"question {number}")
                    journal = store.begin_answer(chat.id)
                for word in ("an ", "answer ", f"{number}"):
                    journal.append(word)
                    time.sleep(0.002)
                journal.finish(MessageState.COMPLETE)
            done.set()

        def check() -> int:
            rounds = 0
            while not done.is_set():
                messages = store.messages(chat.id)
                assert len(messages) % 2 == 0
                for question, answer in zip(messages[::2], messages[1::2], strict=True):
                    whole = f"an answer {question.content.split()[1]}"
                    assert whole.startswith(answer.content)
                    assert answer.state is MessageState.STREAMING or answer.content == whole
                rounds += 1
            return rounds

        with ThreadPoolExecutor() as pool:
            writing = pool.submit(write)
            reading = [pool.submit(check) for _ in range(2)]
            writing.result()
            assert all(rounds.result() > 0 for rounds in reading)


def test_messages_of_several_threads_are_all_there(tmp_path: Path) -> None:
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        chat = store.create_chat()
        with ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(lambda number: store.add_message(chat.id, "user", str(number)).id, range(100)))
        assert len(set(ids)) == 100
        assert sorted(int(message.content) for message in store.messages(chat.id)) == list(range(100))


def test_two_processes_write_into_one_history(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    with ChatStore.open(path) as store:
        chat = store.create_chat()
        children = [
            subprocess.Popen(
                [sys.executable, "-c", WRITING_CHILD, str(path), str(chat.id), "40", name],
                cwd=Path(__file__).parents[2],
            )
            for name in "ab"
        ]
        for number in range(40):
            store.add_message(chat.id, "user", f"c {number}")
        assert [child.wait(60) for child in children] == [0, 0]
        contents = [message.content for message in store.messages(chat.id)]
    assert sorted(contents) == sorted(f"{name} {number}" for name in "abc" for number in range(40))
    for name in "abc":
        own = [content for content in contents if content.startswith(name)]
        assert own == [f"{name} {number}" for number in range(40)]


def test_processes_that_open_a_new_history_at_once_agree_on_it(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: ChatStore.open(path), range(6)))
    stores[0].create_chat("seen by all")
    assert [[chat.title for chat in store.chats()] for store in stores] == [["seen by all"]] * 6
    for store in stores:
        store.close()


@pytest.mark.skipif(sqlite3.threadsafety != 3, reason="this SQLite was built without its own locks")
def test_a_store_may_be_closed_from_another_thread(tmp_path: Path) -> None:
    store = ChatStore.open(tmp_path / "chats.sqlite3")
    store.begin_answer(store.create_chat().id).append("text")
    closing = threading.Thread(target=store.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
