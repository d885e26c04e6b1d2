"""The settings. Every one of them changes what happens: the look, how answers are chosen, where models run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PySide6.QtCore import QRectF, Qt, Signal
from PySide6.QtGui import QIntValidator, QKeySequence, QPainter, QPaintEvent, QShortcut, QWheelEvent
from PySide6.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QDialog,
    QDoubleSpinBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QScrollArea,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from app.conversation import ChatOptions
from app.desktop.icons import paint_icon
from app.desktop.model_popup import device_title
from app.desktop.theme import Themes
from engine.api import DeviceInfo, SamplingParams

CONTEXT_CHOICES = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
SAMPLER_NAMES = {
    "penalties": "Penalties",
    "dry": "DRY",
    "top_n_sigma": "Top-n-sigma",
    "top_k": "Top-k",
    "typical_p": "Typical",
    "top_p": "Top-p",
    "min_p": "Min-p",
    "xtc": "XTC",
    "temperature": "Temperature",
}


@dataclass(frozen=True)
class SettingsValues:
    """All that the dialog sets."""

    theme: str
    device: str
    context_length: int | None
    options: ChatOptions


class SettingsDialog(QDialog):
    """Edits a SettingsValues; `saved` carries the new one. The look changes at once, so that it can be seen."""

    saved = Signal(object)

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
        scroll = QScrollArea(self)
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        page = QWidget()
        page.setObjectName("settingsPage")
        self._column = QVBoxLayout(page)
        self._column.setContentsMargins(28, 22, 28, 22)
        self._column.setSpacing(12)
        scroll.setWidget(page)
        outer.addWidget(scroll, 1)

        self._add_appearance(values)
        self._add_answers(values.options)
        self._add_sampling(values.options.sampling)
        self._add_model(values, devices)
        self._column.addStretch(1)

        line = QFrame(self)
        line.setObjectName("line")
        outer.addWidget(line)
        foot = QHBoxLayout()
        foot.setContentsMargins(24, 14, 24, 14)
        foot.setSpacing(10)
        reset = QPushButton("Restore defaults", self)
        reset.setToolTip("Set the values for answers and sampling back to Realm's own")
        reset.setAutoDefault(False)
        reset.clicked.connect(self._restore)
        foot.addWidget(reset)
        foot.addStretch(1)
        cancel = QPushButton("Cancel", self)
        cancel.setAutoDefault(False)
        cancel.clicked.connect(self.reject)
        foot.addWidget(cancel)
        self.save_button = QPushButton("Save", self)
        self.save_button.setProperty("primary", True)
        self.save_button.clicked.connect(self.save)
        foot.addWidget(self.save_button)
        outer.addLayout(foot)
        QShortcut(QKeySequence("Ctrl+Return"), self).activated.connect(self.save)
        self.resize(620, 720)
        self._show_chain()

    # The parts

    def _section(self, title: str, hint: str = "") -> None:
        if self._column.count():
            self._column.addSpacing(14)
        label = QLabel(title)
        label.setObjectName("sectionTitle")
        self._column.addWidget(label)
        if hint:
            more = QLabel(hint)
            more.setObjectName("fieldHint")
            more.setWordWrap(True)
            self._column.addWidget(more)

    def _field(self, title: str, hint: str, control: QWidget) -> None:
        row = QHBoxLayout()
        row.setSpacing(20)
        words = QVBoxLayout()
        words.setSpacing(1)
        label = QLabel(title)
        label.setBuddy(control)
        words.addWidget(label)
        if hint:
            more = QLabel(hint)
            more.setObjectName("fieldHint")
            more.setWordWrap(True)
            words.addWidget(more)
        row.addLayout(words, 1)
        row.addWidget(control, 0, Qt.AlignmentFlag.AlignVCenter)
        control.setAccessibleName(title)
        control.setAccessibleDescription(hint)
        self._column.addLayout(row)

    def _add_appearance(self, values: SettingsValues) -> None:
        self._section("Appearance")
        box = QWidget()
        row = QHBoxLayout(box)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(8)
        self._theme = QButtonGroup(self)
        self._theme_buttons: dict[str, QPushButton] = {}
        for name, title in (("system", "System"), ("light", "Light"), ("dark", "Dark")):
            button = QPushButton(title)
            button.setObjectName("segment")
            button.setCheckable(True)
            button.setAutoDefault(False)
            button.setChecked(values.theme == name)
            button.setAccessibleName(f"{title} theme")
            self._theme.addButton(button)
            self._theme_buttons[name] = button
            button.clicked.connect(lambda _checked=False, name=name: self._themes.choose(name))
            row.addWidget(button)
        self._field("Theme", "", box)

    def _add_answers(self, options: ChatOptions) -> None:
        self._section("Answers", "For the open chat and for new ones.")
        label = QLabel("System prompt")
        self._column.addWidget(label)
        self.system_prompt = QPlainTextEdit(options.system_prompt)
        self.system_prompt.setObjectName("field")
        self.system_prompt.setAccessibleName("System prompt")
        self.system_prompt.setPlaceholderText("What the model should know, or how it should answer: Be brief.")
        self.system_prompt.setTabChangesFocus(True)
        self.system_prompt.setFixedHeight(92)
        label.setBuddy(self.system_prompt)
        self._column.addWidget(self.system_prompt)
        self.max_tokens = _spin(0, 1_000_000, options.max_tokens or 0, step=64, special="No limit")
        self._field("Longest answer", "In tokens. Without a limit the model or the context ends it.", self.max_tokens)

    def _add_sampling(self, sampling: SamplingParams) -> None:
        self._section("Sampling", "How the next token is chosen. The steps run in this order:")
        self.chain = QLabel()
        self.chain.setObjectName("samplerChain")
        self.chain.setWordWrap(True)
        self.chain.setTextFormat(Qt.TextFormat.RichText)
        self._column.addWidget(self.chain)
        self.temperature = _decimal(0, 5, sampling.temperature, 0.05)
        self.top_k = _spin(0, 100_000, sampling.top_k, special="Off")
        self.top_p = _decimal(0, 1, sampling.top_p, 0.01)
        self.min_p = _decimal(0, 1, sampling.min_p, 0.01)
        self.typical_p = _decimal(0, 1, sampling.typical_p, 0.01)
        self.repeat_penalty = _decimal(0.1, 5, sampling.repeat_penalty, 0.05)
        self.repeat_last_n = _spin(-1, 1_000_000, sampling.repeat_last_n, step=16, special="Whole context")
        self.presence_penalty = _decimal(-2, 2, sampling.presence_penalty, 0.05)
        self.frequency_penalty = _decimal(-2, 2, sampling.frequency_penalty, 0.05)
        self.seed = QLineEdit("" if sampling.seed is None else str(sampling.seed))
        self.seed.setPlaceholderText("Random")
        self.seed.setValidator(QIntValidator(0, 2**31 - 1, self.seed))
        self.seed.setFixedWidth(130)
        self._field("Temperature", "Higher is more varied; 0 always takes the likeliest token.", self.temperature)
        self._field("Top-k", "Keeps this many of the likeliest tokens.", self.top_k)
        self._field("Top-p", "Keeps the likeliest tokens up to this total probability; 1 is off.", self.top_p)
        self._field("Min-p", "Drops tokens below this share of the likeliest one's probability; 0 is off.", self.min_p)
        self._field("Typical", "Keeps tokens of typical information up to this probability; 1 is off.", self.typical_p)
        self._field("Repetition penalty", "Makes tokens that occurred lately rarer; 1 is off.", self.repeat_penalty)
        self._field("Penalties look back", "How many tokens the penalties look at; 0 is none.", self.repeat_last_n)
        self._field("Presence penalty", "Against tokens that occurred at all; 0 is off.", self.presence_penalty)
        self._field("Frequency penalty", "Against tokens by how often they occurred; 0 is off.", self.frequency_penalty)
        self._field("Seed", "The same seed gives the same answer to the same prompt.", self.seed)
        for box in (self.temperature, self.top_p, self.min_p, self.typical_p, self.repeat_penalty,
                    self.presence_penalty, self.frequency_penalty):  # fmt: skip
            box.valueChanged.connect(self._show_chain)
        self.top_k.valueChanged.connect(self._show_chain)
        self.repeat_last_n.valueChanged.connect(self._show_chain)
        self._themes.changed.connect(self._show_chain)

    def _add_model(self, values: SettingsValues, devices: Sequence[DeviceInfo]) -> None:
        self._section("Model", "A loaded model is loaded again when these change.")
        self.device = _combo(self._themes)
        self.device.addItem("Automatic", "auto")
        for device in devices:
            if not device.problem:
                self.device.addItem(device_title(device), device.id)
        if self.device.findData(values.device) < 0:
            self.device.addItem(f"{values.device} (not found)", values.device)
        self.device.setCurrentIndex(self.device.findData(values.device))
        self._field("Device", "Where models run.", self.device)
        self.context_length = _combo(self._themes)
        self.context_length.addItem("Automatic", None)
        for length in CONTEXT_CHOICES:
            self.context_length.addItem(f"{length:,} tokens", length)
        if values.context_length is not None and values.context_length not in CONTEXT_CHOICES:
            self.context_length.addItem(f"{values.context_length:,} tokens", values.context_length)
        self.context_length.setCurrentIndex(max(0, self.context_length.findData(values.context_length)))
        self._field("Context length", "How much text fits into a chat. More takes more memory.", self.context_length)

    # Values

    def sampling(self) -> SamplingParams:
        """The sampling that the fields show."""
        seed = self.seed.text().strip()
        return replace(
            self._before.options.sampling,
            temperature=round(self.temperature.value(), 4),
            top_k=self.top_k.value(),
            top_p=round(self.top_p.value(), 4),
            min_p=round(self.min_p.value(), 4),
            typical_p=round(self.typical_p.value(), 4),
            repeat_penalty=round(self.repeat_penalty.value(), 4),
            repeat_last_n=self.repeat_last_n.value(),
            presence_penalty=round(self.presence_penalty.value(), 4),
            frequency_penalty=round(self.frequency_penalty.value(), 4),
            seed=int(seed) if seed else None,
        )

    def values(self) -> SettingsValues:
        """All that the fields show."""
        theme = next(name for name, button in self._theme_buttons.items() if button.isChecked())
        options = replace(
            self._before.options,
            system_prompt=self.system_prompt.toPlainText().strip(),
            max_tokens=self.max_tokens.value() or None,
            sampling=self.sampling(),
        )
        return SettingsValues(theme, self.device.currentData(), self.context_length.currentData(), options)

    def _restore(self) -> None:
        self._fill(ChatOptions())

    def _fill(self, options: ChatOptions) -> None:
        sampling = options.sampling
        self.system_prompt.setPlainText(options.system_prompt)
        self.max_tokens.setValue(options.max_tokens or 0)
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
                     "presence_penalty", "frequency_penalty"):  # fmt: skip
            getattr(self, name).setValue(getattr(sampling, name))
        self.seed.setText("" if sampling.seed is None else str(sampling.seed))

    def _show_chain(self) -> None:
        sampling = self.sampling()
        theme = self._themes.current
        greedy = sampling.temperature == 0
        off = {
            "penalties": sampling.repeat_last_n == 0
            or (sampling.repeat_penalty == 1 and not sampling.presence_penalty and not sampling.frequency_penalty),
            "dry": sampling.dry_multiplier == 0,
            "top_n_sigma": sampling.top_n_sigma <= 0 or greedy,
            "xtc": sampling.xtc_probability == 0 or greedy,
            "top_k": sampling.top_k <= 0 or greedy,
            "typical_p": sampling.typical_p >= 1 or greedy,
            "top_p": sampling.top_p >= 1 or greedy,
            "min_p": sampling.min_p <= 0 or greedy,
            "temperature": False,
        }
        parts = []
        for name in sampling.samplers:
            title = SAMPLER_NAMES.get(name, name)
            if name == "temperature" and greedy:
                title = "Likeliest token"
            color = theme.text_faint if off.get(name) else theme.accent
            weight = 400 if off.get(name) else 600
            note = " (off)" if off.get(name) else ""
            parts.append(f'<span style="color:{color}; font-weight:{weight}">{title}{note}</span>')
        arrow = f'<span style="color:{theme.text_faint}"> &nbsp;→&nbsp; </span>'
        self.chain.setText(arrow.join(parts))

    def save(self) -> None:
        """Hands over the values and closes."""
        self.saved.emit(self.values())
        super().accept()

    def reject(self) -> None:
        self._themes.choose(self._before.theme)
        super().reject()


class _Spin(QSpinBox):
    """Leaves the mouse wheel to the page, so that scrolling changes no value."""

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class _Decimal(QDoubleSpinBox):
    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class _Combo(QComboBox):
    def __init__(self, themes: Themes) -> None:
        super().__init__()
        self._themes = themes

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        painter = QPainter(self)
        place = QRectF(self.width() - 26, (self.height() - 16) / 2, 16, 16)
        paint_icon(painter, "chevron-down", self._themes.current.text_soft, place)
        painter.end()


def _spin(low: int, high: int, value: int, step: int = 1, special: str = "") -> QSpinBox:
    box = _Spin()
    box.setRange(low, high)
    box.setSingleStep(step)
    box.setValue(value)
    box.lineEdit().setTextMargins(7, 0, 7, 0)
    box.setFixedWidth(130)
    if special:
        box.setSpecialValueText(special)
    return box


def _decimal(low: float, high: float, value: float, step: float) -> QDoubleSpinBox:
    box = _Decimal()
    box.setDecimals(2)
    box.setRange(low, high)
    box.setSingleStep(step)
    box.setValue(value)
    box.lineEdit().setTextMargins(7, 0, 7, 0)
    box.setFixedWidth(130)
    return box


def _combo(themes: Themes) -> QComboBox:
    box = _Combo(themes)
    box.setMinimumWidth(200)
    box.setMaximumWidth(280)
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
    return box
