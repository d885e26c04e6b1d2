"""`realm template`: messages to the text of a prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.input import answer_lines, checked_messages, file_text, messages_file
from app.cli.models import open_file
from app.cli.options import add_json_argument, add_model_argument
from app.cli.terminal import is_terminal, write_answer, write_json
from engine.errors import RequestError

if TYPE_CHECKING:
    from engine.chat_template import ChatTemplate

_LINE_KEYS = frozenset(("template", "messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "extra"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Renders the messages of a chat through the template of a model, or a Jinja file."
    source = parser.add_mutually_exclusive_group()
    add_model_argument(source, required=False)
    source.add_argument("--template", metavar="FILE", type=Path, help="a Jinja file in place of a model's template")
    parser.add_argument(
        "--messages", metavar="FILE", type=Path, help='a JSON array of messages, or {"messages": [...], "tools": [...]}'
    )
    parser.add_argument(
        "--no-generation-prompt", action="store_true", help="do not begin the answer after the last message"
    )
    parser.add_argument("--bos-token", metavar="TEXT", help="text of the token that begins a sequence")
    parser.add_argument("--eos-token", metavar="TEXT", help="text of the token that ends one")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="an object per line in (template, messages, add_generation_prompt, bos_token, eos_token, tools, extra), "
        "a JSON string per line out",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    default = _default_template(args)
    if args.jsonl:
        return answer_lines(lambda request: _answer(request, args, default))
    if default is None or args.messages is None:
        missing = "--messages FILE" if default is not None else "--model MODEL or --template FILE"
        print(f"realm template: {missing} is missing.\nTry `realm template --help`.", file=sys.stderr)
        return 2
    request = messages_file(args.messages)
    text = _render(default, request, add_generation_prompt=not args.no_generation_prompt)
    if args.json:
        write_json(text)
    else:
        write_answer(text)
        if is_terminal(sys.stdout):
            print()
    return 0


def _default_template(args: argparse.Namespace) -> ChatTemplate | None:
    """The template that the command line names; None where it names none."""
    from engine.chat_template import ChatTemplate
    from engine.tokenizer import Tokenizer

    if args.template is not None:
        return _changed(None, file_text(args.template), args.bos_token, args.eos_token)
    if args.model is None:
        return None
    with open_file(args.model) as file:
        template = ChatTemplate.from_gguf(file, Tokenizer.from_gguf(file))
    if template is None:
        raise RequestError(f"{args.model} has no chat template.", "Give one with --template FILE.")
    return _changed(template, None, args.bos_token, args.eos_token)


def _changed(
    template: ChatTemplate | None, source: str | None, bos_token: str | None, eos_token: str | None
) -> ChatTemplate | None:
    """`template` with another source or other tokens where these are given."""
    from engine.chat_template import ChatTemplate

    if source is None:
        if template is None or (bos_token is None and eos_token is None):
            return template
        source = template.source
    if bos_token is None:
        bos_token = template.bos_token if template is not None else ""
    if eos_token is None:
        eos_token = template.eos_token if template is not None else ""
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)


def _answer(request: Any, args: argparse.Namespace, default: ChatTemplate | None) -> str:
    """Renders one line of --jsonl; what it leaves out is as on the command line."""
    if not isinstance(request, dict):
        raise RequestError("A line has to be a JSON object.")
    unknown = sorted(set(request) - _LINE_KEYS)
    if unknown:
        raise RequestError(f"There is no option {unknown[0]!r}.", 'Variables of the template go into "extra": {...}.')
    texts = {"template": None, "bos_token": args.bos_token, "eos_token": args.eos_token}
    for name in texts:
        if request.get(name) is not None:
            texts[name] = request[name]
            if not isinstance(texts[name], str):
                raise RequestError(f"{name} has to be a text.")
    template = _changed(default, texts["template"], texts["bos_token"], texts["eos_token"])
    if template is None:
        raise RequestError("The line names no template, and neither does the command line.")
    generation = request.get("add_generation_prompt", not args.no_generation_prompt)
    if not isinstance(generation, bool):
        raise RequestError("add_generation_prompt has to be true or false.")
    return _render(template, request, add_generation_prompt=generation)


def _render(template: ChatTemplate, request: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
    messages = checked_messages(request.get("messages"))
    extra = {} if request.get("extra") is None else request["extra"]
    if not isinstance(extra, dict):
        raise RequestError("extra has to be a JSON object.")
    variables = dict(extra)
    tools = request.get("tools", variables.pop("tools", None))
    if tools is not None and not isinstance(tools, list):
        raise RequestError("tools has to be a JSON array.")
    # What render() takes under names of its own cannot come as a further variable.
    for name in ("messages", "add_generation_prompt", "bos_token", "eos_token", "self"):
        if name in variables:
            raise RequestError(f"{name} cannot be under extra; give it beside it.")
    return template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)
