"""Two pages of the settings: the general ones, and how answers are to be."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPlainTextEdit, QPushButton

from app.conversation import ChatOptions
from app.desktop.controls import Page, Segments, combo, spin
from app.desktop.model_popup import device_title, file_size
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
SHAPES = (
    ("free", "Free", "Answers of any form", "Answers have any form."),
    ("schema", "JSON schema", "Answers in JSON after a schema", "Every answer is JSON that this schema describes."),
    ("grammar", "Grammar", "Answers that match a grammar", "Every answer matches this grammar (GBNF) as a whole."),
)
EXAMPLES = {
    "schema": '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
    "grammar": 'root ::= "yes" | "no"',
}
CHECK_MS = 350


@dataclass(frozen=True)
class SettingsValues:
    """All that the dialog sets when it is saved."""

    theme: str
    device: str
    context_length: int | None
    options: ChatOptions
    session_budget: int = 0  # bytes of disk for the saved caches of chats; 0 keeps none


class GeneralPage(Page):
    """The look, where models run, and what is kept on disk."""

    clear_wanted = Signal()  # the saved caches of chats

    def fill(self, themes: Themes, values: SettingsValues, devices: Sequence[DeviceInfo]) -> None:
        """Makes the controls."""
        self.section("Appearance")
        self.theme = Segments(
            (("system", "System", "System theme"), ("light", "Light", "Light theme"), ("dark", "Dark", "Dark theme")),
            values.theme,
        )
        self.theme.chosen.connect(themes.choose)
        self.field("Theme", "", self.theme)
        self.section("Model", "A loaded model is loaded again when these change.")
        self.device = combo(themes)
        self.device.addItem("Automatic", "auto")
        for device in devices:
            if not device.problem:
                self.device.addItem(device_title(device), device.id)
        if self.device.findData(values.device) < 0:
            self.device.addItem(f"{values.device} (not found)", values.device)
        self.device.setCurrentIndex(self.device.findData(values.device))
        self.field("Device", "Where models run.", self.device)
        self.context_length = combo(themes)
        self.context_length.addItem("Automatic", None)
        for length in CONTEXT_CHOICES:
            self.context_length.addItem(f"{length:,} tokens", length)
        if values.context_length is not None and values.context_length not in CONTEXT_CHOICES:
            self.context_length.addItem(f"{values.context_length:,} tokens", values.context_length)
        self.context_length.setCurrentIndex(max(0, self.context_length.findData(values.context_length)))
        self.field("Context length", "How much text fits into a chat. More takes more memory.", self.context_length)
        self._add_sessions(themes, values.session_budget)
        self.column.addStretch(1)

    def _add_sessions(self, themes: Themes, budget: int) -> None:
        self.section(
            "What was computed for chats",
            "It is kept on disk, so that a long chat goes on at once. The chats themselves stay in any case.",
        )
        self.session_budget = combo(themes)
        for size, title in BUDGETS:
            self.session_budget.addItem(title, size)
        if self.session_budget.findData(budget) < 0:
            self.session_budget.addItem(file_size(budget), budget)
        self.session_budget.setCurrentIndex(self.session_budget.findData(budget))
        self.field(
            "Room on disk", "When it is full, what belongs to the chats unused longest goes first.", self.session_budget
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
        self.column.addLayout(row)
        self.show_session_use(None)

    def show_session_use(self, used: int | None) -> None:
        """Shows how many bytes are taken; None while that is not known."""
        self.session_use.setText("" if used is None else f"{file_size(used)} in use" if used else "Nothing is kept yet")
        self.clear_button.setEnabled(bool(used))


class AnswersPage(Page):
    """The system prompt, the length and form of answers, and what happens when the context is full."""

    shape_edited = Signal(str, str)  # "schema" or "grammar" and the text, some time after the last key

    def steps(self, options: ChatOptions) -> list[Callable[[], None]]:
        """What makes the controls, in parts that take a few milliseconds each."""
        return [
            partial(self._add_answers, options),
            partial(self._add_policy, options),
            partial(self._add_shape, options),
        ]

    def _add_answers(self, options: ChatOptions) -> None:
        self.section("Answers", "For the open chat and for new ones.")
        label = QLabel("System prompt")
        self.column.addWidget(label)
        self.system_prompt = self._text("System prompt", options.system_prompt, 92)
        self.system_prompt.setPlaceholderText("What the model should know, or how it should answer: Be brief.")
        label.setBuddy(self.system_prompt)
        self.max_tokens = spin(0, 1_000_000, options.max_tokens or 0, step=64, special="No limit")
        self.field("Longest answer", "In tokens. Without a limit the model or the context ends it.", self.max_tokens)

    def _add_policy(self, options: ChatOptions) -> None:
        self.column.addSpacing(6)
        self.context_policy = Segments(
            tuple((str(policy), title, f"{title} when the context is full") for policy, title, _ in POLICIES),
            str(options.context_policy),
        )
        self.field("When the context is full", "", self.context_policy, below=True)
        self._policy_hint = self.hint("")
        self.context_policy.chosen.connect(lambda _name: self._explain_policy())
        self._explain_policy()

    def _text(self, name: str, text: str, height: int) -> QPlainTextEdit:
        box = QPlainTextEdit(text)
        box.setObjectName("field")
        box.setAccessibleName(name)
        box.setTabChangesFocus(True)
        box.setFixedHeight(height)
        self.column.addWidget(box)
        return box

    def _add_shape(self, options: ChatOptions) -> None:
        self.column.addSpacing(6)
        schema = options.json_schema or ""
        if not isinstance(schema, str):
            schema = json.dumps(schema, indent=2, ensure_ascii=False)
        grammar = options.grammar or ""
        shape = "schema" if schema else "grammar" if grammar else "free"
        self.shape = Segments(tuple((name, title, accessible) for name, title, accessible, _ in SHAPES), shape)
        self.field("Form of answers", "Of the open chat alone.", self.shape, below=True)
        self._shape_hint = self.hint("")
        self.shape_text = self._text("Schema or grammar", schema or grammar, 130)
        self.shape_text.setStyleSheet("font-family: monospace;")
        self.shape_problem = QLabel()
        self.shape_problem.setObjectName("cardProblem")
        self.shape_problem.setWordWrap(True)
        self.column.addWidget(self.shape_problem)
        self._texts = {"schema": schema, "grammar": grammar}
        self._shown = shape
        self._rest = QTimer(self, singleShot=True, interval=CHECK_MS)
        self._rest.timeout.connect(self._tell_shape)
        self.shape.chosen.connect(self._choose_shape)
        self.shape_text.textChanged.connect(self._rest.start)
        self._explain_shape()
        if shape != "free":
            self._rest.start(0)
        self.column.addStretch(1)

    def _choose_shape(self, shape: str) -> None:
        self._texts[self._shown] = self.shape_text.toPlainText()
        self._shown = shape
        self.shape_text.setPlainText(self._texts.get(shape, ""))
        self._explain_shape()
        self._rest.start(0)

    def _tell_shape(self) -> None:
        text = self.shape_text.toPlainText().strip()
        if self.shape.value == "free" or not text:
            self.show_shape_problem(self.shape.value, text, "")
        else:
            self.shape_edited.emit(self.shape.value, text)

    def show_shape_problem(self, shape: str, text: str, problem: str) -> None:
        """Says what is wrong with a schema or grammar, if that is still the one shown."""
        if shape == self.shape.value and text == self.shape_text.toPlainText().strip():
            self.shape_problem.setText(problem)
            self.shape_problem.setVisible(bool(problem))

    def _explain_policy(self) -> None:
        self._policy_hint.setText(next(hint for name, _, hint in POLICIES if name == self.context_policy.value))

    def _explain_shape(self) -> None:
        shape = self.shape.value
        self._shape_hint.setText(next(hint for name, _, _, hint in SHAPES if name == shape))
        self.shape_text.setVisible(shape != "free")
        self.shape_text.setPlaceholderText(EXAMPLES.get(shape, ""))
        self.shape_problem.setVisible(shape != "free" and bool(self.shape_problem.text()))

    def restore(self) -> None:
        """Shows Realm's own values."""
        defaults = ChatOptions()
        self.system_prompt.setPlainText(defaults.system_prompt)
        self.max_tokens.setValue(defaults.max_tokens or 0)
        self.context_policy.set_value(str(defaults.context_policy))
        self._explain_policy()
        self.shape.set_value("free")
        self._choose_shape("free")

    def value(self, options: ChatOptions) -> ChatOptions:
        """`options` with what the fields show."""
        shape, text = self.shape.value, self.shape_text.toPlainText().strip()
        return replace(
            options,
            system_prompt=self.system_prompt.toPlainText().strip(),
            max_tokens=self.max_tokens.value() or None,
            context_policy=ContextPolicy(self.context_policy.value),
            json_schema=text or None if shape == "schema" else None,
            grammar=text or None if shape == "grammar" else None,
        )
