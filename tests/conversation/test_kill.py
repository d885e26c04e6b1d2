"""The promise about SIGKILL, in small; `python -m tests.tools.kill_streaming_chat` is the whole of it."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.store import MessageState, StoredMessage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGKILL nor fork")


def test_killing_a_streaming_chat_loses_no_message_and_little_text() -> None:
    command = [sys.executable, "-m", "tests.tools.kill_streaming_chat", "--kills", "12", "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 12
    assert result["moments"].get("while an answer streamed", 0) > 0
    assert result["messages_checked"] >= 24
    assert result["longest_loss_s"] <= 0.5


def lost(kept: str) -> tuple[str, float, int, list[str]]:
    """What the check says of an answer "one two three" (one piece a second, killed at 3.3 s) that kept `kept`."""
    from tests.tools.kill_streaming_chat import _check_cut_answer

    time = datetime.now(UTC)
    messages = {
        1: StoredMessage(1, 1, "user", "count", MessageState.COMPLETE, time),
        2: StoredMessage(2, 1, "assistant", kept, MessageState.INTERRUPTED, time),
    }
    reports = [
        {"kind": "stored", "id": 1, "role": "user", "text": "count"},
        {"kind": "piece", "question": "count", "text": "one ", "at": 1.0},
        {"kind": "piece", "question": "count", "text": "two ", "at": 2.0},
        {"kind": "piece", "question": "count", "text": "three", "at": 3.0},
    ]
    faults: list[str] = []
    moment, seconds, characters = _check_cut_answer(messages, reports, set(), 3.3, faults)
    return moment, round(seconds, 3), characters, faults


def test_the_check_sees_what_is_lost() -> None:
    assert lost("one two three") == ("while an answer streamed", 0.0, 0, [])
    assert lost("one two ") == ("while an answer streamed", 0.3, 5, [])
    assert lost("one ")[1:3] == (1.3, 9)
    assert "has lost 1.300 s" in lost("one ")[3][0]
    assert "not what the engine wrote" in lost("one 2")[3][0]
