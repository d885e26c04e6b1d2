"""Where models can compute: every OpenCL device that is there, and numpy, which always is."""

from __future__ import annotations

import os
import platform

import numpy as np

from engine.api import DeviceInfo
from engine.errors import DeviceError


def numpy_device() -> DeviceInfo:
    return DeviceInfo(
        id="numpy",
        name=f"numpy {np.__version__}",
        vendor=platform.processor() or platform.machine(),
        kind="cpu",
        driver=f"numpy {np.__version__}",
        memory_bytes=total_memory_bytes(),
        variants=("float32",),
    )


def list_devices() -> list[DeviceInfo]:
    """All devices, the one that "auto" would take first. A device that cannot be used says why in `problem`."""
    from engine.backends import opencl

    return [*opencl.list_devices(), numpy_device()]


def choose_device(wanted: str) -> DeviceInfo:
    """The device for LoadOptions.device. Raises DeviceError naming what there is if it is not among them."""
    if wanted == "numpy":
        return numpy_device()
    devices = list_devices()
    usable = [d for d in devices if not d.problem]
    if wanted == "auto":
        return usable[0]
    if wanted == "opencl":
        opencl = [d for d in usable if d.id.startswith("opencl")]
        if opencl:
            return opencl[0]
        raise DeviceError(
            f"There is no OpenCL device that Realm can use: {why_numpy()}",
            "Install an OpenCL driver for your graphics card, or choose the device numpy.",
        )
    for device in devices:
        if device.id == wanted:
            if device.problem:
                raise DeviceError(f"The device {wanted} cannot be used: {device.problem}", "Choose another device.")
            return device
    raise DeviceError(
        f"There is no device {wanted!r}.", "Devices here: auto, opencl, " + ", ".join(d.id for d in devices) + "."
    )


def why_numpy() -> str:
    """Why "auto" took numpy, as a sentence."""
    problems = [d.problem for d in list_devices() if d.problem]
    return " ".join(problems) or "this machine has no OpenCL driver."


def total_memory_bytes() -> int:
    """Physical memory of this machine, or 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
