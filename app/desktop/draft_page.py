"""The model manager's page for guessing ahead: which way, how far, what it gains, and which is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtWidgets import (
    QCheckBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from app.conversation.fastest import Measured, fastest
from app.conversation.options import DRAFT_LIMIT
from app.desktop.controls import spin
from app.desktop.draft_service import Candidate, DraftService
from app.desktop.footer import draft_words
from app.desktop.icons import icon
from app.desktop.model_popup import Row, file_size
from app.desktop.model_service import model_name
from app.desktop.theme import Themes
from engine.api import DraftKind, Figures

OWN_LAYER = "The model's own layer"
"""What a layer of the model's file that predicts further tokens is called."""


@dataclass(frozen=True)
class DraftState:
    """What the open chat does. why_not_measured: why the ways cannot be measured now; empty when they can."""

    kind: DraftKind | None = None
    draft_k: int = 5
    tint: bool = False
    figures: Figures | None = None
    why_not_measured: str = ""


class DraftPage(QWidget):
    """Built anew when the list of drafts changes; otherwise `show_state` brings it up to date."""

    off_chosen = Signal()
    ngram_chosen = Signal()
    draft_chosen = Signal(Path)
    length_set = Signal(int)
    tint_set = Signal(bool)
    measure_wanted = Signal()
    cancel_wanted = Signal()

    def __init__(self, themes: Themes, drafts: DraftService, model: str, parent: QWidget | None = None) -> None:
        """model: the name of the loaded model; empty when there is none."""
        super().__init__(parent)
        self.setObjectName("popupPage")
        self._themes = themes
        self._drafts = drafts
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(10, 10, 10, 10)
        self.column.setSpacing(2)
        self._hint("Guessed tokens are checked several at a time, which can be faster than writing one by one. The "
                   "answers stay what they are.")  # fmt: skip
        self.column.addSpacing(6)
        self.rows: dict[str, Row] = {}
        self._last_shape: object = None
        self._add_ways(model)
        self._line()
        self._add_settings()
        self._line()
        self._add_measuring()

    def _hint(self, text: str) -> QLabel:
        label = QLabel(text)
        label.setObjectName("popupDetail")
        label.setWordWrap(True)
        label.setContentsMargins(10, 0, 10, 0)
        self.column.addWidget(label)
        return label

    def _line(self) -> None:
        self.column.addSpacing(8)
        line = QFrame()
        line.setObjectName("line")
        self.column.addWidget(line)
        self.column.addSpacing(6)

    # The ways

    def _add_ways(self, model: str) -> None:
        self._row("off", "stop", "Off", "One token at a time").clicked.connect(self.off_chosen)
        self._row(
            "ngram", "chat", "N-gram", "From the chat itself: good for edits, quotes and summaries"
        ).clicked.connect(self.ngram_chosen)
        own = self._drafts.own_layer
        if own is not None:
            detail = self._what_it_does(own) or "Made to guess for this model: no other model is needed"
            self._row(str(own), "model", OWN_LAYER, detail).clicked.connect(partial(self.draft_chosen.emit, own))
        heading = QLabel("Draft models on this computer")
        heading.setObjectName("popupHeading")
        heading.setContentsMargins(10, 10, 0, 3)
        self.column.addWidget(heading)
        candidates = self._drafts.candidates()
        for candidate in candidates[:12]:
            known = candidate.model
            detail = self._what_it_does(known.path) or candidate_words(candidate)
            row = self._row(str(known.path), "model", known.name, detail)
            row.setEnabled(candidate.fit is not None and candidate.fit.fits)
            row.clicked.connect(partial(self.draft_chosen.emit, known.path))
        if not candidates:
            self._hint(
                "There is no other model here. A small one of the same family, or a low-bit copy of the model itself, "
                "makes a good draft."
                if model
                else "Load a model first."
            )

    def _what_it_does(self, path: Path) -> str:
        """Of the draft that is loaded or being loaded; of others nothing."""
        draft = self._drafts.draft
        if draft is not None and draft.path == path:
            size = file_size(draft.weight_bytes + draft.kv_bytes)
            return " ".join([f"Loaded, {size} of memory.", *draft.notes])
        return "Loading…" if self._drafts.loading == path else ""

    def _row(self, name: str, picture: str, title: str, detail: str) -> Row:
        row = Row(self._themes, picture, title, detail, False)
        self.rows[name] = row
        self.column.addWidget(row)
        return row

    # Length and tint

    def _add_settings(self) -> None:
        line = QHBoxLayout()
        line.setContentsMargins(10, 0, 8, 0)
        label = QLabel("Tokens guessed at once")
        self.length = spin(1, DRAFT_LIMIT, 5, width=70)
        self.length.setAccessibleName(label.text())
        self.length.setToolTip("At the start; the length then follows what is accepted and what it costs")
        label.setBuddy(self.length)
        self.length.valueChanged.connect(self.length_set)
        line.addWidget(label, 1)
        line.addWidget(self.length)
        self.column.addLayout(line)
        self.column.addSpacing(4)
        box = QHBoxLayout()
        box.setContentsMargins(10, 0, 8, 0)
        self.tint = QCheckBox("Tint accepted guesses in answers")
        self.tint.clicked.connect(self.tint_set)
        box.addWidget(self.tint)
        self.column.addLayout(box)
        self.column.addSpacing(4)
        self.gain = self._hint("")

    # Measuring

    def _add_measuring(self) -> None:
        box = QVBoxLayout()
        box.setContentsMargins(10, 0, 8, 2)
        box.setSpacing(7)
        self.results = QGridLayout()
        self.results.setHorizontalSpacing(14)
        self.results.setVerticalSpacing(3)
        self.results.setColumnStretch(0, 1)
        self._shown: Sequence[Measured] = ()
        box.addLayout(self.results)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setRange(0, 1000)
        box.addWidget(self.bar)
        foot = QHBoxLayout()
        foot.setSpacing(10)
        self.status = QLabel()
        self.status.setObjectName("popupDetail")
        self.status.setWordWrap(True)
        foot.addWidget(self.status, 1)
        self.measure_button = QPushButton("Find the fastest")
        self.measure_button.setToolTip("Answer the last question again in each way, and keep the fastest")
        self.measure_button.clicked.connect(self.measure_wanted)
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setAccessibleName("Cancel measuring")
        self.cancel_button.clicked.connect(self.cancel_wanted)
        foot.addWidget(self.measure_button)
        foot.addWidget(self.cancel_button)
        box.addLayout(foot)
        self.column.addLayout(box)

    def show_state(self, state: DraftState) -> bool:
        """Shows what the chat does, and how far measuring is; returns whether the page may want another height."""
        draft = self._drafts.draft
        current = "off" if state.kind is None else "ngram" if state.kind is DraftKind.NGRAM else ""
        if state.kind is DraftKind.MODEL and draft is not None:
            current = str(draft.path)
        trial = self._drafts.trial
        for name, row in self.rows.items():
            row.set_current(name == current)
        for name in ("off", "ngram"):
            self.rows[name].setEnabled(trial is None)
        if not self.length.hasFocus() and self.length.value() != state.draft_k:
            self.length.blockSignals(True)
            self.length.setValue(state.draft_k)
            self.length.blockSignals(False)
        self.length.setEnabled(state.kind is not None and trial is None)
        self.tint.setChecked(state.tint)
        words = draft_words(state.figures) if state.figures is not None else ""
        self.gain.setText(f"Last answer: {words}." if words else "")
        self.gain.setVisible(bool(words))
        self.bar.setVisible(trial is not None)
        self.cancel_button.setVisible(trial is not None)
        self.measure_button.setVisible(trial is None)
        self.measure_button.setEnabled(not state.why_not_measured)
        if trial is not None:
            self.bar.setValue(round(1000 * trial.share))
            self.status.setText(f"Measuring {trial.way}" if trial.way else "Reading the prompt")
        else:
            self.status.setText(state.why_not_measured or "Which way answers fastest here?")
        self._show_results(self._drafts.results)
        shape = (self.gain.text(), self.status.text(), trial is None, len(self._drafts.results))
        changed, self._last_shape = shape != self._last_shape, shape
        return changed

    def _show_results(self, results: Sequence[Measured]) -> None:
        if list(results) == list(self._shown):
            return
        self._shown = list(results)
        while (item := self.results.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.deleteLater()
        best = fastest(results)
        theme = self._themes.current
        for place, result in enumerate(results):
            title, kind = _title_and_kind(result.way.name, result.way.path)
            name = QLabel(title)
            name.setAccessibleName(result.way.name)
            name.setWordWrap(True)
            name.setAlignment(Qt.AlignmentFlag.AlignTop)
            name.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
            speed = QLabel(f"{result.tokens_per_s:.1f} tokens/s" if result.tokens_per_s else "failed")
            share = "" if result.accepted is None else f"{result.accepted:.0%} of its guesses accepted"
            accepted = QLabel(" · ".join(part for part in (kind, share) if part))
            accepted.setObjectName("popupDetail")
            accepted.setContentsMargins(0, 0, 0, 5)
            mark = QLabel()
            mark.setFixedWidth(18)
            if result is best:
                name.setObjectName("popupTitle")
                mark.setPixmap(icon("check", theme.accent).pixmap(QSize(16, 16), self.devicePixelRatio()))
                mark.setAccessibleName("The fastest")
            speed.setAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignTop)
            for label in (name, accepted, speed, mark):
                label.setToolTip(result.problem)
            self.results.addWidget(name, 2 * place, 0)
            self.results.addWidget(speed, 2 * place, 1)
            self.results.addWidget(mark, 2 * place, 2, Qt.AlignmentFlag.AlignTop)
            self.results.addWidget(accepted, 2 * place + 1, 0, 1, 3)
            accepted.setVisible(bool(accepted.text()))


def candidate_words(candidate: Candidate) -> str:
    """Size and kind of a draft, and why it fits or not."""
    known, fit = candidate.model, candidate.fit
    kind = _title_and_kind(known.path.stem, known.path)[1]
    head = f"{kind} · {file_size(known.size)}" if kind else file_size(known.size)
    if fit is None:
        return f"{head} · looking at it…"
    if fit.fits:
        return f"{head} · fits. {fit.reason}" if fit.reason else f"{head} · fits: the same tokens"
    return f"{head} · {fit.reason}"


def _title_and_kind(name: str, path: Path | None) -> tuple[str, str]:
    """What a way to guess is called, and the quantisation of a draft model, which goes by its file's stem."""
    if path is None or name != path.stem:
        return name, ""
    title = model_name(path)
    return title, name.removeprefix(title).lstrip("-._")
