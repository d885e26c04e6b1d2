"""Runaway templates end with a sentence, on any thread, without taking the memory with them."""

from __future__ import annotations

import threading
import time
import tracemalloc

import pytest

from engine.chat_template import ChatTemplate
from engine.errors import TemplateError

HELLO = [{"role": "user", "content": "Hello"}]
GROW = "{% set ns = namespace(s=START) %}{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"


def grow(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


RUN_LONG = {
    "empty loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "filters": "{% for a in range(99999) %}{{ range(99999) | sort | length }}{% endfor %}",
}

WRITE_MUCH = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxx{% endfor %}{% endfor %}",
    "block": "{% set x %}{% for i in range(99999) %}" + "A" * 9999 + "{% endfor %}{% endset %}",
    "doubling block": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}"
    "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
}

BUILD_MUCH = {
    "range": "{% for a in range(10**9) %}{% endfor %}",
    "times": "{{ 'a' * 10**9 }}",
    "times, turned": "{{ 10**9 * 'a' }}",
    "list times": "{{ ([0] * 10**9) | length }}",
    "power": "{{ 2 ** 100000000 }}",
    "squares": grow("3", "ns.s * ns.s"),
    "doubling": grow("'ab'", "ns.s + ns.s"),
    "doubling ~": grow("'ab'", "ns.s ~ ns.s"),
    "nested lists": grow("['a']", "[ns.s, ns.s]"),
    "nested sums": grow("['a']", "[ns.s] + [ns.s]"),
    "nested products": grow("['a']", "[ns.s] * 2"),
    "nested dicts": grow("'a'", "dict(a=ns.s, b=ns.s)"),
    "center": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "join": "{{ (['aaaaaaaaaa' * 99999] * 99999) | join('x') }}",
    "join method": "{{ ('x' * 99999).join(range(99999) | map('string')) }}",
    "replace": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "replace method": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "%*": "{{ '%*d' % (1000000000, 1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format width": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "format often": "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
    "indent": "{{ ('a\n' * 99999) | indent(9999) }}",
    "tojson": "{{ [1, [2, [3]]] | tojson(indent=100000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list | length }}",
    "map": "{{ range(99999) | map('string') | map('center', 9999) | list | length }}",
    "to_bytes": "{{ (5).to_bytes(1000000000, 'big') }}",
    "expandtabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
}

DEEP = {
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loop": "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
}


@pytest.mark.parametrize("name", RUN_LONG)
def test_time(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(TemplateError, match=r"ran longer than 0\.3 seconds"):
        ChatTemplate(RUN_LONG[name], max_seconds=0.3).render(HELLO)
    assert time.perf_counter() - start < 5  # 0.3 s and one step, on a busy machine


@pytest.mark.parametrize("name", WRITE_MUCH)
def test_output(name: str) -> None:
    with pytest.raises(TemplateError, match="wrote more than 4000000 characters"):
        ChatTemplate(WRITE_MUCH[name], max_seconds=60).render(HELLO)


@pytest.mark.parametrize("name", DEEP)
def test_depth(name: str) -> None:
    with pytest.raises(TemplateError, match="calls itself too deeply"):
        ChatTemplate(DEEP[name], max_seconds=60).render(HELLO)


@pytest.mark.parametrize("name", BUILD_MUCH)
def test_size(name: str) -> None:
    with pytest.raises(TemplateError, match="stopped"):
        ChatTemplate(BUILD_MUCH[name], max_seconds=30).render(HELLO)


@pytest.mark.parametrize("name", ["doubling", "doubling ~", "nested lists", "join", "map"])
def test_memory_stays_small(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError):
            ChatTemplate(BUILD_MUCH[name], max_seconds=30, max_output=100_000).render(HELLO)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6


def test_limits_hold_on_another_thread() -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            ChatTemplate(RUN_LONG["empty loops"], max_seconds=0.2).render(HELLO)
        except TemplateError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "ran longer" in str(errors[0])


def test_a_template_cannot_reach_its_limits() -> None:
    for source in ("{{ environment }}", "{{ metered_emit }}", "{{ _METER }}", "{{ self.environment }}"):
        assert ChatTemplate(source).render(HELLO) == ""


def test_a_long_chat_is_no_runaway() -> None:
    source = "{% for m in messages %}<|{{ m.role | trim }}|>{{ (m['content'] | trim) + '\n' }}{% endfor %}"
    chat = [{"role": "user", "content": "word " * 200}] * 2000
    assert len(ChatTemplate(source, max_seconds=20).render(chat)) > 1_900_000
