"""`realm fetch-starter`: the starter model onto this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.cli.models import installed_starter
from app.cli.options import add_json_argument
from app.cli.terminal import ProgressBar, bytes_text, say, write_json
from app.hub.starter import STARTER, fetch_starter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"Downloads the starter model, {STARTER.name} ({bytes_text(STARTER.size)}, {STARTER.licence}), verifies it, "
        "and prints where it lies. What is there already is checked and kept."
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    path = fetch_with_progress()
    if args.json:
        write_json({"path": str(path), "name": STARTER.name, "bytes": STARTER.size, "sha256": STARTER.sha256})
    else:
        print(path)
    return 0


def fetch_with_progress() -> Path:
    """The starter model, downloaded where it is not there yet, with a progress bar on stderr."""
    if installed_starter() is None:
        say(f"Fetching {STARTER.name} ({bytes_text(STARTER.size)}).")
    bar = ProgressBar("download")

    def progress(done: int, total: int) -> None:
        bar.update(done / max(total, 1), f"{bytes_text(done)} of {bytes_text(total)}")

    try:
        return fetch_starter(progress)
    finally:
        bar.clear()
