"""`realm quantize`: a model file with its weights in another type."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from app.cli.models import open_file
from app.cli.options import add_json_argument
from app.cli.terminal import ProgressBar, bytes_text, say, write_json
from engine.quantize import TARGETS, check_outputs, output_paths, plan_quantisation, quantize_file

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a model with its matrices in another type; vectors, norms and routers stay as they are.\n"
        f"TYPE is one of {', '.join(TARGETS)}. A plain type is given to every matrix; the mixes (Q4_K_M and the like) "
        "choose by tensor, as llama.cpp does."
    )
    parser.add_argument("model", metavar="IN", help="path of a GGUF file, or the name starter")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("type", metavar="TYPE", help="such as Q8_0 or Q4_K_M")
    parser.add_argument(
        "--output-type", metavar="T", help="another type for the output matrix (llama.cpp uses Q6_K in Q4_0 files)"
    )
    parser.add_argument(
        "--split-max-size",
        metavar="S",
        type=_size,
        help="write OUT-00001-of-0000N.gguf and so on of at most S each, 500M or 2G",
    )
    parser.add_argument("--force", action="store_true", help="write over files that exist")
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    with open_file(args.model) as file:
        plan = plan_quantisation(file, args.type, output_type=args.output_type)
        outputs = output_paths(file, plan, args.out, args.split_max_size)
        check_outputs(file, outputs, args.force)
        for note in plan.notes:
            say(f"Note: {note}")
        bar = ProgressBar(args.out.name)
        try:
            quantize_file(
                file,
                plan,
                args.out,
                split_max_bytes=args.split_max_size,
                overwrite=args.force,
                progress=bar.update,
            )
        finally:
            bar.clear()
        before = file.size
    after = sum(size for _, size in outputs)
    seconds = time.perf_counter() - began
    types = Counter[str]()
    for tensor in plan.tensors:
        types[tensor.type.name] += tensor.new.nbytes
    if args.json:
        answer: dict[str, Any] = {
            "files": [str(path) for path, _ in outputs],
            "type": plan.target,
            "bytes": after,
            "source_bytes": before,
            "tensor_types": {t.source.name: t.type.name for t in plan.tensors},
            "notes": list(plan.notes),
            "seconds": seconds,
        }
        write_json(answer)
        return 0
    shares = ", ".join(f"{name} {size / max(1, types.total()):.0%}" for name, size in types.most_common())
    for path, size in outputs:
        print(f"{path}  {bytes_text(size)}")
    say(f"{bytes_text(before)} to {bytes_text(after)} in {seconds:.1f} s: {shares}.")
    return 0


def _size(text: str) -> int:
    """ "500M" -> 500,000,000."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]
