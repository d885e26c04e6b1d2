"""The OpenCL backend. The only package that imports pyopencl, and only when it is first used."""

from __future__ import annotations

from collections.abc import Callable

from engine.api import DeviceInfo
from engine.batch import LoadedModel, PartModel, Progress
from engine.errors import OutOfMemoryError
from engine.gguf import GGUFFile
from engine.graph import Graph


def list_devices() -> list[DeviceInfo]:
    """All OpenCL devices, best first, each with the kernel variants it supports."""
    from engine.backends.opencl.platforms import list_devices

    return list_devices()


def load(
    file: GGUFFile,
    graph: Graph,
    *,
    device: DeviceInfo,
    n_blocks: int,
    kv_type: str = "f16",
    progress: Progress,
    cancelled: Callable[[], bool],
    plan_only: bool = False,
    weight_budget: int | None = None,
    beside: LoadedModel | None = None,
) -> PartModel:
    """Puts a model onto an OpenCL device. Raises DeviceError and UnsupportedModelError.

    plan_only: nothing is allocated; of the model only memory() serves.
    weight_budget: bytes that weights may take, the rest being read from the file in every step; on CPUs only, others
        raise OutOfMemoryError.
    beside: another model of the same file, whose weights serve this one too where they are on the device; it has to be
        closed after this one.
    """
    from engine.backends.opencl.platforms import devices

    on = next(d for d in devices() if f"opencl:{d.index}" == device.id)
    if on.executor == "simt":
        from engine.backends.opencl.gpu_model import GpuModel

        if weight_budget is not None:
            raise OutOfMemoryError(f"{device.name} has too little memory for the weights.", "Choose a smaller model.")
        return GpuModel(
            file,
            graph,
            device=device,
            n_blocks=n_blocks,
            kv_type=kv_type,
            progress=progress,
            cancelled=cancelled,
            plan_only=plan_only,
            lent=beside.weights if isinstance(beside, GpuModel) else None,
        )
    from engine.backends.opencl.model import OpenCLModel

    return OpenCLModel(
        file,
        graph,
        device=device,
        n_blocks=n_blocks,
        kv_type=kv_type,
        progress=progress,
        cancelled=cancelled,
        plan_only=plan_only,
        weight_budget=weight_budget,
        lent=beside.weights if isinstance(beside, OpenCLModel) else None,
    )


def free_memory_bytes(device: DeviceInfo) -> int:
    """What a device has free; all of its memory where its driver does not say."""
    from engine.backends.opencl.platforms import devices

    return next(d for d in devices() if f"opencl:{d.index}" == device.id).free_memory_bytes
