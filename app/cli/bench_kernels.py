"""`realm bench --kernels`: the kernel laboratory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from app.cli.models import model_path
from app.cli.terminal import ProgressBar, printable, write_json
from engine.devices import choose_device
from engine.errors import RequestError
from engine.gguf import GGUFFile
from engine.measure import KernelCase, KernelTime, Peaks, measure_kernels, other_cases, product_cases
from engine.measure.kernels import FIRST_TYPES
from engine.quants import QUANT_TYPES, QuantType

SHAPES = ((4096, 4096),)
ROWS = (1, 4, 16, 256)


def add_kernel_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernels",
        action="store_true",
        help="time each kernel alone, on made-up weights; with --model in the types and shapes of its matrices",
    )
    parser.add_argument("--types", metavar="T,T", help=f"with --kernels: types of weights ({','.join(FIRST_TYPES)})")
    parser.add_argument("--shapes", metavar="NxK,NxK", help="with --kernels: outputs x inputs (4096x4096)")
    parser.add_argument("--rows", metavar="N,N", help="with --kernels: rows of activations (1,4,16,256)")


def run_kernels(args: argparse.Namespace) -> int:
    device = choose_device(args.device)
    rows = _numbers(args.rows) if args.rows else list(ROWS)
    cases = _cases(args, rows)
    bar = ProgressBar("bench")
    times: list[KernelTime] = []

    def report(measured: KernelTime) -> None:
        times.append(measured)
        bar.update(len(times) / len(cases), str(measured.case))

    try:
        bar.update(0.0, str(cases[0]))
        _, peaks = measure_kernels(cases, device, report)
    finally:
        bar.clear()
    if args.json:
        write_json(kernel_answer(device.name, device.id, device.variants, times, peaks))
    else:
        print(printable(kernel_table(times, peaks, f"{device.name} ({device.id}), {', '.join(device.variants)}")))
    return 0


def kernel_answer(
    name: str, device_id: str, variants: Sequence[str], times: Sequence[KernelTime], peaks: Peaks
) -> dict[str, Any]:
    return {
        "device": device_id,
        "device_name": name,
        "kernel_variant": ", ".join(variants),
        "read_bandwidth_gb_per_s": _billions(peaks.bandwidth),
        "peak_integer_gmac_per_s": _billions(peaks.integer),
        "peak_float_gmac_per_s": _billions(peaks.floating),
        "kernels": [
            {
                "kernel": t.case.kernel,
                "type": t.case.type,
                "outputs": t.case.outputs,
                "inputs": t.case.inputs,
                "rows": t.case.rows,
                "context": t.case.context,
                "heads": t.case.heads,
                "kv_heads": t.case.kv_heads,
                "seconds": t.seconds,
                "gb_per_s": t.bytes_per_s / 1e9,
                "gmac_per_s": t.multiply_adds_per_s / 1e9,
                "share": peaks.share(t),
            }
            for t in times
        ],
    }


def kernel_table(times: Sequence[KernelTime], peaks: Peaks, where: str) -> str:
    """Lines of text; columns are as wide as their longest entry."""
    head = ("kernel", "rows", "ms", "GB/s", "GMAC/s", "share")
    body = [
        (
            str(t.case),
            str(t.case.rows),
            f"{t.seconds * 1e3:.3f}",
            f"{t.bytes_per_s / 1e9:.1f}",
            f"{t.multiply_adds_per_s / 1e9:.1f}" if t.case.multiply_adds else "-",
            "-" if (share := peaks.share(t)) is None else f"{share:.0%}",
        )
        for t in times
    ]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *body)
    ]
    return "\n".join([where, limits_text(peaks), *lines])


def limits_text(peaks: Peaks) -> str:
    parts = [
        f"{what} {value / 1e9:.1f} {unit}"
        for what, value, unit in (
            ("reading", peaks.bandwidth, "GB/s"),
            ("integers", peaks.integer, "GMAC/s"),
            ("float32", peaks.floating, "GMAC/s"),
        )
        if value
    ]
    return f"at most: {', '.join(parts)}" if parts else "the limits of this device were not measured"


def _cases(args: argparse.Namespace, rows: list[int]) -> list[KernelCase]:
    if args.model:
        with GGUFFile.open(model_path(args.model)) as file:
            found = {(t.type.name, t.shape) for t in file.tensors.values() if len(t.shape) == 2}
        pairs = sorted((name, (shape[0], shape[1])) for name, shape in found)
        cases = [case for name, shape in pairs for case in product_cases([name], [shape], rows)]
        if not cases:
            raise RequestError(f"{args.model} has no matrices.", "Choose a file that holds a whole model.")
        return cases
    types = [_type(name) for name in args.types.split(",")] if args.types else list(FIRST_TYPES)
    shapes = [_shape(text) for text in args.shapes.split(",")] if args.shapes else list(SHAPES)
    cases = list(product_cases(types, shapes, rows))
    if not (args.types or args.shapes):
        cases += other_cases(rows)
    if not cases:
        raise RequestError("None of these types has blocks that fit these shapes.", "Take multiples of 256 columns.")
    return cases


def _type(name: str) -> str:
    try:
        quant = QuantType.by_name(name.strip())
    except KeyError:
        raise RequestError(f"There is no type {name!r}.", f"Choose among {', '.join(QUANT_TYPES)}.") from None
    return quant.name


def _shape(text: str) -> tuple[int, int]:
    outputs, _, inputs = text.lower().partition("x")
    try:
        shape = int(outputs), int(inputs)
    except ValueError:
        shape = 0, 0
    if min(shape) < 16 or max(shape) > 1 << 18:
        raise RequestError(f"{text!r} is no shape.", "Write outputs x inputs, each 16 to 262144, as in 4096x4096.")
    return shape


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(1 <= n <= 512 for n in numbers):
        raise RequestError(f"{text!r} are no numbers of rows.", "Write 1 to 512, as in 1,4,16,256.")
    return numbers


def _billions(value: float | None) -> float | None:
    return None if value is None else value / 1e9
