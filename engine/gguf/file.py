"""Opening a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.gguf.metadata import TypedKeys
from engine.gguf.tensors import TensorInfo


class GGUFFile(TypedKeys):
    """A model file, checked and memory-mapped; see TypedKeys for int(), float(), bool(), str(), strings(), ...

    Attributes:
        path: of the file (the first part, where the model is split).
        version: of the format, 2 or 3.
        alignment: of tensor data, in bytes.
        size: bytes of the file, or of all parts.
        metadata: key -> int, float, bool, str, numeric np.ndarray or list[str].
        value_types: key -> what the file calls the value's type, "uint32", "array of 49152 strings".
        tensors: name -> TensorInfo, in the file's order.
    """

    path: Path
    version: int
    alignment: int
    size: int
    metadata: Mapping[str, Any]
    value_types: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUFFile:
        """Maps and checks a file. Raises ModelFileError or UnsupportedModelError."""
        raise NotImplementedError(path)

    def data(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor: read-only uint8 [n_rows, row_bytes], a view onto the map."""
        raise NotImplementedError(name)

    def close(self) -> None:
        """Lets go of the map. Arrays that data() gave stay valid: they keep it alive."""
