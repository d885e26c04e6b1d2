"""Measures Realm beside llama.cpp and beside what memory allows; `make bench`.

    python -m tests.tools.performance [MODEL ...] [--peer PYTHON] [--write docs/performance.md]

MODEL: GGUF files; the starter model where none is given. --peer (or REALM_PEER_PYTHON): a Python that has llama_cpp;
without one only Realm is measured. Runs alternate, Realm and the peer by turns, each in a process that stays loaded;
medians and the ratios of neighbouring runs are reported. Share: of the read bandwidth that the device showed when the
model was loaded, weights alone counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from app.hub.starter import fetch_starter
from engine.api import LoadOptions
from engine.batch import KV_BLOCK, Batch, LoadedModel
from engine.loader import load_model


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
    device: str
    variants: str
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
        ours.info.device.name,
        ", ".join(ours.info.device.variants),
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
            where = "numpy" if r.device.startswith("numpy") else r.variants.split(", ")[0]
            lines.append(f"| {r.name} | {where} | {what} | {mine:.1f} | {peers} | {ratio} | {share} |")
    return "\n".join(lines)


def page(results: list[Result], repetitions: int, command: str) -> str:
    bandwidth = next((r.bandwidth for r in results if r.bandwidth), None)
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"""# Performance

Written by `{command}` on {time.strftime("%Y-%m-%d")}. {processor}, {os.cpu_count()} cores, \
{"read bandwidth " + format(bandwidth / 1e9, ".1f") + " GB/s (best of five reads of the weights)" if bandwidth else ""}.
Medians of {repetitions} runs that alternate between Realm and llama.cpp (llama-cpp-python, CPU, as many threads as
cores); the ratio is the median of the ratios of neighbouring runs. Prefill: a prompt of 512 random tokens. Decode: 64
tokens one by one (16 beyond 4,096), from the context length given.

{table(results)}

Load times (warm page cache): {", ".join(f"{r.name} {r.load_s:.2f} s" for r in results)}.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--peer", default=os.environ.get("REALM_PEER_PYTHON"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--numpy", action="store_true", help="measure the first model on numpy too")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--decode-at", type=int, nargs="*", default=[1, 512])
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    models = options.models or [fetch_starter()]
    results = [measure(m, options.device, options.peer, options.repetitions, options.decode_at) for m in models]
    if options.numpy:
        results.append(measure(models[0], "numpy", None, options.repetitions, [1]))
    print(table(results))
    if options.write:
        options.write.write_text(page(results, options.repetitions, "make bench"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
