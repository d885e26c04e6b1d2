"""From a model file and a choice of device to a model that is ready to step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from engine.adapters import AdapterBase
from engine.api import KV_TYPES, LoadOptions, ModelInfo
from engine.architectures import read_architecture, read_pooling, read_trained_context_length
from engine.batch import LoadedModel, PredictionModel, Progress
from engine.chat_template import ChatTemplate
from engine.devices import why_numpy
from engine.errors import ModelFileError, RequestError
from engine.fingerprint import model_fingerprint
from engine.gguf import GGUFFile
from engine.memory_plan import MemoryPlan
from engine.placement import blocks_for, place_all, place_beside, plan_beside, plan_places
from engine.tokenizer import Tokenizer

DEFAULT_CONTEXT = 8192
"""Context length where neither the user nor the model says less."""


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
    places, planned = plan_places(file, graph, options, wanted, default)
    device = places[0].device
    context = planned.context_length
    blocks = blocks_for(graph, options, context)
    budget = planned.weight_budget
    model = place_all(file, places, blocks, options.kv_type, progress, cancelled, weight_budget=budget)
    memory = model.memory()
    types = Counter[str]()
    for info in file.tensors.values():
        types[info.type.name] += info.n_values
    notes = list(tokenizer.warnings)
    if options.device == "auto" and device.id == "numpy":
        notes.append(f"numpy computes, slower than OpenCL would: {why_numpy()}")
    if len(places) > 1:
        n = places[0].n_layers
        notes.append(f"{n} layers are on {device.name}, the others on {places[1].device.name}.")
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
    if architecture.no_prediction:
        notes.append(architecture.no_prediction)
    if template is None and graph.causal:
        notes.append("This model carries no chat template; a plain one is used.")
    if context > trained:
        notes.append(
            f"The context of {context} tokens is longer than the {trained} "
            "that the model was trained for; answers may lose coherence."
        )
    fingerprint, adapters = model_fingerprint(file, graph), AdapterBase.of(file, graph)
    file.release_pages()  # beside what was read there are pages that the system mapped around it
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
            predicts=architecture.prediction is not None,
            pooling=pooling,
            fingerprint=fingerprint,
            notes=tuple(notes),
        ),
        adapters,
    )


def load_prediction(
    model: LoadedModel, info: ModelInfo, options: LoadOptions, progress: Progress, cancelled: Callable[[], bool]
) -> PredictionModel:
    """Loads the layer of a loaded model's file that predicts further tokens, onto the same device. Of the options only
    those of the cache count. Raises as load_model."""
    progress("reading", 0.0, info.path.name)
    file = GGUFFile.open(info.path)
    architecture = read_architecture(file, info.context_length)
    if architecture.prediction is None:
        raise RequestError(
            architecture.no_prediction or f"{info.path.name} carries no layer that predicts further tokens.",
            "Guess by a smaller model, or from the text itself (n-gram).",
        )
    return place_beside(file, architecture.prediction, model, options.kv_type, progress, cancelled)


def plan_model(path: Path, options: LoadOptions) -> MemoryPlan:
    """What load_model would take, without loading; raises what that raises."""
    with GGUFFile.open(path) as file:
        trained = read_trained_context_length(file)
        wanted, default = _context_length(options), min(trained, DEFAULT_CONTEXT)
        architecture = read_architecture(file, wanted or default)
        graph, layer = architecture.graph, architecture.prediction
        Tokenizer.from_gguf(file)  # it is part of what the process takes
        places, plan = plan_places(file, graph, options, wanted, default)
        if layer is None:
            return plan
        blocks, budget = blocks_for(graph, options, plan.context_length), plan.weight_budget
        model = place_all(file, places, blocks, options.kv_type, _nothing, lambda: False, True, budget)
        return replace(plan, layer=plan_beside(file, layer, model, options.kv_type))


def _nothing(stage: str, fraction: float, detail: str) -> None:
    pass


def _context_length(options: LoadOptions) -> int | None:
    if options.context_length is not None and not 1 <= options.context_length <= 1 << 22:
        raise RequestError(
            f"A context length of {options.context_length} tokens is not possible.",
            f"Choose between 1 and {1 << 22}.",
        )
    return options.context_length
