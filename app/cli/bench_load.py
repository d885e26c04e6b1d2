"""`realm bench --load`: how long it takes from a file to the first token."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from app.cli.answers import answer_request
from app.cli.models import model_path, open_engine, wait_for
from app.cli.terminal import ProgressBar, bytes_text, printable, write_json
from engine.api import GenerateRequest, LoadOptions, SamplingParams
from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer

_TEXT = "Hello, world"


def run_load(args: argparse.Namespace) -> int:
    """Opens the file anew for each repetition, after one that brings it into the page cache and compiles kernels."""
    path = model_path(args.model)
    repetitions: int = args.repetitions
    bar = ProgressBar("bench")
    try:
        with GGUFFile.open(path) as file:
            runs = bool(file.tensors)  # else it holds a vocabulary only
        openings, tokenizers = [], []
        for index in range(repetitions + 1):
            bar.update(index / (2 * repetitions + 2), "vocabulary")
            opening, building, n_vocab = _vocabulary(path)
            openings.append(opening)
            tokenizers.append(building)
        answer: dict[str, Any] = {
            "model": str(path),
            "file_bytes": path.stat().st_size,
            "vocab_size": n_vocab,
            "repetitions": repetitions,
            "open_s": median(openings[1:]),
            "tokenizer_s": median(tokenizers[1:]),
            "vocabulary_s": median(a + b for a, b in zip(openings[1:], tokenizers[1:], strict=True)),
        }
        if runs:
            loads, firsts = [], []
            for index in range(repetitions + 1):
                bar.update((repetitions + 1 + index) / (2 * repetitions + 2), "first token")
                load, first, device = _first_token(path, args.device)
                loads.append(load)
                firsts.append(first)
            answer |= {"device": device, "load_s": median(loads[1:]), "first_token_s": median(firsts[1:])}
    finally:
        bar.clear()
    if args.json:
        write_json(answer)
    else:
        print(printable(_text(answer)))
    return 0


def _vocabulary(path: Path) -> tuple[float, float, int]:
    """Seconds for opening the file, seconds for its tokenizer up to the first text, and the number of tokens."""
    began = time.perf_counter()
    with GGUFFile.open(path) as file:
        opened = time.perf_counter()
        tokenizer = Tokenizer.from_gguf(file)
        tokenizer.encode(_TEXT, parse_special=True)  # some of it is built when it is first needed
        return opened - began, time.perf_counter() - opened, tokenizer.n_vocab


def _first_token(path: Path, device: str) -> tuple[float, float, str]:
    """Seconds for loading, and for all from the path to the first token; the device that computed it."""
    with open_engine() as engine:
        began = time.perf_counter()
        info = wait_for(engine.load(path, LoadOptions(device=device)))
        loaded = time.perf_counter()
        request = GenerateRequest(prompt=_TEXT, sampling=SamplingParams(temperature=0), max_tokens=1, ignore_eos=True)
        answer_request(engine, request)
        return loaded - began, time.perf_counter() - began, info.device.id


def _text(answer: dict[str, Any]) -> str:
    lines = [
        f"{answer['model']} ({bytes_text(answer['file_bytes'])})",
        f"vocabulary   {answer['vocabulary_s']:.3f} s for {answer['vocab_size']} tokens: {answer['open_s']:.3f} s "
        f"to open the file, {answer['tokenizer_s']:.3f} s to build the tokenizer",
    ]
    if "first_token_s" in answer:
        lines.append(
            f"first token  {answer['first_token_s']:.3f} s from the file, {answer['load_s']:.3f} s of it to load "
            f"({answer['device']})"
        )
    return "\n".join(lines)
