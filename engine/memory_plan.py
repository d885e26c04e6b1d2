"""What a model will take, before it is loaded: weights, keys and values, scratch, and what the process itself has.

The backends know their own sizes (`plan_only` of each model); here they are set against the memory that is free, the
context that fits is chosen, and what cannot be is refused with the numbers.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.api import DeviceInfo
from engine.batch import MemoryUse
from engine.devices import total_memory_bytes
from engine.errors import OutOfMemoryError

PROGRAM_BYTES = 8 << 20
"""What kernels and the engine's own tables take beside a model. (While a kernel is compiled that was never compiled
before on this machine, the compiler takes 100 to 250 MB more; that is before any weight is loaded.)"""

LEAST_CONTEXT = 512
"""A shorter context than this is not chosen for anybody; it has to be asked for."""

ROUNDED_TO = 256
"""A context that is chosen by the memory there is, is a multiple of so many tokens."""

SLACK = 0.97
"""The part of the free memory that is planned with: other programs move meanwhile."""

STREAMED_CONTEXT = 2048
"""The longest context that is chosen for a model whose weights do not fit."""


class Predict(Protocol):
    def __call__(self, context: int, budget: int | None = None) -> MemoryUse:
        """What the backend takes for a context, its weights keeping to `budget` bytes, if there is one, by being read
        from the file again and again. Raises OutOfMemoryError where that cannot be."""
        ...


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the device, and of the process beside them. free_bytes: what the device had before, 0 if unknown.

    limited: the context is shorter than it would be with more memory.
    weight_budget: the bytes that weights have to keep to; streamed_bytes of them are read in every step.
    idle_bytes: the part of scratch_bytes that one answer alone does not touch.
    layer: what a layer of the file that predicts further tokens takes beside, once it is loaded to guess.
    """

    device: DeviceInfo
    context_length: int
    weight_bytes: int
    kv_bytes: int
    scratch_bytes: int
    process_bytes: int
    free_bytes: int
    limited: bool = False
    weight_budget: int | None = None
    streamed_bytes: int = 0
    idle_bytes: int = 0
    layer: MemoryUse | None = None

    @property
    def device_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes

    @property
    def peak_bytes(self) -> int:
        """The process's resident memory at its largest, with the whole context in use by one answer."""
        return self.process_bytes + (self.device_bytes - self.idle_bytes if self.device.kind == "cpu" else 0)


def plan_memory(
    predict: Predict,
    *,
    device: DeviceInfo,
    name: str,
    wanted: int | None,
    default: int,
    limit: int | None = None,
) -> MemoryPlan:
    """Chooses the context and says what it takes.

    wanted: the context length that was asked for; None takes `default`, or less where only that fits.
    limit: bytes that the model may take at most, if not all that are free.

    Raises OutOfMemoryError, with the numbers and what would fit, where nothing does.
    """
    free = int(SLACK * free_memory_bytes(device))
    if limit is not None:
        free = min(free, limit) if free else limit
    context = default if wanted is None else wanted
    process = process_memory_bytes() + PROGRAM_BYTES

    def plan(length: int, use: MemoryUse, budget: int | None = None) -> MemoryPlan:
        sizes = (use.weight_bytes, use.kv_bytes, use.scratch_bytes)
        limited = length < context
        return MemoryPlan(device, length, *sizes, process, free, limited, budget, use.streamed_bytes, use.idle_bytes)

    whole, least = _try(predict, context), min(context, LEAST_CONTEXT)
    if whole is not None and (not free or whole.total_bytes <= free):
        return plan(context, whole)
    fits = _longest(predict, free, least, context)
    if fits is not None and wanted is None:
        return plan(fits, predict(fits))
    if device.kind == "cpu" and free:
        length = context if wanted is not None else min(context, STREAMED_CONTEXT)
        streamed = _streamed(predict, free, length)
        if streamed is not None:
            return plan(length, *streamed)
    # nothing fits, or not what was asked for; where even the least cannot be, the backend says why
    smallest = whole or predict(least)
    if not free:
        raise OutOfMemoryError(f"{device.name} cannot hold {name} with a context of {context} tokens.", _hint(fits))
    raise OutOfMemoryError(
        f"{name} needs {_gb(smallest.weight_bytes)} for its weights, {_gb(smallest.kv_bytes)} for a context of "
        f"{context if whole else least} tokens and {_gb(smallest.scratch_bytes)} beside them, together "
        f"{_gb(smallest.total_bytes)}; {device.name} has {_gb(free)} for it.",
        _hint(fits),
    )


def _try(predict: Predict, length: int) -> MemoryUse | None:
    try:
        return predict(length)
    except OutOfMemoryError:
        return None


def _streamed(predict: Predict, free: int, length: int) -> tuple[MemoryUse, int] | None:
    """What it takes when weights keep to what is left of the free memory, and how much that is; None if they cannot."""
    whole = _try(predict, length)
    if whole is None:
        return None
    budget = free - whole.kv_bytes - whole.scratch_bytes
    try:
        use = predict(length, max(0, budget))
    except OutOfMemoryError:
        return None
    return (use, budget) if use.total_bytes <= free else None


def _longest(predict: Predict, free: int, least: int, most: int) -> int | None:
    """The longest context that fits, or None."""

    def fits(length: int) -> bool:
        use = _try(predict, length)
        return use is not None and (not free or use.total_bytes <= free)

    if not fits(least):
        return None
    low, high = least // ROUNDED_TO, -(-most // ROUNDED_TO)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * ROUNDED_TO) else (low, middle)
    return max(least, low * ROUNDED_TO)


def _hint(fits: int | None) -> str:
    if fits is not None:
        return f"A context of {fits} tokens fits; or close other programs."
    return "Close other programs, or choose a smaller model or quantisation."


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def free_memory_bytes(device: DeviceInfo) -> int:
    """Memory that a model may take on the device, or 0 where the system does not tell.

    Of a GPU it is all of its memory where the driver does not say what is free.
    """
    if device.kind == "cpu":
        return available_memory_bytes()
    if device.id.startswith("opencl"):
        from engine.backends import opencl

        return opencl.free_memory_bytes(device)
    return device.memory_bytes


def available_memory_bytes() -> int:
    """Main memory that can be taken without swapping, within the limit of the control group that this process is in."""
    free = _meminfo_available()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = _number(limit), _number(used)
        if most is not None and now is not None and most < 1 << 60:
            free = min(free, max(0, most - now) + _cgroup_cache()) if free else max(0, most - now)
    return free


def _meminfo_available() -> int:
    if sys.platform == "win32":
        return _windows_available()
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return total_memory_bytes()


def _cgroup_cache() -> int:
    """Bytes of files in the control group's page cache, which give way."""
    try:
        for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max" where there is no limit
        return None


if sys.platform == "win32":
    import ctypes

    class _MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of sysinfoapi.h."""

        _fields_ = [
            ("dwLength", ctypes.c_ulong),
            ("dwMemoryLoad", ctypes.c_ulong),
            ("ullTotalPhys", ctypes.c_ulonglong),
            ("ullAvailPhys", ctypes.c_ulonglong),
            ("ullTotalPageFile", ctypes.c_ulonglong),
            ("ullAvailPageFile", ctypes.c_ulonglong),
            ("ullTotalVirtual", ctypes.c_ulonglong),
            ("ullAvailVirtual", ctypes.c_ulonglong),
            ("ullAvailExtendedVirtual", ctypes.c_ulonglong),
        ]

    def _windows_available() -> int:
        status = _MemoryStatus()
        status.dwLength = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.ullAvailPhys)

else:

    def _windows_available() -> int:
        return 0


def process_memory_bytes() -> int:
    """Resident memory of this process now; where the system does not tell, at its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
