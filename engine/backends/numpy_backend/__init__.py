"""The reference backend: runs a graph with numpy in float32. Plain, exact, and slow next to OpenCL."""

from engine.backends.numpy_backend.model import NumpyModel

__all__ = ["NumpyModel"]
