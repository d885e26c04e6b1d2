"""What a person relies on: chats and messages are there again, in order, also after delete and undo."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.store import ChatStore, MessageState
from engine.errors import StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[ChatStore]:
    with ChatStore.open(path) as store:
        yield store


def contents(store: ChatStore, chat_id: int) -> list[str]:
    return [message.content for message in store.messages(chat_id)]


def test_without_a_path_the_history_is_in_the_data_folder(data_dir: Path) -> None:
    with ChatStore.open() as store:
        assert store.path == data_dir / "chats.sqlite3"
        store.create_chat("kept")
    with ChatStore.open() as store:
        assert [chat.title for chat in store.chats()] == ["kept"]


def test_messages_come_back_as_they_were(path: Path) -> None:
    figures = {"generated_tokens": 3, "decode_tokens_per_s": 12.5, "stop_reason": "eos"}
    with ChatStore.open(path) as store:
        chat = store.create_chat("Grüße", "/models/a.gguf")
        asked = store.add_message(chat.id, "user", "Was ist\0 das? 漢字 🙂\r\n")
        answer = store.begin_answer(chat.id, "SmolLM2")
        answer.append("Das ")
        answer.append("hier.")
        answered = answer.finish(MessageState.COMPLETE, figures)
        failed = store.add_message(chat.id, "assistant", "", state=MessageState.FAILED, error="The device was lost.")
        before = store.messages(chat.id)
    with ChatStore.open(path) as store:
        assert store.notices == ()
        assert store.messages(chat.id) == before == [asked, answered, failed]
        assert answered.content == "Das hier."
        assert answered.figures == figures
        assert answered.model == "SmolLM2"
        assert store.chats()[0].model_path == "/models/a.gguf"


def test_half_a_character_does_not_lose_the_message(store: ChatStore) -> None:
    chat = store.create_chat()
    store.add_message(chat.id, "user", "lone \ud83d surrogate")
    assert contents(store, chat.id) == ["lone \ufffd surrogate"]


def test_the_chat_changed_last_is_first_and_shows_its_last_words(store: ChatStore) -> None:
    first, second = store.create_chat("first"), store.create_chat("second")
    store.add_message(first.id, "user", "one\n\n  two")
    assert [chat.id for chat in store.chats()] == [first.id, second.id]
    assert store.chats()[0].snippet == "one two"
    store.rename_chat(second.id, "renamed")  # a new name does not make a chat a recent one
    assert [chat.title for chat in store.chats()] == ["first", "renamed"]


def test_a_deleted_chat_can_be_brought_back_until_it_is_purged(store: ChatStore) -> None:
    chat = store.create_chat("one")
    store.add_message(chat.id, "user", "hello")
    store.delete_chat(chat.id)
    assert store.chats() == []
    with pytest.raises(StoreError, match="deleted"):
        store.messages(chat.id)
    with pytest.raises(StoreError, match="deleted"):
        store.add_message(chat.id, "user", "more")
    assert store.purge_deleted(timedelta(days=1)) == 0
    store.undelete_chat(chat.id)
    assert contents(store, chat.id) == ["hello"]
    store.delete_chat(chat.id)
    assert store.purge_deleted() == 1
    with pytest.raises(StoreError, match="for good"):
        store.undelete_chat(chat.id)


def test_deleted_messages_go_back_to_their_place(store: ChatStore) -> None:
    chat = store.create_chat()
    messages = [store.add_message(chat.id, "user", text) for text in "abcd"]
    middle = store.delete_message(messages[1].id)
    tail = store.delete_messages_from(chat.id, messages[2].id)
    assert contents(store, chat.id) == ["a"]
    store.add_message(chat.id, "user", "e")
    store.restore(tail)
    store.restore(middle)
    assert contents(store, chat.id) == ["a", "b", "c", "d", "e"]
    assert tail.message_ids == (messages[2].id, messages[3].id)


def test_purged_messages_can_still_be_restored_by_whoever_holds_them(store: ChatStore) -> None:
    chat = store.create_chat()
    kept, gone = store.add_message(chat.id, "user", "kept"), store.add_message(chat.id, "assistant", "gone")
    deleted = store.delete_message(gone.id)
    assert store.purge_deleted() == 1
    store.restore(deleted)
    assert store.messages(chat.id) == [kept, gone]


def test_a_message_that_is_gone_cannot_be_deleted(store: ChatStore) -> None:
    chat = store.create_chat()
    message = store.add_message(chat.id, "user", "once")
    store.delete_message(message.id)
    with pytest.raises(StoreError, match="no longer there"):
        store.delete_message(message.id)
    assert store.delete_messages_from(chat.id, message.id).messages == ()


def test_a_transaction_is_stored_whole_or_not_at_all(store: ChatStore) -> None:
    chat = store.create_chat()
    message = store.add_message(chat.id, "user", "old")

    def replace_and_fail() -> None:
        with store.transaction():
            store.delete_message(message.id)
            store.add_message(chat.id, "user", "new")
            assert contents(store, chat.id) == ["new"]  # the transaction sees its own work
            raise KeyError

    with pytest.raises(KeyError):
        replace_and_fail()
    assert contents(store, chat.id) == ["old"]
    with store.transaction():
        store.delete_message(message.id)
        store.add_message(chat.id, "user", "new")
    assert contents(store, chat.id) == ["new"]


def test_search_finds_text_and_titles_in_any_case(store: ChatStore) -> None:
    first, second, third = store.create_chat("Rezepte"), store.create_chat("Straße"), store.create_chat("other")
    store.add_message(first.id, "user", "Wie backt man einen\nApfelkuchen mit 100 % Äpfeln?")
    wanted = store.add_message(first.id, "assistant", "x" * 500 + " ÄPFEL schälen " + "y" * 500)
    gone = store.add_message(third.id, "user", "äpfel")
    store.delete_message(gone.id)
    [hit] = store.search("äpfel")
    assert (hit.chat.id, hit.message_id) == (first.id, wanted.id)
    assert "ÄPFEL" in hit.snippet
    assert "\n" not in hit.snippet
    assert [hit.chat.id for hit in store.search("EINEN APFELKUCHEN")] == [first.id]  # across the line break
    assert [(hit.chat.id, hit.message_id) for hit in store.search("STRASSE")] == [(second.id, None)]
    assert [hit.chat.id for hit in store.search("100 %")] == [first.id]  # no wildcards
    assert store.search("_") == []
    assert store.search("  ") == []


def test_settings_keep_json_values(path: Path) -> None:
    with ChatStore.open(path) as store:
        store.settings.set("window", {"size": [800, 600], "title": "Grüße", "maximised": None})
        store.settings.set("device", "auto")
        store.settings.remove("device")
        chat = store.create_chat()
        store.chat_settings(chat.id).set("device", 1)
        with pytest.raises(TypeError):
            store.settings.set("bad", {1, 2})
    with ChatStore.open(path) as store:
        assert store.settings.get("window") == {"size": [800, 600], "title": "Grüße", "maximised": None}
        assert store.settings.get("device", "fallback") == "fallback"
        assert store.settings.all().keys() == {"window"}
        assert store.chat_settings(chat.id).all() == {"device": 1}
        with pytest.raises(StoreError, match="removed for good"):
            store.chat_settings(chat.id + 1).set("device", 1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps no such modes")
def test_the_file_is_for_its_owner_only(path: Path, store: ChatStore) -> None:
    store.create_chat()
    assert all(file.stat().st_mode & 0o077 == 0 for file in path.parent.glob("chats.sqlite3*") if file.is_file())


def test_after_close_every_call_says_so(path: Path) -> None:
    store = ChatStore.open(path)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.chats()
    with pytest.raises(StoreError, match="closed"):
        store.create_chat()
    store.close()
