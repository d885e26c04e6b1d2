"""What Realm takes from a Linux system: which of it is missing, and how to get it there. Standard library only.

PySide6 brings Qt itself; OpenGL, X11 and font libraries come from the distribution. PoCL, which is installed along for
x86-64, brings its compiler but calls the system's linker for every kernel.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from console import say

from app.system_libraries import (
    PACKAGES,
    PackageManager,
    find_manager,
    line_to_type,
    missing_libraries,
    packages_of,
)

_FONTS = ("fonts-dejavu-core", "dejavu-sans-fonts", "ttf-dejavu", "dejavu-fonts")
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/run/host/fonts")
_LINKER = (("gcc", "libc6-dev"), ("gcc",), ("gcc",), ("gcc", "glibc-devel"))
_GCC_FOLDERS = ("/usr/lib/gcc", "/usr/lib64/gcc")
_C_LIBRARIES = ("/usr/lib/x86_64-linux-gnu/libc.so", "/usr/lib64/libc.so", "/usr/lib/libc.so")
_FONT_ENDINGS = (".ttf", ".otf", ".ttc", ".pfb", ".pcf", ".pcf.gz")


def provide_for_qt(site_packages: Path, *, window: bool) -> None:
    """Get onto this system what Qt lacks, or say the one line that does. Never fails: Qt itself has the last word.

    window: also what a window on X11 or Wayland needs, beyond what the tests' invisible one does.
    """
    if not sys.platform.startswith("linux"):
        return
    libraries = missing_libraries(qt_binaries(site_packages / "PySide6", window=window))
    fonts_missing = not has_fonts()
    if not libraries and not fonts_missing:
        return
    wanted = ", ".join([*libraries, *(["any font"] if fonts_missing else [])])
    say(f"Qt needs of this system: {wanted}")
    manager = find_manager()
    if manager is None:
        say("Install what holds these with your system's package manager.")
        return
    unknown = [name for name in libraries if name not in PACKAGES]
    packages = packages_of(libraries, manager)
    if fonts_missing:
        packages.append(_FONTS[manager.column])
    if packages:
        install(manager, sorted(packages))
    if unknown:
        say(f"Not known here which package holds {', '.join(unknown)}.")


def provide_for_pocl() -> None:
    """Get the linker that PoCL's compiler calls onto this system, or say the one line that does. Never fails."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64" or has_linker():
        return
    say("OpenCL on the processor (PoCL) needs a linker and the C library's development files of this system")
    manager = find_manager()
    if manager is None:
        say("Install gcc with your system's package manager.")
    else:
        install(manager, list(_LINKER[manager.column]))


def has_linker() -> bool:
    """Whether clang, which is inside of PoCL, finds all that it hands to `ld`: gcc's own library and the C library."""
    own_library = any(path for folder in _GCC_FOLDERS for path in Path(folder).glob("x86_64*/*/crtbegin.o"))
    return bool(shutil.which("ld")) and own_library and any(Path(name).exists() for name in _C_LIBRARIES)


def install(manager: PackageManager, packages: list[str]) -> bool:
    """Install system packages where we may (apt, as root); otherwise print the line to type. True when installed."""
    command = [*manager.install, *packages]
    if manager.install[0] == "apt-get" and os.geteuid() == 0:
        say(f"Installing {' '.join(packages)}")
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update"], check=False, env=environment, **quiet)  # type: ignore[call-overload]
        result = subprocess.run(command, check=False, env=environment, text=True, **quiet)  # type: ignore[call-overload]
        if result.returncode == 0:
            return True
        say("apt-get could not: " + " ".join(result.stdout.strip().splitlines()[-1:]))
    say(f"Please type:  {line_to_type(manager, packages)}")
    return False


def qt_binaries(pyside: Path, *, window: bool) -> list[Path]:
    """The files whose libraries decide whether Qt starts."""
    names = [*pyside.glob("QtWidgets.abi3.so"), *pyside.glob("QtSvg.abi3.so"), *pyside.glob("QtNetwork.abi3.so")]
    plugins = ["libqoffscreen.so"]
    if window:
        plugins.append("libqxcb.so")
        if os.environ.get("WAYLAND_DISPLAY"):
            plugins += ["libqwayland.so", "libqwayland-generic.so", "libqwayland-egl.so"]
    return names + [path for name in plugins for path in pyside.glob(f"Qt/plugins/platforms/{name}")]


def has_fonts() -> bool:
    folders = [Path(folder).expanduser() for folder in _FONT_FOLDERS]
    return any(
        name.lower().endswith(_FONT_ENDINGS) for folder in folders for _, _, names in os.walk(folder) for name in names
    )
