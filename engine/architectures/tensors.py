"""Finding the tensors of an architecture in a model file, shapes checked."""

from __future__ import annotations

from math import prod

from engine.errors import ModelFileError
from engine.gguf import GGUFFile
from engine.graph import Weight


def matrix(file: GGUFFile, name: str, rows: int, columns: int) -> Weight:
    """The matrix [rows = outputs, columns = inputs]. Raises ModelFileError if it is missing or of another shape."""
    check_shape(file, name, (rows, columns))
    return Weight(name, rows, columns)


def matrices(file: GGUFFile, name: str, count: int, rows: int, columns: int) -> Weight:
    """A stack of `count` matrices [rows, columns]."""
    check_shape(file, name, (count, rows, columns))
    return Weight(name, count * rows, columns)


def vector(file: GGUFFile, name: str, *shape: int) -> Weight:
    """A vector; one that the file keeps as a matrix [a, b] comes as one of a * b numbers."""
    check_shape(file, name, shape)
    return Weight(name, 1, prod(shape))


def optional_vector(file: GGUFFile, name: str, *shape: int) -> Weight | None:
    return vector(file, name, *shape) if name in file.tensors else None


def check_shape(file: GGUFFile, name: str, shape: tuple[int, ...]) -> None:
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
