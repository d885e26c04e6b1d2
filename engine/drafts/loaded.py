"""What is loaded beside a model to guess for it: a draft model, or a layer of the model's own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.api import DraftInfo, LoadOptions, ModelInfo
from engine.architectures import read_trained_context_length
from engine.batch import LoadedModel, PredictionModel
from engine.gguf import GGUFFile
from engine.placement import whole_device
from engine.tokenizer.vocabulary import Vocabulary


class LoadedDraft:
    """The model, what its tokens are, and what a person is told of it. context_length: up to which it guesses."""

    def __init__(self, model: LoadedModel, vocabulary: Vocabulary, info: ModelInfo, fit: str) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.context_length = info.context_length
        notes = [note for note in info.notes if "chat template" not in note]
        self.info = DraftInfo(
            path=info.path,
            name=info.name,
            device=info.device,
            weight_bytes=info.weight_bytes,
            kv_bytes=info.kv_bytes,
            notes=(*((fit,) if fit else ()), *notes),
        )


class LoadedLayer:
    """A layer of the model's own file that predicts further tokens. context_length: the model's."""

    def __init__(self, model: PredictionModel, info: ModelInfo) -> None:
        """info: of the model."""
        memory = model.memory()
        self.model = model
        self.context_length = info.context_length
        self.info = DraftInfo(
            path=info.path,
            name=f"a layer of {info.name}",
            device=model.device,
            weight_bytes=memory.weight_bytes,
            kv_bytes=memory.kv_bytes,
        )


def draft_options(path: Path, options: LoadOptions, context_length: int, kv_tokens: int) -> LoadOptions:
    """How to load a draft for a model with this context, whose cache holds so many tokens of all requests: no longer
    than that, and than the draft was trained for. Of two devices that the model is divided between it takes the first.
    """
    with GGUFFile.open(path) as file:
        trained = read_trained_context_length(file)
    context = min(options.context_length or context_length, trained)
    device = whole_device(options.device)
    return replace(options, device=device, context_length=context, kv_tokens=options.kv_tokens or kv_tokens)
