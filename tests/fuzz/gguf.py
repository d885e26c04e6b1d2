"""Opens damaged model files and looks for anything but a clear refusal.

    python -m tests.fuzz.gguf --seconds 60 --seed 1

Each input is a sound file with a few pieces changed; it is opened, described, tokenized with, rendered with, planned to
be quantised, loaded on numpy and stepped, in a process that may take 1 GiB. A finding is an exception that is no
RealmError, a process that dies, more than 2 s of processor time, or more memory. Findings are saved with what they
need to be seen again; the exit code is 1 if there are any. `--only I` runs input I of a seed in this process.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent.parent
SLOW_S = 2.0
SILENT_S = 15.0  # of the clock on the wall: the machine may be busy


@dataclass
class Summary:
    inputs: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    slowest: tuple[float, int] = (0.0, 0)
    findings: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    traces: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, index: int, result: dict[str, Any]) -> None:
        self.inputs += 1
        seconds = float(result.get("seconds", 0.0))
        self.slowest = max(self.slowest, (seconds, index))
        if "finding" in result:
            self.found(index, result["finding"], result["where"], result.get("trace", ""))
        elif seconds > SLOW_S:
            self.found(index, "slow", result["source"], f"{seconds:.1f} s of processor time")
        elif result["refused"]:
            self.refused.update(result["refused"][:1])
        else:
            self.accepted += 1

    def found(self, index: int, what: str, where: str, trace: str) -> None:
        self.findings.setdefault((what, where), []).append(index)
        self.traces.setdefault((what, where), trace)


class Worker:
    """One process that opens inputs, and a thread that hears its answers."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.path = folder / "input.gguf"
        self._answers: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(seed), str(self.path)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        if self._answers.get(timeout=120) != "ready":
            raise RuntimeError(f"the fuzzing process did not start: {self._errors()}")

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line.strip())
        self._answers.put("")

    def ask(self, index: int) -> dict[str, Any]:
        """What came of an input. A process that died or hangs is told as a finding and is unusable from then on."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{index}\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=SILENT_S)
        except queue.Empty:
            return {"finding": "hang", "where": f"more than {SILENT_S:.0f} s"}
        except OSError:
            line = ""
        if not line:
            code = self._process.wait(timeout=10)
            return {"finding": "crash", "where": f"exit status {code}", "trace": self._errors()}
        result: dict[str, Any] = json.loads(line)
        return result

    def _errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read()[-4000:]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def fuzz(seconds: float, seed: int, save: Path, first: int = 0) -> Summary:
    """Opens inputs first, first + 1, ... of a seed until the time is over. Saves one input of each kind of finding."""
    summary = Summary()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = Worker(seed, folder)
        end = time.monotonic() + seconds
        index = first
        try:
            while time.monotonic() < end:
                known = len(summary.findings)
                result = worker.ask(index)
                summary.add(index, result)
                if len(summary.findings) > known:
                    _save(save, seed, index, worker.path, list(summary.findings)[-1], result.get("trace", ""))
                if result.get("finding") in ("hang", "crash"):
                    worker.close()
                    worker = Worker(seed, folder)
                index += 1
        finally:
            worker.close()
    return summary


def _save(folder: Path, seed: int, index: int, path: Path, finding: tuple[str, str], trace: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{finding[0]}-{seed}-{index}"
    (folder / f"{stem}.gguf").write_bytes(path.read_bytes())
    (folder / f"{stem}.txt").write_text(
        f"{finding[0]} at {finding[1]}\npython -m tests.fuzz.gguf --seed {seed} --only {index}\n\n{trace}",
        encoding="utf-8",
    )


def told(summary: Summary, seed: int, seconds: float, save: Path) -> str:
    refused = ", ".join(f"{stage} {count}" for stage, count in summary.refused.most_common())
    lines = [
        f"{summary.inputs} damaged files of seed {seed} in {seconds:.0f} s: {summary.accepted} of no consequence, "
        f"{summary.refused.total()} refused ({refused}); the slowest took {summary.slowest[0]:.2f} s "
        f"(input {summary.slowest[1]})."
    ]
    for (what, where), indices in sorted(summary.findings.items(), key=lambda item: -len(item[1])):
        lines.append(f"FOUND {what} at {where}: {len(indices)} times, first in input {indices[0]}")
        lines += summary.traces[what, where].strip().splitlines()[-1:]
    if summary.findings:
        lines.append(f"One input of each is in {save}.")
    return "\n".join(lines)


def run_one(seed: int, index: int) -> int:
    from tests.fuzz.inputs import sources
    from tests.fuzz.worker import input_bytes, open_and_use

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.gguf"
        name, data = input_bytes(seed, index, sources())
        path.write_bytes(data)
        print(f"input {index} of seed {seed}: {name}, {len(data)} bytes")
        print(f"refused: {list(open_and_use(path))}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", type=int, help="run this input alone, with a traceback if it fails")
    parser.add_argument("--save", type=Path, default=PROJECT / "build" / "fuzz", help="where findings are saved")
    args = parser.parse_args()
    if args.only is not None:
        return run_one(args.seed, args.only)
    began = time.monotonic()
    summary = fuzz(args.seconds, args.seed, args.save, args.first)
    print(told(summary, args.seed, time.monotonic() - began, args.save))
    return 1 if summary.findings else 0


if __name__ == "__main__":
    sys.exit(main())
