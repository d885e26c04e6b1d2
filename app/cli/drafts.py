"""Guessing tokens: the options for it, and the draft model they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from app.cli.models import model_path, show_progress, wait_for
from app.cli.terminal import ProgressBar, say
from engine.api import DraftKind, DraftOptions, Figures
from engine.errors import RequestError

if TYPE_CHECKING:
    from engine.api import DraftInfo
    from engine.engine import Engine


def add_draft_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("guessing tokens (the answer is distributed as without, and greedy ones equal)")
    group.add_argument("--draft", metavar="PATH", help="a smaller model of the same vocabulary guesses the next tokens")
    group.add_argument(
        "--mtp", action="store_true", help="the layer that predicts further tokens, in files that carry one, guesses"
    )
    group.add_argument("--ngram", action="store_true", help="guess what followed the same tokens before")
    group.add_argument(
        "--draft-k",
        type=int,
        metavar="N",
        help=f"tokens to guess at a time at first (default {DraftOptions(DraftKind.NGRAM).draft_k}); "
        "the number then follows what is accepted and what it costs",
    )


def draft_options(args: argparse.Namespace) -> DraftOptions | None:
    """What the command line says of guessing; None where it says nothing. Raises RequestError."""
    given = [name for name in ("draft", "mtp", "ngram") if getattr(args, name)]
    if len(given) > 1:
        raise RequestError(f"--{given[0]} and --{given[1]} are two ways of guessing.", "Give one of them.")
    if not given:
        if args.draft_k is not None:
            raise RequestError(
                "--draft-k says how much to guess, but nothing guesses.", "Give --draft, --mtp or --ngram too."
            )
        return None
    kind = DraftKind.NGRAM if args.ngram else DraftKind.MODEL
    usual = DraftOptions(kind)
    if args.draft_k is None:
        return usual
    return DraftOptions(kind, draft_k=args.draft_k, max_draft_tokens=max(usual.max_draft_tokens, args.draft_k))


def load_draft(engine: Engine, name: str | None, device: str, *, mtp: bool = False) -> DraftInfo | None:
    """Loads a draft model beside the model, or (mtp) the layer that its own file carries, with a progress bar, and says
    what the person should know about it. Raises RequestError where there is no such layer."""
    from engine.api import LoadOptions

    if mtp:
        info = engine.status().model
        assert info is not None
        if not info.predicts:
            raise RequestError(
                f"The file of {info.name} carries no whole layer that predicts further tokens.",
                "Guess by --draft or --ngram.",
            )
        path = info.path
    elif name is not None:
        path = model_path(name)
    else:
        return None
    bar = ProgressBar(path.name)
    job = engine.load_draft(path, LoadOptions(device=device))
    try:
        draft = wait_for(job, lambda: show_progress(bar, job))
    except KeyboardInterrupt:
        job.cancel()
        raise
    finally:
        bar.clear()
    for note in draft.notes:
        say(f"Note: {note}")
    return draft


def guesses_text(figures: Figures) -> str:
    """What came of guessing, for the line under an answer; empty where nothing was guessed."""
    if not figures.drafted_tokens:
        return "nothing worth guessing" if figures.drafting_paused else ""
    text = f"{figures.accepted_tokens} of {figures.drafted_tokens} guesses accepted"
    if figures.draft_gain is not None:
        text += f", {figures.draft_gain:.2f} times the speed"
    return text + (", paused" if figures.drafting_paused else "")
