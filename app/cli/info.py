"""`realm info MODEL`: what is in a model file, without loading it."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from typing import Any

from app.cli.models import STARTER, model_path, open_file
from app.cli.options import add_device_arguments, add_json_argument
from app.cli.terminal import bytes_text, count_text, printable, table, write_json
from engine.adapters import is_adapter, read_adapter
from engine.architectures import is_encoder, read_architecture, read_pooling
from engine.drafts.fit import check_draft
from engine.errors import RealmError
from engine.gguf import GGUFFile
from engine.memory_plan import MemoryPlan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Says what is in a model file: architecture, size, tensor types, vocabulary, template."
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="path of a GGUF file, the name starter, or a LoRA adapter (a file or PEFT folder)",
    )
    parser.add_argument("--tensors", action="store_true", help="list the tensors too")
    parser.add_argument("--plan", action="store_true", help="say what memory it would take, and whether that is there")
    add_device_arguments(parser)
    parser.add_argument(
        "--draft-for", metavar="MODEL", help="say whether this model can guess tokens for that one, and why not"
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    if args.draft_for is not None:
        return _run_draft_check(args)
    if args.model != STARTER and is_adapter(args.model):
        return _adapter_info(args)
    with open_file(args.model) as file:
        facts = model_facts(file)
        tensors = tensor_facts(file) if args.tensors else None
        plan = _plan(args) if args.plan else None
        if plan is not None:
            facts["plan"] = _plan_facts(plan)
        if args.json:
            scalars = {k: v for k, v in file.metadata.items() if isinstance(v, bool | int | float | str)}
            arrays = {key: file.value_types[key] for key in file.metadata if key not in scalars}
            answer = {**facts, "metadata": scalars, "arrays": arrays}
            write_json(answer if tensors is None else {**answer, "tensors": tensors})
            return 0
    print(table(_rows(facts)))
    if plan is not None:
        print()
        print(table(_plan_rows(plan)))
    if tensors is not None:
        print()
        rows = [["tensor", "type", "shape", "size"]]
        rows += [[t["name"], t["type"], " x ".join(map(str, t["shape"])), bytes_text(t["bytes"])] for t in tensors]
        print(table(rows))
    return 0


def _adapter_info(args: argparse.Namespace) -> int:
    adapter = read_adapter(args.model)
    info = adapter.info
    facts = {
        **asdict(info),
        "path": str(info.path),
        "targets": list(info.targets),
        "notes": list(info.notes),
    }
    matrices = [
        {"name": name, "rank": low.rank, "scale": low.scale, "a": list(low.a.shape), "b": list(low.b.shape)}
        for name, low in adapter.matrices.items()
    ]
    if args.json:
        write_json({"adapter": facts} | ({"tensors": matrices} if args.tensors else {}))
        return 0
    rows = [
        ("adapter", str(info.path)),
        ("name", info.name),
        ("kind", {"gguf": "LoRA in a GGUF file", "peft": "LoRA as PEFT saves it"}[info.kind]),
        ("architecture", info.architecture),
        ("trained on", info.base_model),
        ("rank", str(info.rank)),
        ("alpha", f"{info.alpha:g}, so that strength 1 multiplies by {info.scale:g}"),
        ("acts on", f"{', '.join(info.targets)} ({info.n_matrices} matrices)"),
        ("size", bytes_text(info.size_bytes)),
        *(("note", note) for note in info.notes),
    ]
    print(table([[label, printable(value)] for label, value in rows if value]))
    if args.tensors:
        print()
        head = ["tensor", "rank", "scale", "A", "B"]
        print(table([head, *([str(m[key]) for key in ("name", "rank", "scale", "a", "b")] for m in matrices)]))
    return 0


def _run_draft_check(args: argparse.Namespace) -> int:
    """Says whether a draft fits, from the metadata of both files; 1 where it does not."""
    fit = check_draft(model_path(args.draft_for), model_path(args.model))
    if args.json:
        write_json({"fits": fit.fits, "reason": fit.reason})
    else:
        print(printable(f"{'It fits.' if fit.fits else 'It does not fit:'} {fit.reason}".strip()))
    return 0 if fit.fits else 1


def model_facts(file: GGUFFile) -> dict[str, Any]:
    """What a person wants to know of a file first. Keys that a file lacks give None or 0."""
    architecture = file.str("general.architecture", "")
    prefix = f"{architecture}."
    types: dict[str, dict[str, int]] = {}
    for tensor in file.tensors.values():
        entry = types.setdefault(tensor.type.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["parameters"] += tensor.n_values
        entry["bytes"] += tensor.nbytes
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    weights = Counter({name: entry["parameters"] for name, entry in types.items()})
    return {
        "path": str(file.path),
        "file_bytes": file.size,
        "gguf_version": file.version,
        "architecture": architecture,
        "name": _scalar(file, "general.name"),
        "license": _scalar(file, "general.license"),
        "parameters": sum(weights.values()),
        "quantisation": weights.most_common(1)[0][0] if weights else None,
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
        "layers": _scalar(file, prefix + "block_count"),
        "embedding_length": _scalar(file, prefix + "embedding_length"),
        "heads": _scalar(file, prefix + "attention.head_count"),
        "kv_heads": _scalar(file, prefix + "attention.head_count_kv"),
        "context_length": _scalar(file, prefix + "context_length"),
        "vocab_size": len(tokens) if isinstance(tokens, list) else _scalar(file, prefix + "vocab_size"),
        "tokenizer": {"model": _scalar(file, "tokenizer.ggml.model"), "pre": _scalar(file, "tokenizer.ggml.pre")},
        "is_encoder": is_encoder(file),
        "pooling": read_pooling(file) or None,
        **_prediction(file),
        "has_chat_template": isinstance(file.metadata.get("tokenizer.chat_template"), str),
    }


def _prediction(file: GGUFFile) -> dict[str, Any]:
    """Of layers that predict further tokens: how many the file says that it has, whether one can guess, or why not."""
    count = _scalar(file, f"{file.metadata.get('general.architecture')}.nextn_predict_layers") or 0
    predicts, why = False, ""
    if count:
        try:
            architecture = read_architecture(file)
            predicts, why = architecture.prediction is not None, architecture.no_prediction
        except RealmError as error:
            why = error.message
    return {"prediction_layers": count, "predicts": predicts, "no_prediction": why or None}


def _prediction_text(facts: dict[str, Any]) -> str | None:
    if not facts["prediction_layers"]:
        return None
    if facts["predicts"]:
        return "a layer that predicts further tokens can guess (`--mtp`)"
    return facts["no_prediction"] or f"Realm uses no such layers of {facts['architecture']} models."


def _plan(args: argparse.Namespace) -> MemoryPlan:
    from engine.api import LoadOptions
    from engine.loader import plan_model

    options = LoadOptions(args.device, args.context_length, memory_limit=args.memory_limit, kv_type=args.kv_type)
    return plan_model(model_path(args.model), options)


def _plan_facts(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "device": plan.device.id,
        "context_length": plan.context_length,
        "weight_bytes": plan.weight_bytes,
        "kv_bytes": plan.kv_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "process_bytes": plan.process_bytes,
        "peak_bytes": plan.peak_bytes,
        "free_bytes": plan.free_bytes,
        "streamed_bytes": plan.streamed_bytes,
        "layer": plan.layer and asdict(plan.layer),
    }


def _plan_rows(plan: MemoryPlan) -> list[list[str]]:
    shorter = ", shortened to what fits" if plan.limited else ""
    return [
        ["device", f"{plan.device.name} ({plan.device.id})"],
        ["free", bytes_text(plan.free_bytes) if plan.free_bytes else "unknown"],
        ["weights", bytes_text(plan.weight_bytes)],
        ["keys and values", f"{bytes_text(plan.kv_bytes)} for a context of {plan.context_length} tokens{shorter}"],
        ["scratch", bytes_text(plan.scratch_bytes)],
        *([["from the file", f"{bytes_text(plan.streamed_bytes)} in every step"]] if plan.streamed_bytes else []),
        ["together", f"{bytes_text(plan.device_bytes)} on the device"],
        *([["with --mtp", _layer_text(plan, plan.layer.total_bytes)]] if plan.layer else []),
        ["process", f"{bytes_text(plan.peak_bytes)} at its peak, when one answer uses the whole context"],
    ]


def _layer_text(plan: MemoryPlan, more: int) -> str:
    lacks = bool(plan.free_bytes) and plan.device_bytes + more > plan.free_bytes
    return f"{bytes_text(more)} more" + ", which is not there: choose a shorter context" * lacks


def tensor_facts(file: GGUFFile) -> list[dict[str, Any]]:
    return [
        {"name": t.name, "type": t.type.name, "shape": list(t.shape), "bytes": t.nbytes} for t in file.tensors.values()
    ]


def _scalar(file: GGUFFile, key: str) -> Any:
    value = file.metadata.get(key)
    return value if isinstance(value, bool | int | float | str) else None


def _rows(facts: dict[str, Any]) -> list[list[str]]:
    parameters = facts["parameters"]
    types = ", ".join(f"{name} {100 * t['bytes'] / facts['file_bytes']:.0f} %" for name, t in facts["types"].items())
    tokenizer = facts["tokenizer"]
    rows = [
        ("file", facts["path"]),
        ("name", facts["name"]),
        ("architecture", facts["architecture"]),
        ("parameters", f"{count_text(parameters)} ({parameters})" if parameters else "none: a vocabulary only"),
        ("size", f"{bytes_text(facts['file_bytes'])} ({facts['file_bytes']} bytes)"),
        ("tensor types", types and f"{types} of the file"),
        ("layers", facts["layers"]),
        ("embedding", facts["embedding_length"]),
        ("heads", facts["heads"] and f"{facts['heads']}, {facts['kv_heads'] or facts['heads']} of keys and values"),
        ("context", facts["context_length"] and f"{facts['context_length']} tokens"),
        ("vocabulary", facts["vocab_size"] and f"{facts['vocab_size']} tokens"),
        ("tokenizer", " ".join(part for part in (tokenizer["model"], tokenizer["pre"]) if part)),
        ("chat template", "yes" if facts["has_chat_template"] else "no"),
        ("kind", "an encoder: it turns texts into vectors (`realm embed`) and cannot chat" * facts["is_encoder"]),
        ("pooling", facts["pooling"]),
        ("prediction", _prediction_text(facts)),
        ("license", facts["license"]),
    ]
    return [[label, printable(str(value))] for label, value in rows if value not in (None, "")]
