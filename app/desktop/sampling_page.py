"""The settings of sampling: how the next token is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QIntValidator
from PySide6.QtWidgets import QDoubleSpinBox, QLabel, QLineEdit, QSpinBox, QWidget

from app.desktop.controls import Page, combo, decimal, spin
from app.desktop.theme import Themes
from engine.api import SamplingParams

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


class SamplingPage(Page):
    """Edits SamplingParams; what has no field here stays as it was given."""

    changed = Signal()

    def __init__(self, themes: Themes, sampling: SamplingParams, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._themes = themes
        self._before = sampling
        self.fields: dict[str, QSpinBox | QDoubleSpinBox] = {}

    def steps(self) -> list[Callable[[], None]]:
        """What makes the controls, in parts that take a few milliseconds each."""
        return [self._begin, self._add_likely, self._add_unlikely, self._add_repetition, self._add_dry, self._finish]

    def _begin(self) -> None:
        self.section("Sampling", "How the next token is chosen. The steps run in this order:")
        self.chain = QLabel()
        self.chain.setObjectName("samplerChain")
        self.chain.setWordWrap(True)
        self.chain.setTextFormat(Qt.TextFormat.RichText)
        self.column.addWidget(self.chain)

    def _finish(self) -> None:
        self._add_mirostat()
        self.column.addStretch(1)
        self.show_values(self._before)
        for box in self.fields.values():
            box.valueChanged.connect(self._changed)
        self.mirostat.currentIndexChanged.connect(self._changed)
        self._themes.changed.connect(self.show_chain)
        self.show_chain()

    def _number(self, name: str, title: str, hint: str, box: QSpinBox | QDoubleSpinBox) -> None:
        self.fields[name] = box
        self.field(title, hint, box)

    def _add_likely(self) -> None:
        number = self._number
        number("temperature", "Temperature", "Higher is more varied; 0 always takes the likeliest token.",
               decimal(0, 5, 0, 0.05))  # fmt: skip
        number("dynatemp_range", "Temperature range", "Lets the temperature move by this much: up where many tokens "
               "are possible, down where few are.", decimal(0, 5, 0, 0.05, special="Off"))  # fmt: skip
        number("dynatemp_exponent", "Bend of the range", "How that movement is bent; 1 is straight.",
               decimal(0, 10, 1, 0.1))  # fmt: skip
        number("top_k", "Top-k", "Keeps this many of the likeliest tokens.", spin(0, 100_000, 0, special="Off"))
        number("top_p", "Top-p", "Keeps the likeliest tokens up to this total probability; 1 is off.",
               decimal(0, 1, 0, 0.01))  # fmt: skip
        number("min_p", "Min-p", "Drops tokens below this share of the likeliest one's probability.",
               decimal(0, 1, 0, 0.01, special="Off"))  # fmt: skip

    def _add_unlikely(self) -> None:
        number = self._number
        number("top_n_sigma", "Top-n-sigma", "Keeps tokens whose score lies at most this many standard deviations "
               "below the best.", decimal(0, 100, 0, 0.1, special="Off"))  # fmt: skip
        number("typical_p", "Typical", "Keeps tokens of typical information up to this probability; 1 is off.",
               decimal(0, 1, 0, 0.01))  # fmt: skip
        number("xtc_probability", "XTC", "How often the likeliest tokens are passed over, all but the least likely of "
               "them.", decimal(0, 1, 0, 0.05, special="Off"))  # fmt: skip
        number("xtc_threshold", "XTC threshold", "How likely a token has to be to be passed over.",
               decimal(0, 1, 0, 0.01))  # fmt: skip
        self.seed = QLineEdit()
        self.seed.setPlaceholderText("Random")
        self.seed.setValidator(QIntValidator(0, 2**31 - 1, self.seed))
        self.seed.setFixedWidth(130)
        self.field("Seed", "The same seed gives the same answer to the same prompt.", self.seed)

    def _add_repetition(self) -> None:
        number = self._number
        self.section("Against repetition")
        number("repeat_penalty", "Repetition penalty", "Makes tokens that occurred lately rarer; 1 is off.",
               decimal(0.1, 5, 1, 0.05))  # fmt: skip
        number("repeat_last_n", "Penalties look back", "How many tokens the penalties look at; 0 is none.",
               spin(-1, 1_000_000, 0, step=16, special="Whole context"))  # fmt: skip
        number("presence_penalty", "Presence penalty", "Against tokens that occurred at all; 0 is off.",
               decimal(-2, 2, 0, 0.05))  # fmt: skip
        number("frequency_penalty", "Frequency penalty", "Against tokens by how often they occurred; 0 is off.",
               decimal(-2, 2, 0, 0.05))  # fmt: skip

    def _add_dry(self) -> None:
        number = self._number
        number("dry_multiplier", "DRY", "Holds back tokens that would go on repeating the text; 0.8 is usual.",
               decimal(0, 10, 0, 0.1, special="Off"))  # fmt: skip
        number("dry_base", "DRY growth", "How fast that grows with the length of the repetition.",
               decimal(1, 10, 1.75, 0.05))  # fmt: skip
        number("dry_allowed_length", "DRY allows", "Repetitions up to this many tokens are left alone.",
               spin(0, 1000, 2))  # fmt: skip
        number("dry_penalty_last_n", "DRY looks back", "How many tokens DRY looks at; 0 is none.",
               spin(-1, 1_000_000, -1, step=16, special="Whole context"))  # fmt: skip

    def _add_mirostat(self) -> None:
        self.section("Mirostat", "Keeps the surprise of the text constant, in place of the steps above but the "
                     "temperature.")  # fmt: skip
        self.mirostat = combo(self._themes)
        self.mirostat.setMinimumWidth(130)
        for version, title in ((0, "Off"), (1, "Version 1"), (2, "Version 2")):
            self.mirostat.addItem(title, version)
        self.field("Mirostat", "", self.mirostat)
        self._number("mirostat_tau", "Surprise", "How surprising the text is to be, in bits.",
                     decimal(0, 20, 5, 0.1))  # fmt: skip
        self._number("mirostat_eta", "Learning rate", "How fast it gets there.", decimal(0, 1, 0.1, 0.01))

    def _changed(self) -> None:
        self.show_chain()
        self.changed.emit()

    def show_values(self, sampling: SamplingParams) -> None:
        """Shows other values."""
        for name, box in self.fields.items():
            value = getattr(sampling, name)
            box.setValue(max(box.minimum(), value))
        self.mirostat.setCurrentIndex(max(0, self.mirostat.findData(sampling.mirostat)))
        self.seed.setText("" if sampling.seed is None else str(sampling.seed))

    def value(self) -> SamplingParams:
        """What the fields show."""
        seed = self.seed.text().strip()
        values = {}
        for name, box in self.fields.items():
            before = getattr(self._before, name)
            if box.value() == max(box.minimum(), before):  # what stands for several values stays the one it was
                values[name] = before
            else:
                values[name] = round(box.value(), 4) if isinstance(box, QDoubleSpinBox) else box.value()
        return replace(self._before, **values, mirostat=self.mirostat.currentData(), seed=int(seed) if seed else None)

    def show_chain(self) -> None:
        """Says which steps run, in which order."""
        sampling = self.value()
        theme = self._themes.current
        greedy = sampling.temperature == 0
        mirostat = sampling.mirostat and not greedy
        off = {
            "penalties": sampling.repeat_last_n == 0
            or (sampling.repeat_penalty == 1 and not sampling.presence_penalty and not sampling.frequency_penalty),
            "dry": sampling.dry_multiplier == 0 or sampling.dry_penalty_last_n == 0,
            "top_n_sigma": sampling.top_n_sigma <= 0 or greedy,
            "xtc": sampling.xtc_probability == 0 or sampling.xtc_threshold > 0.5 or greedy,
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
            idle = off.get(name, False) or bool(mirostat and name != "temperature")
            color = theme.text_faint if idle else theme.accent
            weight = 400 if idle else 600
            note = " (off)" if idle else ""
            parts.append(f'<span style="color:{color}; font-weight:{weight}">{title}{note}</span>')
        if mirostat:
            parts.append(f'<span style="color:{theme.accent}; font-weight:600">Mirostat {sampling.mirostat}</span>')
        arrow = f'<span style="color:{theme.text_faint}"> &nbsp;→&nbsp; </span>'
        self.chain.setText(arrow.join(parts))
