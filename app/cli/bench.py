"""`realm bench`: speed and memory of a model on a device."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from app.cli.answers import answer_request
from app.cli.bench_drafts import run_drafts
from app.cli.bench_grammar import add_grammar_arguments, run_grammar
from app.cli.bench_kernels import add_kernel_arguments, run_kernels
from app.cli.bench_load import run_load
from app.cli.bench_lora import add_adapter_arguments, run_adapters
from app.cli.bench_streams import add_stream_measurement, run_session, run_streams
from app.cli.drafts import add_draft_arguments, draft_options
from app.cli.memory import peak_memory_bytes
from app.cli.models import loaded_engine, wait_for
from app.cli.options import add_device_arguments, add_json_argument, add_model_argument, at_least
from app.cli.terminal import ProgressBar, bytes_text, printable, write_json
from engine.api import Figures, GenerateRequest, ModelInfo, SamplingParams
from engine.batch import LoadedModel
from engine.engine import Engine
from engine.errors import RequestError
from engine.measure import Speed, fill_cache, measure_decode, measure_prefill, random_tokens
from engine.tokenizer import Tokenizer

_WARM_UP_TOKENS = 8
_LEAST_CONTEXT = 64
_GREEDY = SamplingParams(temperature=0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures a prefill of random tokens and a greedy decode, each after a warm-up, first as a request is served "
        "and then the bare steps of the model. The figures are medians over the repetitions. "
        "With --draft, --mtp or --ngram: what guessing gains, decoding by turns with and without."
    )
    add_model_argument(parser, required=False)
    parser.add_argument("-p", "--prompt-tokens", type=at_least(1), default=512, metavar="N", help="prefill (512)")
    parser.add_argument("-n", "--decode-tokens", type=at_least(2), default=128, metavar="N", help="decode (128)")
    parser.add_argument("-r", "--repetitions", type=at_least(1), default=5, metavar="N", help="repetitions (5)")
    parser.add_argument(
        "--depth",
        type=at_least(1),
        action="append",
        default=[],
        metavar="N",
        help="also measure decoding behind N tokens of context, as bare steps (repeatable)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the random prompts (1)")
    parser.add_argument(
        "--load", action="store_true", help="measure opening and loading instead; a file with a vocabulary only will do"
    )
    add_grammar_arguments(parser)
    add_stream_measurement(parser)
    add_draft_arguments(parser)
    add_kernel_arguments(parser)
    add_adapter_arguments(parser)
    add_device_arguments(parser, context=False)
    add_json_argument(parser)
    parser.set_defaults(unless_given={name: parser.get_default(name) for name in _OPTIONS})


@dataclass(frozen=True)
class _Measurement:
    """Something that the command measures, the options that ask for it, and the others that have a say in it."""

    run: Callable[[argparse.Namespace], int]
    asked_by: tuple[str, ...]
    takes: tuple[str, ...]


_OPTIONS = {
    # the name in the namespace: the option as typed; all those that some measurement has no use for
    "prompt_tokens": "--prompt-tokens",
    "decode_tokens": "--decode-tokens",
    "repetitions": "--repetitions",
    "depth": "--depth",
    "seed": "--seed",
    "kv_type": "--kv-type",
    "memory_limit": "--memory-limit",
    "draft_k": "--draft-k",
    "types": "--types",
    "shapes": "--shapes",
    "rows": "--rows",
    "load": "--load",
    "grammar": "--grammar",
    "json_schema": "--json-schema",
    "streams": "--streams",
    "session": "--session",
    "kernels": "--kernels",
    "draft": "--draft",
    "mtp": "--mtp",
    "ngram": "--ngram",
    "lora": "--lora",
    "lora_rank": "--lora-rank",
}


def run(args: argparse.Namespace) -> int:
    measurements = (
        _Measurement(run_kernels, ("kernels",), ("types", "shapes", "rows")),
        _Measurement(run_load, ("load",), ("repetitions",)),
        _Measurement(run_adapters, ("lora", "lora_rank"), ("decode_tokens", "repetitions")),
        _Measurement(run_grammar, ("grammar", "json_schema"), ("decode_tokens", "repetitions", "kv_type")),
        _Measurement(run_streams, ("streams",), ("decode_tokens", "seed")),
        _Measurement(run_session, ("session",), ("seed", "kv_type")),
        _Measurement(run_drafts, ("draft", "mtp", "ngram"), ("draft_k", "decode_tokens", "repetitions", "seed")),
        _Measurement(
            _run_speed,
            (),
            ("prompt_tokens", "decode_tokens", "repetitions", "depth", "seed", "kv_type", "memory_limit"),
        ),
    )
    given = [name for name in _OPTIONS if getattr(args, name) != args.unless_given[name]]
    chosen = next(one for one in measurements if not one.asked_by or any(name in given for name in one.asked_by))
    for name in given:
        if name not in (*chosen.asked_by, *chosen.takes):
            what = next((_OPTIONS[name] for name in chosen.asked_by if name in given), "speed alone")
            raise RequestError(f"{_OPTIONS[name]} has no part in what {what} measures.", "Leave one of them out.")
    if not args.model and chosen.run is not run_kernels:
        raise RequestError("There is nothing to measure.", "Name a model with --model, or measure with --kernels.")
    draft_options(args)  # raises where they contradict each other
    return chosen.run(args)


def _run_speed(args: argparse.Namespace) -> int:
    n_prompt, n_decode, repetitions = args.prompt_tokens, args.decode_tokens, args.repetitions
    bar = ProgressBar("bench")
    context = max(n_prompt + 1, n_decode + 2, *(depth + n_decode + 1 for depth in args.depth), _LEAST_CONTEXT)
    with loaded_engine(args.model, args.device, context, kv_type=args.kv_type, memory_limit=args.memory_limit) as (
        engine,
        info,
    ):
        facts = wait_for(engine.call(_facts, uses_kv=False))
        prompts = [
            random_tokens(info.vocab_size, n_prompt, args.seed + i, facts["avoid"]) for i in range(repetitions + 1)
        ]
        total = 2 * (repetitions + 1) + 2
        prefills: list[Figures] = []
        decodes: list[Figures] = []
        try:
            for index, prompt in enumerate(prompts):  # different prompts: none finds the keys of another in the cache
                bar.update(index / total, "prefill")
                prefills.append(_serve(engine, prompt, 1))
            for index in range(repetitions + 1):
                bar.update((repetitions + 1 + index) / total, "decode")
                first = prompts[index][:1]
                decodes.append(_serve(engine, first, n_decode + 1 if index else min(n_decode, _WARM_UP_TOKENS) + 1))
            prefill_model, decode_model = wait_for(
                engine.call(
                    lambda model, _: (
                        measure_prefill(model, prompts[0], repetitions),
                        measure_decode(model, prompts[0][0], n_decode, repetitions),
                    )
                ),
                lambda: bar.update(1 - 2 / total, "bare steps"),
            )
            at_depths = {}
            for depth in args.depth:
                bar.update(1 - 1 / total, f"behind {depth} tokens")
                job = partial(_decode_at, tokens=prompts[0], count=n_decode, repetitions=repetitions, depth=depth)
                at_depths[depth] = wait_for(engine.call(job))
        finally:
            bar.clear()
        memory = peak_memory_bytes()
    prefill_rates = [f.prefill_tokens_per_s for f in prefills[1:]]
    decode_rates = [f.decode_tokens_per_s for f in decodes[1:]]
    answer = _answer(info, facts, prefill_rates, decode_rates, prefill_model, decode_model)
    answer |= {
        "kv_type": args.kv_type,
        "decode_at": [
            {
                "depth": depth,
                "tokens_per_s": speed.median_rate,
                "tokens_per_s_min": min(speed.rates),
                "tokens_per_s_max": max(speed.rates),
                "share_of_first": speed.median_rate / at_depths[args.depth[0]].median_rate,
            }
            for depth, speed in at_depths.items()
        ],
        "n_prompt": n_prompt,
        "n_decode": n_decode,
        "repetitions": repetitions,
        "peak_memory_bytes": memory,
        "predicted_peak_bytes": info.predicted_peak_bytes,
        "time_to_first_token_s": median(f.time_to_first_token_s for f in prefills[1:]),
    }
    if args.json:
        write_json(answer)
    else:
        print(printable(_text(answer)))
    return 0


def _decode_at(
    model: LoadedModel, tokenizer: Tokenizer, *, tokens: Sequence[int], count: int, repetitions: int, depth: int
) -> Speed:
    fill_cache(model, tokens, depth)
    return measure_decode(model, tokens[0], count, repetitions, depth)


def _serve(engine: Engine, prompt: Sequence[int], max_tokens: int) -> Figures:
    """Serves one greedy request the way a chat is served; returns what the engine measured."""
    request = GenerateRequest(prompt_tokens=prompt, sampling=_GREEDY, max_tokens=max_tokens, ignore_eos=True)
    return answer_request(engine, request).figures


def _facts(model: LoadedModel, tokenizer: Tokenizer) -> dict[str, Any]:
    end = frozenset(tokenizer.end_tokens) | {token for token in (tokenizer.bos, tokenizer.eos) if token is not None}
    return {
        "avoid": end,
        "bytes_per_token": model.weight_bytes_per_token,
        "bandwidth": model.read_bandwidth(),
    }


def _answer(
    info: ModelInfo,
    facts: dict[str, Any],
    prefill: Sequence[float],
    decode: Sequence[float],
    prefill_model: Speed,
    decode_model: Speed,
) -> dict[str, Any]:
    bytes_per_s = median(decode) * facts["bytes_per_token"]
    bandwidth = facts["bandwidth"]
    return {
        "model": str(info.path),
        "architecture": info.architecture,
        "quantisation": info.quantisation,
        "parameters": info.parameters,
        "file_bytes": info.file_bytes,
        "device": info.device.id,
        "device_name": info.device.name,
        "kernel_variant": ", ".join(info.device.variants),
        "prefill_tokens_per_s": median(prefill),
        "prefill_tokens_per_s_min": min(prefill),
        "prefill_tokens_per_s_max": max(prefill),
        "decode_tokens_per_s": median(decode),
        "decode_tokens_per_s_min": min(decode),
        "decode_tokens_per_s_max": max(decode),
        "decode_gb_per_s": bytes_per_s / 1e9,
        "read_bandwidth_gb_per_s": None if bandwidth is None else bandwidth / 1e9,
        "decode_bandwidth_share": None if not bandwidth else bytes_per_s / bandwidth,
        "model_prefill_tokens_per_s": prefill_model.median_rate,
        "model_decode_tokens_per_s": decode_model.median_rate,
        "load_s": info.load_s,
        "weight_bytes": info.weight_bytes,
        "kv_bytes": info.kv_bytes,
        "scratch_bytes": info.scratch_bytes,
    }


def _text(answer: dict[str, Any]) -> str:
    share = answer["decode_bandwidth_share"]
    bandwidth = answer["read_bandwidth_gb_per_s"]
    of_measured = "" if share is None else f", {share:.0%} of the {bandwidth:.1f} GB/s measured"
    variant = f", kernels {answer['kernel_variant']}" if answer["kernel_variant"] else ""
    depths = [
        f"  behind {at['depth']:>7} tokens {at['tokens_per_s']:8.1f} tokens/s "
        f"({at['tokens_per_s_min']:.1f} to {at['tokens_per_s_max']:.1f}), "
        f"{at['share_of_first']:.0%} of that behind {answer['decode_at'][0]['depth']}"
        for at in answer["decode_at"]
    ]
    return "\n".join(
        (
            f"{answer['model']} "
            f"({answer['architecture']}, {answer['quantisation']}, {bytes_text(answer['file_bytes'])})",
            f"on {answer['device_name']} ({answer['device']}){variant}",
            f"prefill  {_rates(answer, 'prefill')}  {answer['n_prompt']} tokens, first token after "
            f"{answer['time_to_first_token_s']:.2f} s; bare steps {answer['model_prefill_tokens_per_s']:.1f}",
            f"decode   {_rates(answer, 'decode')}  {answer['n_decode']} tokens, {answer['decode_gb_per_s']:.1f} GB/s"
            f"{of_measured}; bare steps {answer['model_decode_tokens_per_s']:.1f}",
            *depths,
            f"load     {answer['load_s']:.2f} s",
            f"memory   {bytes_text(answer['peak_memory_bytes'])} at the peak of the process, "
            f"{bytes_text(answer['predicted_peak_bytes'])} planned before loading "
            f"({answer['peak_memory_bytes'] / answer['predicted_peak_bytes'] - 1:+.1%}); on the device "
            f"{bytes_text(answer['weight_bytes'])} weights, {bytes_text(answer['kv_bytes'])} KV cache "
            f"({answer['kv_type']}), {bytes_text(answer['scratch_bytes'])} scratch",
        )
    )


def _rates(answer: dict[str, Any], what: str) -> str:
    name = f"{what}_tokens_per_s"
    return f"{answer[name]:8.1f} tokens/s ({answer[name + '_min']:.1f} to {answer[name + '_max']:.1f})"
