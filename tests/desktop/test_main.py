"""The command itself, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

RUN_FOR_A_MOMENT = """
import sys, threading
from PySide6.QtCore import QCoreApplication

def quit_when_up():
    app = QCoreApplication.instance()
    if app is None:
        threading.Timer(0.2, quit_when_up).start()
    else:
        threading.Timer(2.0, app.quit).start()

quit_when_up()
from app.desktop.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_window_opens_and_closes_on_an_empty_data_folder(data_dir: Path):
    done = subprocess.run(
        [sys.executable, "-c", RUN_FOR_A_MOMENT], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (data_dir / "chats.sqlite3").exists()
    log = (data_dir / "logs" / "realm-desktop.log").read_text()
    assert "ERROR" not in log, log


def test_a_model_that_is_not_there_is_no_traceback(data_dir: Path):
    done = subprocess.run(
        [sys.executable, "-c", RUN_FOR_A_MOMENT, "/no/such/model.gguf"],
        cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_help_says_what_it_takes():
    done = subprocess.run(
        [sys.executable, "-m", "app.desktop.main", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "a GGUF file to open" in done.stdout
