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
        self.adapters = QPushButton(self)
        self.adapters.setObjectName("footerButton")
        self.adapters.setCursor(Qt.CursorShape.PointingHandCursor)
        self.adapters.setToolTip("The adapters of this chat")
        self.adapters.hide()
        for part in (self.adapters, self.speed, self.first_token):
            row.addWidget(part)
        near = QHBoxLayout()
        near.setSpacing(6)
        near.addWidget(self._gauge)
        near.addWidget(self.context)
        row.addLayout(near)
        row.addStretch(1)
        self.setFixedHeight(26)
        self.show_figures(None)

    def show_adapters(self, words: str) -> None:
        """Shows which adapters act; nothing for the model as it is."""
        self._adapter_words = words
        self.adapters.setVisible(bool(words))
        self.adapters.setAccessibleName(f"Adapters: {words}")
        self.adapters.setToolTip(f"The adapters of this chat: {words}")
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """Shortens what is long, and leaves out what matters least where there is little room."""
        room = max(70, self.width() // 3)
        self.adapters.setText(
            self.adapters.fontMetrics().elidedText(self._adapter_words, Qt.TextElideMode.ElideMiddle, room)
        )

    def show_figures(self, figures: Figures | None) -> None:
        """Shows figures; None leaves the line empty."""
        known = figures is not None and figures.context_length > 0
        self._gauge.setVisible(known)
        self.context.setVisible(known)
        self.speed.setVisible(figures is not None and figures.decode_tokens_per_s > 0)
        self.first_token.setVisible(figures is not None and figures.time_to_first_token_s > 0)
        if figures is None:
            return
        self.speed.setText(f"{figures.decode_tokens_per_s:.1f} tokens/s")
        self.first_token.setText(f"first token {seconds(figures.time_to_first_token_s)}")
        if known:
            dropped = f", {figures.dropped_tokens:,} dropped" if figures.dropped_tokens else ""
            self.context.setText(f"{figures.context_used:,} / {figures.context_length:,} tokens{dropped}")
            self._gauge.share = min(1.0, figures.context_used / figures.context_length)
            self._gauge.update()


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
    return " · ".join(parts)
