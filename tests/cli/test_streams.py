"""`realm generate`, `run` and `chat` with sessions, parallel answers and full contexts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import Realm

PROMPT = ",".join(str(n % 400 + 4) for n in range(100))
PLAIN = ("--max-tokens", 12, "--ignore-eos", "--device", "numpy", "--json")
GREEDY = (*PLAIN, "--temperature", 0)


def test_a_session_spares_the_prefill(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    command = ("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, *GREEDY)
    alone = realm(*command).json
    file = tmp_path / "chat.session"
    first, second = realm(*command, "--session", file).json, realm(*command, "--session", file).json
    assert first["tokens"] == second["tokens"] == alone["tokens"]
    assert [one["timings"]["cached_tokens"] for one in (alone, first, second)] == [0, 0, 96]


def test_a_damaged_session_is_told_and_not_used(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.session"
    command = ("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, *GREEDY, "--session", file)
    assert realm(*command).code == 0
    whole = file.read_bytes()
    file.write_bytes(whole[:20] + b"?" + whole[21:])
    result = realm(*command)
    assert result.code == 0
    assert result.err.count("is damaged") == 1
    assert result.json["timings"]["cached_tokens"] == 0
    assert realm(*command).json["timings"]["cached_tokens"] == 96  # it was written anew


def test_a_session_takes_the_place_of_nothing_else(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    """A model's path in place of the session's would cost the model."""
    command = ("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, *GREEDY, "--session")
    file = tmp_path / "precious.txt"
    file.write_bytes(b"no session")
    assert "stays as it is" in realm(*command, file).error
    assert file.read_bytes() == b"no session"
    assert "is a folder" in realm(*command, tmp_path).error
    if hasattr(os, "mkfifo"):  # a pipe would be waited for, and a device such as /dev/null replaced
        os.mkfifo(tmp_path / "pipe")
        assert "stays as it is" in realm(*command, tmp_path / "pipe").error
    line = json.dumps({"prompt_tokens": [5, 6, 7], "session": str(file)})
    [answer] = realm("generate", "--model", tiny_model, *GREEDY, "--jsonl", stdin=line).lines
    assert "stays as it is" in answer["error"]


def test_a_session_that_could_not_be_written_is_a_failure(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = ("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, *GREEDY, "--session")
    result = realm(*command, tmp_path / "file" / "chat.session")
    assert result.code == 1
    assert len(result.json["tokens"]) == 12
    assert result.err.count("could not be written") == 1


def test_parallel_answers(realm: Realm, tiny_model: Path) -> None:
    command = ("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, *PLAIN, "--temperature", 2, "--seed", 3)
    alone = realm(*command).json["tokens"]
    answers = realm(*command, "--parallel", 3).json["answers"]
    assert answers[0]["tokens"] == alone
    assert len({tuple(answer["tokens"]) for answer in answers}) == 3
    assert [answer["timings"]["cached_tokens"] for answer in answers] == [0, 100, 100]
    line = json.dumps({"prompt_tokens": [5, 6, 7]})
    [several] = realm("generate", "--model", tiny_model, "--jsonl", *GREEDY[:-3], "--parallel", 2, stdin=line).lines
    assert len(several["answers"]) == 2
    told = realm(*(part for part in command if part != "--json"), "--parallel", 2)
    assert told.err.count("tokens/s") == 2
    assert "Answer 2 of 2" in told.err
    for wrong in (0, -3, 10**8):
        assert f"{wrong} answers were asked for. Ask for 1 to 1024." in realm(*command, "--parallel", wrong).error
    assert "0 answers" in realm("generate", "--model", tiny_model, "--jsonl", "--parallel", 0).err


@pytest.mark.parametrize(("policy", "tokens"), [("stop", 20), ("shift", 60)])
def test_a_full_context(realm: Realm, tiny_model: Path, policy: str, tokens: int) -> None:
    answer: dict[str, Any] = realm(
        *("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, "--context-length", 120, "--max-tokens", 60),
        *("--ignore-eos", "--temperature", 0, "--device", "numpy", "--json", "--context-policy", policy),
    ).json
    assert len(answer["tokens"]) == tokens
    timings = answer["timings"]
    assert timings["context_used"] + timings["dropped_tokens"] == 100 + tokens


def test_turns_are_dropped_from_a_chat_that_is_too_long(realm: Realm, tiny_chat_model: Path, tmp_path: Path) -> None:
    messages = tmp_path / "messages.json"
    turns = [{"role": role, "content": "Once upon a time. " * 3} for _ in range(9) for role in ("user", "assistant")]
    messages.write_text(json.dumps([*turns, {"role": "user", "content": "Well?"}]), encoding="utf-8")
    command = ("generate", "--model", tiny_chat_model, "--messages", messages, "--context-length", 256, *GREEDY)
    assert "holds 256" in realm(*command).err
    answer = realm(*command, "--context-policy", "drop_oldest").json
    assert 0 < answer["prompt_tokens"] < 256
    assert answer["timings"]["dropped_tokens"] > 0


def test_the_window_and_the_terminal_keep_sessions_of_chats(
    realm: Realm, tiny_chat_model: Path, data_dir: Path
) -> None:
    command = ("chat", "--model", tiny_chat_model, "--device", "numpy", "--max-tokens", 40)
    assert realm(*command, "--context-policy", "shift", stdin="Once upon a time there was a little girl\n").code == 0
    [session] = (data_dir / "chats.sqlite3-sessions").iterdir()
    size = session.stat().st_size
    assert size > 0
    assert realm(*command, "--continue", stdin="And then what did she do\n").code == 0
    assert session.stat().st_size > size


def test_bench_measures_streams(realm: Realm, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.bench_streams.LONG_PROMPT", 300)
    monkeypatch.setattr("app.cli.bench_streams.CHAT_TOKENS", 200)
    command = ("bench", "--model", tiny_model, "--device", "numpy", "--streams", 3, "-n", 5)
    answer = realm(*command, "--json").json
    assert answer["same_as_alone"] == answer["streams"] == 3
    assert answer["all_tokens_per_s"] > 0 < answer["one_tokens_per_s"]
    assert answer["active_after_cancel"] == 0
    assert answer["chat_cached_tokens"] == 192
    assert answer["session_problems"] == []
    assert "times one" in realm(*command).out
    assert "0 is less than 1" in realm("bench", "--model", tiny_model, "--streams", 0).err
