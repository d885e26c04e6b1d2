"""Which way is the fastest where there are several to the same result: measured on a device once, then kept in a file.

A choice is made when a model is loaded, on its own shapes, and stays while the model is loaded. The file is that of the
device, its driver and the kernels' source, so that none of these can change below what was measured.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from importlib.resources import files

from engine.backends.opencl.platforms import Device
from engine.kept import Kept

VERSION = 1

BUDGET_S = 2.0
"""That measuring may take in one load. What it does not reach stays as it is, for the next load too."""

GAIN = 0.97
"""What takes this part of the time of the usual way, or less, is chosen instead: less may be chance."""


def tunes(device: Device) -> bool:
    """Whether to measure there: not where the kernels for GPUs run on a processor, for tests."""
    return not device.is_cpu


class Tuner:
    """The choices for a device. `measured`: how many were made here and not read."""

    def __init__(self, device: Device, budget_s: float | None = None, source: bytes | None = None) -> None:
        """budget_s: seconds that measuring may take; None for BUDGET_S. source: of the kernels; None for all."""
        kernels = hashlib.sha256(_all_sources() if source is None else source).hexdigest()[:16]
        self._kept = Kept({"version": VERSION, **device.about, "kernels": kernels})
        self._chosen = self._kept.read()
        self._budget = BUDGET_S if budget_s is None else budget_s
        self.measured = 0

    def choose(self, what: str, ways: Sequence[str], seconds: Callable[[str], float]) -> str:
        """The one of `ways` that was chosen before, or the fastest, by what `seconds` says of each.

        The first of them is the usual one, which stays where no other is clearly faster or the budget is spent.
        """
        kept = self._chosen.get(what)
        if kept is not None and kept in ways:
            return kept
        began = time.perf_counter()
        best = ways[0]
        if len(ways) > 1 and self._budget > 0:
            seconds(ways[0])  # what comes first is slower for it
            least = GAIN * seconds(ways[0])
            for way in ways[1:]:
                took = seconds(way)
                if took < least:
                    best, least = way, took
        self._budget -= time.perf_counter() - began
        self._chosen[what] = best
        self.measured += 1
        return best

    def keep(self) -> None:
        """Writes what is new. A folder that cannot be written to costs the next load the time of measuring."""
        if self.measured:
            self._kept.write(self._chosen)


def _all_sources() -> bytes:
    sources = sorted((f for f in files("cl_kernels").iterdir() if f.name.endswith(".cl")), key=lambda f: f.name)
    return b"".join(f.read_bytes() for f in sources)
