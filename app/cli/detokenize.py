"""`realm detokenize`: token ids to text."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from app.cli.input import answer_lines, decoded, parsed_json, stdin_bytes, token_ids
from app.cli.models import open_tokenizer
from app.cli.options import add_json_argument, add_model_argument
from app.cli.terminal import is_terminal, printable, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads a JSON array of token ids from stdin and writes their text, byte for byte. "
        "A file that holds only a vocabulary will do."
    )
    add_model_argument(parser)
    parser.add_argument("--no-special", action="store_true", help="leave the text of special tokens out")
    parser.add_argument("--jsonl", action="store_true", help="an array of ids per line in, a JSON string per line out")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    tokenizer = open_tokenizer(args.model)
    keep_special = not args.no_special

    def text_of(ids: Any) -> str:
        return tokenizer.decode(token_ids(ids, "A line"), keep_special=keep_special)

    if args.jsonl:
        return answer_lines(text_of)
    ids = token_ids(parsed_json(decoded(stdin_bytes(), "The input on stdin"), "The input on stdin"), "The input")
    if args.json:
        write_json(tokenizer.decode(ids, keep_special=keep_special))
    elif is_terminal(sys.stdout):
        print(printable(tokenizer.decode(ids, keep_special=keep_special)))
    else:
        sys.stdout.buffer.write(tokenizer.decode_bytes(ids, keep_special=keep_special))
    return 0
