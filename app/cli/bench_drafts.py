"""`realm bench --draft PATH`, `--mtp` and `--ngram`: what guessing gains, and what it costs where it gains nothing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from app.cli.answers import Answer, answer_request
from app.cli.drafts import draft_options, load_draft
from app.cli.models import loaded_engine, wait_for
from app.cli.terminal import ProgressBar, printable, table, write_json
from engine.api import DraftKind, DraftOptions, GenerateRequest, ModelInfo, SamplingParams
from engine.engine import Engine
from engine.measure import random_tokens

GREEDY = SamplingParams(temperature=0)
NEUTRAL = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)

CODE = '''class Inventory:
    """Counts the goods of a shop."""

    def __init__(self, name):
        self.name = name
        self.items = {}

    def add(self, item, count=1):
        if count < 1:
            raise ValueError("count has to be at least 1")
        self.items[item] = self.items.get(item, 0) + count

    def remove(self, item, count=1):
        left = self.items.get(item, 0) - count
        if left < 0:
            raise ValueError("there are not so many of " + item)
        if left == 0:
            del self.items[item]
        else:
            self.items[item] = left

    def total(self):
        return sum(self.items.values())

    def report(self):
        for item, count in sorted(self.items.items()):
            print(item, count)
'''
EDIT = f"Change the name of the class to Stock and repeat everything else exactly as it is:\n\n```python\n{CODE}```"
PROSE = "The history of the city begins with a small harbour at the mouth of the river, where"
CONTEXT = 1024


@dataclass
class Case:
    """One thing to answer with and without guesses. speeds: decoded tokens/s, pairs of (without, with)."""

    name: str
    request: GenerateRequest
    speeds: list[tuple[float, float]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    identical: bool = True

    @property
    def gain(self) -> float:
        return median(guessed / plain for plain, guessed in self.speeds)


def run_drafts(args: argparse.Namespace) -> int:
    draft = draft_options(args)
    assert draft is not None
    answer = drafts_measured(
        args.model, args.device, draft, args.draft, args.decode_tokens, args.repetitions, seed=args.seed, mtp=args.mtp
    )
    if args.json:
        write_json(answer)
    else:
        print(printable(drafts_text(answer)))
    return 0


def drafts_measured(
    model: str,
    device: str,
    draft: DraftOptions,
    name: str | None,
    n_decode: int,
    repetitions: int,
    *,
    seed: int = 1,
    mtp: bool = False,
) -> dict[str, Any]:
    """Answers each case by turns without and with guesses, after a round that warms up; the gain is the median of the
    ratios of neighbours. name: of the draft model, where one guesses. mtp: the model's own layer guesses."""
    bar = ProgressBar("bench")
    with loaded_engine(model, device, max(CONTEXT, n_decode + 512)) as (engine, info):
        load_draft(engine, name, device, mtp=mtp)
        cases = _cases(engine, info, n_decode, seed, draft.kind)
        rounds = repetitions + 1
        try:
            for round_ in range(rounds):
                for index, case in enumerate(cases):
                    bar.update((round_ * len(cases) + index) / (rounds * len(cases)), case.name)
                    _measure(engine, case, draft, warm_up=not round_)
        finally:
            bar.clear()
    return {
        "model": str(info.path),
        "draft": "its own layer" if mtp else name or "n-gram",
        "device": info.device.id,
        "decode_tokens": n_decode,
        "repetitions": repetitions,
        "cases": {case.name: _facts(case) for case in cases},
    }


def _cases(engine: Engine, info: ModelInfo, n_decode: int, seed: int, kind: DraftKind) -> list[Case]:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": EDIT}]}
    edit = chat if info.has_chat_template else {"prompt": f"{EDIT}\n\n"}
    avoid = wait_for(engine.call(lambda _, tokenizer: frozenset(tokenizer.end_tokens), uses_kv=False))
    noise = random_tokens(info.vocab_size, 64, seed, avoid)
    common: dict[str, Any] = {"max_tokens": n_decode, "ignore_eos": True}
    usual, neutral = SamplingParams(seed=seed), replace(NEUTRAL, seed=seed)
    cases = [
        Case("edit of code, greedy", GenerateRequest(**edit, **common, sampling=GREEDY)),
        Case("prose, greedy", GenerateRequest(prompt=PROSE, **common, sampling=GREEDY)),
        Case("random text, temperature 1", GenerateRequest(prompt_tokens=noise, **common, sampling=neutral)),
    ]
    if kind is DraftKind.MODEL:
        cases.insert(2, Case("prose, temperature 0.8", GenerateRequest(prompt=PROSE, **common, sampling=usual)))
    return cases


def _measure(engine: Engine, case: Case, draft: DraftOptions, *, warm_up: bool) -> None:
    plain = answer_request(engine, case.request)
    guessed = answer_request(engine, replace(case.request, draft=draft))
    if case.request.sampling.temperature == 0:
        case.identical &= plain.tokens == guessed.tokens
    if warm_up:
        return
    case.speeds.append((_speed(plain), _speed(guessed)))
    case.drafted += guessed.figures.drafted_tokens
    case.accepted += guessed.figures.accepted_tokens


def _speed(answer: Answer) -> float:
    return answer.figures.decode_tokens_per_s


def _facts(case: Case) -> dict[str, Any]:
    return {
        "plain_tokens_per_s": median(plain for plain, _ in case.speeds),
        "tokens_per_s": median(guessed for _, guessed in case.speeds),
        "gain": case.gain,
        "gain_min": min(guessed / plain for plain, guessed in case.speeds),
        "gain_max": max(guessed / plain for plain, guessed in case.speeds),
        "drafted_tokens": case.drafted,
        "accepted_tokens": case.accepted,
        "identical": case.identical if case.request.sampling.temperature == 0 else None,
    }


def drafts_text(answer: dict[str, Any]) -> str:
    rows = [["", "without", "guessing", "gain", "accepted", "greedy answer"]]
    for name, facts in answer["cases"].items():
        drafted = facts["drafted_tokens"]
        rows.append(
            [
                name,
                f"{facts['plain_tokens_per_s']:.1f} tokens/s",
                f"{facts['tokens_per_s']:.1f} tokens/s",
                f"{facts['gain']:.2f} ({facts['gain_min']:.2f} to {facts['gain_max']:.2f})",
                f"{facts['accepted_tokens'] / drafted:.0%} of {drafted}" if drafted else "nothing guessed",
                "" if facts["identical"] is None else "the same" if facts["identical"] else "DIFFERENT",
            ]
        )
    head = f"{answer['model']}, guessed by {answer['draft']}, {answer['decode_tokens']} tokens ({answer['device']})"
    return f"{head}\n{table(rows)}"
