"""Measures Realm beside llama.cpp and beside what memory allows; `make bench`.

    python -m tests.tools.performance [MODEL ...] [--peer PYTHON] [--kernels] [--startup] [--contexts] [--lora]
        [--drafts] [--large] [--streams N] [--write docs/performance.md]

MODEL: GGUF files; the starter model where none is given. --peer (or REALM_PEER_PYTHON): a Python that has llama_cpp;
without one only Realm is measured. Runs alternate, Realm and the peer by turns, each in a process that stays loaded;
medians and the ratios of neighbouring runs are reported. Share: of the read bandwidth that the device showed when the
model was loaded, weights alone counted. --kernels: times each kernel alone too. Rates are compared with those of the
run recorded on this machine, and what is more than 10 % slower is marked; --accept takes the slower ones as the record.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.cli.bench_drafts import drafts_measured, drafts_text
from app.cli.bench_lora import adapters_measured, adapters_text
from app.cli.bench_streams import measure_streams, text_of
from app.hub.starter import fetch_starter
from engine.api import DeviceInfo, DraftKind, DraftOptions, LoadOptions
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.devices import choose_device
from engine.gguf import GGUFFile
from engine.loader import load_model
from engine.measure import KernelTime, Peaks, measure_kernels, other_cases, product_cases
from engine.measure.kernels import FIRST_TYPES
from engine.quantize import plan_quantisation, quantize_file
from tests.tools.bench_records import Change, Setting, compare_and_record, processor_name
from tests.tools.large_shape import large_page
from tests.tools.long_contexts import contexts_page
from tests.tools.startup import startup_page


class Ours:
    """Realm's model, stepped as its engine steps it: greedy, one row of logits."""

    def __init__(self, path: Path, context: int, device: str) -> None:
        began = time.perf_counter()
        bundle = load_model(path, LoadOptions(device=device, context_length=context), lambda *_: None)
        self.load_s = time.perf_counter() - began
        self.model: LoadedModel = bundle.model
        self.info = bundle.info
        self.blocks = np.arange(-(-context // KV_BLOCK), dtype=np.int32)[None]
        self.tokens = np.random.default_rng(1).integers(10, self.model.n_vocab - 10, context).astype(np.int32)

    def prefill(self, count: int) -> float:
        began = time.perf_counter()
        self._fill(0, count)
        return count / (time.perf_counter() - began)

    def decode(self, count: int, at: int) -> float:
        if at > 1:
            self._fill(0, at)
        began = time.perf_counter()
        for i in range(count):
            self._step(at + i, self.tokens[i : i + 1])
        return count / (time.perf_counter() - began)

    def _fill(self, start: int, end: int) -> None:
        while start < end:
            stop = min(start + self.model.max_rows, end)
            self._step(start, self.tokens[start:stop])
            start = stop

    def _step(self, start: int, tokens: np.ndarray) -> None:
        rows = len(tokens)
        logits = self.model.forward(
            Batch(
                tokens,
                np.arange(start, start + rows, dtype=np.int32),
                np.zeros(rows, np.int32),
                self.blocks,
                np.array([rows - 1], np.int32),
            )
        )
        int(logits.argmax())


class Peer:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, path: Path, context: int, threads: int) -> None:
        worker = Path(__file__).with_name("peer_worker.py")
        self._process = subprocess.Popen(
            [python, str(worker), str(path), str(context), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._answer() != "ready":
            raise SystemExit(f"{python} could not load {path} with llama_cpp.")

    def ask(self, line: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@dataclass
class Pair:
    ours: list[float] = field(default_factory=list)
    peers: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        if not self.peers:
            return None
        return statistics.median(a / b for a, b in zip(self.ours, self.peers, strict=True))


@dataclass
class Result:
    name: str
    quantisation: str
    device: DeviceInfo
    load_s: float
    bandwidth: float | None
    bytes_per_token: int
    pairs: dict[str, Pair]


def measure(path: Path, device: str, peer_python: str | None, repetitions: int, decode_at: list[int]) -> Result:
    threads = os.cpu_count() or 1
    context = max(1024, *(at + 256 for at in decode_at))
    ours = Ours(path, context, device)
    peer = Peer(peer_python, path, context, threads) if peer_python else None
    tasks: dict[str, tuple[str, int, int]] = {"prefill 512": ("prefill", 512, 0)}
    for at in decode_at:
        tasks[f"decode at {at}"] = ("decode", 64 if at < 4096 else 16, at)
    pairs = {name: Pair() for name in tasks}
    for repetition in range(repetitions + 1):
        for name, (kind, count, at) in tasks.items():
            mine = ours.prefill(count) if kind == "prefill" else ours.decode(count, at)
            other = peer.ask(f"{kind} {count} {at}") if peer else None
            if repetition:  # the first round warms up
                pairs[name].ours.append(mine)
                if other is not None:
                    pairs[name].peers.append(other)
    if peer:
        peer.close()
    result = Result(
        path.name,
        ours.info.quantisation,
        ours.info.device,
        ours.load_s,
        ours.model.read_bandwidth(),
        ours.model.weight_bytes_per_token,
        pairs,
    )
    ours.model.close()
    return result


def table(results: list[Result]) -> str:
    lines = [
        "| Model | Device | What | Realm tokens/s | llama.cpp tokens/s | Ratio | Share of read bandwidth |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for r in results:
        for what, pair in r.pairs.items():
            mine = statistics.median(pair.ours)
            peers = f"{statistics.median(pair.peers):.1f}" if pair.peers else "-"
            ratio = f"{pair.ratio:.2f}" if pair.ratio is not None else "-"
            share = "-"
            if what.startswith("decode") and r.bandwidth:
                share = f"{mine * r.bytes_per_token / r.bandwidth:.0%}"
            where = "numpy" if r.device.id == "numpy" else r.device.variants[0]
            lines.append(f"| {r.name} | {where} | {what} | {mine:.1f} | {peers} | {ratio} | {share} |")
    return "\n".join(lines)


def kernel_page(times: list[KernelTime], peaks: Peaks, device: DeviceInfo) -> str:
    """A section of the page: each kernel alone."""
    limits = ", ".join(
        f"{what} {value / 1e9:.1f} {unit}"
        for what, value, unit in (
            ("reading", peaks.bandwidth, "GB/s"),
            ("integer products", peaks.integer, "GMAC/s"),
            ("float32 products", peaks.floating, "GMAC/s"),
        )
        if value
    )
    lines = [
        "## Kernels",
        "",
        f"Each alone on made-up weights ({device.name}, {', '.join(device.variants)}), the shortest of several runs,",
        "as `realm bench --kernels` times them. Share: of the device's own limit that is nearer, measured in the same",
        f"run ({limits}).",
        "",
        "| Kernel | Rows | ms | GB/s | GMAC/s | Share |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for t in times:
        share = peaks.share(t)
        adds = f"{t.multiply_adds_per_s / 1e9:.1f}" if t.case.multiply_adds else "-"
        lines.append(
            f"| {t.case} | {t.case.rows} | {t.seconds * 1e3:.3f} | {t.bytes_per_s / 1e9:.1f} | {adds} | "
            f"{'-' if share is None else format(share, '.0%')} |"
        )
    return "\n".join(lines) + "\n"


def adapters_page(measured: dict[str, Any]) -> str:
    """What `realm bench --lora-rank 16` measures."""
    return "\n".join(
        (
            "## Adapters",
            "",
            "A random LoRA of rank 16 on all linear layers; sequences of the batch have one each. Steps with and",
            "without take turns. `realm bench --lora-rank 16` measures it.",
            "",
            "```",
            adapters_text(measured),
            "```",
            "",
        )
    )


def drafts_page(model: Path, device: str, repetitions: int) -> str:
    """Guessing for an F16 copy of a model: by n-grams and by a copy of it in Q4_0; and by n-grams for the model itself.

    What `realm bench --ngram` and `realm bench --draft PATH` measure.
    """
    ngram, by_model = DraftOptions(DraftKind.NGRAM), DraftOptions(DraftKind.MODEL)
    with tempfile.TemporaryDirectory() as folder:
        wide, narrow = Path(folder) / "F16.gguf", Path(folder) / "Q4_0.gguf"
        for source, out, kind in ((model, wide, "F16"), (wide, narrow, "Q4_0")):
            with GGUFFile.open(source) as file:
                quantize_file(file, plan_quantisation(file, kind), out)
        measured = [
            drafts_measured(str(wide), device, by_model, str(narrow), 128, repetitions),
            drafts_measured(str(wide), device, ngram, None, 128, repetitions),
            drafts_measured(str(model), device, ngram, None, 128, repetitions),
        ]
    texts = "\n\n".join(drafts_text(one).replace(f"{folder}/", "") for one in measured)
    return "\n".join(
        (
            "## Guessing tokens",
            "",
            f"Copies of {model.name} in F16 and Q4_0. Answers without and with guesses take turns; gains are",
            "medians of the ratios of neighbours, with the smallest and the largest. It switches itself off where it",
            "does not pay, as with random text. `realm bench --draft PATH` and `--ngram` measure it.",
            "",
            "```",
            texts,
            "```",
            "",
        )
    )


def page(results: list[Result], repetitions: int, command: str) -> str:
    bandwidth = next((r.bandwidth for r in results if r.bandwidth), None)
    return f"""# Performance

Written by `{command}` on {time.strftime("%Y-%m-%d")}. {processor_name()}, {os.cpu_count()} cores, \
{"read bandwidth " + format(bandwidth / 1e9, ".1f") + " GB/s (best of five reads of the weights)" if bandwidth else ""}.
Medians of {repetitions} runs that alternate between Realm and llama.cpp (llama-cpp-python, CPU, as many threads as
cores); the ratio is the median of the ratios of neighbouring runs. Prefill: a prompt of 512 random tokens. Decode: 64
tokens one by one (16 beyond 4,096), from the context length given.

{table(results)}

Load times (warm page cache): {", ".join(f"{r.name} {r.load_s:.2f} s" for r in results)}.
"""


def _setting(device: DeviceInfo, model: str) -> Setting:
    variants = ", ".join(device.variants)
    return Setting(processor_name(), os.cpu_count() or 1, device.name, device.driver, variants, model)


def _recorded(results: list[Result], kernels: list[KernelTime], device: DeviceInfo, accept: bool) -> list[Change]:
    """Compares all that was measured with what was recorded here, and records it."""
    changes = []
    for r in results:
        rates = {f"{what}, tokens/s": statistics.median(pair.ours) for what, pair in r.pairs.items()}
        changes += [
            Change(f"{r.name} {c.what}", c.before, c.now, c.version)
            for c in compare_and_record(_setting(r.device, r.name), rates, accept=accept)
        ]
    if kernels:
        rates = {f"{t.case}, {t.case.rows} rows, per second": 1 / t.seconds for t in kernels}
        changes += compare_and_record(_setting(device, "kernels"), rates, accept=accept)
    return changes


def _streams_page(path: Path, device: str, streams: int) -> str:
    return f"## Many streams\n\n```\n{text_of(measure_streams(str(path), device, streams, 128, 1))}\n```\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--peer", default=os.environ.get("REALM_PEER_PYTHON"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--numpy", action="store_true", help="measure the first model on numpy too")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--decode-at", type=int, nargs="*", default=[1, 512])
    parser.add_argument("--kernels", action="store_true", help="time each kernel alone too")
    parser.add_argument("--startup", action="store_true", help="measure how long starting takes too")
    parser.add_argument("--contexts", action="store_true", help="measure decoding behind long contexts too")
    parser.add_argument("--lora", action="store_true", help="measure what adapters cost too")
    parser.add_argument("--drafts", action="store_true", help="measure what guessing tokens gains too")
    parser.add_argument("--large", action="store_true", help="measure the shape of an 8B model too (5 GB)")
    parser.add_argument("--accept", action="store_true", help="record also what became slower")
    parser.add_argument("--streams", type=int, default=0, metavar="N", help="measure N answers at once too")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    models = options.models or [fetch_starter()]
    results = [measure(m, options.device, options.peer, options.repetitions, options.decode_at) for m in models]
    if options.numpy:
        results.append(measure(models[0], "numpy", None, options.repetitions, [1]))
    print(table(results))
    device = choose_device(options.device)
    times: list[KernelTime] = []
    written = page(results, options.repetitions, "make bench")
    if options.kernels:
        rows = (1, 4, 16, 256)
        cases = [*product_cases(FIRST_TYPES, [(4096, 4096)], rows), *other_cases(rows)]
        times, peaks = measure_kernels(cases, device, lambda _: None)
        section = kernel_page(times, peaks, device)
        print("\n" + section)
        written += "\n" + section
    first = models[0]
    sections: list[tuple[object, Callable[[], str]]] = [
        (options.startup, lambda: startup_page(first, options.device, options.repetitions)),
        (options.contexts, lambda: contexts_page(first, options.device, options.repetitions)),
        (
            options.lora,
            lambda: adapters_page(adapters_measured(str(first), options.device, (), 16, 128, options.repetitions)),
        ),
        (options.drafts, lambda: drafts_page(first, options.device, options.repetitions)),
        (options.large, lambda: large_page(options.device, options.repetitions)),
        (options.streams, lambda: _streams_page(first, options.device, options.streams)),
    ]
    for wanted, make in sections:
        if wanted:
            section = make()
            print("\n" + section)
            written += "\n" + section
    changes = _recorded(results, times, device, options.accept)
    print("\n".join(["Since the recorded run on this machine:", *map(str, changes)]) if changes else "Recorded.")
    slower = sum(change.is_slower for change in changes)
    if slower:
        print(f"{slower} of {len(changes)} are more than 10 % slower.")
    if options.write:
        options.write.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
