"""Chats and settings in SQLite. Knows neither Qt nor the engine's backends."""

from app.store.chats import ChatStore
from app.store.journal import AnswerJournal
from app.store.sessions import SessionFolder
from app.store.settings import Settings
from app.store.values import ChatSummary, DeletedMessages, MessageState, SearchHit, StoredMessage

__all__ = [
    "AnswerJournal",
    "ChatStore",
    "ChatSummary",
    "DeletedMessages",
    "MessageState",
    "SearchHit",
    "SessionFolder",
    "Settings",
    "StoredMessage",
]
