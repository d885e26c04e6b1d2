"""`realm generate`: the fields of its answer, its settings, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.api import Figures

from .conftest import Realm

GREEDY = ("--temperature", "0", "--device", "numpy", "--json")


def ids(tokens: Any) -> str:
    return ",".join(str(int(token)) for token in tokens)


def test_greedy_answers_are_the_references(realm: Realm, tiny_model: Path, tiny_reference: dict[str, Any]) -> None:
    answer = realm(
        *("generate", "--model", tiny_model, "--prompt-tokens", ids(tiny_reference["prompt"])),
        *("--max-tokens", 32, "--ignore-eos", *GREEDY),
    ).json

    assert set(answer) == {"tokens", "text", "prompt_tokens", "stop_reason", "timings"}
    assert len(answer["tokens"]) == 32
    assert answer["prompt_tokens"] == 48
    assert answer["stop_reason"] == "length"
    timings = answer["timings"]
    assert set(Figures.__dataclass_fields__) <= set(timings)
    assert (timings["generated_tokens"], timings["prompt_tokens"]) == (32, 48)
    assert timings["load_s"] > 0
    assert answer["tokens"] == tiny_reference["exact_top1"].tolist()  # no margin there is below 0.015


def test_without_json_the_text_alone_goes_to_stdout(realm: Realm, tiny_model: Path) -> None:
    arguments = ("generate", "--model", tiny_model, "--prompt", "Once", "--max-tokens", 12, "--ignore-eos")
    text = realm(*arguments, *GREEDY).json["text"]

    plain = realm(*arguments, *GREEDY[:-1])

    assert plain.code == 0
    assert plain.out.removesuffix("\n") == text.removesuffix("\n")
    assert plain.out.endswith("\n")
    assert "tokens/s" in plain.err


def test_a_seed_repeats_an_answer(realm: Realm, tiny_model: Path) -> None:
    def tokens(seed: int) -> list[int]:
        command = ("generate", "--model", tiny_model, "--prompt", "Once", "--max-tokens", 16, "--ignore-eos")
        answer = realm(*command, "--temperature", 2, "--seed", seed, "--device", "numpy", "--json").json
        return list(answer["tokens"])

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_the_end_token_is_not_among_the_tokens(realm: Realm, tiny_model: Path) -> None:
    command = ("generate", "--model", tiny_model, "--prompt", "Once", "--max-tokens", 3, "--logit-bias", "2+1000")

    ended = realm(*command, *GREEDY).json
    assert (ended["tokens"], ended["text"], ended["stop_reason"]) == ([], "", "eos")
    ignored = realm(*command, "--ignore-eos", *GREEDY).json
    assert (ignored["tokens"], ignored["stop_reason"]) == ([2, 2, 2], "length")


def test_stop_strings_end_the_text_before_them(realm: Realm, tiny_model: Path) -> None:
    command = ("generate", "--model", tiny_model, "--prompt", "Once", "--max-tokens", 24, "--ignore-eos")
    text = realm(*command, *GREEDY).json["text"]
    stop = text[10:13]

    answer = realm(*command, "--stop", "never said", "--stop", stop, *GREEDY).json

    assert answer["stop_reason"] == "stop"
    assert answer["text"] == text[: text.index(stop)]


def test_an_answer_ends_where_the_context_does(realm: Realm, tiny_model: Path) -> None:
    answer = realm(
        *("generate", "--model", tiny_model, "--prompt-tokens", "1,5,6", "--context-length", 16, "--ignore-eos"),
        *GREEDY,
    ).json

    assert answer["stop_reason"] == "context"
    assert answer["timings"]["context_length"] == answer["timings"]["context_used"] == 16


def test_one_process_answers_a_line_each(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    command = ("generate", "--model", tiny_model, "--max-tokens", 4, "--ignore-eos", *GREEDY)
    messages = [{"role": "user", "content": "Hi"}]
    lines = [
        {"prompt": "Once", "max_tokens": 6},
        {"prompt_tokens": [1, 2, 3]},
        {"prompt": "Once", "colour": "blue"},
        {"prompt_tokens": [1, 448]},
        {"prompt": "Once", "temperature": -1},
        {"prompt": "Once", "max_tokens": 0},
        [1, 2, 3],
        {"messages": messages, "temperature": 0.5, "seed": 3, "stop": "never said"},
        {"prompt": "Once", "max_tokens": 6},
    ]

    result = realm(*command, "--jsonl", stdin="\n\n".join(map(json.dumps, lines)) + "\n")

    assert result.code == 0
    answers = result.lines
    assert len(answers) == len(lines)
    assert len(answers[0]["tokens"]) == 6
    assert answers[0]["tokens"] == answers[8]["tokens"]
    assert len(answers[1]["tokens"]) == 4  # the command line's, where the line says nothing
    assert "no option 'colour'" in answers[2]["error"]
    assert "448" in answers[3]["error"]
    assert "temperature" in answers[4]["error"]
    assert "max_tokens" in answers[5]["error"]
    assert "JSON object" in answers[6]["error"]
    file = tmp_path / "messages.json"
    file.write_text(json.dumps({"messages": messages, "tools": []}))
    alone = realm(*command, "--messages", file, "--temperature", 0.5, "--seed", 3, "--stop", "never said").json
    assert alone["tokens"] == answers[7]["tokens"]
    assert alone["prompt_tokens"] == answers[7]["prompt_tokens"] > 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "exactly one of prompt, prompt_tokens and messages"),
        (["--prompt-tokens", "1,448"], "448"),
        (["--prompt-tokens", "-1"], "-1"),
        (["--prompt", "Hi", "--temperature", "-1"], "temperature"),
        (["--prompt", "Hi", "--top-p", "2"], "top_p"),
        (["--prompt", "Hi", "--samplers", "magic"], "magic"),
        (["--prompt", "Hi", "--max-tokens", "0"], "max_tokens"),
        (["--prompt", "Hi", "--stop", ""], "stop"),
        (["--prompt", "Hi", "--context-length", "0"], "context length of 0"),
        (["--prompt", "Hi", "--logit-bias", "448+1"], "448"),
        (["--prompt", "word " * 600], "context"),
        (["--prompt", "Hi", "--device", "abacus"], "abacus"),
        (["--messages", "none.json"], "There is no file none.json"),
        (["--jsonl", "--prompt", "Hi"], "leave --prompt out"),
    ],
)
def test_impossible_requests_are_refused(realm: Realm, tiny_model: Path, arguments: list[str], says: str) -> None:
    device = [] if "--device" in arguments else ["--device", "numpy"]

    result = realm("generate", "--model", tiny_model, "--json", *device, *arguments)

    assert says in result.error
    assert result.json == {"error": result.error}


def test_a_grammar_in_a_file_shapes_the_answer(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('root ::= "yes" | "no" ","? " " [0-9]{2}')
    for flag in ("--grammar", "--grammar-file"):
        answer = realm("generate", "--model", tiny_model, "--prompt", "Once", flag, grammar, *GREEDY).json
        assert re.fullmatch("yes|no,? [0-9]{2}", answer["text"])
        assert answer["stop_reason"] == "eos"


def test_the_mark_that_editors_put_before_a_text_is_no_part_of_a_form(
    realm: Realm, tiny_model: Path, tmp_path: Path
) -> None:
    command = ("generate", "--model", tiny_model, "--prompt", "Once", *GREEDY)
    (tmp_path / "g").write_text('root ::= "yes"', encoding="utf-8-sig")
    (tmp_path / "s").write_text('{"const": 1}', encoding="utf-8-sig")
    assert realm(*command, "--grammar", tmp_path / "g").json["text"] == "yes"
    assert realm(*command, "--json-schema", tmp_path / "s").json["text"].startswith("1")


def test_a_json_schema_shapes_the_answer(realm: Realm, tiny_model: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["ok"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    command = ("generate", "--model", tiny_model, "--prompt", "Once", *GREEDY)
    for flags in (("--json-schema", file), ("-jf", file), ("-j", json.dumps(schema))):
        assert isinstance(json.loads(realm(*command, *flags).json["text"])["ok"], bool)
    lines = [{"prompt": "Once", "json_schema": schema}, {"prompt": "Once", "grammar": 'root ::= "a"{3}'}]
    requests = "\n".join(json.dumps(line) for line in lines)
    jsonl = ("generate", "--model", tiny_model, "--jsonl", "--temperature", "0", "--device", "numpy")
    first, second = realm(*jsonl, stdin=requests).lines
    assert "ok" in json.loads(first["text"])
    assert second["text"] == "aaa"


def test_log_probabilities_are_told_for_each_token(realm: Realm, tiny_model: Path) -> None:
    command = ("generate", "--model", tiny_model, "--prompt", "Once", "--max-tokens", 5, "--ignore-eos", *GREEDY)
    answer = realm(*command, "--logprobs", 3).json
    assert [entry["token"] for entry in answer["logprobs"]] == answer["tokens"]
    for entry in answer["logprobs"]:
        assert entry["top"][0] == {"token": entry["token"], "logprob": entry["logprob"]}
        assert [other["logprob"] for other in entry["top"]] == sorted(
            (o["logprob"] for o in entry["top"]), reverse=True
        )
        assert len(entry["top"]) == 3
        assert entry["logprob"] < 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-j", "{"], "is not JSON"),
        (["-j", '{"type": "array", "uniqueItems": true}'], "uniqueItems cannot be enforced"),
        (["--grammar", "no-such-file.gbnf"], "There is no file no-such-file.gbnf"),
        (["-j", "{}", "--ignore-eos"], "cannot be ignored"),
    ],
)
def test_grammars_that_cannot_be_used_are_refused(
    realm: Realm, tiny_model: Path, arguments: list[str], says: str
) -> None:
    command = ("generate", "--model", tiny_model, "--prompt", "Once", "--device", "numpy")
    assert says in realm(*command, *arguments).error


def test_log_probabilities_need_json(realm: Realm, tiny_model: Path) -> None:
    command = ("generate", "--model", tiny_model, "--prompt", "Once", "--device", "numpy")
    assert "--json" in realm(*command, "--logprobs", 1).error
