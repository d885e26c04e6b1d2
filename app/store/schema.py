"""The tables, as migrations: entry i takes a database from schema version i to i + 1 (PRAGMA user_version)."""

from __future__ import annotations

APPLICATION_ID = 0x5265616C  # "Real"; PRAGMA application_id, so that another program's database is not taken for ours

_FIRST = """
CREATE TABLE chats (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    model TEXT NOT NULL,
    created INTEGER NOT NULL,  -- microseconds since 1970, UTC, like every time in here
    updated INTEGER NOT NULL,
    deleted INTEGER            -- when it was deleted, NULL while it is not
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, so it also orders a chat
    chat_id INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    content TEXT NOT NULL,     -- '' while state is 'streaming': the text is then in answer_pieces
    state TEXT NOT NULL CHECK (state IN ('complete', 'streaming', 'interrupted', 'cancelled', 'failed')),
    error TEXT NOT NULL,
    model TEXT NOT NULL,
    figures TEXT,              -- JSON object
    created INTEGER NOT NULL,
    deleted INTEGER,
    owner TEXT                 -- who streams it: the name of a lock file; NULL in every other state
);
CREATE INDEX messages_of_chat ON messages (chat_id, id);
CREATE INDEX streaming_messages ON messages (owner) WHERE owner IS NOT NULL;
CREATE TABLE answer_pieces (
    message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (message_id, number)
) WITHOUT ROWID;
CREATE TABLE settings (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL        -- JSON
) WITHOUT ROWID;
CREATE TABLE chat_settings (
    chat_id INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (chat_id, key)
) WITHOUT ROWID;
"""

MIGRATIONS: tuple[str, ...] = (_FIRST,)
SCHEMA_VERSION = len(MIGRATIONS)
