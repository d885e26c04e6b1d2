"""Model families: what a file's metadata and tensors mean, written as a graph of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from engine.architectures import (
    bert,
    command_r,
    deepseek2,
    gemma,
    glm4,
    glm4_moe,
    gpt_oss,
    granite,
    lfm2,
    llama,
    olmo2,
    phi3,
    qwen,
    smollm3,
    stablelm,
    starcoder2,
)
from engine.architectures.rope import FACTOR_TENSORS
from engine.errors import ModelFileError, UnsupportedModelError
from engine.gguf import GGUFFile
from engine.graph import Graph

ARCHITECTURES: Mapping[str, Callable[[GGUFFile, int], Graph]] = {
    "llama": llama.build,
    "qwen2": qwen.build,
    "qwen2moe": qwen.build,
    "qwen3": qwen.build,
    "qwen3moe": qwen.build,
    "gemma": gemma.build_gemma,
    "gemma2": gemma.build_gemma2,
    "gemma3": gemma.build_gemma3,
    "phi3": phi3.build,
    "granite": granite.build,
    "olmo2": olmo2.build,
    "smollm3": smollm3.build,
    "starcoder2": starcoder2.build,
    "stablelm": stablelm.build,
    "command-r": command_r.build,
    "gpt-oss": gpt_oss.build,
    "glm4": glm4.build,
    "glm4moe": glm4_moe.build,
    "deepseek2": deepseek2.build,
    "lfm2": lfm2.build,
    "bert": bert.build_bert,
    "nomic-bert": bert.build_nomic_bert,
    "nomic-bert-moe": bert.build_nomic_bert,
}
"""general.architecture -> what builds its graph for sequences of up to so many tokens."""


PREDICTING: Mapping[str, Callable[[GGUFFile, int], tuple[Graph, Graph]]] = {
    "glm4moe": glm4_moe.build_predicting,
    "deepseek2": deepseek2.build_predicting,
}
"""Those whose files may carry layers that predict further tokens: builds the model's graph and the first layer's."""


ENCODERS = frozenset({"bert", "nomic-bert", "nomic-bert-moe"})


@dataclass(frozen=True)
class Architecture:
    """A model file understood: `graph` is what runs.

    unused_tensors: what the file holds beside: parts of later formats. Answers are right without them.
    prediction: the graph of a layer that predicts further tokens (prediction.py), where the file carries a whole one.
    no_prediction: a sentence, where the file says that it carries one but does not.
    """

    name: str
    graph: Graph
    trained_context_length: int
    unused_tensors: tuple[str, ...] = ()
    prediction: Graph | None = None
    no_prediction: str = ""


def read_architecture(file: GGUFFile, context_length: int | None = None) -> Architecture:
    """Builds the graph of a model file.

    context_length: the longest sequence that will run, if not the longest that the model was trained for. Only
        longrope models depend on it: they rotate differently from a certain length on.

    Raises UnsupportedModelError for an architecture that is not in the list, and ModelFileError naming the key or
    tensor where the file contradicts itself.
    """
    trained = read_trained_context_length(file)
    context = context_length or trained
    graph, prediction, why = _build_predicting(file, context)
    if graph is None:
        graph = ARCHITECTURES[file.architecture](file, context)
    read = [*graph.weights(), *(prediction.weights() if prediction else ())]
    used = {weight.name for weight in read} | FACTOR_TENSORS
    unused = tuple(tensor for tensor in file.tensors if tensor not in used)
    return Architecture(file.architecture, graph, trained, unused, prediction, why)


def _build_predicting(file: GGUFFile, context_length: int) -> tuple[Graph | None, Graph | None, str]:
    """The model and a layer that predicts, where the file carries a whole one; else nothing, and why if it should."""
    count = file.int(f"{file.architecture}.nextn_predict_layers", 0, minimum=0, maximum=1 << 12)
    if not count or file.architecture not in PREDICTING:
        return None, None, ""
    try:
        return *PREDICTING[file.architecture](file, context_length), ""
    except (ModelFileError, UnsupportedModelError) as error:
        return None, None, f"The layer of this file that predicts further tokens cannot be used: {error.message}"


def read_trained_context_length(file: GGUFFile) -> int:
    """The longest sequence that a model was trained for, in tokens; read_architecture says what it raises."""
    name = file.architecture
    if file.metadata.get("general.type") == "adapter":
        raise UnsupportedModelError(
            f"{file.path.name} is an adapter, not a model.",
            "Load the model that it was trained on, and the adapter to it.",
        )
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path.name} is a model of the architecture {name!r}, which Realm does not run yet.", _hint(name)
        )
    return file.int(f"{name}.context_length", minimum=1, maximum=1 << 30)


POOLINGS = ("none", "mean", "cls", "last", "rank")
"""By their numbers in files."""


def read_pooling(file: GGUFFile) -> str:
    """The pooling that a file asks for, or nothing."""
    number = file.int(f"{file.architecture}.pooling_type", None, minimum=0, maximum=len(POOLINGS) - 1)
    return "" if number is None else POOLINGS[number]


def is_encoder(file: GGUFFile) -> bool:
    """Whether a model gives embeddings only; of an architecture that is not in the list False."""
    causal = file.metadata.get("general.architecture") not in ENCODERS
    return not file.bool(f"{file.metadata.get('general.architecture', '')}.attention.causal", causal)


def _hint(name: str) -> str:
    near = get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.4)
    others = ", ".join(sorted(set(ARCHITECTURES) - set(near)))
    if not near:
        return f"Architectures that work: {others}."
    return f"The nearest that work: {', '.join(near)}. The others: {others}."
