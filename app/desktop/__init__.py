"""The window: Qt widgets, view models, theming. The only place that imports PySide6."""

from __future__ import annotations

import ctypes
import sys


def _keep_none_alive() -> None:
    """Works around PySide6 6.12.0, which gives up a reference to None at every call that returns nothing.

    Python 3.12 and later do not count references to None. Before that the count reaches zero after some ten thousand
    calls, and the interpreter aborts; a count that no program can use up prevents it.
    """
    if sys.implementation.name == "cpython" and sys.version_info < (3, 12):
        ctypes.c_ssize_t.from_address(id(None)).value += 1 << 48


_keep_none_alive()
