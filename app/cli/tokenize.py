"""`realm tokenize`: text to token ids."""

from __future__ import annotations

import argparse
from typing import Any

from app.cli.input import answer_lines, decoded, stdin_bytes, whole_text
from app.cli.models import open_tokenizer
from app.cli.options import add_json_argument, add_model_argument
from app.cli.terminal import write_json
from engine.errors import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads text (UTF-8) from stdin, to the last byte, and prints its token ids as a JSON array. "
        "A file that holds only a vocabulary will do."
    )
    add_model_argument(parser)
    parser.add_argument("--special", action="store_true", help="read special tokens such as <s> in the text as such")
    parser.add_argument("--no-bos", action="store_true", help="add no BOS or EOS, even where the model wants them")
    parser.add_argument("--jsonl", action="store_true", help="a JSON string per line in, an array of ids per line out")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    tokenizer = open_tokenizer(args.model)

    def ids_of(text: Any) -> list[int]:
        if not isinstance(text, str):
            raise RequestError("A line has to be a JSON string.")
        return tokenizer.encode(whole_text(text), add_special=not args.no_bos, parse_special=args.special)

    if args.jsonl:
        return answer_lines(ids_of)
    write_json(ids_of(decoded(stdin_bytes(), "The text on stdin")))
    return 0
