"""The options on context, sessions and parallel answers, for every command that answers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.models import wait_for
from app.cli.terminal import say
from engine.api import ContextPolicy
from engine.errors import RequestError
from engine.sessions import check_session_path

if TYPE_CHECKING:
    from engine.engine import Engine


def add_context_policy(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--context-policy",
        choices=[str(policy) for policy in ContextPolicy],
        default=argparse.SUPPRESS,
        help="when the context is full: stop (default), drop_oldest turns of the chat, or shift: keep the first tokens "
        "and the latest half",
    )


def add_session(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--session",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="keep the keys and values of prompt and answer in FILE, and begin with those that are there",
    )


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --context-policy, --session and --parallel."""
    group = parser.add_argument_group("context and streams")
    add_context_policy(group)
    add_session(group)
    group.add_argument(
        "--parallel", type=int, default=1, metavar="N", help="N answers to one prompt, which is computed once (1)"
    )


def context_policy(options: Mapping[str, Any]) -> ContextPolicy:
    value = options.get("context_policy", ContextPolicy.STOP)
    try:
        return ContextPolicy(value)
    except ValueError:
        raise RequestError(f"context_policy has to be one of {', '.join(ContextPolicy)}, not {value!r}.") from None


def session_path(options: Mapping[str, Any]) -> Path | None:
    value = options.get("session")
    if value is not None and not (isinstance(value, str | Path) and str(value)):
        raise RequestError("session has to be the path of a file.")
    if value is None:
        return None
    check_session_path(Path(value))
    return Path(value)


def tell_sessions(engine: Engine) -> int:
    """Waits until sessions are on disk, and says what went wrong with them; an exit code, 1 if something did."""
    problems = wait_for(engine.sessions_saved())
    for problem in problems:
        say(problem, "red")
    return 1 if problems else 0
