"""LoRA adapters: read from GGUF files and PEFT folders, checked, and matched with the model they act on."""

from engine.adapters.adapter import Adapter, LowRank
from engine.adapters.base import AdapterBase, BoundAdapter
from engine.adapters.read import is_adapter, read_adapter

__all__ = ["Adapter", "AdapterBase", "BoundAdapter", "LowRank", "is_adapter", "read_adapter"]
