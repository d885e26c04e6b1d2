"""What a model is told of a chat, and what the chat is called."""

from __future__ import annotations

from collections.abc import Iterable

from app.store.values import MessageState, StoredMessage
from engine.api import Message

TITLE_LENGTH = 48

_SENT_STATES = (MessageState.COMPLETE, MessageState.CANCELLED)


def prompt_messages(messages: Iterable[StoredMessage], system_prompt: str = "") -> list[Message]:
    """The chat as templates take it, with the system prompt in front.

    Answers that are complete are sent, and those that the user stopped: where they end was the user's choice. Answers
    that failed or were interrupted end anywhere, so they are left out, as are empty ones. Neighbours of the same role
    (which that can leave, and many templates refuse) become one message, with an empty line between them. Answers
    before the first user message (whose question was deleted) are left out too.
    """
    turns: list[tuple[str, str]] = [("system", system_prompt)] if system_prompt.strip() else []
    asked = False
    for message in messages:
        if message.state not in _SENT_STATES or not message.content:
            continue
        asked = asked or message.role == "user"
        if message.role == "assistant" and not asked:
            continue
        if turns and turns[-1][0] == message.role:
            turns[-1] = (message.role, f"{turns[-1][1]}\n\n{message.content}")
        else:
            turns.append((message.role, message.content))
    return [{"role": role, "content": content} for role, content in turns]


def title_from(text: str) -> str:
    """A title for a chat that begins with `text`: its first line of words, cut between words."""
    for line in text.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            continue
        words = line.strip().lstrip("#>*-+ \t").split()
        if words:
            break
    else:
        words = text.split()
    title = ""
    for word in words:
        longer = f"{title} {word}".strip()
        if len(longer) > TITLE_LENGTH:
            return f"{title or word[: TITLE_LENGTH - 1]}…"
        title = longer
    return title
