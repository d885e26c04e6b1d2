"""Model files: opening, checking and reading GGUF."""

from engine.gguf.file import GGUFFile, release_pages, will_need
from engine.gguf.metadata import REQUIRED
from engine.gguf.tensors import TensorInfo

__all__ = ["REQUIRED", "GGUFFile", "TensorInfo", "release_pages", "will_need"]
