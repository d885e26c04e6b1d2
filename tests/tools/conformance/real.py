"""Real models: greedy steps along the reference's tokens, and perplexity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.api import LoadOptions
from engine.batch import LoadedModel
from engine.gguf import GGUFFile
from engine.loader import load_model
from engine.measure import measure_perplexity
from engine.measure.logits import sequence_batch
from engine.quantize import plan_quantisation, quantize_file
from tests.tools.conformance.table import Section, attempt
from tests.tools.llama2c import convert

_TEXT = """\
Six to ten prompts of 48 greedy steps each, run along the reference's own tokens: the steps whose likeliest token is the
reference's greedy or exact one, and in brackets of those whose margin is above 0.5, which must all agree. Perplexity of
a text of 4096 characters in chunks of 512 tokens: within 0.1 % of the exact one on numpy, 1.5 % of llama.cpp's on
OpenCL."""
_MARGIN = 0.5
_CONTEXT = 512


def real_models(fixtures: Path, folders: list[Path], scratch: Path) -> dict[str, Path]:
    """Name in the reference data -> file, of those that are here. The stories are converted and quantised here."""
    found: dict[str, Path] = {}
    for path in sorted((fixtures / "real_models").glob("*.json")):
        name = json.loads(path.read_text(encoding="utf-8"))["file"]
        here = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if here is not None:
            found[path.stem] = here
    checkpoint = next((folder / "stories15M.bin" for folder in folders if (folder / "stories15M.bin").is_file()), None)
    vocabulary = fixtures / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    if checkpoint is not None and vocabulary.is_file():
        whole, small = scratch / "stories15M.gguf", scratch / "stories15M-q4_0.gguf"
        convert(checkpoint, vocabulary, whole)
        with GGUFFile.open(whole) as file:
            quantize_file(file, plan_quantisation(file, "Q4_0", output_type="Q6_K"), small, overwrite=True)
        found |= {"stories15m": whole, "stories15m-q4_0": small}
    return found


def compare_real_models(
    fixtures: Path, models: dict[str, Path], wanted: Callable[[str], bool], say: Callable[[str], None]
) -> Section:
    section = Section(
        "Real models",
        _TEXT,
        ("Model", "Device", "Greedy steps", "Perplexity", "exact", "llama.cpp's"),
    )
    left_out = []
    for path in sorted((fixtures / "real_models").glob("*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        name = path.stem
        if name not in models:
            section.rows.append((name, "", "the model is not here", "", "", ""))
            continue
        if not wanted(name):
            left_out.append(name)
            continue
        for device in ("numpy", "opencl"):
            say(f"{name} on {device}")
            cells = {"perplexity": ""}

            def compare(
                name: str = name, known: dict[str, Any] = known, device: str = device, cells: dict[str, str] = cells
            ) -> str:
                what = f"{name} on {device}"
                greedy, cells["perplexity"] = _compare(section, what, models[name], known, device)
                return greedy

            greedy = attempt(section, f"{name} on {device}", compare)
            expected = known["perplexity"]
            section.rows.append(
                (name, device, greedy, cells["perplexity"], f"{expected['exact_ppl']:.4f}", f"{expected['ppl']:.4f}")
            )
    if left_out:
        section.notes.append(
            f"Not measured this time: {', '.join(left_out)}. `make conformance ARGS=--slow` measures these too."
        )
    return section


def _compare(section: Section, what: str, path: Path, known: dict[str, Any], device: str) -> tuple[str, str]:
    expected = known["perplexity"]
    bundle = load_model(path, LoadOptions(device=device, context_length=_CONTEXT), lambda *_: None)
    try:
        same = clear = agreeing = steps = 0
        for case in known["cases"]:
            found = _likeliest(bundle.model, case["prompt_ids"], case["greedy_ids"])
            for step, token in enumerate(found):
                good = token in (case["greedy_ids"][step], case["exact_top1"][step])
                counts = min(case["margin"][step], case["exact_margin"][step]) > _MARGIN
                same, steps = same + good, steps + 1
                clear, agreeing = clear + counts, agreeing + (good and counts)
        greedy = section.judged(f"{what}, greedy", f"{same}/{steps} ({agreeing}/{clear})", agreeing == clear)
        tokens = bundle.tokenizer.encode(expected["text"], add_special=False)
        bos = bundle.tokenizer.bos if bundle.tokenizer.add_bos else None
        value = measure_perplexity(bundle.model, tokens, expected["n_ctx"], bos).value
        aim, most = (expected["exact_ppl"], 0.001) if device == "numpy" else (expected["ppl"], 0.015)
        off = value / aim - 1
        perplexity = section.judged(f"{what}, perplexity", f"{value:.4f} ({off:+.3%})", abs(off) <= most)
        return greedy, perplexity
    finally:
        bundle.model.close()


def _likeliest(model: LoadedModel, prompt: list[int], greedy: list[int]) -> list[int]:
    """The likeliest token of each greedy step."""
    tokens = np.asarray([*prompt, *greedy[:-1]], np.int32)
    best: list[int] = []
    for start in range(0, len(tokens), model.max_rows):
        stop = min(start + model.max_rows, len(tokens))
        wanted = np.arange(max(start, len(prompt) - 1), stop, dtype=np.int32) - np.int32(start)
        best += model.forward(sequence_batch(tokens, start, stop, wanted)).argmax(axis=1).tolist()
    return best
