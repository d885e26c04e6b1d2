"""`realm logits`: what the model says after every token of a sequence."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from app.cli.input import token_list
from app.cli.models import loaded_engine, wait_for
from app.cli.options import add_device_arguments, add_json_argument, add_model_argument
from app.cli.terminal import bytes_text, say, write_json
from engine.batch import LoadedModel
from engine.errors import RequestError
from engine.measure import check_tokens, logits_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Evaluates a sequence of tokens and writes float32 [n_tokens, n_vocab] as a NumPy file."
    add_model_argument(parser)
    parser.add_argument("--tokens", required=True, metavar="1,2,3", type=token_list, help="token ids")
    parser.add_argument("--out", required=True, metavar="FILE.npy", type=Path, help="the file to write")
    add_device_arguments(parser, context=False)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    tokens: list[int] = args.tokens
    out: Path = args.out
    if not tokens:
        raise RequestError("--tokens holds no token id.", "Give at least one, as in --tokens 1,2,3.")
    if out.is_dir():
        raise RequestError(f"{out} is a folder.", "Give the name of a file to write, such as logits.npy.")
    if not out.parent.is_dir():
        raise RequestError(f"There is no folder {out.parent} to write {out.name} into.")
    with loaded_engine(args.model, args.device, len(tokens), kv_type=args.kv_type, memory_limit=args.memory_limit) as (
        engine,
        info,
    ):

        def write(model: LoadedModel, _: object) -> tuple[int, int]:
            check_tokens(model, tokens)
            shape = (len(tokens), model.n_vocab)
            unfinished = out.with_name(out.name + ".part")
            try:
                # Row by row into the file: the logits of a long sequence need not fit into memory.
                array = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
                logits_of(model, tokens, out=array)
                array.flush()
                del array
                unfinished.replace(out)
            finally:
                unfinished.unlink(missing_ok=True)
            return shape

        shape = wait_for(engine.call(write))
    if args.json:
        write_json({"out": str(out), "shape": list(shape), "dtype": "float32", "device": info.device.id})
    else:
        say(f"{out}: float32 [{shape[0]}, {shape[1]}], {bytes_text(4 * shape[0] * shape[1])}, from {info.device.name}.")
    return 0
