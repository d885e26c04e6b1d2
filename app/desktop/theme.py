"""Colours, type sizes and the style sheet of the window, and who decides between light and dark."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import cache
from string import Template

from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtGui import QColor, QFont, QFontDatabase, QFontInfo, QFontMetrics, QGuiApplication, QPalette
from PySide6.QtWidgets import QApplication, QMenu, QWidget
from shiboken6 import isValid

import resources
from app.desktop.compositing import make_translucent


@dataclass(frozen=True)
class Theme:
    """One set of colours, as #rrggbb or #aarrggbb. Text on its ground keeps a contrast of 4.5:1 or more."""

    name: str
    window: str  # behind the transcript
    sidebar: str
    surface: str  # composer, cards, popups
    raised: str  # user messages, chips
    hover: str
    pressed: str
    border: str
    border_strong: str
    text: str
    text_soft: str
    text_faint: str
    accent: str
    accent_hover: str
    accent_soft: str
    on_accent: str
    danger: str
    danger_soft: str
    warning: str
    warning_soft: str
    selection: str
    drafted: str  # behind what was guessed and accepted
    code_ground: str
    code_head: str
    inline_code: str
    syntax_keyword: str
    syntax_string: str
    syntax_number: str
    syntax_comment: str
    syntax_function: str
    syntax_type: str
    syntax_operator: str
    syntax_meta: str
    syntax_removed: str
    shadow: str

    @property
    def dark(self) -> bool:
        return self.name == "dark"


LIGHT = Theme(
    name="light",
    window="#fdfdfb",
    sidebar="#f4f4f0",
    surface="#ffffff",
    raised="#f0f0eb",
    hover="#e9e9e3",
    pressed="#dfdfd8",
    border="#e4e4dd",
    border_strong="#cfcfc6",
    text="#20231f",
    text_soft="#565b54",
    text_faint="#686d65",
    accent="#2c6e5b",
    accent_hover="#235a4a",
    accent_soft="#e2eee8",
    on_accent="#ffffff",
    danger="#b3382c",
    danger_soft="#fbeae7",
    warning="#8a5a00",
    warning_soft="#fbf1dc",
    selection="#c5e2d6",
    drafted="#dfe7fa",
    code_ground="#f7f7f3",
    code_head="#efefe9",
    inline_code="#ededE6",
    syntax_keyword="#8a3a94",
    syntax_string="#2f6f3e",
    syntax_number="#a3560a",
    syntax_comment="#686d65",
    syntax_function="#1f5fa8",
    syntax_type="#8a5a00",
    syntax_operator="#565b54",
    syntax_meta="#9c3f5f",
    syntax_removed="#b3382c",
    shadow="#22000000",
)

DARK = Theme(
    name="dark",
    window="#1b1d1b",
    sidebar="#161816",
    surface="#242724",
    raised="#2b2f2b",
    hover="#2e322e",
    pressed="#383d38",
    border="#313531",
    border_strong="#474d47",
    text="#e7e9e4",
    text_soft="#b3b8b0",
    text_faint="#92988f",
    accent="#7cc4a6",
    accent_hover="#93d4b8",
    accent_soft="#25382f",
    on_accent="#10201a",
    danger="#ee8b7e",
    danger_soft="#3b2522",
    warning="#e2b565",
    warning_soft="#382e1b",
    selection="#2f5b4b",
    drafted="#2b3650",
    code_ground="#161816",
    code_head="#202320",
    inline_code="#323632",
    syntax_keyword="#cf9ddb",
    syntax_string="#9ccc8f",
    syntax_number="#e5ac72",
    syntax_comment="#8b9288",
    syntax_function="#86b9ee",
    syntax_type="#e0c27a",
    syntax_operator="#b3b8b0",
    syntax_meta="#ea9db6",
    syntax_removed="#ee8b7e",
    shadow="#66000000",
)

PREFERRED_SANS = ("Inter", "Cantarell", "Ubuntu Sans", "Ubuntu", "Noto Sans", "Open Sans", "Liberation Sans")
PREFERRED_MONO = (
    "SF Mono", "Menlo", "Cascadia Mono", "Consolas", "JetBrains Mono", "Ubuntu Sans Mono", "Noto Sans Mono",
    "DejaVu Sans Mono", "Liberation Mono",
)  # fmt: skip


def ui_font() -> QFont:
    """The desktop's own font; where it names none (a bare X session), the best sans serif that is installed."""
    font = QFontDatabase.systemFont(QFontDatabase.SystemFont.GeneralFont)
    if sys.platform.startswith("linux"):
        if font.family() in ("Sans Serif", "Sans", "sans-serif", ""):
            installed = set(QFontDatabase.families())
            family = next((name for name in PREFERRED_SANS if name in installed), QFontInfo(font).family())
            font = QFont(family, max(10, font.pointSize()))
        font.setHintingPreference(QFont.HintingPreference.PreferNoHinting)
    return font


def mono_font(size: float) -> QFont:
    """The fixed-width font for code, in pixels."""
    installed = set(QFontDatabase.families())
    fixed = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    family = next((name for name in PREFERRED_MONO if name in installed), fixed.family())
    font = QFont(family)
    font.setStyleHint(QFont.StyleHint.Monospace)
    font.setFixedPitch(True)
    font.setPixelSize(round(size))
    font.setStyleStrategy(QFont.StyleStrategy.PreferAntialias)
    if sys.platform.startswith("linux"):
        font.setHintingPreference(QFont.HintingPreference.PreferNoHinting)
    # Ligatures would make "!=" one glyph and selections inexact.
    font.setFeature(QFont.Tag("liga"), 0)
    font.setFeature(QFont.Tag("calt"), 0)
    return font


class Themes(QObject):
    """Holds the theme in use; follows the system unless the person chose light or dark.

    A change takes three turns of the event loop, so that none of them holds up an answer that streams: palette and
    style sheet are put in place, `changed` is emitted for icons and the like, and `settled` for what takes longer to
    draw anew. Nothing is painted in between.
    """

    changed = Signal()
    settled = Signal()

    def __init__(self, app: QApplication) -> None:
        super().__init__(app)
        self._app = app
        self._choice = "system"
        self.current = LIGHT
        self._applied = False
        self._held: list[QWidget] = []  # windows that wait to be painted
        self._next_turn = QTimer(self, singleShot=True)
        self._next_turn.timeout.connect(self._tell)
        self._turn_after = QTimer(self, singleShot=True)
        self._turn_after.timeout.connect(self._settle)
        font = ui_font()
        # Reading size: a little above the desktop's own text.
        self.ui_px = max(13, QFontInfo(font).pixelSize())
        font.setPixelSize(self.ui_px)
        app.setFont(font)
        self.body_px = self.ui_px + 2
        self.small_px = max(11, self.ui_px - 1)
        self.body_font = QFont(font)
        self.body_font.setPixelSize(self.body_px)
        self.code_font = mono_font(self.body_px - 1.5)
        QFontMetrics(self.code_font).height()  # finding the font takes milliseconds, now or amid the first answer
        for theme in (LIGHT, DARK):  # the file is read now, and not amid an answer
            style_sheet(theme, self.ui_px, self.small_px)
        app.setStyle("Fusion")
        QGuiApplication.styleHints().colorSchemeChanged.connect(self._system_changed)
        self._apply()

    @property
    def choice(self) -> str:
        """ "system", "light" or "dark"."""
        return self._choice

    def choose(self, choice: str) -> None:
        """Takes "system", "light" or "dark"; anything else counts as "system"."""
        self._choice = choice if choice in ("light", "dark") else "system"
        hints = QGuiApplication.styleHints()
        # Telling Qt as well makes title bars and native dialogs follow.
        if self._choice == "system":
            hints.unsetColorScheme()
        else:
            hints.setColorScheme(Qt.ColorScheme.Dark if self._choice == "dark" else Qt.ColorScheme.Light)
        self._apply()

    def color(self, name: str) -> QColor:
        """A colour of the theme in use by its field name."""
        return QColor(getattr(self.current, name))

    def _system_changed(self) -> None:
        if self._choice == "system":
            self._apply()

    def _apply(self) -> None:
        dark = self._choice == "dark" or (self._choice == "system" and system_is_dark())
        theme = DARK if dark else LIGHT
        if theme is self.current and self._applied:
            return
        self.current, self._applied = theme, True
        # Under a style sheet a new palette costs as much again as the sheet, so the old one goes first.
        self._hold()
        self._app.setStyleSheet("")
        self._app.setPalette(palette(theme))
        self._app.setStyleSheet(style_sheet(theme, self.ui_px, self.small_px))
        self._next_turn.start()

    def _tell(self) -> None:
        self.changed.emit()
        self._turn_after.start()

    def _settle(self) -> None:
        self.settled.emit()
        held, self._held = self._held, []
        for window in held:
            if isValid(window):
                window.setUpdatesEnabled(True)

    def _hold(self) -> None:
        for window in self._app.topLevelWidgets():
            if window.isVisible() and window.updatesEnabled():
                window.setUpdatesEnabled(False)
                self._held.append(window)


def new_menu(parent: QWidget) -> QMenu:
    """A menu whose round corners show what is behind them, where that can be."""
    menu = QMenu(parent)
    kind = Qt.WindowType
    menu.setWindowFlags(menu.windowFlags() | kind.FramelessWindowHint | kind.NoDropShadowWindowHint)
    make_translucent(menu)
    return menu


def system_is_dark() -> bool:
    """What the desktop prefers; light where it says nothing."""
    return QGuiApplication.styleHints().colorScheme() == Qt.ColorScheme.Dark


def palette(theme: Theme) -> QPalette:
    """Qt's own colour roles, for what the style sheet does not name."""
    result = QPalette()
    role = QPalette.ColorRole
    for where, value in (
        (role.Window, theme.window),
        (role.WindowText, theme.text),
        (role.Base, theme.surface),
        (role.AlternateBase, theme.raised),
        (role.Text, theme.text),
        (role.Button, theme.surface),
        (role.ButtonText, theme.text),
        (role.BrightText, theme.on_accent),
        (role.Highlight, theme.selection),
        (role.HighlightedText, theme.text),
        (role.ToolTipBase, theme.text),
        (role.ToolTipText, theme.window),
        (role.PlaceholderText, theme.text_faint),
        (role.Link, theme.accent),
        (role.LinkVisited, theme.accent),
        (role.Mid, theme.border),
        (role.Accent, theme.accent),
    ):
        result.setColor(where, QColor(value))
    group = QPalette.ColorGroup.Disabled
    for where in (role.WindowText, role.Text, role.ButtonText):
        result.setColor(group, where, QColor(theme.text_faint))
    return result


@cache
def style_sheet(theme: Theme, ui_px: int, small_px: int) -> str:
    """resources/themes/realm.qss with this theme's colours filled in."""
    source = resources.read_text("themes/realm.qss")
    values = {entry.name: getattr(theme, entry.name) for entry in fields(theme)}
    return Template(source).substitute(values, ui_px=ui_px, small_px=small_px, large_px=ui_px + 9, title_px=ui_px + 2)
