"""The one place that joins engine and store; the window and the terminal both stand on it."""

from app.conversation.conversation import Conversation, Listener
from app.conversation.engine import AnswerEngine, AnswerStream
from app.conversation.events import (
    ActionFailed,
    AdaptersInForce,
    AnswerFailed,
    AnswerFinished,
    AnswerSaved,
    AnswerStarted,
    AnswerText,
    ChatCreated,
    ConversationEvent,
    ConversationLoaded,
    MessageAdded,
    MessagesRemoved,
    MessagesRestored,
    OptionsChanged,
    PrefillProgress,
    SavingFailed,
    TitleChanged,
)
from app.conversation.options import AdapterChoice, ChatOptions

__all__ = [
    "ActionFailed",
    "AdapterChoice",
    "AdaptersInForce",
    "AnswerEngine",
    "AnswerFailed",
    "AnswerFinished",
    "AnswerSaved",
    "AnswerStarted",
    "AnswerStream",
    "AnswerText",
    "ChatCreated",
    "ChatOptions",
    "Conversation",
    "ConversationEvent",
    "ConversationLoaded",
    "Listener",
    "MessageAdded",
    "MessagesRemoved",
    "MessagesRestored",
    "OptionsChanged",
    "PrefillProgress",
    "SavingFailed",
    "TitleChanged",
]
