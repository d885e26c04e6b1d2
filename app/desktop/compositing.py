"""Whether windows may be transparent: on X11 that takes a compositor, without which their clear parts are black."""

from __future__ import annotations

import ctypes
from functools import cache

from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QWidget


def make_translucent(widget: QWidget) -> bool:
    """Makes a window's own ground clear, where it may be; elsewhere the style sheet makes its corners square."""
    clear = QGuiApplication.platformName() != "xcb" or has_compositor()
    if clear:
        widget.setAttribute(Qt.WidgetAttribute.WA_TranslucentBackground)
    widget.setProperty("square", not clear)
    return clear


@cache
def has_compositor() -> bool:
    """Whether somebody owns the selection by which X11's compositors make themselves known, as it was first asked."""
    try:
        xcb = ctypes.CDLL("libxcb.so.1")
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return True
    for function in (xcb.xcb_connect, xcb.xcb_intern_atom_reply, xcb.xcb_get_selection_owner_reply):
        function.restype = ctypes.c_void_p
    xcb.xcb_intern_atom.restype = xcb.xcb_get_selection_owner.restype = _Cookie
    screen = ctypes.c_int(0)
    connection = ctypes.c_void_p(xcb.xcb_connect(None, ctypes.byref(screen)))

    def word(reply: int | None) -> int:
        """The first word of a reply after its head of 8 bytes; 0 where there is none."""
        if not reply:
            return 0
        found = ctypes.c_uint32.from_address(reply + 8).value
        free(ctypes.c_void_p(reply))
        return found

    try:
        if xcb.xcb_connection_has_error(connection):
            return True
        name = f"_NET_WM_CM_S{screen.value}".encode()
        asked = xcb.xcb_intern_atom(connection, ctypes.c_uint8(0), ctypes.c_uint16(len(name)), name)
        atom = word(xcb.xcb_intern_atom_reply(connection, asked, None))
        asked = xcb.xcb_get_selection_owner(connection, ctypes.c_uint32(atom))
        return word(xcb.xcb_get_selection_owner_reply(connection, asked, None)) != 0
    finally:
        xcb.xcb_disconnect(connection)


class _Cookie(ctypes.Structure):
    _fields_ = (("sequence", ctypes.c_uint),)
