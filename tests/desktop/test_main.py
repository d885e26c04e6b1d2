"""The command itself, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

RUN_FOR_A_MOMENT = """
import sys
from PySide6.QtCore import QTimer
from app.desktop.controller import Controller
from app.desktop.main import main

start = Controller.start

def start_and_close_soon(self):
    start(self)
    QTimer.singleShot(2500, self.desk.window.close)

Controller.start = start_and_close_soon
sys.exit(main(sys.argv[1:]))
"""


def test_the_window_opens_and_closes_on_an_empty_data_folder(data_dir: Path):
    done = subprocess.run(
        [sys.executable, "-c", RUN_FOR_A_MOMENT], cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (data_dir / "chats.sqlite3").exists()
    log = (data_dir / "logs" / "realm-desktop.log").read_text()
    assert "ERROR" not in log, log


def test_a_model_that_is_not_there_is_no_traceback(data_dir: Path):
    done = subprocess.run(
        [sys.executable, "-c", RUN_FOR_A_MOMENT, "/no/such/model.gguf"],
        cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_help_says_what_it_takes():
    done = subprocess.run(
        [sys.executable, "-m", "app.desktop.start", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "a GGUF file to open" in done.stdout
