"""Control tokens come from the template, never from a message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.chat_template import ChatTemplate, render_chat_tokens
from engine.gguf import GGUFFile
from engine.tokenizer import Tokenizer
from tests.tokenizer.vocabularies import CONTROL_TEXTS, bpe_metadata, sentencepiece_metadata, tokenizer_of

BPE = tokenizer_of(bpe_metadata(add_bos_token=True))
SENTENCEPIECE = tokenizer_of(sentencepiece_metadata())
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Cuts its contents at a marker and joins what is left, as templates do that drop a model's thoughts.
CUTTING = "{% for m in messages %}<|im_start|>{{ m.content.split('<x>') | join('') }}{{ m.more }}<|im_end|>{% endfor %}"
# Spells control tokens with the role.
SPELLED = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
AS_JSON = "<|im_start|>{{ messages | tojson(ensure_ascii=true) }}<|im_end|>"

FRAGMENTS = [
    *CONTROL_TEXTS,
    "<|im_",
    "start|>",
    "end|>",
    "<|",
    "|>",
    "<",
    ">",
    "s>",
    "</s>",
    "<x>",
    " ",
    "\n",
    "x",
    "é",
]
HOSTILE = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join) | st.text(alphabet="<|im_startenx>/s ")


def control_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.token_text(token) for token in ids if tokenizer.is_control(token)]


def tokens_of(source: str, tokenizer: Tokenizer, *messages: Mapping[str, Any]) -> list[int]:
    return render_chat_tokens(ChatTemplate(source, bos_token="<s>"), tokenizer, messages)


@settings(deadline=None)
@given(HOSTILE, HOSTILE)
def test_no_content_forges_a_control_token(first: str, second: str) -> None:
    for source in (CHATML, CUTTING, AS_JSON):
        harmless = {"role": "user", "content": "a", "more": "b"}
        hostile = {"role": "user", "content": first, "more": second}
        expected = control_tokens(BPE, tokens_of(source, BPE, harmless, harmless))
        assert control_tokens(BPE, tokens_of(source, BPE, hostile, hostile)) == expected


@settings(deadline=None)
@given(HOSTILE)
def test_sentencepiece_is_as_safe(content: str) -> None:
    source = "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]</s>{% endfor %}"
    ids = tokens_of(source, SENTENCEPIECE, {"role": "user", "content": content})
    assert control_tokens(SENTENCEPIECE, ids) == ["<s>", "</s>"]


@settings(deadline=None)
@given(HOSTILE)
def test_the_text_is_that_of_the_template(content: str) -> None:
    message = {"role": "user", "content": content}
    text = ChatTemplate(CHATML).render([message])
    assert BPE.decode_bytes(tokens_of(CHATML, BPE, message)).decode() == "<s>" + text


def test_tools_and_nested_contents_are_guarded_too() -> None:
    source = "<|im_start|>{{ tools | tojson }}{{ messages[0].content[0].text }}<|im_end|>"
    tools = [{"name": "<|im_end|>", "parameters": {"a": ["<s>"]}}]
    messages = [{"role": "user", "content": [{"type": "text", "text": "<|tool|>"}]}]
    ids = render_chat_tokens(ChatTemplate(source), BPE, messages, tools=tools)
    assert control_tokens(BPE, ids) == ["<s>", "<|im_start|>", "<|im_end|>"]
    assert "<|tool|>" in BPE.decode_bytes(ids).decode()


def test_control_tokens_spelled_with_the_role_still_work() -> None:
    ids = tokens_of(SPELLED, BPE, {"role": "tool", "content": "x"})
    assert control_tokens(BPE, ids) == ["<s>", "<|tool|>"]


def test_a_control_token_of_one_character_is_not_forged_either() -> None:
    metadata = bpe_metadata()
    metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.tokens"].index("<|tool|>")] = "\u2603"
    tokenizer = tokenizer_of(metadata)
    ids = tokens_of(
        "\u2603{{ messages[0].content }}<|im_end|>", tokenizer, {"role": "user", "content": "a\u2603b\u2603"}
    )
    assert control_tokens(tokenizer, ids) == ["\u2603", "<|im_end|>"]
    assert tokenizer.decode_bytes(ids).decode() == "\u2603a\u2603b\u2603<|im_end|>"


@pytest.mark.parametrize("source", ["{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"])
def test_bos_stands_first_once(source: str) -> None:
    for content in ("hello", "<s>"):
        ids = tokens_of(source, BPE, {"role": "user", "content": content})
        assert ids.count(BPE.bos or 0) == 1
        assert ids[0] == BPE.bos
    without = tokenizer_of(bpe_metadata(add_bos_token=False))
    assert without.bos not in tokens_of("{{ messages[0].content }}", without, {"role": "user", "content": "<s>"})


def test_real_chats_tokenize_as_their_rendered_text(fixtures_dir: Path, starter_model: Path) -> None:
    with GGUFFile.open(starter_model) as file:
        tokenizer = Tokenizer.from_gguf(file)
        template = ChatTemplate.from_gguf(file, tokenizer)
    assert template is not None
    cases = json.loads((fixtures_dir / "templates" / "cases.json").read_text())["cases"]
    compared = 0
    for case in cases[:60]:
        messages = [m for m in case["messages"] if isinstance(m.get("content"), str)]
        text = template.render(messages)
        plain = tokenizer.encode(text, add_special=False, parse_special=True)
        assert render_chat_tokens(template, tokenizer, messages) == plain
        compared += 1
    assert compared


@settings(deadline=None)
@given(HOSTILE)
def test_an_answer_that_goes_on_is_plain_text_behind_the_prompt(answer: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = render_chat_tokens(ChatTemplate(CHATML), BPE, messages)
    ids = render_chat_tokens(ChatTemplate(CHATML), BPE, messages, answer_so_far=answer)
    assert control_tokens(BPE, ids) == control_tokens(BPE, prompt)
    assert BPE.decode_bytes(ids).decode() == BPE.decode_bytes(prompt).decode() + answer
