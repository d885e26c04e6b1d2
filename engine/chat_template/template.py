"""A model's chat template, run in a sandbox with limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.chat_template.limits import MAX_ITEMS, Meter, Metering, metered_filters
from engine.errors import RealmError, TemplateError
from engine.tokenizer import Tokenizer
from engine.tokenizer.vocabulary import HasMetadata

TEMPLATE_KEY = "tokenizer.chat_template"

PLAIN_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content | trim + '\\n\\n' }}
{%- else -%}
{{ message.role | capitalize + ': ' + message.content | trim + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'Assistant:' }}
{%- endif -%}
"""
"""For models that come without a template: a plain transcript, which a base model can continue."""


class ChatTemplate:
    """Turns messages into the text that a model was trained on.

    The environment is the one that Hugging Face transformers gives to templates (trimmed blocks, loop controls,
    `tojson` without ASCII escapes, `raise_exception`, `strftime_now`, `{% generation %}`), inside Jinja's sandbox, with
    limits on time and size. Safe to share between threads.

    Attributes:
        source: the template's text.
        bos_token, eos_token: what the template sees under these names.
        literals: the texts that its expressions name: what it may look for in a message, or cut it at.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        max_seconds: float = 2.0,
        max_output: int = 4_000_000,
    ) -> None:
        """Compiles the template. Raises TemplateError if it is no valid Jinja."""
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._max_seconds = max_seconds
        self._max_output = max_output
        try:
            environment = _Environment()
            self.literals = environment.literals(source)
            self._compiled = environment.from_string(source)
        except (jinja2.TemplateError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise TemplateError(f"The chat template cannot be read: {_describe(error)}.") from None

    @classmethod
    def from_gguf(cls, file: HasMetadata, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a model file, or None if it has none. Raises TemplateError if it cannot be used."""
        source = file.metadata.get(TEMPLATE_KEY)
        if source is None:
            return None
        if not isinstance(source, str):
            raise TemplateError(f"The model's chat template ({TEMPLATE_KEY}) must be a string.")
        return cls(
            source,
            bos_token="" if tokenizer.bos is None else tokenizer.token_text(tokenizer.bos),
            eos_token="" if tokenizer.eos is None else tokenizer.token_text(tokenizer.eos),
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **extra: Any,
    ) -> str:
        """Renders messages to text.

        Raises TemplateError when the template refuses the messages, fails on them, or passes a limit.
        """
        check_messages(messages)
        variables: dict[str, Any] = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **extra,
        }
        if tools is not None:
            variables["tools"] = tools
        meter = Meter(self._max_seconds, self._max_output)
        before = _METER.set(meter)
        pieces: list[str] = []
        written = 0
        try:
            for piece in self._compiled.generate(**variables):
                pieces.append(piece)
                written += len(piece)
                meter.check_output(written)
        except RealmError:
            raise
        except RecursionError:
            raise TemplateError("The chat template calls itself too deeply and was stopped.") from None
        except MemoryError:
            raise TemplateError("The chat template needs too much memory and was stopped.") from None
        except jinja2.UndefinedError as error:
            raise TemplateError(f"The chat template needs something that the messages lack: {error}.") from None
        except Exception as error:  # a template can fail in any way that Python can
            raise TemplateError(f"The chat template failed: {_describe(error)}.") from None
        finally:
            _METER.reset(before)
        return "".join(pieces)


def check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raises TemplateError unless every message has named fields, as templates expect."""
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise TemplateError(
                f"Message {number} is {type(message).__name__}, but must be an object such as "
                '{"role": "user", "content": "..."}.'
            )


_METER: ContextVar[Meter] = ContextVar("template_meter")


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the assistant said; for rendering it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers, with a meter at every hook."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False)
        self.filters = metered_filters({**FILTERS, "tojson": _tojson}, _METER.get)
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, range=_range)

    def literals(self, source: str) -> frozenset[str]:
        constants = super()._parse(source, None, None).find_all(nodes.Const)
        return frozenset(node.value for node in constants if isinstance(node.value, str))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        Metering().visit(tree)
        return tree

    def metered_emit(self, value: object) -> object:
        return _METER.get().emit(value)

    def metered_iterate(self, iterable: Any) -> Any:
        return _METER.get().iterate(iterable)

    def metered_concatenate(self, *parts: Any) -> str:
        return _METER.get().concatenate(*parts)

    def metered_built(self, value: Any) -> Any:
        return _METER.get().built(value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in Jinja
        if getattr(__obj, "__self__", None) is __self:
            return __obj(*args)
        meter = _METER.get()
        args = meter.call(__obj, args)
        return meter.built(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        meter.operator(operator, left, right)
        return meter.built(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def metered(*args: Any, **kwargs: Any) -> str:
            values = (*args, *kwargs.values())
            _METER.get().brace_format(value.__self__, values)
            return wrapped(*args, **kwargs)

        return metered


def _raise_exception(message: object = "") -> None:
    raise TemplateError(f"The chat template refuses these messages: {message}")


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_ITEMS:
        raise TemplateError(f"The chat template was stopped: a range over {len(numbers)} numbers is too large.")
    return numbers


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)
    meter = _METER.get()
    chunks: list[str] = []
    written = 0
    for chunk in encoder.iterencode(value):
        meter.step()
        written += len(chunk)
        meter.room_for(written)
        chunks.append(chunk)
    return "".join(chunks)


def _describe(error: BaseException) -> str:
    text = str(getattr(error, "message", None) or error).strip().rstrip(".")
    line = getattr(error, "lineno", None)
    return f"{text or type(error).__name__}" + (f" (line {line})" if line else "")
