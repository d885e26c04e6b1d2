"""The adapters of the open chat: added, switched and set in strength, at once and for later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtWidgets import QFileDialog

from app.conversation import (
    AdapterChoice,
    AdaptersInForce,
    AnswerFailed,
    AnswerStarted,
    ChatOptions,
    ConversationLoaded,
)
from app.conversation.options import adapters_from_json
from app.desktop.adapter_rack import AdapterRack
from app.desktop.adapter_shelf import AdapterShelf, adapter_name, is_adapter
from app.desktop.chat_control import ChatControl
from app.desktop.chat_session import ChatSession
from app.desktop.desk import Desk
from app.desktop.message_control import MessageControl
from app.desktop.model_control import ModelControl
from app.desktop.model_service import as_realm_error, model_name
from app.desktop.notices import Way
from engine.api import AdapterUse

DEBOUNCE_MS = 200
"""How long a slider rests before the engine hears of it: each change has all tokens so far computed anew."""
DEFAULTS = "model_adapters"


class AdapterControl(QObject):
    """Keeps the chat's choices, the engine and the rack in step. `rack` is None while the settings are closed."""

    rack_wanted = Signal()

    def __init__(
        self, desk: Desk, chats: ChatControl, models: ModelControl, messages: MessageControl, parent: QObject
    ) -> None:
        super().__init__(parent)
        self._desk = desk
        self._chats = chats
        self._models = models
        self._messages = messages
        self.shelf = AdapterShelf(desk.service, desk.background, self)
        self.rack: AdapterRack | None = None
        self._wanted: tuple[AdapterChoice, ...] | None = None  # until the timer has handed it on
        self._wanted_in: ChatSession | None = None
        self._of_model: Path | None = None
        self._rest = QTimer(self, singleShot=True, interval=DEBOUNCE_MS)
        self._rest.timeout.connect(self._hand_on)
        self._parked: set[Path] = set()  # switched off because they did not fit; back on when they do
        self.shelf.changed.connect(self._states_changed)
        desk.service.loaded.connect(lambda _model: self._model_changed())
        desk.service.changed.connect(self._notice_model)
        desk.window.file_dropped.connect(lambda name: self.take(Path(name)))
        desk.window.footer.adapters.clicked.connect(self.rack_wanted)
        chats.shown.connect(self._chat_shown)
        chats.told.connect(self._on_events)
        messages.new_chat_options = self._with_defaults
        messages.without_adapters = self.switch_all_off

    # What the chat uses

    @property
    def choices(self) -> tuple[AdapterChoice, ...]:
        """Those of the open chat, as last set."""
        session = self._chats.session
        if self._wanted is not None and session is self._wanted_in:
            return self._wanted
        return session.options.adapters if session is not None else ()

    def set_choices(self, choices: Sequence[AdapterChoice], at_once: bool = True) -> None:
        """Changes the open chat's adapters. at_once: else only after there was no other change for a while."""
        if self._wanted_in is not None and self._wanted_in is not self._chats.session:
            self._hand_on()
        if self._is_default():
            self._store_default(tuple(choices))
        self._wanted, self._wanted_in = tuple(choices), self._chats.session
        self._rest.start(0 if at_once else DEBOUNCE_MS)
        self.refresh()

    def _hand_on(self) -> None:
        self._rest.stop()
        wanted, session = self._wanted, self._wanted_in
        self._wanted = self._wanted_in = None
        if wanted is not None and session is not None and session.options.adapters != wanted:
            self._messages.set_options(session, replace(session.options, adapters=wanted))
        self.refresh()

    def switch(self, path: Path, on: bool) -> None:
        """Switches an adapter on or off."""
        self._parked.discard(path)
        self._change(path, on=on)

    def set_strength(self, path: Path, strength: float) -> None:
        """Sets how strongly an adapter acts, once the slider rests."""
        self._change(path, at_once=False, strength=strength)

    def _change(self, path: Path, at_once: bool = True, **values: object) -> None:
        changed = [replace(c, **values) if c.path == path else c for c in self.choices]  # type: ignore[arg-type]
        self.set_choices(changed, at_once)

    def remove(self, path: Path) -> None:
        """Takes an adapter out of the chat, with a way back."""
        before = self.choices
        self.set_choices([choice for choice in before if choice.path != path])
        self._desk.window.toast.offer(f"{adapter_name(path)} removed", "Undo", lambda: self.set_choices(before))

    def switch_all_off(self) -> None:
        """Has the chat answered by the model as it is."""
        self.set_choices([replace(choice, on=False) for choice in self.choices])
        self._hand_on()

    # Adding

    def add(self, paths: Sequence[Path]) -> None:
        """Puts adapters into the rack, switched on; one that is there already is read anew."""
        known = {choice.path for choice in self.choices}
        for path in paths:
            if path in known:
                self.shelf.look_again(path)
        new = [AdapterChoice(path) for path in dict.fromkeys(paths) if path not in known]
        if new:
            self.set_choices([*self.choices, *new])

    def take(self, path: Path) -> None:
        """Adds an adapter, or loads a model: whichever a dropped file is."""

        def then(adapter: bool) -> None:
            if not adapter:
                self._models.load_model(path)
                return
            self.add([path])
            if self.rack is None:
                self._desk.window.toast.offer(
                    f"{adapter_name(path)} is added to this chat", "Adapters…", self.rack_wanted.emit
                )

        def failed(error: Exception) -> None:
            known = as_realm_error(error, f"{path.name} could not be read.")
            self._desk.window.notices.show_notice("model", "error", known.message, known.hint)

        self._desk.background.run_long(partial(is_adapter, path), then, failed)

    def choose(self, folder: bool) -> None:
        """Lets the person choose files, or a folder; the dialog leaves the window alive."""
        dialog = QFileDialog(self.rack or self._desk.window, "Add an adapter")
        if folder:
            dialog.setFileMode(QFileDialog.FileMode.Directory)
            dialog.setOption(QFileDialog.Option.ShowDirsOnly)
        else:
            dialog.setFileMode(QFileDialog.FileMode.ExistingFiles)
            dialog.setNameFilters(["Adapters (*.gguf *.safetensors)", "All files (*)"])
        if self.choices:
            dialog.setDirectory(str(self.choices[-1].path.parent))
        dialog.filesSelected.connect(lambda names: self.add([Path(name) for name in names]))
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    # Defaults of a model

    def _stored_default(self) -> tuple[AdapterChoice, ...] | None:
        model = self._desk.service.model
        stored = self._desk.preferences.mapping(DEFAULTS).get(str(model.path)) if model is not None else None
        if stored is None:
            return None
        try:
            return adapters_from_json(stored)
        except (TypeError, KeyError, ValueError, AttributeError):
            return None

    def _is_default(self) -> bool:
        return self._stored_default() == self.choices

    def _store_default(self, choices: tuple[AdapterChoice, ...] | None) -> None:
        model = self._desk.service.model
        if model is None:
            return
        stored = dict(self._desk.preferences.mapping(DEFAULTS))
        if choices:
            stored[str(model.path)] = ChatOptions(adapters=choices).as_json()["adapters"]
        else:
            stored.pop(str(model.path), None)
        self._desk.preferences.set(DEFAULTS, stored)

    def set_default(self, on: bool) -> None:
        """Has every new chat with the loaded model begin with the adapters of this one, or with none."""
        self._store_default(self.choices if on else None)
        self.refresh()

    def _with_defaults(self, options: ChatOptions) -> ChatOptions:
        return replace(options, adapters=self._stored_default() or ())

    # Chats and models come and go

    def _notice_model(self) -> None:
        model = self._desk.service.model
        if (model.path if model is not None else None) != self._of_model:
            self._model_changed()

    def _model_changed(self) -> None:
        model = self._desk.service.model
        self._of_model = model.path if model is not None else None
        session = self._chats.session
        if model is not None and session is not None and session.loaded and not session.messages and not self.choices:
            default = self._stored_default()
            if session.chat_id is None and default:
                self.set_choices(default)
        self.refresh()

    def _chat_shown(self) -> None:
        if self._wanted_in is not None and self._wanted_in is not self._chats.session:
            self._hand_on()
        self.refresh()

    def _on_events(self, session: ChatSession, events: Sequence[object]) -> None:
        if session is not self._chats.session:
            return
        for event in events:
            if isinstance(event, AdaptersInForce):
                self._desk.window.notices.dismiss("adapters")
                if event.sentence:
                    self._desk.window.notices.show_notice(
                        "adapters", "warning", event.sentence, event.hint,
                        (Way("Adapters…", self.rack_wanted.emit, primary=True),),
                    )  # fmt: skip
        if any(isinstance(event, AnswerFailed) for event in events):
            for use in session.options.adapter_uses():  # a file may be gone, or another one now
                self.shelf.look_again(use.path)
        if any(isinstance(event, AdaptersInForce | AnswerStarted | ConversationLoaded) for event in events):
            self.refresh()
        elif not session.pending:
            self._show_in_force()

    def _states_changed(self) -> None:
        """What is found not to fit is switched off, for all to see; back on when it fits again."""
        states = {choice.path: self.shelf.state(choice.path) for choice in self.choices}
        off = [c.path for c in self.choices if c.on and states[c.path].problem]
        on = [c.path for c in self.choices if not c.on and c.path in self._parked and states[c.path].info is not None]
        self._parked = self._parked.union(off).difference(on)
        if off or on:
            self.set_choices([replace(c, on=c.path in on or (c.on and c.path not in off)) for c in self.choices])
        if off and self.rack is None and self._desk.window.notices.notice("answer") is None:
            state = states[off[0]]
            self._desk.window.notices.show_notice(
                "adapters", "warning", f"The adapter {adapter_name(off[0])} is switched off: {state.problem}",
                state.hint, (Way("Adapters…", self.rack_wanted.emit, primary=True),),
            )  # fmt: skip
        self.refresh()

    # What is seen

    def refresh(self) -> None:
        """Brings rack and footer up to date."""
        self.shelf.look_at(choice.path for choice in self.choices)
        self._show_in_force()

    def _show_in_force(self) -> None:
        sentence, short = self.in_force()
        self._desk.window.footer.show_adapters(short)
        if self.rack is not None:
            model = self._desk.service.model
            self.rack.show_adapters(
                self.choices,
                {choice.path: self.shelf.state(choice.path) for choice in self.choices},
                sentence if self.choices else "",
                model_name(model.path) if model is not None else "",
                bool(self.choices) and self._is_default(),
            )

    def in_force(self) -> tuple[str, str]:
        """What acts: as a sentence, and in a few words (empty for the model as it is)."""
        session = self._chats.session
        wanted = tuple(AdapterUse(choice.path, choice.strength) for choice in self.choices if choice.on)
        running = session is not None and session.pending
        if not running or session is None:
            if not wanted:
                return "All are off: the model answers as it is.", ""
            return f"The next answer: {self._words(wanted)}.", self._words(wanted)
        now = self._words(session.in_force) if session.in_force else "the model as it is"
        if session.in_force == wanted:
            return f"In force now: {now}.", self._words(wanted)
        then = self._words(wanted) if wanted else "the model as it is"
        return f"In force now: {now}. About to change to {then}.", f"{now} → {then}"

    def _words(self, uses: Sequence[AdapterUse]) -> str:
        return " + ".join(f"{adapter_name(use.path)} {use.strength:.2f}" for use in uses)

    def attach(self, rack: AdapterRack) -> None:
        """Shows the chat's adapters in a rack and answers it."""
        self.rack = rack
        rack.switched.connect(self.switch)
        rack.strength_set.connect(self.set_strength)
        rack.removed.connect(self.remove)
        rack.added.connect(self.add)
        rack.file_wanted.connect(partial(self.choose, False))
        rack.folder_wanted.connect(partial(self.choose, True))
        rack.default_wanted.connect(self.set_default)
        for path in (choice.path for choice in self.choices):
            if self.shelf.state(path).problem:
                self.shelf.look_again(path)
        self.refresh()

    def detach(self) -> None:
        """The rack is closed."""
        self._hand_on()
        self.rack = None
