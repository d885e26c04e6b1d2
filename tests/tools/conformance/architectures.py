"""Tiny models of every family against the logits of the same weights in exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from engine.architectures import read_architecture
from engine.gguf import GGUFFile
from engine.measure import logits_of
from tests.backends.memory_file import load
from tests.tools.conformance.table import Section, attempt, nmse, number

_TEXT = """\
Models with random weights, run along the reference's own 48 tokens of prompt and 31 greedy ones. NMSE is that of all
logits against those of the same weights in exact arithmetic; "llama.cpp's own" is what its usual path, which rounds
activations, comes to on the prompt. Bounds: 1e-6 on numpy (1e-5 where the reference looks GELU up in a table), 1.5
times llama.cpp's own on OpenCL over the same positions. Greedy: at how many of the reference's 32 greedy steps Realm
finds the same token likeliest, and in brackets of those whose margin is above 0.3, which must all agree."""
_GELU_FROM_A_TABLE = ("gemma", "starcoder2")
_MARGIN = 0.3
_CONTEXT = 512


def compare_architectures(fixtures: Path, say: Callable[[str], None]) -> Section:
    section = Section(
        "Architectures",
        _TEXT,
        (
            "Model",
            "Architecture",
            "Weights",
            "NMSE, numpy",
            "NMSE, OpenCL",
            "llama.cpp's own",
            "Greedy, numpy",
            "Greedy, OpenCL",
        ),
    )
    for path in sorted((fixtures / "tiny_models").glob("*.gguf")):
        say(path.stem)
        reference = dict(np.load(path.with_suffix(".npz")))
        file = GGUFFile.open(path)
        types = {info.type.name for info in file.tensors.values() if len(info.shape) > 1} - {"F32"}
        own = nmse(reference["logits"], reference["exact_logits"][: len(reference["logits"])])
        errors, greedy = [], []
        for device in ("numpy", "opencl"):
            cells = {"greedy": ""}

            def compare(device: str = device, cells: dict[str, str] = cells) -> str:
                name = f"{path.stem} on {device}"  # noqa: B023
                logits = _logits(file, reference, device)  # noqa: B023
                error, good = _error(path.stem, reference, logits, device)  # noqa: B023
                cells["greedy"] = section.judged(f"{name}, greedy", *_greedy(reference, logits))  # noqa: B023
                return section.judged(name, number(error), good)

            errors.append(attempt(section, f"{path.stem} on {device}", compare))
            greedy.append(cells["greedy"])
        architecture = file.architecture
        section.rows.append(
            (path.stem, architecture, ", ".join(sorted(types)), *errors, number(own), *greedy),
        )
    return section


def _logits(file: GGUFFile, reference: dict[str, Any], device: str) -> Any:
    graph = read_architecture(file, _CONTEXT).graph
    model = load(device, cast("Any", file), graph, n_blocks=8)
    tokens = np.concatenate([reference["prompt"], reference["greedy"]])[: len(reference["exact_logits"])]
    try:
        return logits_of(model, tokens.tolist())
    finally:
        model.close()


def _error(name: str, reference: dict[str, Any], logits: Any, device: str) -> tuple[float, bool]:
    """The NMSE over all positions and whether it is in bounds. On OpenCL the bound holds over the prompt."""
    exact = reference["exact_logits"]
    error = nmse(logits, exact)
    if device == "numpy":
        return error, error <= (1e-5 if name.startswith(_GELU_FROM_A_TABLE) else 1e-6)
    n = len(reference["logits"])
    return error, nmse(logits[:n], exact[:n]) <= 1.5 * nmse(reference["logits"], exact[:n])


def _greedy(reference: dict[str, Any], logits: Any) -> tuple[str, bool]:
    """Along the reference's tokens: how often the likeliest token is its greedy one or the exact one."""
    greedy, exact = reference["greedy"], reference["exact_top1"]
    first = len(reference["prompt"]) - 1
    found = logits[first : first + len(greedy)].argmax(axis=1)
    n = len(found)
    same = (found == greedy[:n]) | (found == exact[-len(greedy) :][:n])
    clear = np.minimum(reference["margin"][:n], reference["exact_margin"][-len(greedy) :][:n]) > _MARGIN
    return f"{same.sum()}/{n} ({(same & clear).sum()}/{clear.sum()})", bool(same[clear].all())
