"""What a template sees, and how its failures read."""

from __future__ import annotations

import time
from typing import Any

import pytest

from engine.chat_template import PLAIN_CHAT_TEMPLATE, ChatTemplate, render_chat_tokens
from engine.errors import TemplateError
from tests.tokenizer.vocabularies import FakeFile, bpe_metadata, tokenizer_of

HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, **extra: Any) -> str:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(HELLO, **extra)


def test_variables() -> None:
    source = "{{ bos_token }}{{ messages[0].role }}:{{ messages[0]['content'] }}{{ eos_token }}{{ extra }}"
    assert render(source, extra=1) == "<s>user:Hello</s>1"
    assert render("{{ tools is defined }}") == "False"
    assert render("{{ tools[0].name }}", tools=[{"name": "f"}]) == "f"
    assert ChatTemplate("{{ add_generation_prompt }}").render(HELLO, add_generation_prompt=False) == "False"


def test_the_environment_is_that_of_transformers() -> None:
    assert render("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ {'b': 'é<'} | tojson }}") == '{"b": "é<"}'
    assert render("{{ [1, 2] | tojson(indent=1) }}") == "[\n 1,\n 2\n]"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "Hello!"
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")
    assert render("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"


def test_loops_know_their_length() -> None:
    source = (
        "{% for m in messages + messages %}{{ loop.index }}/{{ loop.length }}{{ ';' if not loop.last }}{% endfor %}"
    )
    assert render(source) == "1/2;2/2"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].name.first }}", "needs something that the messages lack"),
        ("{{ messages[0].content + 1 }}", "failed"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include 'secrets' %}", "failed"),
    ],
)
def test_failures_are_template_errors(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        render(source)


@pytest.mark.parametrize("source", ["{% for %}", "{{ 1 | nope }}", "{{", "{% if 1 %}", "{{ " + "(" * 5000])
def test_a_template_that_is_no_jinja_cannot_be_read(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        ChatTemplate(source)


def test_messages_must_have_fields() -> None:
    messages: Any = [*HELLO, "Hello"]
    with pytest.raises(TemplateError, match="Message 2 is str"):
        ChatTemplate("x").render(messages)
    with pytest.raises(TemplateError, match="Message 2 is str"):
        render_chat_tokens(ChatTemplate("x"), tokenizer_of(bpe_metadata()), messages)


def test_from_a_file() -> None:
    metadata = bpe_metadata()
    tokenizer = tokenizer_of(metadata)
    assert ChatTemplate.from_gguf(FakeFile(metadata), tokenizer) is None
    metadata["tokenizer.chat_template"] = "{{ bos_token }}|{{ eos_token }}"
    template = ChatTemplate.from_gguf(FakeFile(metadata), tokenizer)
    assert template is not None
    assert template.render(HELLO) == "<s>|<|im_end|>"
    metadata["tokenizer.chat_template"] = 7
    with pytest.raises(TemplateError, match=r"tokenizer\.chat_template"):
        ChatTemplate.from_gguf(FakeFile(metadata), tokenizer)


def test_the_plain_template_reads_as_a_transcript() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    template = ChatTemplate(PLAIN_CHAT_TEMPLATE)
    assert template.render(messages) == "Be brief.\n\nUser: Hi\nAssistant: Hello.\nUser: Bye\nAssistant:"
    assert template.render(messages[:2], add_generation_prompt=False) == "Be brief.\n\nUser: Hi\n"
