"""What every part of the controller works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from app.desktop.background import Background
from app.desktop.chat_session import ConversationLike, Listener
from app.desktop.model_service import EngineLike, ModelService
from app.desktop.preferences import Preferences
from app.desktop.theme import Themes
from app.desktop.window import MainWindow
from app.store import ChatStore
from engine.api import DeviceInfo


@dataclass(frozen=True)
class Services:
    """How to come by everything outside the window. The functions run on other threads, save open_conversation."""

    open_store: Callable[[], ChatStore]
    open_spare_store: Callable[[], ChatStore]  # one that forgets, for when the history cannot be opened
    make_engine: Callable[[], EngineLike]
    list_devices: Callable[[], Iterable[DeviceInfo]]
    open_conversation: Callable[[EngineLike, ChatStore, int | None, Listener], ConversationLike]
    fetch_starter: Callable[..., Path]
    models_dir: Callable[[], Path]


@dataclass
class Desk:
    """The window and what stands behind it. `store` is None until the history has been opened."""

    window: MainWindow
    themes: Themes
    service: ModelService
    background: Background
    services: Services
    preferences: Preferences = field(default_factory=Preferences)
    store: ChatStore | None = None
