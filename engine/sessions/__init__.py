"""Keys and values of a chat in a file, so that reopening it computes nothing again."""

from engine.sessions.file import Identity, Restored, read_session, write_session
from engine.sessions.keeper import SessionKeeper

__all__ = ["Identity", "Restored", "SessionKeeper", "read_session", "write_session"]
