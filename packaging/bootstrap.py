"""From a fresh clone to a running Realm, with nothing but Python: `python packaging/bootstrap.py run`.

    run      open the window (without a display: the same chat in the terminal)
    test     run all tests; what follows goes to pytest
    check    ruff, mypy, the import contracts, and some seconds of damaged model files
    bench    measure the starter model on this machine; what follows goes to tests/tools/performance.py
    fuzz     open damaged model files for a minute; --seconds N and --seed S for more and for others
    conformance   compare with the reference data and write docs/conformance.md
    fetch-models  fetch the larger models that slow tests use (2 GB) into the folder that follows
    package  build a wheel and a source archive into dist/
    lock     write the lock files anew (needs uv)
    clean    remove what the other commands made in this folder, .venv included

Each makes .venv from the lock file first, where it is missing or out of date. `make run` and so on call this file.
"""

# Old Pythons must be able to read this file, which tells them that they are too old; the other modules are imported
# only after that.

import os
import shutil
import sys

OLDEST = (3, 11)
NEWEST = (3, 14)
COMMANDS = (
    "run",
    "test",
    "check",
    "bench",
    "fuzz",
    "conformance",
    "fetch-models",
    "package",
    "lock",
    "clean",
)


def main(arguments: "list[str]") -> int:
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print(__doc__)
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"There is no command {arguments[0]}; choose of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if sys.version_info < OLDEST:
        return use_newer_python(arguments)
    from pathlib import Path

    sys.path.append(str(Path(__file__).resolve().parent.parent))  # for app.system_libraries
    import tasks

    try:
        return tasks.TASKS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        print()
        return 130


def use_newer_python(arguments: "list[str]") -> int:
    """Hand over to a newer Python where PATH has one, else say what is needed."""
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        newer = shutil.which(f"python3.{minor}")
        if newer:
            os.execv(newer, [newer, __file__, *arguments])
    print(
        f"Realm needs Python 3.11 or newer; this is Python {sys.version.split()[0]} ({sys.executable}).\n"
        f"Install a newer one, then name it: make {arguments[0]} PYTHON=python3.12",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
