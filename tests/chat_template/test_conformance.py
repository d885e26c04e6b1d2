"""Real templates, rendered to the byte."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from engine.chat_template import ChatTemplate
from engine.errors import TemplateError

NOW = datetime(2026, 1, 2, 3, 4, 5)  # when the reference's clock stood still


@pytest.fixture(scope="module")
def reference(fixtures_dir: Path) -> dict[str, Any]:
    path = fixtures_dir / "templates" / "cases.json"
    if not path.is_file():
        pytest.skip(f"no {path.name} in the reference data")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_every_case(reference: dict[str, Any]) -> None:
    compiled: dict[tuple[int, str, str], ChatTemplate] = {}
    assert len(reference["cases"]) > 200
    for case in reference["cases"]:
        bos, eos = case["bos_token"] or "", case["eos_token"] or ""
        key = (case["template"], bos, eos)
        if key not in compiled:
            compiled[key] = ChatTemplate(reference["templates"][case["template"]], bos_token=bos, eos_token=eos)
        arguments = {
            "add_generation_prompt": case["add_generation_prompt"],
            "tools": case.get("tools"),
            "strftime_now": NOW.strftime,
            **(case.get("extra") or {}),
        }
        if case.get("error"):
            with pytest.raises(TemplateError):
                compiled[key].render(case["messages"], **arguments)
        else:
            assert compiled[key].render(case["messages"], **arguments) == case["expected_jinja2"], case["id"]
