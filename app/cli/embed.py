"""`realm embed MODEL "text" ...`: texts to vectors."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from app.cli.input import decoded, stdin_bytes, whole_text
from app.cli.models import loaded_engine, wait_for
from app.cli.options import add_device_arguments, add_json_argument
from app.cli.terminal import is_terminal, printable, say, table, write_json
from engine.api import Embeddings, Pooling
from engine.embedding import normalised
from engine.errors import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turns texts into vectors, with an encoder (bert, nomic-bert) or with the hidden state of any other model. "
        "With - every line of stdin is one."
    )
    parser.add_argument("model", metavar="MODEL", help="path of a GGUF file, or the name starter")
    parser.add_argument("text", metavar="TEXT", nargs="+", help="what to embed; - stands for the lines of stdin")
    parser.add_argument(
        "--pooling",
        choices=[pooling.value for pooling in Pooling],
        help="how the vectors of a text's tokens become one (default: as the model's file says, else mean)",
    )
    parser.add_argument("--no-normalise", action="store_true", help="leave vectors as long as they come")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long for the model")
    parser.add_argument(
        "--compare", action="store_true", help="print how alike the texts are (cosines) in place of their vectors"
    )
    add_device_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    texts = [text for given in args.text for text in (_lines() if given == "-" else [whole_text(given)])]
    if not texts:
        raise RequestError("There is no text to embed.", 'Give one, as in `realm embed MODEL "a text"`.')
    pooling = Pooling(args.pooling) if args.pooling else None
    if args.compare and pooling is Pooling.NONE:
        raise RequestError("--compare needs one vector for each text.", "Choose the pooling mean, cls or last.")
    with loaded_engine(
        args.model, args.device, args.context_length, kv_type=args.kv_type, memory_limit=args.memory_limit
    ) as (engine, _):
        job = engine.embed(texts, pooling, normalise=not args.no_normalise, truncate=args.truncate)
        try:
            found = wait_for(job)
        except KeyboardInterrupt:
            job.cancel()
            raise
    for index in found.truncated:
        say(f"Note: text {index + 1} was cut to {found.token_counts[index]} tokens.")
    if args.compare:
        vectors = normalised(found.vectors)
        _compare(texts, (vectors @ vectors.T).tolist(), args.json)
    elif args.json:
        write_json(_as_json(found))
    else:
        for vector in found.vectors.tolist():
            print(" ".join(f"{value:.8g}" for value in vector))
    return 0


def _lines() -> list[str]:
    if is_terminal(sys.stdin):
        say("One text a line, then Ctrl-D:")
    return [line for line in decoded(stdin_bytes(), "The text on stdin").splitlines() if line.strip()]


def _as_json(found: Embeddings) -> dict[str, Any]:
    vectors: list[Any] = found.vectors.tolist()
    if found.pooling is Pooling.NONE:
        ends = [sum(found.token_counts[: i + 1]) for i in range(len(found.token_counts))]
        vectors = [vectors[end - count : end] for end, count in zip(ends, found.token_counts, strict=True)]
    return {
        "embeddings": vectors,
        "tokens": list(found.token_counts),
        "pooling": found.pooling.value,
        "normalised": found.normalised,
        "truncated": list(found.truncated),
    }


def _compare(texts: list[str], cosines: list[list[float]], as_json: bool) -> None:
    if as_json:
        write_json({"texts": texts, "cosines": cosines})
        return
    names = [printable(text if len(text) <= 40 else f"{text[:39]}…").replace("\n", " ") for text in texts]
    rows = [["", *(str(i) for i in range(1, len(texts) + 1)), ""]]
    for i, (name, row) in enumerate(zip(names, cosines, strict=True), 1):
        rows.append([str(i), *(f"{value:.4f}" for value in row), name])
    print(table(rows))
