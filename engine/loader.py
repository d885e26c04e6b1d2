"""From a model file and a choice of device to a model that is ready to step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.adapters import AdapterBase
from engine.api import KV_TYPES, DeviceInfo, LoadOptions, ModelInfo
from engine.architectures import read_architecture, read_pooling, read_trained_context_length
from engine.backends.split import SplitModel
from engine.batch import ENCODER_BLOCKS, KV_BLOCK, LoadedModel, MemoryUse, PartModel, Progress
from engine.chat_template import ChatTemplate
from engine.devices import choose_device, total_memory_bytes, why_numpy
from engine.errors import ModelFileError, OutOfMemoryError, RequestError
from engine.fingerprint import model_fingerprint
from engine.gguf import GGUFFile
from engine.graph import Graph, layer_starts, split
from engine.memory_plan import MemoryPlan, plan_memory
from engine.tokenizer import Tokenizer

DEFAULT_CONTEXT = 8192
"""Context length where neither the user nor the model says less."""

NUMPY_BUDGET_BYTES = 2 << 30
"""The numpy backend keeps at most this many bytes of expanded weights, or a quarter of the machine's memory."""


@dataclass(frozen=True)
class LoadedBundle:
    model: LoadedModel
    tokenizer: Tokenizer
    template: ChatTemplate | None
    info: ModelInfo
    base: AdapterBase


def load_model(
    path: Path, options: LoadOptions, progress: Progress, cancelled: Callable[[], bool] = lambda: False
) -> LoadedBundle:
    """Opens, checks and loads a model.

    Raises ModelFileError, UnsupportedModelError, TokenizerError, TemplateError, RequestError for options that cannot
    be, and DeviceError. When `cancelled` turns true the load ends early with a model that must not be used; its caller
    closes it.
    """
    began = time.perf_counter()
    if options.kv_type not in KV_TYPES:
        raise RequestError(
            f"Keys and values cannot be kept as {options.kv_type!r}.", f"Choose one of {', '.join(KV_TYPES)}."
        )
    progress("reading", 0.0, path.name)
    file = GGUFFile.open(path)
    trained = read_trained_context_length(file)
    wanted = _context_length(options)
    pooling = read_pooling(file)
    default = min(trained, DEFAULT_CONTEXT)
    architecture = read_architecture(file, wanted or default)
    graph = architecture.graph
    tokenizer = Tokenizer.from_gguf(file)
    template = ChatTemplate.from_gguf(file, tokenizer)
    if tokenizer.n_vocab > graph.n_vocab:
        raise ModelFileError(
            f"The vocabulary of {path.name} has {tokenizer.n_vocab} tokens, "
            f"but its tensor 'token_embd.weight' has only {graph.n_vocab} rows.",
            "The file is damaged or was converted wrongly; download it again.",
        )
    progress("reading", 1.0, path.name)
    places = choose_places(options.device, graph)
    device = places[0].device
    planned = _plan(file, graph, places, options, wanted, default)
    context = planned.context_length
    blocks = _blocks(graph, options, context)
    budget = planned.weight_budget
    model = _place_all(file, places, blocks, options.kv_type, progress, cancelled, weight_budget=budget)
    memory = model.memory()
    types = Counter[str]()
    for info in file.tensors.values():
        types[info.type.name] += info.n_values
    notes = list(tokenizer.warnings)
    if options.device == "auto" and device.id == "numpy":
        notes.append(f"numpy computes, slower than OpenCL would: {why_numpy()}")
    if planned.weight_budget is not None:
        notes.append(
            f"{device.name} has {planned.free_bytes / 1e6:.0f} MB for this model, too little for its weights: "
            f"{planned.streamed_bytes / 1e6:.0f} MB of them are read from the file in every step, so answers come "
            "at the speed of the disk."
        )
    if planned.limited:
        notes.append(
            f"{device.name} has {planned.free_bytes / 1e9:.1f} GB free, so the context is {context} tokens long "
            f"instead of {default}."
        )
    if architecture.unused_tensors:
        names = architecture.unused_tensors
        notes.append(
            f"{len(names)} tensors of the file belong to parts that Realm does not run and were left out: "
            f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}."
        )
    if template is None and graph.causal:
        notes.append("This model carries no chat template; a plain one is used.")
    if context > trained:
        notes.append(
            f"The context of {context} tokens is longer than the {trained} "
            "that the model was trained for; answers may lose coherence."
        )
    return LoadedBundle(
        model,
        tokenizer,
        template,
        ModelInfo(
            path=path,
            name=file.str("general.name", "") or path.stem,
            architecture=architecture.name,
            parameters=sum(types.values()),
            quantisation=types.most_common(1)[0][0],
            file_bytes=file.size,
            context_length=context,
            trained_context_length=trained,
            vocab_size=graph.n_vocab,
            device=model.device,
            weight_bytes=memory.weight_bytes,
            kv_bytes=memory.kv_bytes,
            scratch_bytes=memory.scratch_bytes,
            has_chat_template=template is not None,
            load_s=time.perf_counter() - began,
            predicted_peak_bytes=planned.peak_bytes,
            is_encoder=not graph.causal,
            pooling=pooling,
            fingerprint=model_fingerprint(file, graph),
            notes=tuple(notes),
        ),
        AdapterBase.of(file, graph),
    )


def plan_model(path: Path, options: LoadOptions) -> MemoryPlan:
    """What load_model would take, without loading; raises what that raises."""
    with GGUFFile.open(path) as file:
        trained = read_trained_context_length(file)
        wanted, default = _context_length(options), min(trained, DEFAULT_CONTEXT)
        graph = read_architecture(file, wanted or default).graph
        Tokenizer.from_gguf(file)  # it is part of what the process takes
        return _plan(file, graph, choose_places(options.device, graph), options, wanted, default)


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


def _place_all(
    file: GGUFFile,
    places: list[Place],
    n_blocks: int,
    kv_type: str,
    progress: Progress,
    cancelled: Callable[[], bool],
    plan_only: bool = False,
    weight_budget: int | None = None,
) -> LoadedModel:
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
    return parts[0] if len(parts) == 1 else SplitModel(parts[0], parts[1], places[0].n_layers)


def _plan(
    file: GGUFFile, graph: Graph, places: list[Place], options: LoadOptions, wanted: int | None, default: int
) -> MemoryPlan:
    def predict(context: int, budget: int | None = None) -> MemoryUse:
        if budget is not None and len(places) > 1:
            raise OutOfMemoryError("The layers are on two devices.", "Give more of them to the other one.")
        return _place_all(
            file,
            places,
            _blocks(graph, options, context),
            options.kv_type,
            lambda *_: None,
            lambda: False,
            plan_only=True,
            weight_budget=budget,
        ).memory()

    name = file.str("general.name", "") or file.path.stem
    # what two devices share is set against the memory of the one that has less of its own: the host's, if it is one
    device = min((place.device for place in places), key=lambda d: d.kind != "cpu")
    return plan_memory(predict, device=device, name=name, wanted=wanted, default=default, limit=options.memory_limit)


def _blocks(graph: Graph, options: LoadOptions, context: int) -> int:
    return -(-max(context, options.kv_tokens or 0) // KV_BLOCK) * (1 if graph.causal else ENCODER_BLOCKS)


def _context_length(options: LoadOptions) -> int | None:
    if options.context_length is not None and not 1 <= options.context_length <= 1 << 22:
        raise RequestError(
            f"A context length of {options.context_length} tokens is not possible.",
            f"Choose between 1 and {1 << 22}.",
        )
    return options.context_length


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
) -> PartModel:
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
    )
