"""Which layers of a model go onto which device, and putting them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from engine.api import DeviceInfo, LoadOptions
from engine.backends.split import SplitModel
from engine.batch import (
    ENCODER_BLOCKS,
    KV_BLOCK,
    KeepsRows,
    LoadedModel,
    MemoryUse,
    PartModel,
    PredictionModel,
    Progress,
)
from engine.devices import choose_device, list_devices, total_memory_bytes
from engine.errors import OutOfMemoryError, RequestError
from engine.gguf import GGUFFile
from engine.graph import Graph, layer_starts, split
from engine.memory_plan import MemoryPlan, free_memory_bytes, plan_memory

NUMPY_BUDGET_BYTES = 2 << 30
"""The numpy backend keeps at most this many bytes of expanded weights, or a quarter of the machine's memory."""


@dataclass(frozen=True)
class Place:
    """Some layers of a model, as a graph, and the device that they are on."""

    device: DeviceInfo
    graph: Graph
    n_layers: int = 0  # 0: all that there are


def choose_places(wanted: str, graph: Graph) -> list[Place]:
    """The devices of LoadOptions.device, each with its part of the graph. Raises DeviceError and RequestError."""
    name, comma, rest = wanted.partition(",")
    if not comma:
        return [Place(choose_device(wanted), graph)]
    first, equals, count = name.partition("=")
    starts = layer_starts(graph)
    if not equals or not count.isdecimal() or not 1 <= int(count) <= len(starts):
        raise RequestError(
            f"{wanted!r} does not say how many layers the first of two devices takes.",
            f"Write it like opencl:0={max(1, len(starts) // 2)},numpy; this model can be cut after 1 to {len(starts)}."
            if starts
            else "The layers of this model cannot be divided; choose one device.",
        )
    parts = split(graph, int(count))
    devices = (choose_device(first), choose_device(rest))
    return [Place(devices[0], parts[0], int(count)), Place(devices[1], parts[1])]


def whole_device(wanted: str) -> str:
    """LoadOptions.device for a model that stays whole beside one that is divided so: the first of the two devices."""
    name, comma, _ = wanted.partition(",")
    return name.partition("=")[0] if comma else wanted


def place_all(
    file: GGUFFile,
    places: list[Place],
    n_blocks: int,
    kv_type: str,
    progress: Progress,
    cancelled: Callable[[], bool],
    plan_only: bool = False,
    weight_budget: int | None = None,
) -> LoadedModel:
    """Puts the parts of a model where they belong; weight_budget: see engine.backends.opencl.load."""
    parts: list[PartModel] = []
    try:
        for place in places:
            budget = weight_budget if len(places) == 1 else None
            parts.append(
                _place(file, place.graph, place.device, n_blocks, kv_type, progress, cancelled, plan_only, budget)
            )
    except BaseException:
        for part in parts:
            part.close()
        raise
    if len(parts) == 1:
        return parts[0]
    return SplitModel((parts[0], parts[1]), (places[0].graph, places[1].graph), places[0].n_layers)


def place_beside(
    file: GGUFFile, graph: Graph, model: LoadedModel, kv_type: str, progress: Progress, cancelled: Callable[[], bool]
) -> PredictionModel:
    """Puts a layer onto the device of the model that it belongs to, with a cache for as many tokens; weights that both
    read are there once. Raises OutOfMemoryError."""
    device = _last(model).device
    wanted, free = plan_beside(file, graph, model, kv_type).total_bytes, free_memory_bytes(device)
    if free and wanted > free:
        raise OutOfMemoryError(
            f"The layer that guesses takes {wanted / 1e9:.2f} GB, but {device.name} has {free / 1e9:.2f} GB free.",
            "Load the model with a shorter context, or guess from the text itself (n-gram).",
        )
    placed = _place(file, graph, device, model.n_blocks, kv_type, progress, cancelled, beside=_last(model))
    assert isinstance(placed, KeepsRows)
    return cast("PredictionModel", placed)


def plan_beside(file: GGUFFile, graph: Graph, model: LoadedModel, kv_type: str) -> MemoryUse:
    """What place_beside takes on the device, of a model that may be planned only."""
    last = _last(model)
    return _place(
        file, graph, last.device, model.n_blocks, kv_type, lambda *_: None, lambda: False, plan_only=True, beside=last
    ).memory()


def _last(model: LoadedModel) -> LoadedModel:
    return model.last if isinstance(model, SplitModel) else model


def plan_places(
    file: GGUFFile, graph: Graph, options: LoadOptions, wanted: int | None, default: int
) -> tuple[list[Place], MemoryPlan]:
    """Where the model goes, and what it takes there.

    A model that is too large for a GPU goes onto it as far as it fits; the other layers are computed by the CPU.

    wanted: the context length that was asked for, if one was; default: what it is else, where that fits.
    Raises DeviceError, RequestError and OutOfMemoryError.
    """
    places = choose_places(options.device, graph)
    limit = options.memory_limit
    try:
        return places, _plan(file, graph, places, options, wanted, default, limit)
    except OutOfMemoryError:
        gpu = places[0].device
        if len(places) > 1 or gpu.kind == "cpu":
            raise
        shared = _shared(file, graph, gpu, options, wanted or default)
        if shared is None:
            raise
        return shared, _plan(file, graph, shared, options, wanted, default, None)


def _shared(file: GGUFFile, graph: Graph, gpu: DeviceInfo, options: LoadOptions, context: int) -> list[Place] | None:
    """As many of the first layers on the GPU as fit, the others on the CPU; None where not even one fits."""
    host = next((d for d in list_devices() if d.kind == "cpu" and not d.problem and d.id != gpu.id), None)
    free = free_memory_bytes(gpu)
    free = min(free, options.memory_limit or free) if free else options.memory_limit or 0
    if host is None or not free:
        return None
    blocks = blocks_for(graph, options, context)

    def fits(n: int) -> bool:
        try:
            part = _place(
                file, split(graph, n)[0], gpu, blocks, options.kv_type, lambda *_: None, lambda: False, plan_only=True
            )
        except OutOfMemoryError:
            return False
        return part.memory().total_bytes <= free

    low, high = 0, len(layer_starts(graph)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if not low:
        return None
    first, second = split(graph, low)
    return [Place(gpu, first, low), Place(host, second)]


def _plan(
    file: GGUFFile,
    graph: Graph,
    places: list[Place],
    options: LoadOptions,
    wanted: int | None,
    default: int,
    limit: int | None,
) -> MemoryPlan:
    """Of two places the one in main memory counts; both, where both are there."""
    counted = [place for place in places if place.device.kind == "cpu"] or places

    def predict(context: int, budget: int | None = None) -> MemoryUse:
        if budget is not None and len(places) > 1:
            raise OutOfMemoryError("The layers are on two devices.", "Give more of them to the other one.")
        return place_all(
            file,
            counted,
            blocks_for(graph, options, context),
            options.kv_type,
            lambda *_: None,
            lambda: False,
            plan_only=True,
            weight_budget=budget,
        ).memory()

    name = file.str("general.name", "") or file.path.stem
    return plan_memory(predict, device=counted[0].device, name=name, wanted=wanted, default=default, limit=limit)


def blocks_for(graph: Graph, options: LoadOptions, context: int) -> int:
    return -(-max(context, options.kv_tokens or 0) // KV_BLOCK) * (1 if graph.causal else ENCODER_BLOCKS)


def _place(
    file: GGUFFile,
    graph: Graph,
    device: DeviceInfo,
    n_blocks: int,
    kv_type: str,
    progress: Progress,
    cancelled: Callable[[], bool],
    plan_only: bool = False,
    weight_budget: int | None = None,
    beside: LoadedModel | None = None,
) -> PartModel:
    """beside: a model of the same file on the same device, which lends the weights that both read."""
    if device.id == "numpy":
        from engine.backends.numpy_backend import NumpyModel

        budget = min(NUMPY_BUDGET_BYTES, (total_memory_bytes() or 8 << 30) // 4)
        if weight_budget is not None:
            budget = min(budget, weight_budget)
        return NumpyModel(
            file,
            graph,
            n_blocks=n_blocks,
            kv_type=kv_type,
            device=device,
            budget_bytes=budget,
            progress=progress,
            cancelled=cancelled,
            plan_only=plan_only,
            beside=beside,
        )
    from engine.backends import opencl

    return opencl.load(
        file,
        graph,
        device=device,
        n_blocks=n_blocks,
        kv_type=kv_type,
        progress=progress,
        cancelled=cancelled,
        plan_only=plan_only,
        weight_budget=weight_budget,
        beside=beside,
    )
