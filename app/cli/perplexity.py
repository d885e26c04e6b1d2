"""`realm perplexity`: how well a model predicts a text."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from app.cli.input import file_text
from app.cli.models import loaded_engine, wait_for
from app.cli.options import add_device_arguments, add_json_argument, add_model_argument
from app.cli.terminal import ProgressBar, write_json
from engine.batch import LoadedModel
from engine.errors import RequestError
from engine.measure import Perplexity, chunk_tokens, measure_perplexity
from engine.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures the perplexity of a text: exp of the mean negative log-likelihood of its tokens, in independent "
        "chunks of N tokens, each beginning with BOS where the model wants one. Every token is scored but the first "
        "of a chunk."
    )
    add_model_argument(parser)
    parser.add_argument("--file", required=True, metavar="F", type=Path, help="the text, UTF-8")
    parser.add_argument("--context", metavar="N", type=int, default=512, help="tokens in a chunk (default 512)")
    parser.add_argument("--nll", action="store_true", help="with --json: the negative log-likelihood of every token")
    add_device_arguments(parser, context=False)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    text = file_text(args.file)
    if not text:
        raise RequestError(f"{args.file} is empty.")
    chunk_tokens((), args.context, None)  # a context too short is told before the model is loaded
    bar = ProgressBar("perplexity")
    shown = [0, 1, 0.0]  # scored, total, so far; written by the engine's thread
    with loaded_engine(args.model, args.device, args.context, kv_type=args.kv_type, memory_limit=args.memory_limit) as (
        engine,
        info,
    ):

        def measure(model: LoadedModel, tokenizer: Tokenizer) -> tuple[Perplexity, float]:
            def progress(scored: int, total: int, so_far: float) -> None:
                shown[:] = scored, total, so_far

            tokens = tokenizer.encode(text, add_special=False)
            bos = tokenizer.bos if tokenizer.add_bos else None
            began = time.perf_counter()
            result = measure_perplexity(model, tokens, args.context, bos, progress)
            return result, time.perf_counter() - began

        try:
            result, seconds = wait_for(
                engine.call(measure), lambda: bar.update(shown[0] / shown[1], f"{shown[2]:.3f} so far")
            )
        finally:
            bar.clear()
    if args.json:
        answer = {
            "perplexity": result.value,
            "standard_error": result.standard_error,
            "mean_nll": result.mean_nll,
            "scored_tokens": result.scored,
            "chunks": len(result.nll),
            "context": result.n_ctx,
            "seconds": seconds,
            "device": info.device.id,
        }
        write_json({**answer, "nll": result.nll} if args.nll else answer)
    else:
        print(
            f"perplexity {result.value:.4f} ± {result.standard_error:.4f} over {result.scored} tokens in "
            f"{len(result.nll)} chunks of at most {result.n_ctx}, {seconds:.1f} s on {info.device.name}"
        )
    return 0
