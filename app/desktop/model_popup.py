"""Model and device in sight: the button in the top bar, and what opens below it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from PySide6.QtCore import QPoint, QRectF, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QFontMetrics, QKeyEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QVBoxLayout,
    QWidget,
)

from app.desktop.compositing import make_translucent
from app.desktop.controls import Segments
from app.desktop.icons import icon
from app.desktop.model_service import ModelService, model_name
from app.desktop.theme import Themes
from engine.api import DeviceInfo, ModelInfo

STAGES = {
    "reading": "Reading the file",
    "compiling": "Preparing this machine for the model, once",
    "weights": "Moving the weights",
    "measuring": "Measuring",
}
POPUP_WIDTH = 400
SHADOW = (14.0, 11.5, 9.0, 7.0, 5.0, 3.5, 2.0, 1.0)
"""How far each layer of the popup's shadow reaches."""


def file_size(size: int) -> str:
    """A size as file managers show it: "98 MB", "1.1 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def device_title(device: DeviceInfo) -> str:
    """What a device is called in the window."""
    if device.id == "numpy":
        return "numpy (this computer's CPU, slower)"
    return device.name.strip() or device.id


def device_short(device: DeviceInfo) -> str:
    """A device in a word or two, for the top bar."""
    if device.id == "numpy":
        return "numpy"
    kind = {"gpu": "GPU", "cpu": "CPU"}.get(device.kind, device.kind)
    return f"OpenCL · {kind}"


class ModelButton(QPushButton):
    """Shows the model and its device, or how far loading is."""

    def __init__(self, themes: Themes, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("modelButton")
        self.setFlat(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self._themes = themes
        self._full = self._full_detail = ""
        self.limit = 300
        row = QHBoxLayout(self)
        row.setContentsMargins(10, 5, 8, 5)
        row.setSpacing(8)
        self._picture = QLabel(self)
        self.name = QLabel(self)
        self.name.setObjectName("popupTitle")
        self.detail = QLabel(self)
        self.detail.setObjectName("popupDetail")
        self._chevron = QLabel(self)
        for part in (self._picture, self.name, self.detail, self._chevron):
            part.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
            row.addWidget(part)
        themes.changed.connect(self._dress)
        self._dress()
        self.show_text("No model", "")

    def show_text(self, name: str, detail: str) -> None:
        """Shows a name and a fainter detail, both cut where there is too little room, the name less."""
        self._full, self._full_detail = name, detail
        self.detail.setVisible(bool(detail))
        for label in (self.name, self.detail):
            label.ensurePolished()
        room = self.limit - 84
        names, details = self.name.fontMetrics(), self.detail.fontMetrics()
        of_name = min(
            names.horizontalAdvance(name), max(60, room - min(details.horizontalAdvance(detail), 2 * room // 5))
        )
        # a pixel more, for widths are rounded
        self.name.setText(names.elidedText(name, Qt.TextElideMode.ElideMiddle, of_name + 1))
        self.detail.setText(details.elidedText(detail, Qt.TextElideMode.ElideRight, room - of_name + 1))
        tip, whole = "Model and device (Ctrl+M)", "\n".join(part for part in (name, detail) if part)
        cut = (name, detail) != (self.name.text(), self.detail.text())
        self.setToolTip(f"{whole}\n{tip}" if cut else tip)
        self.setAccessibleName(f"Model: {name}. {detail}".strip())
        self.updateGeometry()

    def set_limit(self, limit: int) -> None:
        """The width that the button may take."""
        if limit != self.limit:
            self.limit = limit
            self.show_text(self._full, self._full_detail)

    def sizeHint(self) -> QSize:
        layout = self.layout()
        assert layout is not None
        return layout.sizeHint()

    def minimumSizeHint(self) -> QSize:
        return self.sizeHint()

    def _dress(self) -> None:
        theme = self._themes.current
        ratio = self.devicePixelRatio()
        self._picture.setPixmap(icon("model", theme.accent).pixmap(QSize(18, 18), ratio))
        self._chevron.setPixmap(icon("chevron-down", theme.text_faint).pixmap(QSize(16, 16), ratio))


class Row(QPushButton):
    """A line of the popup that can be chosen: icon, title, detail, and a mark when it is the current one."""

    def __init__(
        self, themes: Themes, picture: str, title: str, detail: str, current: bool, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setObjectName("row")
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self._themes = themes
        self._picture = picture
        self._words = f"{title}. {detail}"
        line = QHBoxLayout(self)
        line.setContentsMargins(10, 7, 10, 7)
        line.setSpacing(11)
        self._image = QLabel(self)
        line.addWidget(self._image, 0, Qt.AlignmentFlag.AlignVCenter)
        column = QVBoxLayout()
        column.setSpacing(1)
        name = QLabel(self)
        metrics = QFontMetrics(name.font())
        name.setText(metrics.elidedText(title, Qt.TextElideMode.ElideMiddle, POPUP_WIDTH - 110))
        if name.text() != title:
            self.setToolTip(title)
        column.addWidget(name)
        if detail:
            more = QLabel(self)
            more.setObjectName("popupDetail")
            more.setText(detail)
            more.setWordWrap(len(detail) > 50)
            column.addWidget(more)
        line.addLayout(column, 1)
        self._mark = QLabel(self)
        self._mark.setPixmap(icon("check", themes.current.accent).pixmap(QSize(16, 16), self.devicePixelRatio()))
        line.addWidget(self._mark)
        self.current = not current
        self.set_current(current)
        for child in self.findChildren(QLabel):
            child.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)

    def set_current(self, current: bool) -> None:
        """Marks this row as the one that holds, or takes the mark away."""
        if current == self.current:
            return
        self.current = current
        theme = self._themes.current
        color = theme.accent if current else theme.text_soft
        self._image.setPixmap(icon(self._picture, color).pixmap(QSize(18, 18), self.devicePixelRatio()))
        self._mark.setVisible(current)
        self.setAccessibleName(self._words + (" (current)" if current else ""))
        self.setProperty("current", current)
        self.style().unpolish(self)
        self.style().polish(self)

    def sizeHint(self) -> QSize:
        layout = self.layout()
        assert layout is not None
        return layout.sizeHint()

    def minimumSizeHint(self) -> QSize:
        return QSize(60, self.sizeHint().height())


class ModelPopup(QWidget):
    """What can be done with models and devices. It is rebuilt each time it opens, and while something loads."""

    open_wanted = Signal()
    load_wanted = Signal(Path)
    fetch_wanted = Signal()
    unload_wanted = Signal()
    cancel_wanted = Signal()
    device_chosen = Signal(str)

    def __init__(self, themes: Themes, service: ModelService, parent: QWidget) -> None:
        kind = Qt.WindowType
        super().__init__(parent, kind.Popup | kind.FramelessWindowHint | kind.NoDropShadowWindowHint)
        self._window = parent
        self._has_shadow = make_translucent(self)
        self.setAccessibleName("Model and device")
        self._themes = themes
        self._service = service
        outer = QVBoxLayout(self)
        if self._has_shadow:
            outer.setContentsMargins(16, 6, 16, 20)
        else:
            outer.setContentsMargins(0, 0, 0, 0)
        self._card = QFrame(self)
        self._card.setObjectName("popup")
        self._card.setProperty("square", not self._has_shadow)
        outer.addWidget(self._card)
        inner = QVBoxLayout(self._card)
        inner.setContentsMargins(3, 3, 3, 3)
        inner.setSpacing(0)
        self.tab = "model"
        # The page for guessing ahead belongs to draft_control.py, which says when it has to be built anew.
        self.make_draft_page: Callable[[], QWidget] = QWidget
        self.draft_shape: Callable[[], object] = lambda: None
        self.tabs = Segments((("model", "Model", "Model and device"), ("draft", "Draft", "Guessing ahead")), self.tab)
        self.tabs.chosen.connect(self.show_tab)
        self.tabs.setContentsMargins(12, 10, 12, 8)
        inner.addWidget(self.tabs, 0, Qt.AlignmentFlag.AlignLeft)
        line = QFrame(self._card)  # what scrolls goes under it
        line.setObjectName("line")
        inner.addWidget(line)
        self._scroll = QScrollArea(self._card)
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        inner.addWidget(self._scroll)
        self._bar: QProgressBar | None = None
        self._stage: QLabel | None = None
        self._shape: tuple[object, ...] = ()
        service.changed.connect(self.refresh)

    def open_below(self, anchor: QWidget) -> None:
        """Opens under a widget, inside of the screen."""
        if self._shape_now() != self._shape:
            self._rebuild()
        else:
            self.fit()
            self._show_progress()
        place = anchor.mapToGlobal(QPoint(-16 if self._has_shadow else 0, anchor.height() - 2))
        window = anchor.window()
        right = window.mapToGlobal(QPoint(window.width(), 0)).x()
        self.move(max(window.mapToGlobal(QPoint(0, 0)).x() - 8, min(place.x(), right - self.width() + 8)), place.y())
        self.show()
        self.setFocus()

    def paintEvent(self, event: QPaintEvent) -> None:
        """The card's shadow. A graphics effect would blur all of the card again for every change."""
        if not self._has_shadow:
            return
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        color = self._themes.color("shadow")
        color.setAlphaF(color.alphaF() / 9)
        painter.setBrush(color)
        card = QRectF(self._card.geometry()).translated(0, 4)
        for spread in SHADOW:
            painter.drawRoundedRect(card.adjusted(-spread, -spread, spread, spread), 14 + spread, 14 + spread)
        painter.end()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Down, Qt.Key.Key_Up):
            self.focusNextPrevChild(event.key() == Qt.Key.Key_Down)
        else:
            super().keyPressEvent(event)

    def show_tab(self, tab: str) -> None:
        """Turns to "model" or "draft"."""
        self.tab = tab
        self.tabs.set_value(tab)
        if self.isVisible():
            self._rebuild()

    def refresh(self) -> None:
        """Builds the open page anew if what it shows has changed."""
        if not self.isVisible():
            return
        if self._shape_now() != self._shape:
            self._rebuild()
        else:
            self._show_progress()

    def _shape_now(self) -> tuple[object, ...]:
        service = self._service
        if self.tab == "draft":
            return ("draft", self.draft_shape(), self._themes.current)
        return (
            service.model, service.loading, service.fetching is not None, tuple(service.models), service.device,
            tuple(service.devices), self._themes.current,
        )  # fmt: skip

    def _rebuild(self) -> None:
        self._shape = self._shape_now()
        self._bar = self._stage = None
        self._put(self.make_draft_page() if self.tab == "draft" else self._model_page())
        self._show_progress()

    def _model_page(self) -> QWidget:
        service = self._service
        page = QWidget()
        page.setObjectName("popupPage")
        column = QVBoxLayout(page)
        column.setContentsMargins(10, 12, 10, 10)
        column.setSpacing(2)
        if service.loading is not None or service.fetching is not None:
            self._add_progress(column)
        elif service.model is not None:
            self._add_current(column, service.model)
        self._add_models(column)
        self._add_devices(column)
        return page

    def _put(self, page: QWidget) -> None:
        old = self._scroll.takeWidget()
        if old is not None:
            old.deleteLater()
        self._scroll.setWidget(page)
        page.setAutoFillBackground(False)  # the card's round corners stay in sight
        self.fit()

    def fit(self) -> None:
        """Gives the page the height that it wants, as far as the window reaches."""
        page = self._scroll.widget()
        if page is None:
            return
        width = min(POPUP_WIDTH, max(280, self._window.width() - 40))
        limit = max(220, self._window.height() - 130)
        wish = _height_for(page, width - 8)
        if wish > limit:
            wish = _height_for(page, width - 8 - self._scroll.verticalScrollBar().sizeHint().width())
        page.setMinimumHeight(wish)
        self._scroll.setFixedHeight(min(wish, limit))
        self._card.setFixedWidth(width)
        self.adjustSize()

    def show_end(self) -> None:
        """Scrolls to the end of the page, once it has been laid out."""
        bar = self._scroll.verticalScrollBar()
        QTimer.singleShot(0, self, lambda: bar.setValue(bar.maximum()))

    def _heading(self, column: QVBoxLayout, text: str, space: int = 10) -> None:
        column.addSpacing(space)
        label = QLabel(text)
        label.setObjectName("popupHeading")
        label.setContentsMargins(10, 0, 0, 3)
        column.addWidget(label)

    def _line(self, column: QVBoxLayout) -> None:
        column.addSpacing(8)
        line = QFrame()
        line.setObjectName("line")
        column.addWidget(line)

    def _add_progress(self, column: QVBoxLayout) -> None:
        box = QVBoxLayout()
        box.setContentsMargins(10, 2, 10, 4)
        box.setSpacing(7)
        service = self._service
        name = model_name(service.loading) if service.loading is not None else "the starter model"
        title = QLabel(("Loading " if service.loading is not None else "Fetching ") + name)
        title.setObjectName("popupTitle")
        title.setWordWrap(True)
        box.addWidget(title)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setRange(0, 1000)
        box.addWidget(self._bar)
        foot = QHBoxLayout()
        self._stage = QLabel()
        self._stage.setObjectName("popupDetail")
        foot.addWidget(self._stage, 1)
        cancel = QPushButton("Cancel")
        cancel.clicked.connect(self.cancel_wanted)
        foot.addWidget(cancel)
        box.addLayout(foot)
        column.addLayout(box)

    def _show_progress(self) -> None:
        if self._bar is None or self._stage is None:
            return
        text, fraction = progress_text(self._service)
        self._stage.setText(text)
        self._bar.setRange(0, 1000 if fraction is not None else 0)
        self._bar.setValue(round(1000 * (fraction or 0)))

    def _add_current(self, column: QVBoxLayout, model: ModelInfo) -> None:
        box = QHBoxLayout()
        box.setContentsMargins(10, 0, 8, 0)
        words = QVBoxLayout()
        words.setSpacing(2)
        title = QLabel(model_name(model.path))
        title.setObjectName("popupTitle")
        title.setWordWrap(True)
        words.addWidget(title)
        size = f"{model.parameters / 1e9:.1f} B" if model.parameters >= 1e9 else f"{model.parameters / 1e6:.0f} M"
        memory = model.weight_bytes + model.kv_bytes + model.scratch_bytes
        detail = QLabel(
            f"{size} parameters · {model.quantisation} · {model.architecture}\n"
            f"Context {model.context_length:,} of {model.trained_context_length:,} tokens\n"
            f"{file_size(memory)} on {device_title(model.device)}"
        )
        detail.setObjectName("popupDetail")
        detail.setWordWrap(True)
        words.addWidget(detail)
        box.addLayout(words, 1)
        unload = QPushButton("Unload")
        unload.setIcon(icon("eject", self._themes.current.text_soft))
        unload.setToolTip("Free the model's memory")
        unload.clicked.connect(self._then_close(self.unload_wanted.emit))
        box.addWidget(unload, 0, Qt.AlignmentFlag.AlignTop)
        column.addLayout(box)
        self._line(column)

    def _add_models(self, column: QVBoxLayout) -> None:
        service = self._service
        current = service.model.path if service.model is not None else None
        if service.models:
            self._heading(column, "Models on this computer", 6)
        for known in service.models[:12]:
            kind = known.path.stem.removeprefix(known.name).lstrip("-._")
            detail = f"{kind} · {file_size(known.size)}" if kind else file_size(known.size)
            row = Row(self._themes, "model", known.name, detail, known.path == current)
            row.clicked.connect(self._then_close(partial(self.load_wanted.emit, known.path)))
            column.addWidget(row)
        if service.models:
            self._line(column)
        column.addSpacing(4)
        row = Row(self._themes, "folder", "Open a model file…", "", False)
        row.setToolTip("Choose a GGUF file (Ctrl+O)")
        row.clicked.connect(self._then_close(self.open_wanted.emit))
        column.addWidget(row)
        if service.fetching is None and not any("SmolLM2-135M-Instruct" in known.path.name for known in service.models):
            row = Row(self._themes, "download", "Fetch the starter model", "SmolLM2 135M Instruct, 98 MB", False)
            row.clicked.connect(self.fetch_wanted)
            column.addWidget(row)
        self._line(column)

    def _add_devices(self, column: QVBoxLayout) -> None:
        service = self._service
        self._heading(column, "Device", 6)
        used = service.model.device if service.model is not None else None
        detail = f"Now {device_title(used)}" if used is not None else "The fastest that works"
        choices: list[tuple[str, str, str]] = [("auto", "Automatic", detail)]
        for device in service.devices:
            memory = f"{file_size(device.memory_bytes)} memory" if device.memory_bytes else ""
            choices.append((device.id, device_title(device), device.problem or memory))
        for name, title, more in choices:
            row = Row(self._themes, "spark" if name == "auto" else "chip", title, more, name == service.device)
            problem = next((d.problem for d in service.devices if d.id == name), "")
            row.setEnabled(not problem)
            row.clicked.connect(self._then_close(partial(self.device_chosen.emit, name)))
            column.addWidget(row)

    def _then_close(self, do: Callable[[], object]) -> Callable[[bool], None]:
        def run(_checked: bool = False) -> None:
            self.hide()
            do()

        return run


def _height_for(page: QWidget, width: int) -> int:
    layout = page.layout()
    assert layout is not None
    return layout.heightForWidth(width) if layout.hasHeightForWidth() else layout.sizeHint().height()


def progress_text(service: ModelService) -> tuple[str, float | None]:
    """What is under way in words, and its share done (None while unknown)."""
    if service.fetching is not None:
        done, total = service.fetching
        if not total:
            return "Looking for the file", None
        return f"{file_size(done)} of {file_size(total)}", done / total
    progress = service.progress
    if progress is None:
        return "", None
    stage = STAGES.get(progress.stage, progress.stage.capitalize())
    detail = "" if progress.stage == "compiling" else progress.detail  # quantisation types, which mean little there
    return (f"{stage}: {detail}" if detail else stage), progress.fraction
