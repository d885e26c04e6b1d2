"""The settings dialog, and what its values change."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtCore import QObject

from app.conversation import ChatOptions
from app.desktop.adapter_control import AdapterControl
from app.desktop.adapter_rack import AdapterRack
from app.desktop.chat_control import ChatControl
from app.desktop.desk import Desk
from app.desktop.message_control import MessageControl
from app.desktop.model_control import ModelControl
from app.desktop.model_service import as_realm_error
from app.desktop.settings_dialog import SettingsDialog
from app.desktop.settings_pages import AnswersPage, GeneralPage, SettingsValues


class SettingsControl(QObject):
    """Opens the settings and makes them hold. `dialog` is None while it is closed."""

    def __init__(
        self,
        desk: Desk,
        chats: ChatControl,
        models: ModelControl,
        messages: MessageControl,
        adapters: AdapterControl,
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._desk = desk
        self._chats = chats
        self._models = models
        self._messages = messages
        self._adapters = adapters
        self.dialog: SettingsDialog | None = None
        desk.window.settings_wanted.connect(lambda: self.open_settings())
        models.settings_wanted.connect(lambda: self.open_settings())
        adapters.rack_wanted.connect(lambda: self.open_settings("adapters"))
        messages.form_wanted.connect(lambda: self.open_settings("answers"))
        desk.window.footer.form.clicked.connect(lambda: self.open_settings("answers"))
        chats.shown.connect(self._show_form)
        chats.told.connect(lambda _session, _events: self._show_form())

    def open_settings(self, page: str = "general") -> None:
        """Opens the settings at a page; the window stays usable."""
        if self.dialog is not None:
            self.dialog.show_page(page)
            self.dialog.raise_()
            self.dialog.activateWindow()
            return
        options = (
            self._chats.session.options if self._chats.session is not None else self._desk.preferences.chat_options()
        )
        values = SettingsValues(
            self._desk.themes.choice, self._desk.service.device, self._desk.service.context_length, options,
            self._desk.store.sessions.budget_bytes if self._desk.store is not None else 0,
        )  # fmt: skip
        dialog = SettingsDialog(self._desk.themes, values, self._desk.service.devices, self._desk.window)
        dialog.saved.connect(self.apply_settings)
        dialog.built.connect(self._page_built)
        dialog.finished.connect(self._settings_closed)
        self.dialog = dialog
        dialog.show_page(page)
        dialog.tabs[page].setFocus()
        dialog.resize(min(dialog.width(), max(400, self._desk.window.width())), dialog.height())
        dialog.show()

    def _show_form(self) -> None:
        session = self._chats.session
        options = session.options if session is not None else ChatOptions()
        words = "JSON schema" if options.json_schema else "grammar" if options.grammar else ""
        self._desk.window.footer.show_form(words)

    def _settings_closed(self) -> None:
        if self.dialog is not None:
            self._adapters.detach()
            self.dialog.deleteLater()
            self.dialog = None

    def _page_built(self, name: str, page: object) -> None:
        if isinstance(page, GeneralPage):
            page.clear_wanted.connect(self._clear_sessions)
            self._look_at_sessions()
        elif isinstance(page, AnswersPage):
            page.shape_edited.connect(self._check_shape)
        elif isinstance(page, AdapterRack):
            self._adapters.attach(page)

    def _check_shape(self, shape: str, text: str) -> None:
        """Reads a schema or grammar on another thread; the page says what is wrong with it."""

        def check() -> str:
            from engine.grammar.gbnf import parse_gbnf
            from engine.grammar.schema import schema_gbnf

            parse_gbnf(schema_gbnf(text) if shape == "schema" else text)
            return ""

        def show(problem: str) -> None:
            if self.dialog is not None:
                self.dialog.answers.show_shape_problem(shape, text, problem)

        def failed(error: Exception) -> None:
            show(str(as_realm_error(error, "This could not be read.")))

        self._desk.background.run_long(check, show, failed)

    def _look_at_sessions(self) -> None:
        store = self._desk.store
        if store is not None:
            self._desk.background.run_long(lambda: store.sessions.used_bytes, self._show_session_use)

    def _show_session_use(self, used: int) -> None:
        if self.dialog is not None:
            self.dialog.general.show_session_use(used)

    def _clear_sessions(self) -> None:
        store = self._desk.store
        if store is not None:
            self._desk.background.run(lambda: store.sessions.keep_only(()), lambda _none: self._look_at_sessions())

    def apply_settings(self, values: SettingsValues) -> None:
        """Makes the settings hold: at once, for the open chat, and for what comes."""
        self._desk.themes.choose(values.theme)
        self._desk.preferences.set("theme", values.theme)
        self._desk.preferences.set_chat_options(values.options)
        session = self._chats.session
        if session is not None:
            # Adapters and guessing are set elsewhere, and may have been while the dialog was open.
            options = replace(values.options, adapters=session.options.adapters, draft=session.options.draft)
            if options != session.options:
                self._messages.set_options(session, options)
        store = self._desk.store
        if store is not None and values.session_budget != store.sessions.budget_bytes:
            self._desk.background.run(
                lambda: store.set_session_budget(values.session_budget), None, self._chats.saving_failed
            )
        moved = (values.device, values.context_length) != (self._desk.service.device, self._desk.service.context_length)
        self._desk.service.device, self._desk.service.context_length = values.device, values.context_length
        self._desk.preferences.set("device", values.device)
        self._desk.preferences.set("context_length", values.context_length)
        if moved:
            self._models.reload()
