"""What Realm takes from a Linux system: which of it is missing, and how to get it there. Standard library only.

PySide6 brings Qt itself; OpenGL, X11 and font libraries come from the distribution. PoCL, which is installed along for
x86-64, brings its compiler but calls the system's linker for every kernel.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from console import say

# What ldd calls a library -> its package for apt, dnf, pacman, zypper.
_PACKAGES: dict[str, tuple[str, str, str, str]] = {
    "libEGL.so.1": ("libegl1", "libglvnd-egl", "libglvnd", "libEGL1"),
    "libGL.so.1": ("libgl1", "libglvnd-glx", "libglvnd", "libGL1"),
    "libGLX.so.0": ("libglx0", "libglvnd-glx", "libglvnd", "libGLX0"),
    "libOpenGL.so.0": ("libopengl0", "libglvnd-opengl", "libglvnd", "libOpenGL0"),
    "libGLdispatch.so.0": ("libglvnd0", "libglvnd", "libglvnd", "libglvnd"),
    "libX11.so.6": ("libx11-6", "libX11", "libx11", "libX11-6"),
    "libX11-xcb.so.1": ("libx11-xcb1", "libX11-xcb", "libx11", "libX11-xcb1"),
    "libxcb.so.1": ("libxcb1", "libxcb", "libxcb", "libxcb1"),
    "libxcb-cursor.so.0": ("libxcb-cursor0", "xcb-util-cursor", "xcb-util-cursor", "libxcb-cursor0"),
    "libxcb-glx.so.0": ("libxcb-glx0", "libxcb", "libxcb", "libxcb-glx0"),
    "libxcb-icccm.so.4": ("libxcb-icccm4", "xcb-util-wm", "xcb-util-wm", "libxcb-icccm4"),
    "libxcb-image.so.0": ("libxcb-image0", "xcb-util-image", "xcb-util-image", "libxcb-image0"),
    "libxcb-keysyms.so.1": ("libxcb-keysyms1", "xcb-util-keysyms", "xcb-util-keysyms", "libxcb-keysyms1"),
    "libxcb-randr.so.0": ("libxcb-randr0", "libxcb", "libxcb", "libxcb-randr0"),
    "libxcb-render.so.0": ("libxcb-render0", "libxcb", "libxcb", "libxcb-render0"),
    "libxcb-render-util.so.0": (
        "libxcb-render-util0",
        "xcb-util-renderutil",
        "xcb-util-renderutil",
        "libxcb-render-util0",
    ),
    "libxcb-shape.so.0": ("libxcb-shape0", "libxcb", "libxcb", "libxcb-shape0"),
    "libxcb-shm.so.0": ("libxcb-shm0", "libxcb", "libxcb", "libxcb-shm0"),
    "libxcb-sync.so.1": ("libxcb-sync1", "libxcb", "libxcb", "libxcb-sync1"),
    "libxcb-util.so.1": ("libxcb-util1", "xcb-util", "xcb-util", "libxcb-util1"),
    "libxcb-xfixes.so.0": ("libxcb-xfixes0", "libxcb", "libxcb", "libxcb-xfixes0"),
    "libxcb-xinput.so.0": ("libxcb-xinput0", "libxcb", "libxcb", "libxcb-xinput0"),
    "libxcb-xkb.so.1": ("libxcb-xkb1", "libxcb", "libxcb", "libxcb-xkb1"),
    "libxkbcommon.so.0": ("libxkbcommon0", "libxkbcommon", "libxkbcommon", "libxkbcommon0"),
    "libxkbcommon-x11.so.0": ("libxkbcommon-x11-0", "libxkbcommon-x11", "libxkbcommon-x11", "libxkbcommon-x11-0"),
    "libSM.so.6": ("libsm6", "libSM", "libsm", "libSM6"),
    "libICE.so.6": ("libice6", "libICE", "libice", "libICE6"),
    "libdbus-1.so.3": ("libdbus-1-3", "dbus-libs", "dbus", "libdbus-1-3"),
    "libfontconfig.so.1": ("libfontconfig1", "fontconfig", "fontconfig", "fontconfig"),
    "libfreetype.so.6": ("libfreetype6", "freetype", "freetype2", "libfreetype6"),
    "libglib-2.0.so.0": ("libglib2.0-0", "glib2", "glib2", "libglib-2_0-0"),
    "libgthread-2.0.so.0": ("libglib2.0-0", "glib2", "glib2", "libgthread-2_0-0"),
    "libgssapi_krb5.so.2": ("libgssapi-krb5-2", "krb5-libs", "krb5", "krb5"),
    "libbrotlidec.so.1": ("libbrotli1", "libbrotli", "brotli", "libbrotlidec1"),
    "libz.so.1": ("zlib1g", "zlib", "zlib", "libz1"),
    "libwayland-client.so.0": ("libwayland-client0", "libwayland-client", "wayland", "libwayland-client0"),
    "libwayland-cursor.so.0": ("libwayland-cursor0", "libwayland-cursor", "wayland", "libwayland-cursor0"),
    "libwayland-egl.so.1": ("libwayland-egl1", "libwayland-egl", "wayland", "libwayland-egl1"),
}
_FONTS = ("fonts-dejavu-core", "dejavu-sans-fonts", "ttf-dejavu", "dejavu-fonts")
_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/run/host/fonts")
_LINKER = (("gcc", "libc6-dev"), ("gcc",), ("gcc",), ("gcc", "glibc-devel"))
_GCC_FOLDERS = ("/usr/lib/gcc", "/usr/lib64/gcc")
_C_LIBRARIES = ("/usr/lib/x86_64-linux-gnu/libc.so", "/usr/lib64/libc.so", "/usr/lib/libc.so")
_FONT_ENDINGS = (".ttf", ".otf", ".ttc", ".pfb", ".pcf", ".pcf.gz")


@dataclass(frozen=True)
class PackageManager:
    """One distribution's installer; `column` is its place in the tables."""

    column: int
    install: tuple[str, ...]


_MANAGERS = {
    "apt-get": PackageManager(0, ("apt-get", "install", "-y", "--no-install-recommends")),
    "dnf": PackageManager(1, ("dnf", "install", "-y")),
    "pacman": PackageManager(2, ("pacman", "-S", "--needed", "--noconfirm")),
    "zypper": PackageManager(3, ("zypper", "install", "-y")),
}


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
    unknown = [name for name in libraries if name not in _PACKAGES]
    packages = {_PACKAGES[name][manager.column] for name in libraries if name in _PACKAGES}
    if fonts_missing:
        packages.add(_FONTS[manager.column])
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
    line = " ".join(shlex.quote(word) for word in command)
    say(f"Please type:  {'' if os.geteuid() == 0 else 'sudo '}{line}")
    return False


def find_manager() -> PackageManager | None:
    for name, manager in _MANAGERS.items():
        if shutil.which(name):
            return manager
    return None


def qt_binaries(pyside: Path, *, window: bool) -> list[Path]:
    """The files whose libraries decide whether Qt starts."""
    names = [*pyside.glob("QtWidgets.abi3.so"), *pyside.glob("QtSvg.abi3.so"), *pyside.glob("QtNetwork.abi3.so")]
    plugins = ["libqoffscreen.so"]
    if window:
        plugins.append("libqxcb.so")
        if os.environ.get("WAYLAND_DISPLAY"):
            plugins += ["libqwayland.so", "libqwayland-generic.so", "libqwayland-egl.so"]
    return names + [path for name in plugins for path in pyside.glob(f"Qt/plugins/platforms/{name}")]


def missing_libraries(binaries: list[Path]) -> list[str]:
    """Names of shared libraries that the dynamic linker does not find for these files, sorted."""
    if not binaries or not shutil.which("ldd"):
        return []
    command = ["ldd", *map(str, binaries)]
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    return parse_missing(result.stdout)


def parse_missing(ldd_output: str) -> list[str]:
    lines = (line.split() for line in ldd_output.splitlines())
    return sorted({words[0] for words in lines if words[1:4] == ["=>", "not", "found"]})


def has_fonts() -> bool:
    folders = [Path(folder).expanduser() for folder in _FONT_FOLDERS]
    return any(
        name.lower().endswith(_FONT_ENDINGS) for folder in folders for _, _, names in os.walk(folder) for name in names
    )
