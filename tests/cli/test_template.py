"""`realm template`: the text that a model gets to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Realm

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(MESSAGES))
    return file


@pytest.fixture
def jinja(tmp_path: Path) -> Path:
    file = tmp_path / "template.jinja"
    file.write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if tools %}{{ tools | length }} tools\n{% endif %}{{ colour }}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return file


def test_a_models_own_template(realm: Realm, starter_model: Path, messages: Path) -> None:
    command = ("template", "--model", starter_model, "--messages", messages)

    text = realm(*command).out

    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert realm(*command, "--json").json == text
    assert realm(*command, "--no-generation-prompt").out == text.removesuffix("<|im_start|>assistant\n")


def test_a_template_from_a_file(realm: Realm, jinja: Path, messages: Path, tmp_path: Path) -> None:
    command = ("template", "--template", jinja, "--messages")

    assert realm(*command, messages).out == "user: Hi\nassistant:"
    tokens = ("--bos-token", "<s>", "--eos-token", "</s>")
    assert realm(*command, messages, *tokens).out == "<s>user: Hi</s>\nassistant:"
    with_tools = tmp_path / "with_tools.json"
    with_tools.write_text(
        json.dumps({"messages": MESSAGES, "tools": [{"type": "function"}], "extra": {"colour": "blue"}})
    )
    assert realm(*command, with_tools).out == "user: Hi\n1 tools\nblueassistant:"


def test_lines_name_their_own_templates(realm: Realm, fixtures_dir: Path) -> None:
    data = json.loads((fixtures_dir / "templates" / "cases.json").read_text(encoding="utf-8"))
    cases = [case for case in data["cases"] if "expected_jinja2" in case][::6]
    assert len(cases) > 10

    def line(case: dict[str, Any]) -> str:
        kept = ("messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "extra")
        request = {name: case[name] for name in kept if name in case}
        return json.dumps({**request, "template": data["templates"][case["template"]]}) + "\n"

    result = realm("template", "--jsonl", stdin="".join(map(line, cases)))

    assert result.code == 0
    for answer, case in zip(result.lines, cases, strict=True):
        if (
            "2026-01-02" not in case["expected_jinja2"] and "Jan 2026" not in case["expected_jinja2"]
        ):  # the reference's clock
            assert answer == case["expected_jinja2"], case["id"]


def test_bad_lines_are_answered_and_the_others_too(realm: Realm, jinja: Path) -> None:
    source = jinja.read_text()
    lines: list[Any] = [
        {"messages": MESSAGES},
        {"messages": MESSAGES, "template": "{% for %}"},
        {"messages": "Hi"},
        {"messages": MESSAGES, "colour": "blue"},
        {"messages": MESSAGES, "extra": {"colour": "blue"}, "add_generation_prompt": False},
        {"messages": MESSAGES, "extra": {"messages": []}},
        {"messages": MESSAGES, "extra": []},
        {"messages": MESSAGES, "tools": {}},
        {"messages": MESSAGES, "add_generation_prompt": "yes"},
        {"messages": MESSAGES, "bos_token": 1},
        {"messages": MESSAGES, "template": source, "bos_token": "<s>"},
        [],
    ]

    result = realm("template", "--template", jinja, "--jsonl", stdin="\n".join(map(json.dumps, lines)))

    answers = result.lines
    assert answers[0] == "user: Hi\nassistant:"
    assert answers[4] == "user: Hi\nblue"
    assert answers[10] == "<s>user: Hi\nassistant:"
    for index in set(range(len(lines))) - {0, 4, 10}:
        assert set(answers[index]) == {"error"}, lines[index]


def test_a_line_without_any_template_is_refused(realm: Realm) -> None:
    answers = realm("template", "--jsonl", stdin=json.dumps({"messages": MESSAGES})).lines

    assert "names no template" in answers[0]["error"]


def test_what_is_missing_is_usage(realm: Realm, jinja: Path, messages: Path) -> None:
    for arguments, says in (
        ((), "--model"),
        (("--template", jinja), "--messages"),
        (("--messages", messages), "--model"),
    ):
        result = realm("template", *arguments)
        assert result.code == 2
        assert says in result.err


def test_trouble_is_told(realm: Realm, jinja: Path, messages: Path, tmp_path: Path, fixtures_dir: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% if %}")
    assert realm("template", "--template", broken, "--messages", messages).error
    assert "no file" in realm("template", "--template", tmp_path / "none", "--messages", messages).error
    assert "no file" in realm("template", "--template", jinja, "--messages", tmp_path / "none").error
    bad = tmp_path / "bad.json"
    bad.write_text('[{"role": "user"')
    assert "not JSON" in realm("template", "--template", jinja, "--messages", bad).error
    tiny = fixtures_dir / "tiny_models" / "llama.gguf"
    assert "has no chat template" in realm("template", "--model", tiny, "--messages", messages).error
