"""Whether a window can be opened on this Linux machine, asked before Qt is, which would abort the process."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app.system_libraries import find_manager, line_to_type, missing_libraries, packages_of

USE_TERMINAL = "`realm chat` works without a window."


ANSWER_S = 5.0
"""For how long a Wayland display may be busy with other things before it counts as dead; Qt would wait for ever."""


@dataclass(frozen=True)
class Display:
    """Where a window would open: the value for QT_QPA_PLATFORM, empty where Qt finds it by itself; or why none can be
    opened and what to do, in sentences."""

    platform: str = ""
    trouble: str = ""


def find_display(environment: Mapping[str, str] = os.environ) -> Display:
    """The display that Qt would use, Wayland before X11, passing over one that is named but dead."""
    chosen = environment.get("QT_QPA_PLATFORM", "")
    kinds = [name.partition(":")[0] for name in chosen.split(";")] if chosen else ["wayland", "xcb"]
    if not sys.platform.startswith("linux") or not {"xcb", "wayland"}.issuperset(kinds):
        return Display()
    named = {"xcb": environment.get("DISPLAY"), "wayland": _wayland_named(environment, chosen)}
    kinds = [kind for kind in kinds if named[kind]]
    troubles: list[str] = []
    for kind in kinds:
        trouble = _x11_trouble(environment) if kind == "xcb" else _wayland_trouble(environment)
        if not trouble:
            return Display(kind if troubles else "")
        troubles.append(trouble)
    if troubles:
        return Display(trouble=" ".join([*dict.fromkeys(troubles), USE_TERMINAL]).replace("\n ", "\n"))
    asked = f" of the kind that QT_QPA_PLATFORM={chosen} asks for" if chosen else ""
    return Display(trouble=f"There is no display{asked} (DISPLAY and WAYLAND_DISPLAY say which). {USE_TERMINAL}")


def _wayland_named(environment: Mapping[str, str], chosen: str) -> bool:
    """Whether Qt would look for a Wayland display; one that is asked for has a name without being given one."""
    if environment.get("WAYLAND_DISPLAY") or environment.get("WAYLAND_SOCKET"):
        return True
    socket_path = _wayland_socket(environment)
    return bool(chosen) and socket_path is not None and socket_path.exists()


def _wayland_trouble(environment: Mapping[str, str]) -> str:
    plugin = _plugin("libqwayland.so")
    if _load_error(plugin):
        return _missing_sentence(plugin)
    if environment.get("WAYLAND_SOCKET") or _wayland_answers(_wayland_socket(environment), ANSWER_S):
        return ""
    name = environment.get("WAYLAND_DISPLAY") or "wayland-0"
    return f"The Wayland display {name} does not answer (WAYLAND_DISPLAY names it)."


def _x11_trouble(environment: Mapping[str, str]) -> str:
    plugin = _plugin("libqxcb.so")
    if _load_error(plugin):
        return _missing_sentence(plugin)
    if not _display_answers():
        return f"The display {environment['DISPLAY']} does not answer (DISPLAY names it)."
    return ""


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
        return f"Qt's part for this display cannot be loaded: {_load_error(plugin)}."
    manager = find_manager()
    advice = "Install the packages of your system that contain them"
    if manager is not None and (packages := packages_of(missing, manager)):
        advice += f": {line_to_type(manager, packages)}"
    return f"The window needs system libraries that are missing here: {', '.join(missing)}. {advice}\n"


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


def _wayland_socket(environment: Mapping[str, str]) -> Path | None:
    """Where libwayland looks for it; None where nothing says which folder it is in."""
    name, folder = environment.get("WAYLAND_DISPLAY") or "wayland-0", environment.get("XDG_RUNTIME_DIR")
    if name.startswith("/"):
        return Path(name)
    return Path(folder, name) if folder else None


def _wayland_answers(path: Path | None, patience_s: float) -> bool:
    """Whether a compositor reads there: it is asked for a sign (wl_display.sync) and has to give one."""
    if path is None:
        return False
    display, callback, sync, size = 1, 2, 0, 12
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(patience_s)
        try:
            asked.connect(str(path))
            asked.sendall(struct.pack("=III", display, size << 16 | sync, callback))
            return bool(asked.recv(1))
        except OSError:
            return False
