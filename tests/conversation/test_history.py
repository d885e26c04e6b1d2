"""What a model is told of a chat, and how chats are named."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.conversation.history import TITLE_LENGTH, prompt_messages, title_from
from app.store import MessageState, StoredMessage

STATES = {
    "": MessageState.COMPLETE,
    "stopped": MessageState.CANCELLED,
    "failed": MessageState.FAILED,
    "cut": MessageState.INTERRUPTED,
    "streaming": MessageState.STREAMING,
}


def chat(*turns: str) -> list[StoredMessage]:
    """Turns like "user: text" or "assistant failed: text"."""
    messages = []
    for number, turn in enumerate(turns, start=1):
        who, _, content = turn.partition(": ")
        role, _, state = who.partition(" ")
        messages.append(StoredMessage(number, 1, role, content, STATES[state], datetime.now(UTC)))
    return messages


def told(*turns: str, system: str = "") -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in prompt_messages(chat(*turns), system)]


def test_complete_and_stopped_answers_are_sent() -> None:
    turns = ("user: a", "assistant: b", "user: c", "assistant stopped: d", "user: e")
    assert told(*turns) == ["user: a", "assistant: b", "user: c", "assistant: d", "user: e"]


@pytest.mark.parametrize("state", ["failed", "cut", "streaming"])
def test_broken_answers_are_not_sent_and_their_question_joins_the_next(state: str) -> None:
    assert told("user: a", f"assistant {state}: half", "user: b") == ["user: a\n\nb"]


def test_empty_answers_are_not_sent() -> None:
    assert told("user: a", "assistant: ", "user: b", "assistant stopped: ") == ["user: a\n\nb"]


def test_answers_without_their_question_are_not_sent() -> None:
    assert told("assistant: a", "user: b", "assistant: c", "assistant: d") == ["user: b", "assistant: c\n\nd"]


def test_the_system_prompt_comes_first() -> None:
    assert told("user: a", system="Be brief.") == ["system: Be brief.", "user: a"]
    assert told("user: a", system="  ") == ["user: a"]
    assert told("system: Rhyme.", "user: a", system="Be brief.") == ["system: Be brief.\n\nRhyme.", "user: a"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant"]), st.sampled_from(list(STATES)), st.sampled_from(["", "x", "y"])
        )
    )
)
def test_roles_always_alternate_from_a_question(turns: list[tuple[str, str, str]]) -> None:
    messages = chat(*(f"{role} {state}: {text}" for role, state, text in turns))
    roles = [message["role"] for message in prompt_messages(messages)]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Hello there", "Hello there"),
        ("\n\n  ## What is   *this*?\nmore", "What is *this*?"),
        ("```python\nprint(1)\n```", "print(1)"),
        (
            "Explain to me how the flash kind of attention works, please",
            "Explain to me how the flash kind of attention…",
        ),
        ("x" * 100, "x" * (TITLE_LENGTH - 1) + "…"),
        ("***", "***"),
        ("```", "```"),
    ],
)
def test_titles(text: str, title: str) -> None:
    assert title_from(text) == title


@given(st.text(min_size=1).filter(lambda text: bool(text.strip())))
def test_every_message_gives_a_short_title_on_one_line(text: str) -> None:
    title = title_from(text)
    assert 0 < len(title) <= TITLE_LENGTH + 1
    assert len(title.splitlines()) == 1
