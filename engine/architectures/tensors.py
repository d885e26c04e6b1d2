"""Finding the tensors of an architecture in a model file, shapes checked."""

from __future__ import annotations

from engine.errors import ModelFileError
from engine.gguf import GGUFFile
from engine.graph import Weight


def matrix(file: GGUFFile, name: str, rows: int, columns: int) -> Weight:
    """The matrix [rows = outputs, columns = inputs]. Raises ModelFileError if it is missing or of another shape."""
    _check(file, name, (rows, columns))
    return Weight(name, rows, columns)


def vector(file: GGUFFile, name: str, length: int) -> Weight:
    _check(file, name, (length,))
    return Weight(name, 1, length)


def optional_vector(file: GGUFFile, name: str, length: int) -> Weight | None:
    return vector(file, name, length) if name in file.tensors else None


def _check(file: GGUFFile, name: str, shape: tuple[int, ...]) -> None:
    info = file.tensors.get(name)
    if info is None:
        raise ModelFileError(
            f"{file.path.name} lacks the tensor {name!r}, which a {file.architecture} model needs.",
            "The file is incomplete or was converted wrongly; download it again.",
        )
    if not info.has_shape(*shape):
        raise ModelFileError(
            f"The tensor {name!r} of {file.path.name} has the shape {list(info.shape)}, "
            f"but the model's metadata asks for {list(shape)}.",
            "The file is damaged or was converted wrongly; download it again.",
        )
