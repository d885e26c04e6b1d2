"""Whether a window can be opened on this Linux machine, asked before Qt is, which would abort the process."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from app.system_libraries import find_manager, line_to_type, missing_libraries, packages_of

USE_TERMINAL = "`realm chat` works without a window."


def display_trouble(environment: Mapping[str, str] = os.environ) -> str | None:
    """Why no window can be opened here and what to do, in sentences; None where one can, or where it is not known."""
    chosen = environment.get("QT_QPA_PLATFORM", "")
    if not sys.platform.startswith("linux") or chosen not in ("", "xcb", "wayland"):
        return None
    x11 = environment.get("DISPLAY") and chosen != "wayland"
    wayland = environment.get("WAYLAND_DISPLAY") and chosen != "xcb"
    if wayland and not _load_error(_plugin("libqwayland.so")):
        return None
    if wayland and not x11:
        return _missing_sentence(_plugin("libqwayland.so"))
    if not x11:
        asked = f" of the kind that QT_QPA_PLATFORM={chosen} asks for" if chosen else ""
        return f"There is no display{asked} (DISPLAY and WAYLAND_DISPLAY say which). {USE_TERMINAL}"
    plugin = _plugin("libqxcb.so")
    if _load_error(plugin):
        return _missing_sentence(plugin)
    if not _display_answers():
        return f"The display {environment['DISPLAY']} does not answer (DISPLAY names it). {USE_TERMINAL}"
    return None


def tell(sentence: str) -> None:
    """Says it where it is seen: on standard error, and for who started Realm with a double click in a box."""
    print(f"realm-desktop: {sentence}", file=sys.stderr)
    if sys.stderr.isatty() or not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    boxes = (
        ["zenity", "--error", "--no-markup", f"--text={sentence}"],
        ["kdialog", "--error", sentence],
        ["xmessage", sentence],
    )
    for command in boxes:
        program = shutil.which(command[0])
        if program is not None:
            subprocess.Popen([program, *command[1:]], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return


def _missing_sentence(plugin: Path) -> str:
    missing = missing_libraries([plugin])
    if not missing:
        return f"Qt's part for this display cannot be loaded: {_load_error(plugin)}. {USE_TERMINAL}"
    manager = find_manager()
    advice = "Install the packages of your system that contain them"
    if manager is not None and (packages := packages_of(missing, manager)):
        advice += f": {line_to_type(manager, packages)}"
    return f"The window needs system libraries that are missing here: {', '.join(missing)}. {advice}\n{USE_TERMINAL}"


def _plugin(name: str) -> Path:
    spec = importlib.util.find_spec("PySide6")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0] if places else ".") / "Qt" / "plugins" / "platforms" / name


def _load_error(plugin: Path) -> str:
    """What the system's loader says against it; empty where it can be loaded. Qt itself may lie elsewhere."""
    if not plugin.exists():
        return ""
    try:
        ctypes.CDLL(str(plugin))
    except OSError as error:
        return str(error) or "unknown"
    return ""


def _display_answers() -> bool:
    """Whether an X server lets us in, as libxcb finds the one that DISPLAY names."""
    try:
        xcb = ctypes.CDLL("libxcb.so.1")
    except OSError:
        return True  # Qt brings none of its own: it will say so
    xcb.xcb_connect.restype = ctypes.c_void_p
    xcb.xcb_connect.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    xcb.xcb_connection_has_error.argtypes = [ctypes.c_void_p]
    xcb.xcb_disconnect.argtypes = [ctypes.c_void_p]
    connection = xcb.xcb_connect(None, None)
    failed = xcb.xcb_connection_has_error(connection)
    xcb.xcb_disconnect(connection)
    return not failed
