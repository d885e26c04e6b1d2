"""`python -m tests.tools.conformance`: writes docs/conformance.md anew."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from app import paths
from engine.devices import list_devices
from tests.tools.conformance.architectures import compare_architectures
from tests.tools.conformance.real import compare_real_models, real_models
from tests.tools.conformance.table import Section
from tests.tools.conformance.text import compare_templates, compare_tokenizers
from tests.tools.conformance.types import compare_types

PROJECT = Path(__file__).resolve().parents[3]
QUICK = ("smollm2-135m-q4_1",)
"""The real models that are measured without --slow."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="conformance", description="Compares with the reference data.")
    parser.add_argument("--slow", action="store_true", help="measure every real model that is here (half an hour)")
    parser.add_argument("--only", metavar="NAME", action="append", help="real models to measure, by a part of the name")
    parser.add_argument("--out", type=Path, default=PROJECT / "docs" / "conformance.md", help="(default %(default)s)")
    args = parser.parse_args()
    fixtures = Path(os.environ.get("REALM_FIXTURES") or PROJECT.parent / "shared" / "fixtures")
    if not fixtures.is_dir():
        print(f"There is no reference data at {fixtures}; set REALM_FIXTURES to its folder.", file=sys.stderr)
        return 1
    names = args.only or QUICK
    folders = [Path(os.environ.get("REALM_MODELS") or PROJECT / ".models"), paths.models_dir()]
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        say("quantisation types")
        sections = [compare_types(fixtures)]
        sections.append(compare_architectures(fixtures, say))
        models = real_models(fixtures, folders, Path(scratch))
        say("tokenizers")
        sections.append(compare_tokenizers(fixtures, models))
        say("chat templates")
        sections.append(compare_templates(fixtures))
        sections.append(
            compare_real_models(fixtures, models, lambda name: args.slow or any(part in name for part in names), say)
        )
    args.out.write_text(report(sections), encoding="utf-8")
    for section in sections:
        say(f"{section.title}: {section.passed} of {section.total} in bounds")
        for name in section.missed:
            say(f"  out of bounds: {name}")
    say(f"written to {args.out}")
    return 0


def report(sections: list[Section]) -> str:
    devices = [f"{d.name} ({d.driver})" for d in list_devices() if d.id.startswith("opencl") and not d.problem]
    lines = [
        "# Conformance",
        "",
        "Written by `make conformance`, not by hand: what Realm computes beside what llama.cpp and its published test "
        "data say. Numbers in bold are out of their bound; a sentence in place of a number says why there is none.",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, numpy {np.__version__}, OpenCL on {devices[0] if devices else 'no device'}.",
        "",
        "| | Comparisons in bounds |",
        "|---|---|",
        *(f"| [{s.title}](#{s.title.lower().replace(' ', '-')}) | {s.passed} of {s.total} |" for s in sections),
        "",
    ]
    return "\n".join(lines) + "\n" + "\n\n".join(section.markdown() for section in sections) + "\n"


if __name__ == "__main__":
    sys.exit(main())
