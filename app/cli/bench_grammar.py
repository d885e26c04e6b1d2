"""`realm bench --grammar [FILE]`, `--json-schema FILE`: what it costs that answers have to match a form."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from app.cli.answers import answer_request
from app.cli.input import form_text
from app.cli.models import loaded_engine, model_path
from app.cli.options import grammar_text, schema_of
from app.cli.terminal import ProgressBar, printable, write_json
from engine.api import Figures, GenerateRequest, SamplingParams
from engine.engine import Engine
from engine.errors import RequestError
from engine.gguf import GGUFFile
from engine.grammar import CompiledGrammar, schema_gbnf
from engine.grammar.trie import TokenTrie, token_trie
from engine.sampling import Sampler
from engine.tokenizer import Tokenizer

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "languages": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "about": {"type": "string"},
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "languages", "about", "married"],
}
SCHEMA: dict[str, Any] = {"type": "array", "items": _PERSON, "minItems": 1000}
"""People without end, so that the answer is as long as it may be."""

_PEOPLE = [
    {"name": "Ada Lovelace", "age": 36, "languages": ["English", "French"], "married": True,
     "about": "She wrote the first program for a machine that was never built."},
    {"name": "Emmy Noether", "age": 53, "languages": ["German"], "married": False,
     "about": "Symmetries and what they keep, said in one line: \"every symmetry has its law\"."},
    {"name": "Tu Youyou", "age": 94, "languages": ["中文", "English"], "married": True,
     "about": "Found artemisinin in a text that was 1600 years old – and tried it on herself first."},
]  # fmt: skip
_PROMPT = [{"role": "user", "content": "Invent people. Write them as a JSON array, in one line."}]
_PARAMS = SamplingParams(seed=1)

BUILT_IN = Path()
"""In place of a file: the schema of people."""


def add_grammar_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--grammar",
        nargs="?",
        type=Path,
        const=BUILT_IN,
        metavar="FILE",
        help="measure what a GBNF grammar costs answers; without FILE, what a JSON schema costs, per token too: "
        "a file with a vocabulary only will do",
    )
    form.add_argument(
        "--json-schema", type=Path, metavar="FILE", help="measure what a JSON schema of yours costs answers"
    )


def run_grammar(args: argparse.Namespace) -> int:
    path = model_path(args.model)
    form = _form(args)
    bar = ProgressBar("bench")
    try:
        bar.update(0.0, "vocabulary")
        with GGUFFile.open(path) as file:
            runs = bool(file.tensors)  # else it holds a vocabulary only
            tokenizer = Tokenizer.from_gguf(file)
        answer = {"model": str(path), "vocab_size": tokenizer.n_vocab}
        if "json_schema" in form and form["json_schema"] is SCHEMA:
            answer |= _masks(tokenizer)
        elif not runs:
            raise RequestError(f"{path} holds a vocabulary only, which cannot answer.", "Name a whole model.")
        if runs:
            answer |= _answers(args, path, bar, form)
    finally:
        bar.clear()
    if args.json:
        write_json(answer)
    else:
        print(printable(_text(answer)))
    return 0


def _form(args: argparse.Namespace) -> dict[str, Any]:
    """What answers have to match, as fields of a request. Raises RequestError where that is none."""
    if args.json_schema is not None:
        return {"json_schema": schema_of({"json_schema": form_text(args.json_schema)})}
    if args.grammar != BUILT_IN:
        return {"grammar": grammar_text({"grammar": form_text(args.grammar)})}
    return {"json_schema": SCHEMA}


def _masks(tokenizer: Tokenizer) -> dict[str, Any]:
    """The cost of masks alone: seconds of a token that is chosen out of random logits and turns out to be the next one
    of a JSON text, with the grammar and without it."""
    began = time.perf_counter()
    trie = token_trie(tokenizer, tokenizer.n_vocab)
    vocabulary_s = time.perf_counter() - began
    gbnf = schema_gbnf({**SCHEMA, "minItems": 1})
    text = json.dumps(
        [{name: person[name] for name in _PERSON["properties"]} for person in _PEOPLE], ensure_ascii=False
    )
    tokens = tokenizer.encode(text, add_special=False)
    tokens = tokens if b"".join(trie.pieces[t] for t in tokens) == text.encode() else _longest_pieces(trie, text)
    began = time.perf_counter()
    grammar = CompiledGrammar(gbnf, tokenizer, tokenizer.n_vocab)
    compile_s = time.perf_counter() - began
    plain = _times(tokenizer.n_vocab, tokens, None)
    first, again = (_times(tokenizer.n_vocab, tokens, grammar) for _ in range(2))
    return {
        "vocabulary_s": vocabulary_s,
        "compile_s": compile_s,
        "tokens": len(tokens),
        "plain_us": 1e6 * mean(plain),
        "first_answer_us": 1e6 * mean(first),
        "first_answer_max_us": 1e6 * max(first),
        "later_answers_us": 1e6 * mean(again),
        "later_answers_max_us": 1e6 * max(again),
    }


def _times(n_vocab: int, tokens: list[int], grammar: CompiledGrammar | None) -> list[float]:
    sampler = Sampler(_PARAMS, n_vocab, None, grammar.start() if grammar else None)
    logits = np.random.default_rng(1).standard_normal(n_vocab).astype(np.float32) * 3
    out = []
    for token in tokens:
        kept = logits[token]
        logits[token] = 30.0
        began = time.thread_time()  # what else the machine does shall not count in the microseconds
        sampler.draw(sampler.candidates(logits, ()))
        sampler.accept(token)
        out.append(time.thread_time() - began)
        logits[token] = kept
    return out


def _longest_pieces(trie: TokenTrie, text: str) -> list[int]:
    """A text cut into the longest tokens, where the tokenizer's own cut spells something before it."""
    known = {piece: token for token, piece in reversed(list(enumerate(trie.pieces))) if piece}
    data, at, out = text.encode(), 0, []
    while at < len(data):
        length = next(n for n in range(min(48, len(data) - at), 0, -1) if data[at : at + n] in known)
        out.append(known[data[at : at + length]])
        at += length
    return out


def _answers(args: argparse.Namespace, path: Path, bar: ProgressBar, form: dict[str, Any]) -> dict[str, Any]:
    """Whole answers, of the form and of any by turns."""
    plain: list[Figures] = []
    schema: list[Figures] = []
    context = 256 + args.decode_tokens
    with loaded_engine(str(path), args.device, context, kv_type=args.kv_type) as (engine, info):
        for index in range(args.repetitions + 1):
            bar.update(index / (args.repetitions + 1), "answers")
            plain.append(_serve(engine, args.decode_tokens, {}))
            schema.append(_serve(engine, args.decode_tokens, form))
    plain_rates, rates = ([figures.decode_tokens_per_s for figures in kind[1:]] for kind in (plain, schema))
    return {
        "device": info.device.id,
        "n_decode": args.decode_tokens,
        "repetitions": args.repetitions,
        "plain_tokens_per_s": median(plain_rates),
        "schema_tokens_per_s": median(rates),
        "first_schema_tokens_per_s": schema[0].decode_tokens_per_s,
        "speed_with_schema": median(a / b for a, b in zip(rates, plain_rates, strict=True)),
    }


def _serve(engine: Engine, n: int, form: dict[str, Any]) -> Figures:
    """Log probabilities are asked for in both, so that no token is jumped over."""
    request = GenerateRequest(
        messages=_PROMPT,
        plain_template=True,
        sampling=_PARAMS,
        max_tokens=n,
        ignore_eos=not form,
        logprobs=1,
        **form,
    )
    return answer_request(engine, request).figures


def _text(answer: dict[str, Any]) -> str:
    lines = [f"{answer['model']} ({answer['vocab_size']} tokens)"]
    if "plain_us" in answer:
        lines += [
            f"vocabulary  {answer['vocabulary_s']:.2f} s once, grammar {1e3 * answer['compile_s']:.0f} ms once",
            f"one token   {answer['plain_us']:.0f} us without grammar, {answer['first_answer_us']:.0f} us with it in "
            f"the first answer (at most {answer['first_answer_max_us']:.0f}), "
            f"{answer['later_answers_us']:.0f} us later (at most {answer['later_answers_max_us']:.0f})",
        ]
    if "speed_with_schema" in answer:
        lines.append(
            f"decode      {answer['plain_tokens_per_s']:.1f} tokens/s without grammar, "
            f"{answer['schema_tokens_per_s']:.1f} with it ({100 * answer['speed_with_schema']:.0f} %), "
            f"{answer['first_schema_tokens_per_s']:.1f} in the first answer"
        )
    return "\n".join(lines)
