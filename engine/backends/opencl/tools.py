"""The small kernels of a CPU device beside those of steps.

They are one program with those that repack weights: PoCL takes 17 ms to find a program again that it has compiled
before, however short it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.backends.opencl.platforms import Device
from engine.backends.opencl.source import tools_source

_programs: dict[tuple[Device, tuple[str, ...]], Any] = {}
_latest: dict[Device, Any] = {}


def tools(device: Device) -> Any:
    """The kernels of tools.cl and lora_pack.cl, in the program that was asked for last."""
    return _latest[device] if device in _latest else repacking(device, ())


def repacking(device: Device, names: Iterable[str]) -> Any:
    """These and repack_<TYPE> for the types. Raises DeviceError."""
    key = (device, tuple(names))
    if key not in _programs:
        _programs[key] = device.build(tools_source(key[1]))
    _latest[device] = _programs[key]
    return _programs[key]
