"""`realm compare`: how far one model is from another on a text, for choosing a quantisation or checking a device."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.input import file_text, token_list
from app.cli.models import model_path
from app.cli.options import add_json_argument
from app.cli.terminal import ProgressBar, bytes_text, printable, say, table, write_json
from engine.errors import RequestError
from engine.measure import Comparison, Perplexity, chunk_tokens, compare_models, percentile

if TYPE_CHECKING:
    from engine.api import ModelInfo
    from engine.loader import LoadedBundle
    from engine.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Steps two models, or one on two devices, through the same text and says how far B is from A: both "
        "perplexities, the Kullback-Leibler divergence of B's probabilities from A's, and how often both find the same "
        "token likeliest."
    )
    parser.add_argument("a", metavar="A", help="the model to measure by, as a path or the name starter")
    parser.add_argument("b", metavar="B", nargs="?", help="the model that is measured (default: A, on another device)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--file", metavar="F", type=Path, help="the text, UTF-8")
    source.add_argument("--tokens", metavar="1,2,3", type=token_list, help="token ids instead of a text")
    parser.add_argument("--context", metavar="N", type=int, default=512, help="tokens in a chunk (default 512)")
    parser.add_argument("--device", metavar="D", default="auto", help="where both run (default auto)")
    parser.add_argument("--device-a", metavar="D", help="where A runs")
    parser.add_argument("--device-b", metavar="D", help="where B runs")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    devices = args.device_a or args.device, args.device_b or args.device
    if args.b is None and devices[0] == devices[1]:
        raise RequestError(
            "There is nothing to compare: one model on one device.",
            "Name a second model, or two devices as in --device-a numpy --device-b opencl.",
        )
    text = file_text(args.file) if args.file is not None else None
    if text == "":
        raise RequestError(f"{args.file} is empty.")
    chunk_tokens((), args.context, None)  # a context too short is told before anything is loaded
    with (
        _loaded(args.a, devices[0], args.context) as a,
        _loaded(args.a if args.b is None else args.b, devices[1], args.context) as b,
    ):
        if text is None:
            tokens: list[int] = args.tokens
            bos = None
            _check_tokens(tokens, min(a.model.n_vocab, b.model.n_vocab))
        else:
            tokens = _common_tokens(a.tokenizer, b.tokenizer, text)
            bos = a.tokenizer.bos if a.tokenizer.add_bos else None
        bar = ProgressBar("comparing")
        began = time.perf_counter()
        try:
            result = compare_models(
                a.model, b.model, tokens, args.context, bos, lambda done, total: bar.update(done / total)
            )
        finally:
            bar.clear()
        seconds = time.perf_counter() - began
        if args.json:
            write_json(_as_json(result, a.info, b.info, seconds))
        else:
            print(printable(_as_text(result, a.info, b.info)))
            say(f"{len(result.divergence)} tokens in chunks of at most {args.context}, {seconds:.1f} s.")
    return 0


@contextmanager
def _loaded(name: str, device: str, context_length: int) -> Iterator[LoadedBundle]:
    """A model that is stepped from this thread: two engines would each want a thread of their own."""
    from engine.api import LoadOptions
    from engine.loader import load_model

    path = model_path(name)
    bar = ProgressBar(path.name)
    try:
        bundle = load_model(
            path,
            LoadOptions(device=device, context_length=context_length),
            lambda stage, fraction, _: bar.update(fraction, stage),
        )
    finally:
        bar.clear()
    for note in bundle.info.notes:
        if "chat template" not in note:
            say(f"Note: {path.name}: {note}")
    try:
        yield bundle
    finally:
        bundle.model.close()


def _common_tokens(a: Tokenizer, b: Tokenizer, text: str) -> list[int]:
    tokens = a.encode(text, add_special=False)
    if tokens != b.encode(text, add_special=False) or (a.add_bos, a.bos) != (b.add_bos, b.bos):
        raise RequestError(
            "The models turn this text into different tokens, so their probabilities cannot be compared.",
            "Compare files of the same model.",
        )
    return tokens


def _check_tokens(tokens: list[int], n_vocab: int) -> None:
    for index, token in enumerate(tokens):
        if not 0 <= token < n_vocab:
            raise RequestError(
                f"Token id {token} (number {index + 1} of the list) is outside of the vocabulary of {n_vocab} tokens."
            )


def _as_json(result: Comparison, a: ModelInfo, b: ModelInfo, seconds: float) -> dict[str, Any]:
    def side(info: ModelInfo, perplexity: Perplexity) -> dict[str, Any]:
        return {
            "model": str(info.path),
            "quantisation": info.quantisation,
            "file_bytes": info.file_bytes,
            "device": info.device.id,
            "perplexity": perplexity.value,
            "standard_error": perplexity.standard_error,
            "mean_nll": perplexity.mean_nll,
        }

    return {
        "a": side(a, result.perplexity_a),
        "b": side(b, result.perplexity_b),
        "mean_kl_divergence": result.mean_divergence,
        "max_kl_divergence": float(result.divergence.max()),
        "kl_divergence_99": percentile(result.divergence, 0.99),
        "top1_agreement": result.agreement,
        "perplexity_ratio": result.perplexity_b.value / result.perplexity_a.value,
        "tokens": len(result.divergence),
        "chunks": len(result.perplexity_a.nll),
        "context": result.perplexity_a.n_ctx,
        "seconds": seconds,
    }


def _as_text(result: Comparison, a: ModelInfo, b: ModelInfo) -> str:
    rows = [["", "A", "B"]]
    rows.append(["model", a.path.name, b.path.name])
    rows.append(["weights", *(f"{info.quantisation}, {bytes_text(info.file_bytes)}" for info in (a, b))])
    rows.append(["device", a.device.id, b.device.id])
    perplexities = (result.perplexity_a, result.perplexity_b)
    rows.append(["perplexity", *(f"{p.value:.4f} ± {p.standard_error:.4f}" for p in perplexities)])
    change = perplexities[1].value / perplexities[0].value - 1
    return "\n".join(
        (
            table(rows),
            "",
            f"perplexity of B     {change:+.2%}",
            f"KL divergence       {result.mean_divergence:.6f} on average, {percentile(result.divergence, 0.99):.6f} "
            f"at the 99th percentile, {result.divergence.max():.6f} at most",
            f"same likeliest      {result.agreement:.2%} of {len(result.divergence)} tokens",
        )
    )
