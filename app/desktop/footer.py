"""The figures below the composer: speed, time to first token, context used."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPen, QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QWidget

from app.desktop.theme import Themes
from engine.api import Figures


class ContextGauge(QWidget):
    """A small ring that fills with the context."""

    def __init__(self, themes: Themes, parent: QWidget) -> None:
        super().__init__(parent)
        self._themes = themes
        self.share = 0.0
        self.setFixedSize(QSize(14, 14))

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        ring = QRectF(2, 2, 10, 10)
        painter.setPen(QPen(self._themes.color("border_strong"), 2.4))
        painter.drawEllipse(ring)
        color = "accent" if self.share < 0.8 else "warning" if self.share < 0.95 else "danger"
        painter.setPen(QPen(self._themes.color(color), 2.4, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
        if self.share > 0:
            painter.drawArc(ring, 90 * 16, -max(300, round(self.share * 360 * 16)))
        painter.end()


class Footer(QWidget):
    """Shows the figures of the answer that runs, or ran last, in this chat."""

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("footer")
        self._adapter_words = ""
        self._form = ""
        self._drafting: Figures | None = None
        self._figures: Figures | None = None
        row = QHBoxLayout(self)
        row.setContentsMargins(8, 0, 8, 0)
        row.setSpacing(14)
        row.addStretch(1)
        self.speed = QLabel(self)
        self.speed.setToolTip("Tokens written per second")
        self.first_token = QLabel(self)
        self.first_token.setToolTip("Time from sending to the first token")
        self.context = QLabel(self)
        self.context.setToolTip("Tokens of the context in use, and how many fit")
        self._gauge = ContextGauge(themes, self)
        self._gauge.setToolTip(self.context.toolTip())
        self.adapters, self.form, self.drafting = (self._button() for _ in range(3))
        for part in (self.adapters, self.form, self.speed, self.drafting, self.first_token):
            row.addWidget(part)
        near = QHBoxLayout()
        near.setSpacing(6)
        near.addWidget(self._gauge)
        near.addWidget(self.context)
        row.addLayout(near)
        row.addStretch(1)
        self.setFixedHeight(26)
        self.show_figures(None)

    def _button(self) -> QPushButton:
        button = QPushButton(self)
        button.setObjectName("footerButton")
        button.setCursor(Qt.CursorShape.PointingHandCursor)
        return button

    def show_form(self, words: str) -> None:
        """Shows what the chat's answers are held to; nothing for answers of any form."""
        self._form = words
        self.form.setAccessibleName(f"Form of answers: {words}")
        self.form.setToolTip(f"The answers in this chat are held to a {words}")
        self._fit()

    def show_adapters(self, words: str) -> None:
        """Shows which adapters act; nothing for the model as it is."""
        self._adapter_words = words
        self.adapters.setAccessibleName(f"Adapters: {words}")
        self.adapters.setToolTip(f"The adapters of this chat: {words}")
        self._fit()

    def show_drafting(self, figures: Figures | None) -> None:
        """Shows what guessing gains; nothing for an answer without guesses."""
        self._drafting = figures
        words = draft_words(figures) if figures is not None else ""
        self.drafting.setAccessibleName(f"Guessing ahead: {words}")
        self.drafting.setToolTip(f"Guessing ahead: {words}")
        self._fit()

    def show_figures(self, figures: Figures | None) -> None:
        """Shows figures; None leaves the line empty."""
        self._figures = figures
        if figures is not None and figures.context_length > 0:
            self._gauge.share = min(1.0, figures.context_used / figures.context_length)
            self._gauge.update()
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """Shortens what is long, and leaves out what matters least where there is little room."""
        figures, narrow = self._figures, self.width() < 560
        drafting = self._drafting
        short = draft_short(drafting, narrow) if drafting is not None else ""
        crowded = narrow and bool(self._adapter_words or self._form or short)
        adapters = self.adapters.fontMetrics().elidedText(
            self._adapter_words, Qt.TextElideMode.ElideMiddle, max(70, self.width() // (4 if narrow else 3))
        )
        set_text(self.adapters, adapters)
        set_text(self.form, self._form)
        set_text(self.drafting, short)
        speed = first = context = ""
        if figures is not None:
            if figures.decode_tokens_per_s > 0:
                speed = f"{figures.decode_tokens_per_s:.1f} {'t/s' if crowded else 'tokens/s'}"
            if figures.time_to_first_token_s > 0 and not crowded:
                first = f"first token {seconds(figures.time_to_first_token_s)}"
            if figures.context_length > 0:
                context = f"{figures.context_used:,} / {figures.context_length:,}"
                dropped = f", {figures.dropped_tokens:,} dropped" if figures.dropped_tokens else ""
                context += dropped if crowded else f" tokens{dropped}"
        set_text(self.speed, speed)
        set_text(self.first_token, first)
        set_text(self.context, context)
        self._gauge.setVisible(bool(context))


def set_text(part: QLabel | QPushButton, text: str) -> None:
    """Shows a text; an empty one takes no room."""
    if part.text() != text:
        part.setText(text)
    part.setVisible(bool(text))


def draft_words(figures: Figures) -> str:
    """What guessing gained, as a phrase; empty where nothing was guessed."""
    if figures.drafting_paused:
        return "paused, it does not pay at present"
    if not figures.drafted_tokens:
        return ""
    words = f"{figures.accepted_tokens / figures.drafted_tokens:.0%} of {figures.drafted_tokens:,} guesses accepted"
    if figures.draft_gain is not None:
        words += f", {figures.draft_gain:.2f} times as fast as without"
    return words


def draft_short(figures: Figures, narrow: bool) -> str:
    """The same in a few words."""
    if figures.drafting_paused:
        return "guessing paused" if narrow else "guessing paused: does not pay"
    if not figures.drafted_tokens:
        return ""
    words = f"{figures.accepted_tokens / figures.drafted_tokens:.0%}" + ("" if narrow else " accepted")
    return (
        words if figures.draft_gain is None else f"{words} · {figures.draft_gain:.1f}×" + ("" if narrow else " as fast")
    )


def seconds(value: float) -> str:
    """A duration as people read it: "240 ms", "1.8 s"."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def answer_line(figures: Figures) -> str:
    """The line beside an answer's actions."""
    parts = []
    if figures.generated_tokens:
        parts.append("1 token" if figures.generated_tokens == 1 else f"{figures.generated_tokens} tokens")
    if figures.decode_tokens_per_s > 0:
        parts.append(f"{figures.decode_tokens_per_s:.1f} tokens/s")
    if figures.drafted_tokens:
        parts.append(f"{figures.accepted_tokens} of them guessed")
    return " · ".join(parts)
