"""Tokenizers and chat templates: cases passed of all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from engine.chat_template import ChatTemplate
from engine.errors import RealmError, TemplateError
from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer
from tests.tools.conformance.table import Section, attempt

_SEPARATOR = "\n__ggml_vocab_test__\n"
_NOW = datetime(2026, 1, 2, 3, 4, 5)  # when the reference's clock stood still

_TOKENIZERS = """\
Published cases and 200 hard strings for each vocabulary: ids as plain text, ids with the texts of control tokens
parsed, and the ids turned back into text. All must be equal."""
_TEMPLATES = """\
Real templates rendered as transformers renders them, byte for byte; a case that the reference refuses must be
refused."""


def compare_tokenizers(fixtures: Path, models: dict[str, Path]) -> Section:
    """models: files of real models, by the names that the reference data gives them."""
    section = Section(
        "Tokenizers",
        _TOKENIZERS,
        ("Vocabulary", "Kind", "Tokens", "Published", "Plain", "With control tokens", "Back to text"),
    )
    for path in sorted((fixtures / "tokenizers").glob("random-*.json")):
        name = path.stem.removeprefix("random-")
        vocabulary = path.with_name(f"ggml-{name}.gguf") if name.startswith("vocab-") else _model(models, name)
        if vocabulary is None or not vocabulary.is_file():
            section.rows.append((name, "", "", "the model is not here", "", "", ""))
            continue
        cells = ["", "", "", ""]

        def compare(
            path: Path = path, vocabulary: Path = vocabulary, cells: list[str] = cells, name: str = name
        ) -> str:
            with GGUFFile.open(vocabulary) as file:
                tokenizer = Tokenizer.from_gguf(file)
            cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
            for at, (what, results) in enumerate(
                (
                    ("published", _published(vocabulary, tokenizer)),
                    ("plain", [_encode(tokenizer, case, False) == case["ids"] for case in cases]),
                    ("control", [_encode(tokenizer, case, True) == case["ids_special"] for case in cases]),
                    ("back", [tokenizer.decode(c["ids"]) == c["detok"] for c in cases if "detok" in c]),
                )
            ):
                if results:
                    cells[at] = section.judged(f"{name} {what}", f"{sum(results)}/{len(results)}", all(results))
            return f"{tokenizer.model}, {tokenizer.pre}|{tokenizer.n_vocab}"

        kind, _, count = attempt(section, name, compare).rpartition("|")
        section.rows.append((name.removeprefix("vocab-"), kind or count, count if kind else "", *cells))
    return section


def _model(models: dict[str, Path], name: str) -> Path | None:
    return next((path for model, path in models.items() if model.startswith(name)), None)


def _published(vocabulary: Path, tokenizer: Tokenizer) -> list[bool]:
    texts = Path(f"{vocabulary}.inp")
    if not texts.is_file():
        return []
    answers = Path(f"{vocabulary}.out").read_text(encoding="utf-8").splitlines()
    parts = texts.read_bytes().decode().split(_SEPARATOR)
    return [
        tokenizer.encode(text, add_special=False) == [int(token) for token in answer.split()]
        for text, answer in zip(parts, answers, strict=False)
    ]


def _encode(tokenizer: Tokenizer, case: dict[str, Any], special: bool) -> list[int]:
    return tokenizer.encode(case["text"], add_special=False, parse_special=special)


def compare_templates(fixtures: Path) -> Section:
    section = Section("Chat templates", _TEMPLATES, ("Cases", "Templates", "Equal", "Refused as they should be"))
    path = fixtures / "templates" / "cases.json"
    if not path.is_file():
        return section
    reference = json.loads(path.read_text(encoding="utf-8"))
    cases = reference["cases"]
    results = [(case, _renders(reference, case)) for case in cases]
    refused = [good for case, good in results if case.get("error")]
    equal = [good for case, good in results if not case.get("error")]
    failed = [str(case["id"]) for case, good in results if not good]
    section.rows.append(
        (
            str(len(cases)),
            str(len(reference["templates"])),
            section.judged("rendering", _share(equal), all(equal)),
            section.judged("refusing", _share(refused), all(refused)),
        )
    )
    if failed:
        section.notes.append(f"Cases that differ: {', '.join(failed)}.")
    return section


def _share(results: Iterable[bool]) -> str:
    all_results = list(results)
    return f"{sum(all_results)}/{len(all_results)}"


@cache
def _compiled(source: str, bos: str, eos: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token=bos, eos_token=eos)


def _renders(reference: dict[str, Any], case: dict[str, Any]) -> bool:
    """Whether the case comes out, or is refused, as the reference says."""
    source = reference["templates"][case["template"]]
    try:
        template = _compiled(source, case["bos_token"] or "", case["eos_token"] or "")
        text = template.render(
            case["messages"],
            add_generation_prompt=case["add_generation_prompt"],
            tools=case.get("tools"),
            strftime_now=_NOW.strftime,
            **(case.get("extra") or {}),
        )
    except TemplateError:
        return bool(case.get("error"))
    except RealmError:
        return False
    return not case.get("error") and text == case["expected_jinja2"]
