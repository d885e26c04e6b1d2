"""The command `realm-desktop`: looks whether a window can be opened, and opens it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from app.desktop.display import Display, find_display, tell


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status when the window is closed; 1 where none could be opened, after saying why."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    display = Display() if {"-h", "--help"} & set(arguments) else find_display()
    if display.trouble:
        tell(display.trouble)
        return 1
    if display.platform:
        os.environ["QT_QPA_PLATFORM"] = display.platform
    from app.desktop.main import main as open_window  # imports Qt, which may not even load

    return open_window(arguments)


if __name__ == "__main__":
    sys.exit(main())
