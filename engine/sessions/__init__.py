"""Keys and values of a chat in a file, so that reopening it computes nothing again."""

from engine.sessions.file import (
    Identity,
    Restored,
    check_session_path,
    is_foreign,
    read_session,
    write_session,
)
from engine.sessions.keeper import SessionKeeper

__all__ = ["Identity", "Restored", "SessionKeeper", "check_session_path", "is_foreign", "read_session", "write_session"]
