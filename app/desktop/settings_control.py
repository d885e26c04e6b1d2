"""The settings dialog, and what its values change."""

from __future__ import annotations

from PySide6.QtCore import QObject

from app.desktop.chat_control import ChatControl
from app.desktop.desk import Desk
from app.desktop.message_control import MessageControl
from app.desktop.model_control import ModelControl
from app.desktop.settings_dialog import SettingsDialog, SettingsValues


class SettingsControl(QObject):
    """Opens the settings and makes them hold. `dialog` is None while it is closed."""

    def __init__(
        self, desk: Desk, chats: ChatControl, models: ModelControl, messages: MessageControl, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._desk = desk
        self._chats = chats
        self._models = models
        self._messages = messages
        self.dialog: SettingsDialog | None = None
        desk.window.settings_wanted.connect(self.open_settings)
        models.settings_wanted.connect(self.open_settings)

    def open_settings(self) -> None:
        """Opens the settings; the window stays usable."""
        if self.dialog is not None:
            self.dialog.raise_()
            self.dialog.activateWindow()
            return
        options = (
            self._chats.session.options if self._chats.session is not None else self._desk.preferences.chat_options()
        )
        values = SettingsValues(
            self._desk.themes.choice, self._desk.service.device, self._desk.service.context_length, options
        )
        dialog = SettingsDialog(self._desk.themes, values, self._desk.service.devices, self._desk.window)
        dialog.saved.connect(self.apply_settings)
        dialog.finished.connect(self._settings_closed)
        self.dialog = dialog
        dialog.show()

    def _settings_closed(self) -> None:
        if self.dialog is not None:
            self.dialog.deleteLater()
            self.dialog = None

    def apply_settings(self, values: SettingsValues) -> None:
        """Makes the settings hold: at once, for the open chat, and for what comes."""
        self._desk.themes.choose(values.theme)
        self._desk.preferences.set("theme", values.theme)
        self._desk.preferences.set_chat_options(values.options)
        session = self._chats.session
        if session is not None and values.options != session.options:
            self._messages.set_options(session, values.options)
        moved = (values.device, values.context_length) != (self._desk.service.device, self._desk.service.context_length)
        self._desk.service.device, self._desk.service.context_length = values.device, values.context_length
        self._desk.preferences.set("device", values.device)
        self._desk.preferences.set("context_length", values.context_length)
        if moved:
            self._models.reload()
