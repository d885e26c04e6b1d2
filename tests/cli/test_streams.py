"""`realm generate`, `run` and `chat` with sessions, parallel answers and full contexts."""

from __future__ import annotations

import json
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
    file.write_bytes(b"no session")
    result = realm("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, *GREEDY, "--session", file)
    assert result.code == 0
    assert "not a session file" in result.err
    assert result.json["timings"]["cached_tokens"] == 0
    assert file.read_bytes().startswith(b"REALMKV1")
    unwritable = realm("generate", "--model", tiny_model, "--prompt-tokens", PROMPT, *GREEDY, "--session", tmp_path)
    assert unwritable.code == 0
    assert "could not be written" in unwritable.err


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
    assert "0 answers" in realm(*command, "--parallel", 0).err


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
    assert "0 streams" in realm("bench", "--model", tiny_model, "--streams", 0).error
