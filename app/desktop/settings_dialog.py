"""The settings. Every one of them changes what happens: the look, how answers are chosen, where models run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QButtonGroup,
    QDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QPushButton,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from app.conversation import ChatOptions
from app.desktop.adapter_rack import AdapterRack
from app.desktop.controls import Page, Segments, combo, spin
from app.desktop.model_popup import device_title, file_size
from app.desktop.sampling_page import SamplingPage
from app.desktop.theme import Themes
from engine.api import ContextPolicy, DeviceInfo

CONTEXT_CHOICES = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
BUDGETS = ((0, "None"), *((gib << 30, f"{gib} GiB") for gib in (1, 2, 4, 8, 16, 32)))
POLICIES = (
    (ContextPolicy.STOP, "Stop", "The answer ends there."),
    (ContextPolicy.DROP_OLDEST, "Drop oldest turns",
     "The oldest questions and answers after the system prompt are left out, and the answer goes on."),
    (ContextPolicy.SHIFT, "Shift",
     "The first tokens stay and the oldest after them go, wherever they are cut, and the answer goes on."),
)  # fmt: skip


@dataclass(frozen=True)
class SettingsValues:
    """All that the dialog sets when it is saved."""

    theme: str
    device: str
    context_length: int | None
    options: ChatOptions
    session_budget: int = 0  # bytes of disk for the saved caches of chats; 0 keeps none


class SettingsDialog(QDialog):
    """Edits a SettingsValues; `saved` carries the new one. The look changes at once, so that it can be seen, and the
    adapters act at once; whoever opens the dialog listens to `rack`."""

    saved = Signal(object)
    clear_wanted = Signal()  # the saved caches of chats

    def __init__(
        self, themes: Themes, values: SettingsValues, devices: Sequence[DeviceInfo], parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("Settings")
        self._themes = themes
        self._before = values
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        self._tabs = QHBoxLayout()
        self._tabs.setContentsMargins(20, 12, 20, 0)
        self._tabs.setSpacing(2)
        outer.addLayout(self._tabs)
        self._tab_group = QButtonGroup(self)
        line = QFrame(self)
        line.setObjectName("line")
        outer.addWidget(line)
        self._pages = QStackedWidget(self)
        outer.addWidget(self._pages, 1)
        self.tabs: dict[str, QPushButton] = {}
        self._add_page("general", "General", self._general(values, devices))
        self._add_page("answers", "Answers", self._answers(values.options))
        self.sampling = SamplingPage(themes, values.options.sampling)
        self._add_page("sampling", "Sampling", self.sampling)
        self.rack = AdapterRack(themes)
        self._add_page("adapters", "Adapters", self.rack)
        self._tabs.addStretch(1)
        outer.addLayout(self._foot())
        QShortcut(QKeySequence("Ctrl+Return"), self).activated.connect(self.save)
        for keys, step in (("Ctrl+Tab", 1), ("Ctrl+PgDown", 1), ("Ctrl+Shift+Tab", -1), ("Ctrl+PgUp", -1)):
            QShortcut(QKeySequence(keys), self).activated.connect(lambda step=step: self._turn(step))
        self.resize(620, 720)
        self.show_page("general")

    # Pages

    def _add_page(self, name: str, title: str, page: QWidget) -> None:
        scroll = QScrollArea(self)
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(page)
        self._pages.addWidget(scroll)
        tab = QPushButton(title, self)
        tab.setObjectName("tab")
        tab.setCheckable(True)
        tab.setAutoDefault(False)
        tab.setCursor(Qt.CursorShape.PointingHandCursor)
        tab.setAccessibleName(f"{title} settings")
        tab.clicked.connect(lambda _checked=False: self.show_page(name))
        self._tab_group.addButton(tab)
        self._tabs.addWidget(tab)
        self.tabs[name] = tab

    def show_page(self, name: str) -> None:
        """Turns to "general", "answers", "sampling" or "adapters"."""
        self.tabs[name].setChecked(True)
        self._pages.setCurrentIndex(list(self.tabs).index(name))
        at_once = name == "adapters"
        self._reset.setVisible(name in ("answers", "sampling"))
        self._at_once.setVisible(at_once)

    def _turn(self, step: int) -> None:
        names = list(self.tabs)
        self.show_page(names[(self._pages.currentIndex() + step) % len(names)])

    def _foot(self) -> QVBoxLayout:
        column = QVBoxLayout()
        column.setSpacing(0)
        line = QFrame(self)
        line.setObjectName("line")
        column.addWidget(line)
        foot = QHBoxLayout()
        foot.setContentsMargins(24, 14, 24, 14)
        foot.setSpacing(10)
        self._reset = QPushButton("Restore defaults", self)
        self._reset.setToolTip("Set the values for answers and sampling back to Realm's own")
        self._reset.setAutoDefault(False)
        self._reset.clicked.connect(self._restore)
        foot.addWidget(self._reset)
        self._at_once = QLabel("Adapters act at once.", self)
        self._at_once.setObjectName("fieldHint")
        foot.addWidget(self._at_once)
        foot.addStretch(1)
        cancel = QPushButton("Cancel", self)
        cancel.setAutoDefault(False)
        cancel.clicked.connect(self.reject)
        foot.addWidget(cancel)
        self.save_button = QPushButton("Save", self)
        self.save_button.setProperty("primary", True)
        self.save_button.clicked.connect(self.save)
        foot.addWidget(self.save_button)
        column.addLayout(foot)
        return column

    def _general(self, values: SettingsValues, devices: Sequence[DeviceInfo]) -> Page:
        page = Page()
        page.section("Appearance")
        self.theme = Segments(
            (("system", "System", "System theme"), ("light", "Light", "Light theme"), ("dark", "Dark", "Dark theme")),
            values.theme,
        )
        self.theme.chosen.connect(self._themes.choose)
        page.field("Theme", "", self.theme)
        page.section("Model", "A loaded model is loaded again when these change.")
        self.device = combo(self._themes)
        self.device.addItem("Automatic", "auto")
        for device in devices:
            if not device.problem:
                self.device.addItem(device_title(device), device.id)
        if self.device.findData(values.device) < 0:
            self.device.addItem(f"{values.device} (not found)", values.device)
        self.device.setCurrentIndex(self.device.findData(values.device))
        page.field("Device", "Where models run.", self.device)
        self.context_length = combo(self._themes)
        self.context_length.addItem("Automatic", None)
        for length in CONTEXT_CHOICES:
            self.context_length.addItem(f"{length:,} tokens", length)
        if values.context_length is not None and values.context_length not in CONTEXT_CHOICES:
            self.context_length.addItem(f"{values.context_length:,} tokens", values.context_length)
        self.context_length.setCurrentIndex(max(0, self.context_length.findData(values.context_length)))
        page.field("Context length", "How much text fits into a chat. More takes more memory.", self.context_length)
        self._add_sessions(page, values.session_budget)
        page.column.addStretch(1)
        return page

    def _add_sessions(self, page: Page, budget: int) -> None:
        page.section("Saved chats", "What was computed for a chat is kept on disk, so that a long one goes on at once.")
        self.session_budget = combo(self._themes)
        for size, title in BUDGETS:
            self.session_budget.addItem(title, size)
        if self.session_budget.findData(budget) < 0:
            self.session_budget.addItem(file_size(budget), budget)
        self.session_budget.setCurrentIndex(self.session_budget.findData(budget))
        page.field(
            "Room on disk", "When it is full, the chats that were not used for longest go first.", self.session_budget
        )
        row = QHBoxLayout()
        self.session_use = QLabel()
        self.session_use.setObjectName("fieldHint")
        row.addWidget(self.session_use, 1)
        self.clear_button = QPushButton("Clear")
        self.clear_button.setAutoDefault(False)
        self.clear_button.setAccessibleName("Clear the saved caches of all chats")
        self.clear_button.setToolTip("The chats themselves stay; the next answer in each takes longer to begin")
        self.clear_button.clicked.connect(self.clear_wanted)
        row.addWidget(self.clear_button)
        page.column.addLayout(row)
        self.show_session_use(None)

    def show_session_use(self, used: int | None) -> None:
        """Shows how many bytes are taken; None while that is not known."""
        self.session_use.setText("" if used is None else f"{file_size(used)} in use" if used else "Nothing is kept yet")
        self.clear_button.setEnabled(bool(used))

    def _answers(self, options: ChatOptions) -> Page:
        page = Page()
        page.section("Answers", "For the open chat and for new ones.")
        label = QLabel("System prompt")
        page.column.addWidget(label)
        self.system_prompt = QPlainTextEdit(options.system_prompt)
        self.system_prompt.setObjectName("field")
        self.system_prompt.setAccessibleName("System prompt")
        self.system_prompt.setPlaceholderText("What the model should know, or how it should answer: Be brief.")
        self.system_prompt.setTabChangesFocus(True)
        self.system_prompt.setFixedHeight(92)
        label.setBuddy(self.system_prompt)
        page.column.addWidget(self.system_prompt)
        self.max_tokens = spin(0, 1_000_000, options.max_tokens or 0, step=64, special="No limit")
        page.field("Longest answer", "In tokens. Without a limit the model or the context ends it.", self.max_tokens)
        page.column.addSpacing(6)
        self.context_policy = Segments(
            tuple((str(policy), title, f"{title} when the context is full") for policy, title, _ in POLICIES),
            str(options.context_policy),
        )
        page.field("When the context is full", "", self.context_policy, below=True)
        self._policy_hint = page.hint("")
        self.context_policy.chosen.connect(lambda _name: self._explain_policy())
        self._explain_policy()
        page.column.addStretch(1)
        return page

    def _explain_policy(self) -> None:
        self._policy_hint.setText(next(hint for name, _, hint in POLICIES if name == self.context_policy.value))

    # Values

    def values(self) -> SettingsValues:
        """All that the fields show."""
        options = replace(
            self._before.options,
            system_prompt=self.system_prompt.toPlainText().strip(),
            max_tokens=self.max_tokens.value() or None,
            sampling=self.sampling.value(),
            context_policy=ContextPolicy(self.context_policy.value),
        )
        return SettingsValues(
            self.theme.value, self.device.currentData(), self.context_length.currentData(), options,
            self.session_budget.currentData(),
        )  # fmt: skip

    def _restore(self) -> None:
        defaults = ChatOptions()
        self.system_prompt.setPlainText(defaults.system_prompt)
        self.max_tokens.setValue(defaults.max_tokens or 0)
        self.context_policy.set_value(str(defaults.context_policy))
        self._explain_policy()
        self.sampling.fill(defaults.sampling)

    def save(self) -> None:
        """Hands over the values and closes."""
        self.saved.emit(self.values())
        super().accept()

    def reject(self) -> None:
        self._themes.choose(self._before.theme)
        super().reject()
