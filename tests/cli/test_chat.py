"""`realm chat`, with its real conversation and history, and a model that answers at once."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.cli import chat as chat_command
from app.store import ChatStore, MessageState

from .conftest import Realm, Result

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = ("--device", "numpy", "--temperature", 0, "--max-tokens", 5, "--seed", 1)


@pytest.fixture
def chat(realm: Realm, tiny_model: Path) -> Realm:
    def run(*lines: str, options: tuple[object, ...] = ()) -> Result:
        stdin = "".join(f"{line}\n" for line in lines)
        return realm("chat", "--model", tiny_model, *SETTINGS, *options, stdin=stdin)

    return run


def stored() -> list[list[tuple[str, str]]]:
    """(role, content) of all messages of all chats, the chat changed last first."""
    with ChatStore.open() as store:
        return [[(m.role, m.content) for m in store.messages(c.id)] for c in store.chats()]


def test_each_line_is_answered_and_kept_in_the_history(chat) -> None:
    result = chat("Hello", "", "And you?")

    assert result.code == 0
    (messages,) = stored()
    assert [role for role, _ in messages] == ["user", "assistant", "user", "assistant"]
    assert [content for role, content in messages if role == "user"] == ["Hello", "And you?"]
    answers = [content for role, content in messages if role == "assistant"]
    assert "".join(a if a.endswith("\n") else a + "\n" for a in answers) == result.out
    assert result.err.count("of context") == 2


def test_fences_make_one_message_of_several_lines(chat) -> None:
    chat('"""one', "two", '"""')

    assert stored()[0][0] == ("user", "one\ntwo")


def test_a_line_that_begins_like_a_command_can_be_sent(chat) -> None:
    chat(" /etc/hosts?")

    assert stored()[0][0] == ("user", "/etc/hosts?")


def test_new_begins_another_chat_and_continue_goes_on_with_the_last(chat) -> None:
    chat("one", "/new", "two")
    assert [messages[0][1] for messages in stored()] == ["two", "one"]

    result = chat("three", options=("--continue",))

    assert [m[1] for m in stored()[0] if m[0] == "user"] == ["two", "three"]
    assert "Going on with" in result.err


def test_the_first_chat_keeps_its_session_in_a_file_that_is_named(chat, tmp_path: Path) -> None:
    session = tmp_path / "mine.session"
    long = "Say it again. " * 8

    assert chat(long, options=("--session", session)).code == 0
    begun = session.read_bytes()
    assert chat("More of it.", options=("--continue", "--session", session)).code == 0
    grown = session.read_bytes()

    assert len(begun) > 0
    assert grown[: len(begun) // 2] == begun[: len(begun) // 2]
    chat("/new", long[::-1], options=("--session", session))
    assert session.read_bytes() == grown
    (tmp_path / "notes.txt").write_text("mine")
    refused = chat("Hello", options=("--session", tmp_path / "notes.txt"))
    assert refused.code != 0
    assert "is no session file but something else" in refused.err


def test_open_shows_a_chat_and_goes_on_with_it(chat) -> None:
    chat("one", "/new", "two")
    with ChatStore.open() as store:
        first = store.chats()[1].id

    listed = chat("/chats")
    opened = chat(f"/open {first}", "three")

    assert re.search(rf"^ +{first} ", listed.err, re.MULTILINE)
    assert opened.out.startswith("> one\n")
    assert [m[1] for m in stored()[0] if m[0] == "user"] == ["one", "three"]


def test_regenerate_answers_the_same_message_again_and_undo_takes_that_back(chat) -> None:
    assert chat("one", "/regenerate").code == 0
    (messages,) = stored()
    assert [role for role, _ in messages] == ["user", "assistant"]

    result = chat("/regenerate", "/undo", options=("--continue", "--temperature", "2", "--seed", "7"))

    assert result.code == 0
    assert stored() == [messages]
    assert "Undone." in result.err


def test_a_grammar_is_kept_with_the_chat_until_it_is_taken_away(chat) -> None:
    chat("Hello", "Again", options=("-j", '{"enum": [1, 2]}'))
    answers = [content.strip() for role, content in stored()[0] if role == "assistant"]
    assert len(answers) == 2
    assert set(answers) <= {"1", "2"}
    chat("And now?", "/free", "And now?", options=("--continue",))
    later = [content.strip() for role, content in stored()[0] if role == "assistant"][2:]
    assert later[0] in ("1", "2")
    assert later[1] not in ("1", "2")
    assert "any form already" in chat("/free", options=("--continue",)).err


def test_the_system_prompt_reaches_the_model(chat) -> None:
    plain = chat("Hello").out
    told = chat("Hello", options=("--system", "Answer in numbers only."))
    asked = chat("/system Answer in numbers only.", "/system", "Hello")

    assert told.out == asked.out != plain
    assert "Answer in numbers only." in asked.err


def test_stats_and_model_say_what_is_measured_and_loaded(chat) -> None:
    result = chat("/stats", "Hello", "/stats", "/model")

    assert "No answer yet." in result.err
    assert "last answer:" in result.err
    assert result.err.count("tiny-llama (llama, F16, 2.0 MB)") == 3
    assert "KV cache" in result.err


def test_another_model_can_be_loaded(chat, fixtures_dir: Path) -> None:
    other = fixtures_dir / "tiny_models" / "llama-q4_k_m.gguf"

    result = chat(f"/model {other}", "Hello")

    assert result.code == 0
    assert "Q4_K" in result.err
    with ChatStore.open() as store:
        (summary,) = store.chats()
        assert "q4_k" in store.messages(summary.id)[1].model.lower() or "q4_k" in summary.model_path.lower()


def test_a_model_that_is_not_there_leaves_the_one_that_is(chat) -> None:
    result = chat("/model none.gguf", "Hello")

    assert "no model file none.gguf" in result.err
    assert result.code == 1  # something that was asked for failed
    assert [role for role, _ in stored()[0]] == ["user", "assistant"]


@pytest.mark.parametrize("command", ["/quit", "/exit", "/bye", "/QUIT"])
def test_quit_leaves_at_once(chat, command: str) -> None:
    result = chat(command, "Hello")

    assert result.code == 0
    assert stored() == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/dance", "no command /dance"),
        ("/open", "number of a chat"),
        ("/open 99999", "99999"),
        ("/regenerate", ""),
        ("/undo", ""),
    ],
)
def test_commands_that_cannot_be_done_say_so_and_the_chat_goes_on(chat, line: str, says: str) -> None:
    result = chat(line, "Hello")

    assert says in result.err
    assert "Traceback" not in result.err
    assert stored()[0][0] == ("user", "Hello")


def test_help_lists_the_commands(chat) -> None:
    result = chat("/help")

    for name in ("/new", "/regenerate", "/model", "/stats", "/quit", "Ctrl-C"):
        assert name in result.err


def test_a_message_too_long_for_the_context_is_said(chat) -> None:
    result = chat("word " * 600, "Hello")

    assert "context" in result.err
    assert result.code == 1


def test_the_model_used_last_is_used_again(chat, realm: Realm) -> None:
    chat("one")

    result = realm("chat", "--device", "numpy", "--max-tokens", 3, stdin="/model\n")

    assert result.code == 0
    assert "tiny-llama" in result.err


def test_settings_of_the_window_hold_for_new_chats(chat, realm: Realm, tiny_model: Path) -> None:
    with ChatStore.open() as store:
        store.settings.set("device", "abacus")
        store.settings.set("chat_options", {"max_tokens": 2, "system_prompt": "Be brief."})

    refused = realm("chat", "--model", tiny_model, stdin="Hello\n")
    answered = realm("chat", "--model", tiny_model, "--device", "numpy", stdin="/system\nHello\n")

    assert "abacus" in refused.error
    assert "Be brief." in answered.err
    assert "stopped at the limit of tokens" in answered.err


def test_settings_that_sampling_cannot_use_are_refused(chat) -> None:
    result = chat("Hello", options=("--temperature", "-1"))

    assert result.code == 1
    assert "realm: temperature is -1.0" in result.err


def test_without_a_model_the_way_to_one_is_told(realm: Realm) -> None:
    assert "realm fetch-starter" in realm("chat", stdin="Hello\n").error


def test_the_starter_model_is_offered_at_a_terminal(
    realm: Realm, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr(chat_command, "is_terminal", lambda stream: True)
    monkeypatch.setattr("app.cli.fetch_starter.fetch_with_progress", lambda: tiny_model)

    declined = realm("chat", stdin="n\n")
    accepted = realm("chat", "--device", "numpy", stdin="\n")

    assert declined.code == 1
    assert "Download the starter model" in declined.err
    assert accepted.code == 0
    assert "tiny-llama" in accepted.err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to itself")
def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(realm: Realm, tiny_model: Path) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with ChatStore.open() as store:
                chats = store.chats()
                if chats and any(m.role == "assistant" for m in store.messages(chats[0].id)):
                    break
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        result = realm(
            *("chat", "--model", tiny_model, "--device", "numpy", "--temperature", 0, "--context-length", 20_000),
            *("--logit-bias", "2-inf"),
            stdin="Hello\n/stats\n",
        )
    finally:
        thread.join()

    assert result.code == 0
    assert "stopped" in result.err
    assert "last answer:" in result.err
    with ChatStore.open() as store:
        answer = store.messages(store.chats()[0].id)[1]
    assert answer.state is MessageState.CANCELLED


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal(tiny_model: Path, data_dir: Path) -> None:
    """A paste of several lines is one message, Ctrl-C does not leave, Ctrl-D does; colours are there."""
    import pty

    main_end, chat_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    # The pseudo-terminal has to be the process's own for Ctrl-C to become a signal, and whoever runs the tests in the
    # background has that signal ignored.
    code = (
        "import fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from app.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "chat", "--model", str(tiny_model), *map(str, SETTINGS)]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdin=chat_end, stdout=chat_end, stderr=chat_end, start_new_session=True
    )
    os.close(chat_end)
    unread = b""

    def read_until(text: bytes, key: bytes = b"") -> bytes:
        """What came before `text`. Presses `key`, and again after each second of silence, until it comes."""
        nonlocal unread
        deadline = time.monotonic() + 30
        os.write(main_end, key)
        while text not in unread:
            assert time.monotonic() < deadline, (text, unread)
            if select.select([main_end], [], [], 1)[0]:
                unread += os.read(main_end, 65536)
            else:
                os.write(main_end, key)
        before, unread = unread.split(text, 1)
        return before

    try:
        assert b"\x1b[2mtiny-llama on numpy" in read_until(b"> \x1b[0m")
        os.write(main_end, b"one\ntwo\n")  # at once, as an old terminal pastes
        read_until(b"of context")
        read_until(b"> \x1b[0m")
        os.write(main_end, b"half a line")
        read_until(b"half a line")
        read_until(b"leaves", key=b"\x03")  # the line editor may miss one that comes while it draws
        read_until(b"> \x1b[0m")
        os.write(main_end, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main_end)
    assert [content for role, content in stored()[0] if role == "user"] == ["one\ntwo"]
