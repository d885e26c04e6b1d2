"""Opening an adapter, whatever form it has."""

from __future__ import annotations

import os
from pathlib import Path

from engine.adapters.adapter import Adapter
from engine.adapters.gguf import read_gguf_adapter
from engine.adapters.peft import WEIGHTS, read_peft_adapter
from engine.adapters.peft_config import CONFIG
from engine.errors import AdapterError, RealmError
from engine.gguf import GGUFFile

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")


def read_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Reads an adapter: a GGUF file, a PEFT folder, or a safetensors file with its adapter_config.json beside it.

    Every number is read and checked. Raises AdapterError, or ModelFileError for a damaged GGUF file.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == "gguf":
        return read_gguf_adapter(path)
    return read_peft_adapter(path)


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether a path claims to be an adapter, damaged or not. Raises nothing."""
    path = Path(path)
    try:
        if path.is_dir():
            return any((path / name).exists() for name in (CONFIG, WEIGHTS, *_PICKLES))
        if path.suffix.lower() == ".safetensors" or path.name == CONFIG:
            return path.is_file()
        with GGUFFile.open(path) as file:
            return file.metadata.get("general.type") == "adapter"
    except (RealmError, OSError, ValueError):
        return False


def _kind(path: Path) -> str:
    try:
        if path.is_dir():
            return "peft"
        if not path.exists():
            raise AdapterError(f"There is no adapter at {path}.", "Check the path.")
        if not path.is_file():
            raise AdapterError(f"{path} is not an ordinary file.", "Choose an adapter.")
        with path.open("rb") as file:
            start = file.read(4)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(f"{path} could not be read: {reason}.", "Check the path.") from error
    if start == b"GGUF" or path.suffix.lower() == ".gguf":
        return "gguf"
    if path.suffix.lower() == ".safetensors" or path.name == CONFIG:
        return "peft"
    if path.name in _PICKLES or path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise AdapterError(
            f"{path.name} is a PyTorch checkpoint, which can run code when it is opened; Realm does not read it.",
            f"Save the adapter as {WEIGHTS}.",
        )
    raise AdapterError(
        f"{path.name} is no adapter that Realm knows.",
        f"Choose a GGUF file, a folder with {CONFIG} and {WEIGHTS}, or a safetensors file beside its {CONFIG}.",
    )
