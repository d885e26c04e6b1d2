"""How long starting takes: the engine to its first token, the window to its first picture; `make bench`.

Each start is a process of its own. The first ever has empty caches: of compiled kernels, of what was found out about
the device, and of Python's bytecode, which an installed program has from the beginning.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

BARS = {"first ever": 20.0, "engine": 0.5, "window": 1.0}
"""Seconds."""

_ENGINE = """
import json, sys, time
from pathlib import Path
from engine.api import GenerateRequest, LoadOptions, SamplingParams, Token
from engine.engine import Engine
from engine.kept import keep_in
keep_in(Path(sys.argv[3]))
began = time.perf_counter()
engine = Engine()
engine.load(Path(sys.argv[1]), LoadOptions(device=sys.argv[2])).result(120)
loaded = time.perf_counter()
stream = engine.submit(GenerateRequest(prompt="Hello", max_tokens=1, sampling=SamplingParams(temperature=0)))
next(event for event in stream if isinstance(event, Token))
print(json.dumps({"load": loaded - began, "engine": time.perf_counter() - began, "now": time.time()}), flush=True)
engine.close()
"""

_WINDOW = """
import json, os, sys, time
from PySide6.QtCore import QEvent
from app.desktop import main, window
shown = window.MainWindow.event
def event(self, happening):
    done = shown(self, happening)
    if happening.type() == QEvent.Type.Paint:
        print(json.dumps({"now": time.time()}), flush=True)
        os._exit(0)
    return done
window.MainWindow.event = event
main.main([])
"""


def startup_page(path: Path, device: str, repetitions: int) -> str:
    """A section of the page: medians of starts after the first, and the first ever."""
    with tempfile.TemporaryDirectory(prefix="realm-startup-") as folder:
        caches = {"POCL_CACHE_DIR": f"{folder}/pocl", "REALM_CACHE_DIR": f"{folder}/cache", "XDG_CACHE_HOME": folder}
        caches |= {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode", "PYTHONDONTWRITEBYTECODE": ""}
        first = _start(_ENGINE, caches, str(path), device, f"{folder}/cache")
        later = [_start(_ENGINE, caches, str(path), device, f"{folder}/cache") for _ in range(repetitions)]
        place = {**caches, "REALM_DATA_DIR": f"{folder}/data"}
        place.setdefault("QT_QPA_PLATFORM", os.environ.get("QT_QPA_PLATFORM", "offscreen"))
        windows = [_start(_WINDOW, place) for _ in range(repetitions + 1)][1:]
    rows = [
        ("first ever start: process to first token", first["seconds"], BARS["first ever"]),
        ("later starts: engine to first token", median(s["engine"] for s in later), BARS["engine"]),
        ("of that, loading the model", median(s["load"] for s in later), None),
        ("later starts: process to first token", median(s["seconds"] for s in later), None),
        ("window: process to first picture", median(s["seconds"] for s in windows), BARS["window"]),
    ]
    lines = [
        "## Starting",
        "",
        f"{path.name}, medians of {repetitions} starts. The first ever one compiles the kernels.",
        "",
        "| What | Seconds | Bar |",
        "|---|---:|---|",
    ]
    for what, seconds, bar in rows:
        said = "-" if bar is None else f"under {bar:g} s, {'holds' if seconds < bar else 'missed'}"
        lines.append(f"| {what} | {seconds:.2f} | {said} |")
    return "\n".join(lines) + "\n"


def _start(program: str, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """What the program printed as JSON, and `seconds` until it did. Raises RuntimeError with its complaint."""
    command = [sys.executable, "-c", program, *arguments]
    began = time.time()
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"a start printed nothing:\n{done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(lines[0])
    return {**said, "seconds": said["now"] - began}
