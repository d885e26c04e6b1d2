"""The settings. Every one of them changes what happens: the look, how answers are chosen, where models run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QButtonGroup,
    QDialog,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from app.conversation import ChatOptions
from app.desktop.adapter_rack import AdapterRack
from app.desktop.controls import Page
from app.desktop.sampling_page import SamplingPage
from app.desktop.settings_pages import AnswersPage, GeneralPage, SettingsValues
from app.desktop.theme import Themes
from engine.api import DeviceInfo

TITLES = {"general": "General", "answers": "Answers", "sampling": "Sampling", "adapters": "Adapters"}


class SettingsDialog(QDialog):
    """Edits a SettingsValues; `saved` carries the new one. The look changes at once, so that it can be seen, and the
    adapters act at once; whoever hears of the rack in `built` fills it.

    Pages are made when they are first asked for: all of them together would hold up the window.
    """

    saved = Signal(object)
    built = Signal(str, object)  # the name of a page, and the page

    def __init__(
        self, themes: Themes, values: SettingsValues, devices: Sequence[DeviceInfo], parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle("Settings")
        self._themes = themes
        self._before = values
        self._devices = devices
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        tabs = QHBoxLayout()
        tabs.setContentsMargins(20, 12, 20, 0)
        tabs.setSpacing(2)
        outer.addLayout(tabs)
        line = QFrame(self)
        line.setObjectName("line")
        outer.addWidget(line)
        self._stack = QStackedWidget(self)
        outer.addWidget(self._stack, 1)
        self.tabs: dict[str, QPushButton] = {}
        self._tab_group = QButtonGroup(self)
        self._pages: dict[str, Page] = {}
        self._waiting: dict[str, list[Callable[[], None]]] = {}  # what is still to be made of a page
        for name, title in TITLES.items():
            self._add_tab(tabs, name, title)
        tabs.addStretch(1)
        outer.addLayout(self._foot())
        QShortcut(QKeySequence("Ctrl+Return"), self).activated.connect(self.save)
        for keys, step in (("Ctrl+Tab", 1), ("Ctrl+PgDown", 1), ("Ctrl+Shift+Tab", -1), ("Ctrl+PgUp", -1)):
            QShortcut(QKeySequence(keys), self).activated.connect(lambda step=step: self._turn(step))
        self._more = QTimer(self, interval=0)
        self._more.timeout.connect(self._make_more)
        self.resize(620, 720)

    # Pages

    def _add_tab(self, tabs: QHBoxLayout, name: str, title: str) -> None:
        scroll = QScrollArea(self._stack)
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._stack.addWidget(scroll)
        tab = QPushButton(title, self)
        tab.setObjectName("tab")
        tab.setCheckable(True)
        tab.setAutoDefault(False)
        tab.setCursor(Qt.CursorShape.PointingHandCursor)
        tab.setAccessibleName(f"{title} settings")
        tab.clicked.connect(lambda _checked=False: self.show_page(name))
        self._tab_group.addButton(tab)
        tabs.addWidget(tab)
        self.tabs[name] = tab

    def _begin(self, name: str) -> Page:
        """The page, of which not all need be there yet."""
        if name in self._pages:
            return self._pages[name]
        values = self._before
        steps: list[Callable[[], None]]
        page: Page
        if name == "general":
            page = general = GeneralPage()
            steps = [lambda: general.fill(self._themes, values, self._devices)]
        elif name == "answers":
            page = answers = AnswersPage()
            steps = answers.steps(values.options)
        elif name == "sampling":
            page = sampling = SamplingPage(self._themes, values.options.sampling)
            steps = sampling.steps()
        else:
            page = AdapterRack(self._themes)
            steps = [lambda: None]  # whoever hears that it is there fills it
        scroll = self._stack.widget(list(TITLES).index(name))
        assert isinstance(scroll, QScrollArea)
        scroll.setWidget(page)
        self._pages[name] = page
        self._waiting[name] = steps
        return page

    def _make_more(self) -> None:
        """Makes one more part of the page in sight."""
        name = list(TITLES)[self._stack.currentIndex()]
        steps = self._waiting[name]
        if steps:
            steps.pop(0)()
            if not steps:
                self.built.emit(name, self._pages[name])
        if not steps:
            self._more.stop()

    def _whole(self, name: str) -> Page:
        """The page with everything on it."""
        page = self._begin(name)
        steps = self._waiting[name]
        while steps:
            steps.pop(0)()
            if not steps:
                self.built.emit(name, page)
        return page

    def show_page(self, name: str) -> None:
        """Turns to "general", "answers", "sampling" or "adapters"."""
        self.tabs[name].setChecked(True)
        self._begin(name)
        self._stack.setCurrentIndex(list(TITLES).index(name))
        self._reset.setVisible(name in ("answers", "sampling"))
        self._at_once.setVisible(name == "adapters")
        self._make_more()
        self._more.start()

    def _turn(self, step: int) -> None:
        names = list(TITLES)
        self.show_page(names[(self._stack.currentIndex() + step) % len(names)])

    @property
    def general(self) -> GeneralPage:
        page = self._whole("general")
        assert isinstance(page, GeneralPage)
        return page

    @property
    def answers(self) -> AnswersPage:
        page = self._whole("answers")
        assert isinstance(page, AnswersPage)
        return page

    @property
    def sampling(self) -> SamplingPage:
        page = self._whole("sampling")
        assert isinstance(page, SamplingPage)
        return page

    @property
    def rack(self) -> AdapterRack:
        page = self._whole("adapters")
        assert isinstance(page, AdapterRack)
        return page

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

    # Values

    def values(self) -> SettingsValues:
        """All that the fields show; pages that were never opened leave their values as they were."""
        values = self._before
        options = values.options
        if "answers" in self._pages:
            options = self.answers.value(options)
        if "sampling" in self._pages:
            options = replace(options, sampling=self.sampling.value())
        if "general" not in self._pages:
            return replace(values, options=options)
        page = self.general
        return SettingsValues(
            page.theme.value, page.device.currentData(), page.context_length.currentData(), options,
            page.session_budget.currentData(),
        )  # fmt: skip

    def _restore(self) -> None:
        self.answers.restore()
        self.sampling.show_values(ChatOptions().sampling)

    def save(self) -> None:
        """Hands over the values and closes."""
        self.saved.emit(self.values())
        super().accept()

    def reject(self) -> None:
        self._themes.choose(self._before.theme)
        super().reject()
