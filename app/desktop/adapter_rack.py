"""The rack of adapters in the settings: a card for each, and a place to drop more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PySide6.QtCore import QRectF, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QDragEnterEvent, QDragLeaveEvent, QDropEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QCheckBox, QFrame, QHBoxLayout, QLabel, QPushButton, QToolButton, QVBoxLayout, QWidget

from app.conversation import AdapterChoice
from app.desktop.adapter_shelf import AdapterState, adapter_line, adapter_name
from app.desktop.controls import Page, Slider, Switch, decimal
from app.desktop.icons import icon
from app.desktop.theme import Themes
from engine.strength import MAX_STRENGTH

STRENGTH_STEP = 0.05
CARDS_AT_ONCE = 2


class AdapterCard(QFrame):
    """One adapter: what it is, whether and how strongly it acts, and what is wrong with it."""

    switched = Signal(object, bool)
    strength_set = Signal(object, float)
    removed = Signal(object)

    def __init__(self, themes: Themes, path: Path, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("card")
        self.path = path
        self._themes = themes
        self._showing = False
        column = QVBoxLayout(self)
        column.setContentsMargins(14, 12, 10, 12)
        column.setSpacing(8)
        head = QHBoxLayout()
        head.setSpacing(12)
        self.switch = Switch(themes)
        self.switch.clicked.connect(lambda on: self.switched.emit(self.path, on))
        head.addWidget(self.switch, 0, Qt.AlignmentFlag.AlignTop)
        words = QVBoxLayout()
        words.setSpacing(1)
        self.name = QLabel(adapter_name(path))
        self.name.setObjectName("popupTitle")
        self.name.setTextFormat(Qt.TextFormat.PlainText)
        self.name.setWordWrap(True)
        self.detail = QLabel()
        self.detail.setObjectName("fieldHint")
        self.detail.setTextFormat(Qt.TextFormat.PlainText)
        self.detail.setWordWrap(True)
        words.addWidget(self.name)
        words.addWidget(self.detail)
        head.addLayout(words, 1)
        self.remove_button = QToolButton()
        self.remove_button.setIconSize(QSize(17, 17))
        self.remove_button.setToolTip("Take this adapter out of the chat")
        self.remove_button.clicked.connect(lambda _checked=False: self.removed.emit(self.path))
        head.addWidget(self.remove_button, 0, Qt.AlignmentFlag.AlignTop)
        column.addLayout(head)
        self._strength_row = QWidget()
        strength = QHBoxLayout(self._strength_row)
        strength.setContentsMargins(46, 0, 4, 0)
        strength.setSpacing(12)
        self.slider = Slider(themes, -MAX_STRENGTH, MAX_STRENGTH, STRENGTH_STEP)
        self.slider.valueChanged.connect(self._slid)
        strength.addWidget(self.slider, 1)
        self.number = decimal(-MAX_STRENGTH, MAX_STRENGTH, 1.0, STRENGTH_STEP, width=76)
        self.number.valueChanged.connect(self._typed)
        strength.addWidget(self.number)
        column.addWidget(self._strength_row)
        self._problem_row = QWidget()
        problem = QHBoxLayout(self._problem_row)
        problem.setContentsMargins(54, 0, 4, 0)
        problem.setSpacing(8)
        self._alert = QLabel()
        self._alert.setFixedSize(18, 18)
        problem.addWidget(self._alert, 0, Qt.AlignmentFlag.AlignTop)
        self.problem = QLabel()
        self.problem.setObjectName("cardProblem")
        self.problem.setTextFormat(Qt.TextFormat.PlainText)
        self.problem.setWordWrap(True)
        self.problem.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        problem.addWidget(self.problem, 1)
        column.addWidget(self._problem_row)
        themes.changed.connect(self._dress)
        self._dress()

    def show_choice(self, choice: AdapterChoice, state: AdapterState) -> None:
        """Shows how the adapter is set and what is known of it."""
        self._showing = True
        name = adapter_name(choice.path)  # not the one inside: files of one adapter in several types share that
        self.name.setText(name)
        if state.info is not None:
            self.detail.setText("\n".join([adapter_line(state.info), *state.info.notes]))
        else:
            self.detail.setText("Reading it…" if state.checking else choice.path.name)
        self.setToolTip(str(choice.path))
        bad = bool(state.problem)
        self._problem_row.setVisible(bad)
        self.problem.setText(f"{state.problem} {state.hint}".strip())
        self._strength_row.setVisible(not bad)
        self.switch.setChecked(choice.on)
        self.switch.setEnabled(not bad or choice.on)  # what cannot act can still be switched off
        self.slider.setEnabled(choice.on)
        self.number.setEnabled(choice.on)
        if not self.slider.isSliderDown() and round(choice.strength, 2) != round(self.slider.number, 2):
            self.slider.set_number(choice.strength)
        if not self.number.hasFocus() and round(choice.strength, 2) != round(self.number.value(), 2):
            self.number.setValue(choice.strength)
        self.switch.setAccessibleName(f"{name} is used")
        self.slider.setAccessibleName(f"Strength of {name}")
        self.number.setAccessibleName(f"Strength of {name}, as a number")
        self.remove_button.setAccessibleName(f"Remove {name}")
        self._showing = False

    def _slid(self, _value: int) -> None:
        if not self._showing:
            self._showing = True
            self.number.setValue(self.slider.number)
            self._showing = False
            self.strength_set.emit(self.path, self.slider.number)

    def _typed(self, value: float) -> None:
        if not self._showing:
            self._showing = True
            self.slider.set_number(value)
            self._showing = False
            self.strength_set.emit(self.path, round(value, 2))

    def _dress(self) -> None:
        theme = self._themes.current
        self.remove_button.setIcon(icon("trash", theme.text_soft))
        self._alert.setPixmap(icon("alert", theme.danger).pixmap(QSize(18, 18), self.devicePixelRatio()))


class DropPlace(QWidget):
    """Says what may be dropped, and offers dialogs to those who do not drag."""

    file_wanted = Signal()
    folder_wanted = Signal()

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._themes = themes
        self.hovered = False
        column = QVBoxLayout(self)
        column.setContentsMargins(18, 18, 18, 18)
        column.setSpacing(4)
        self._picture = QLabel()
        self._picture.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        column.addWidget(self._picture)
        self.title = QLabel()
        self.title.setObjectName("popupTitle")
        self.title.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        self.title.setWordWrap(True)
        column.addWidget(self.title)
        hint = QLabel("A GGUF or safetensors file, or the folder that PEFT wrote.")
        hint.setObjectName("fieldHint")
        hint.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        hint.setWordWrap(True)
        column.addWidget(hint)
        column.addSpacing(8)
        row = QHBoxLayout()
        row.setSpacing(8)
        row.addStretch(1)
        self.file_button = QPushButton("Add a file…")
        self.folder_button = QPushButton("Add a folder…")
        for button, wanted in ((self.file_button, self.file_wanted), (self.folder_button, self.folder_wanted)):
            button.setAutoDefault(False)
            button.clicked.connect(lambda _checked=False, wanted=wanted: wanted.emit())
            row.addWidget(button)
        row.addStretch(1)
        column.addLayout(row)
        themes.changed.connect(self._dress)
        self._dress()

    def set_first(self, first: bool) -> None:
        """Whether there is no adapter yet."""
        self._picture.setVisible(first)
        self.title.setText("Drop an adapter here" if first else "Drop another one here")

    def set_hovered(self, hovered: bool) -> None:
        """Shows that what is held above would be taken."""
        self.hovered = hovered
        self.update()

    def _dress(self) -> None:
        self._picture.setPixmap(
            icon("adapter", self._themes.current.text_faint).pixmap(QSize(32, 32), self.devicePixelRatio())
        )
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        color = self._themes.color
        painter.setPen(QPen(color("accent" if self.hovered else "border_strong"), 1.5, Qt.PenStyle.DashLine))
        painter.setBrush(color("accent_soft") if self.hovered else Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), 12, 12)
        painter.end()


class AdapterRack(Page):
    """Shows the adapters of a chat. Paths are told as they are; the choices belong to whoever listens."""

    switched = Signal(object, bool)  # Path
    strength_set = Signal(object, float)  # Path
    removed = Signal(object)  # Path
    added = Signal(object)  # list[Path]
    file_wanted = Signal()
    folder_wanted = Signal()
    default_wanted = Signal(bool)

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._themes = themes
        self.setAcceptDrops(True)
        self.section(
            "Adapters",
            "A LoRA adapter changes how a model writes. Those that are on act together, in the open chat: on the "
            "answer that is being written, or on the next one.",
        )
        self.in_force = QLabel()
        self.in_force.setObjectName("inForce")
        self.in_force.setTextFormat(Qt.TextFormat.PlainText)
        self.in_force.setWordWrap(True)
        self.column.addWidget(self.in_force)
        self.cards: dict[Path, AdapterCard] = {}
        self._more = QTimer(self, singleShot=True, interval=0)
        self._more.timeout.connect(lambda: self._shown())
        self._cards = QVBoxLayout()
        self._cards.setSpacing(10)
        self.column.addLayout(self._cards)
        self.drop_place = DropPlace(themes)
        self.drop_place.file_wanted.connect(self.file_wanted)
        self.drop_place.folder_wanted.connect(self.folder_wanted)
        self.column.addWidget(self.drop_place)
        self.default = QCheckBox("Use these for every new chat with this model")
        self.default.clicked.connect(self.default_wanted)
        self.column.addWidget(self.default)
        self.column.addStretch(1)
        self.show_adapters((), {}, "", "", False)

    def show_adapters(
        self,
        choices: Sequence[AdapterChoice],
        states: Mapping[Path, AdapterState],
        in_force: str,
        model: str,
        is_default: bool,
    ) -> None:
        """in_force: what acts now, in words. model: the name of the loaded model, or empty.

        Cards are made some at a time, so that many of them do not hold up the window.
        """
        self._shown = partial(self.show_adapters, choices, states, in_force, model, is_default)
        wanted = [choice.path for choice in choices]
        for path in [path for path in self.cards if path not in wanted]:
            card = self.cards.pop(path)
            self._cards.removeWidget(card)
            card.hide()
            card.deleteLater()
        new = 0
        for place, choice in enumerate(choices):
            if choice.path not in self.cards:
                new += 1
                if new > CARDS_AT_ONCE:
                    self._more.start()
                    break
                self._add_card(place, choice.path)
            self.cards[choice.path].show_choice(choice, states.get(choice.path, AdapterState(checking=True)))
        self.in_force.setText(in_force)
        self.in_force.setVisible(bool(in_force))
        self.drop_place.set_first(not choices)
        self.default.setToolTip(f"The loaded model is {model}" if model else "")
        self.default.setVisible(bool(model) and (bool(choices) or is_default))
        self.default.setChecked(is_default)

    def _add_card(self, place: int, path: Path) -> None:
        card = AdapterCard(self._themes, path)
        card.switched.connect(self.switched)
        card.strength_set.connect(self.strength_set)
        card.removed.connect(self.removed)
        self.cards[path] = card
        self._cards.insertWidget(place, card)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()
            self.drop_place.set_hovered(True)

    def dragLeaveEvent(self, event: QDragLeaveEvent) -> None:
        self.drop_place.set_hovered(False)

    def dropEvent(self, event: QDropEvent) -> None:
        self.drop_place.set_hovered(False)
        paths = [Path(url.toLocalFile()) for url in event.mimeData().urls() if url.isLocalFile()]
        if paths:
            event.acceptProposedAction()
            self.added.emit(paths)
