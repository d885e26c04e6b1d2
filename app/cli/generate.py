"""`realm generate`: tokens from a prompt, with every setting."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.cli.answers import answer_parallel, answer_request, write_answers, write_end
from app.cli.drafts import add_draft_arguments, draft_options, load_draft
from app.cli.input import answer_lines, messages_file, token_list
from app.cli.models import loaded_engine
from app.cli.options import (
    add_device_arguments,
    add_json_argument,
    add_model_argument,
    add_sampling_arguments,
    generate_request,
    given_options,
)
from app.cli.stream_options import add_stream_arguments, tell_sessions
from app.cli.terminal import write_answer, write_json
from engine.errors import RequestError
from engine.request import check_parallel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Generates tokens from a text, from token ids, or from the messages of a chat."
    add_model_argument(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="raw text; special tokens in it are not read as such")
    prompt.add_argument("--prompt-tokens", metavar="1,2,3", type=token_list, help="token ids, taken as they are")
    prompt.add_argument(
        "--messages",
        metavar="FILE",
        type=Path,
        help="a JSON array of messages, put through the model's chat template",
    )
    add_device_arguments(parser)
    add_sampling_arguments(parser)
    add_stream_arguments(parser)
    add_draft_arguments(parser)
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="with --json: for each token its log probability and the N likeliest tokens with theirs",
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="an object per line in, with prompt, prompt_tokens or messages and the settings under the same names "
        "(max_tokens, top_k, ...); an answer per line out",
    )
    add_json_argument(parser)


LEAST_CONTEXT = 512


def run(args: argparse.Namespace) -> int:
    check_parallel(args.parallel)
    options, draft = given_options(args), draft_options(args)
    if isinstance(options.get("messages"), Path):
        options["messages"] = messages_file(options["messages"])["messages"]
    if args.jsonl:
        for name in ("prompt", "prompt_tokens", "messages"):
            if name in options:
                raise RequestError(f"With --jsonl the prompts come on stdin; leave --{name.replace('_', '-')} out.")
        request = None
    else:
        request = replace(generate_request(options), draft=draft)
        if request.logprobs and not args.json:
            raise RequestError("--logprobs says something in JSON only.", "Give --json too.")
    chats = "messages" in options
    context = args.context_length
    if context is None and request is not None and request.prompt_tokens is not None and request.max_tokens is not None:
        # all that will ever be needed is known: a long context costs memory and, in longrope models, another rotation
        context = max(LEAST_CONTEXT, len(request.prompt_tokens) + request.max_tokens)
    together = context * args.parallel if context and args.parallel > 1 else None
    with loaded_engine(
        args.model,
        args.device,
        context,
        kv_type=args.kv_type,
        memory_limit=args.memory_limit,
        chats=chats,
        kv_tokens=together,
    ) as (
        engine,
        info,
    ):
        load_draft(engine, args.draft, args.device, mtp=args.mtp)
        if request is None:

            def answer_line(line: Any) -> Any:
                if not isinstance(line, dict):
                    raise RequestError("A line has to be a JSON object.")
                line_request = replace(generate_request({**options, **line}), draft=draft)
                if args.parallel > 1:
                    return {"answers": [one.as_json() for one in answer_parallel(engine, line_request, args.parallel)]}
                return answer_request(engine, line_request).as_json()

            return max(answer_lines(answer_line), tell_sessions(engine))
        if args.parallel != 1:
            answers = answer_parallel(engine, request, args.parallel)
            if args.json:
                write_json({"answers": [one.as_json() for one in answers], "load_s": info.load_s})
            else:
                write_answers(answers)
        elif args.json:
            answer = answer_request(engine, request).as_json()
            answer["timings"]["load_s"] = info.load_s
            write_json(answer)
        else:
            write_end(answer_request(engine, request, write_answer))
        return tell_sessions(engine)
