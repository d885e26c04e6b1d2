"""`realm chat`: a chat in the terminal, in the same history as the window."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.cli.chat_session import ChatSession
from app.cli.drafts import add_draft_arguments, draft_options, load_draft
from app.cli.models import installed_starter, load, model_path, open_engine
from app.cli.options import add_device_arguments, add_model_argument, add_sampling_arguments, given_options
from app.cli.prompt import PipedLines, TypedLines
from app.cli.stream_options import add_context_policy, add_session, tell_sessions
from app.cli.terminal import bytes_text, is_terminal, say
from app.store import ChatStore
from engine.api import LoadOptions
from engine.embedding import cannot_chat
from engine.errors import RequestError

LAST_MODEL, DEVICE = "last_model", "device"
"""Settings that the terminal shares with the window."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Chats with a model in the terminal. Without a terminal each line of stdin is a message. "
        "/help tells the commands; Ctrl-C stops an answer, Ctrl-D leaves."
    )
    add_model_argument(parser, required=False)
    parser.add_argument("--continue", dest="resume", action="store_true", help="go on with the chat changed last")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the chat")
    add_device_arguments(parser, device=None)
    add_sampling_arguments(parser, ignore_eos=False)
    add_context_policy(parser)
    add_session(parser)
    add_draft_arguments(parser)


def run(args: argparse.Namespace) -> int:
    typed, draft = is_terminal(sys.stdin), draft_options(args)
    with ChatStore.open() as store, open_engine() as engine:
        for notice in store.notices:
            say(notice)
        if args.model is not None:
            path = model_path(args.model)
        else:
            path = default_model(store, ask=typed and is_terminal(sys.stderr))
        device = args.device or _text(store.settings.get(DEVICE)) or "auto"
        load_options = LoadOptions(
            device=device, context_length=args.context_length, kv_type=args.kv_type, memory_limit=args.memory_limit
        )
        info = load(engine, path, load_options, chats=True)
        if info.is_encoder:
            raise cannot_chat(info.name)
        load_draft(engine, args.draft, device, mtp=args.mtp)
        store.settings.set(LAST_MODEL, str(path.absolute()))
        session = ChatSession(engine, store, info, load_options, given_options(args), args.system, draft)
        try:
            if args.resume:
                session.open_latest()
            code = session.run(TypedLines() if typed else PipedLines(), typed=typed)
        finally:
            session.close()
        return max(code, tell_sessions(engine)) if "session" in args else code


def default_model(store: ChatStore, *, ask: bool) -> Path:
    """The model used last, here or in the window, else the starter model, fetched first where the person agrees.

    Raises RequestError when there is none.
    """
    last = _text(store.settings.get(LAST_MODEL))
    if last and Path(last).is_file():
        return Path(last)
    path = installed_starter()
    if path is not None:
        return path
    if ask:
        from app.cli.fetch_starter import fetch_with_progress
        from app.hub.starter import STARTER

        size = bytes_text(STARTER.size)
        sys.stderr.write(f"There is no model yet. Download the starter model, {STARTER.name} ({size})? [Y/n] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("", "y", "yes"):
            return fetch_with_progress()
    raise RequestError(
        "There is no model to chat with yet.",
        "`realm fetch-starter` brings a small one, or give the path of a GGUF file with --model.",
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
