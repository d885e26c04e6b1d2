"""`realm run MODEL "prompt"`: one prompt, one answer."""

from __future__ import annotations

import argparse
from dataclasses import replace

from app.cli.answers import answer_parallel, answer_request, write_answers, write_end
from app.cli.drafts import add_draft_arguments, draft_options, load_draft
from app.cli.input import decoded, stdin_bytes
from app.cli.models import loaded_engine
from app.cli.options import add_device_arguments, add_sampling_arguments, generate_request, given_options
from app.cli.stream_options import add_stream_arguments, tell_sessions
from app.cli.terminal import say, write_answer
from engine.embedding import cannot_chat
from engine.errors import RequestError
from engine.request import check_parallel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Answers one prompt through the chat template of the model."
    parser.add_argument("model", metavar="MODEL", help="path of a GGUF file, or the name starter")
    parser.add_argument(
        "text", metavar="PROMPT", nargs="+", help="what to say to the model; - stands for what is on stdin"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the prompt")
    add_device_arguments(parser)
    add_sampling_arguments(parser)
    add_stream_arguments(parser)
    add_draft_arguments(parser)


def run(args: argparse.Namespace) -> int:
    text = _prompt(args.text)
    if not text.strip():
        raise RequestError("The prompt is empty.", 'Say something, as in `realm run starter "Hello"`.')
    check_parallel(args.parallel)
    options, draft = given_options(args), draft_options(args)
    with loaded_engine(
        args.model, args.device, args.context_length, kv_type=args.kv_type, memory_limit=args.memory_limit
    ) as (engine, info):
        if info.is_encoder:
            raise cannot_chat(info.name)
        load_draft(engine, args.draft, args.device, mtp=args.mtp)
        if info.has_chat_template:
            system = [{"role": "system", "content": args.system}] if args.system else []
            options["messages"] = [*system, {"role": "user", "content": text}]
        else:
            if args.system:
                raise RequestError("This model has no chat template, so it takes no --system.")
            say("This model has no chat template; it continues the text of the prompt.")
            options["prompt"] = text
        request = replace(generate_request(options), draft=draft)
        if args.parallel == 1:
            write_end(answer_request(engine, request, write_answer))
        else:
            write_answers(answer_parallel(engine, request, args.parallel))
        return tell_sessions(engine)


def _prompt(words: list[str]) -> str:
    """The words of the command line as one text; the first that is "-" stands for all of stdin, on lines of its own."""
    if "-" not in words:
        return " ".join(words)
    at = words.index("-")
    parts = (" ".join(words[:at]), decoded(stdin_bytes(), "The prompt on stdin"), " ".join(words[at + 1 :]))
    return "\n".join(part for part in parts if part)
