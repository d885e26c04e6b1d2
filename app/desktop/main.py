"""The command `realm-desktop`: opens the window."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import threading
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType

from PySide6.QtCore import QCoreApplication
from PySide6.QtWidgets import QApplication

from app import paths
from app.desktop.background import Background
from app.desktop.chat_session import ConversationLike, Listener
from app.desktop.controller import Controller
from app.desktop.desk import Desk, Services
from app.desktop.icons import app_icon
from app.desktop.model_service import EngineLike, ModelService
from app.desktop.theme import Themes
from app.desktop.window import MainWindow
from app.store import ChatStore
from engine.api import DeviceInfo
from engine.kept import keep_in

log = logging.getLogger("realm.desktop")


def real_services() -> Services:
    """The engine, the history and the hub of this machine. Heavy imports wait until they are needed."""

    def make_engine() -> EngineLike:
        from engine.engine import Engine

        keep_in(paths.cache_dir())
        return Engine()

    def list_devices() -> list[DeviceInfo]:
        from engine.devices import list_devices

        return list_devices()

    def open_conversation(
        engine: EngineLike, store: ChatStore, chat_id: int | None, listen: Listener
    ) -> ConversationLike:
        from app.conversation import Conversation

        return Conversation(engine, store, chat_id, listen)

    def fetch_starter(*args: object) -> Path:
        from app.hub.starter import fetch_starter

        return fetch_starter(*args)  # type: ignore[arg-type]

    def open_spare_store() -> ChatStore:
        return ChatStore.open(Path(tempfile.mkdtemp(prefix="realm-")) / "chats.sqlite3")

    return Services(
        ChatStore.open, open_spare_store, make_engine, list_devices, open_conversation, fetch_starter, paths.models_dir
    )


def build(app: QApplication, services: Services, model_path: Path | None = None) -> tuple[MainWindow, Controller]:
    """The window and what drives it; `Controller.start` brings it to life."""
    themes = Themes(app)
    background = Background(app)
    service = ModelService(background, app)
    window = MainWindow(themes, service)
    return window, Controller(Desk(window, themes, service, background, services), model_path)


def start_log() -> Path:
    """Logs warnings and errors into a file; returns its path. Without a place to write they go to stderr."""
    log_file = paths.log_dir() / "realm-desktop.log"
    handler: logging.Handler
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(log_file, maxBytes=1_000_000, backupCount=2, encoding="utf-8")
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return log_file


def catch_unexpected(controller: Controller, log_file: Path) -> None:
    """Sends every exception that nobody caught to the log, and its summary to the window."""

    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            QCoreApplication.quit()
            return
        log.error("unexpected error", exc_info=(kind, error, trace))
        summary = f"{kind.__name__}: {error}".rstrip(": ")
        controller.desk.background.call(lambda: controller.show_unexpected(summary, log_file))

    sys.excepthook = report
    threading.excepthook = lambda args: report(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)


def main(argv: Sequence[str] | None = None) -> int:
    """Opens the window and returns the exit status when it is closed."""
    parser = argparse.ArgumentParser(prog="realm-desktop", description="Chat with language models on this computer.")
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file to open")
    options = parser.parse_args(argv)
    log_file = start_log()
    # How long another thread may keep Python's lock; 5 ms are usual, but the window's asks for it often in a frame.
    sys.setswitchinterval(0.001)
    QCoreApplication.setApplicationName("Realm")
    QCoreApplication.setOrganizationName("Realm")
    app = QApplication(sys.argv[:1])
    app.setApplicationDisplayName("Realm")
    app.setDesktopFileName("realm-desktop")
    app.setWindowIcon(app_icon())
    model = options.model.expanduser().absolute() if options.model is not None else None
    window, controller = build(app, real_services(), model)
    catch_unexpected(controller, log_file)
    window.show()
    controller.start()
    status = app.exec()
    controller.shut_down()
    return status


if __name__ == "__main__":
    sys.exit(main())
