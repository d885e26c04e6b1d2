"""Measures for how long at a stretch the window's thread is busy, and with what.

    python -m tests.tools.stretches [--only NAME] [--model MODEL.gguf] [--limit 16] [--stacks]

Each scene runs in the real event loop: with scripted answers, or with --model while a real model answers. A stretch
is how much later than due a timer comes, so anything else would have waited as long. Printed are, for each scene, the
longest stretch and what of it was computing on the thread itself (the rest was waiting: for Python's lock, or for a
processor), how many were longer than the limit in milliseconds, and with --stacks where the longest ones spent their
time.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from PySide6.QtCore import QObject, Qt, QTimer
from PySide6.QtWidgets import QApplication, QScrollArea

from tests.tools.screenshots import ANSWER, Stage, fill

Steps = Iterator[float | Callable[[], Any]]
"""What a scene waits for: seconds, or something to become true."""
SAMPLE_S = 0.001
TICK_MS = 2
MAIN = threading.get_ident()
PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class Stretch:
    begin: float
    wall_ms: float
    cpu_ms: float


@dataclass
class Watch:
    """Notes how much later than due a timer of the window's thread comes, and on another thread what it does."""

    stacks: bool = False
    found: list[Stretch] = field(default_factory=list)
    samples: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    collections: list[tuple[float, float, int]] = field(default_factory=list)

    def attach(self) -> None:
        self._last = (time.perf_counter(), time.thread_time())
        self._timer = QTimer(interval=TICK_MS, timerType=Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)
        self._timer.start()
        gc.callbacks.append(self._collecting)
        if self.stacks:
            threading.Thread(target=self._look, args=(threading.get_ident(),), daemon=True).start()

    def _tick(self) -> None:
        (before, cpu), self._last = self._last, (time.perf_counter(), time.thread_time())
        wall_ms = (self._last[0] - before) * 1000 - TICK_MS
        if wall_ms > 1:
            self.found.append(Stretch(before, wall_ms, (self._last[1] - cpu) * 1000))

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter()
        elif info["generation"] == 2:
            took = time.perf_counter() - self._collecting_since
            self.collections.append((self._collecting_since, took * 1000, threading.get_ident()))

    def _look(self, thread: int) -> None:
        while True:
            time.sleep(SAMPLE_S)
            frame = sys._current_frames().get(thread)
            if frame is not None:
                self.samples.append((time.perf_counter(), _stack(frame)))

    def take(self) -> list[Stretch]:
        found, self.found = self.found, []
        return found

    def where(self, stretch: Stretch) -> list[str]:
        """The places that a stretch was seen in most, with the milliseconds that each was seen there."""
        end = stretch.begin + stretch.wall_ms / 1000
        counts: Counter[tuple[str, ...]] = Counter()
        before = stretch.begin
        for at, stack in self.samples:
            if stretch.begin <= at <= end:
                counts[stack] += round((at - before) * 1e6)
                before = at
        return [f"{us / 1000:6.1f} ms  " + " < ".join(stack) for stack, us in counts.most_common(6)]


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    places: list[str] = []
    while frame is not None and len(places) < 7:
        code = frame.f_code
        file = Path(code.co_filename)
        if file.is_relative_to(PROJECT) or not places:
            places.append(f"{file.stem}.{code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(places)


class Runner(QObject):
    """Runs scenes one after the other inside of the event loop."""

    def __init__(self, stage: Stage, scenes: list[tuple[str, Callable[[Stage], Steps]]], watch: Watch, limit: float):
        super().__init__()
        self.stage, self.scenes, self.watch, self.limit = stage, scenes, watch, limit
        self.worst = 0.0
        self._name = ""
        self._steps: Steps = iter(())
        self._until: float | Callable[[], Any] = 0.0
        self._timer = QTimer(self, interval=4)
        self._timer.timeout.connect(self._go_on)
        self._timer.start()

    def _go_on(self) -> None:
        until = self._until
        if time.perf_counter() < until if isinstance(until, float) else not until():
            return
        try:
            step = next(self._steps)
        except StopIteration:
            self._end()
            return
        self._until = time.perf_counter() + step if isinstance(step, float) else step

    def _end(self) -> None:
        if self._name:
            self._report()
        if not self.scenes:
            self._timer.stop()
            QApplication.quit()
            return
        self._name, scene = self.scenes.pop(0)
        self._steps = scene(self.stage)
        self._until = time.perf_counter() + 0.25
        QTimer.singleShot(200, self, lambda: self.watch.take())

    def _report(self) -> None:
        found = sorted(self.watch.take(), key=lambda stretch: -stretch.wall_ms)
        longer = [stretch for stretch in found if stretch.wall_ms > self.limit]
        worst = found[0] if found else Stretch(0, 0, 0)
        self.worst = max(self.worst, worst.wall_ms)
        print(
            f"{self._name:<28} longest {worst.wall_ms:6.1f} ms ({worst.cpu_ms:5.1f} computing), "
            f"{len(longer):>3} of {len(found):>4} over {self.limit:g} ms   "
            + " ".join(f"{s.wall_ms:.0f}/{s.cpu_ms:.0f}" for s in longer[1:8]),
            flush=True,
        )
        for _, took, thread in self.watch.collections:
            print(f"      garbage collected for {took:.1f} ms" + ("" if thread == MAIN else " by another thread"))
        self.watch.collections.clear()
        if self.watch.stacks:
            for stretch in found[:2]:
                print(*(f"      {line}" for line in self.watch.where(stretch)), sep="\n")
                print()


def pending(stage: Stage) -> bool:
    return stage.controller.session is not None and stage.controller.session.pending


# Scenes


def popup(stage: Stage) -> Steps:
    for tab in ("model", "draft", "model"):
        stage.window.open_model_popup(tab)
        yield 0.3
        stage.window.popup.hide()
        yield 0.1


def settings(stage: Stage, page: str) -> Steps:
    stage.controller.settings.open_settings(page)
    yield 0.6
    dialog = stage.controller.settings.dialog
    assert dialog is not None
    for area in dialog.findChildren(QScrollArea):
        bar = area.verticalScrollBar()
        if area.isVisible():
            for step in range(20):
                bar.setValue(bar.maximum() * step // 20)
                yield 0.02
    dialog.reject()
    yield 0.2


def settings_all(stage: Stage) -> Steps:
    stage.controller.settings.open_settings("general")
    yield 0.4
    dialog = stage.controller.settings.dialog
    assert dialog is not None
    for page in ("answers", "sampling", "adapters", "general"):
        dialog.show_page(page)
        yield 0.4
    dialog.save()
    yield 0.2


def theme(stage: Stage) -> Steps:
    for look in ("dark", "light"):
        stage.controller.desk.themes.choose(look)
        yield 0.6


def theme_with_settings(stage: Stage) -> Steps:
    stage.controller.settings.open_settings("sampling")
    yield 0.5
    yield from theme(stage)
    dialog = stage.controller.settings.dialog
    assert dialog is not None
    dialog.reject()
    yield 0.1


def long_chat(stage: Stage) -> Steps:
    store = stage.controller.desk.store
    assert store is not None
    chat = store.create_chat("A thousand messages")

    def write() -> None:
        with store.transaction():
            for number in range(500):
                store.add_message(chat.id, "user", f"Question {number}?")
                store.add_message(chat.id, "assistant", ANSWER)

    writer = threading.Thread(target=write)
    writer.start()
    yield lambda: not writer.is_alive()
    stage.controller.chats.refresh_chats()
    stage.controller.chats.new_chat()
    yield 0.3
    stage.controller.chats.open_chat(chat.id)
    yield lambda: len(stage.window.transcript.items) == 1000
    yield 0.6
    bar = stage.window.transcript.verticalScrollBar()
    for step in range(40):
        bar.setValue(bar.maximum() - step * 300)
        yield 0.015
    stage.controller.chats.new_chat()
    yield 0.2
    stage.controller.chats.open_chat(chat.id)
    yield 0.6
    stage.controller.chats.new_chat()
    yield 0.2


def _answer(stage: Stage, text: str, pause: float = 0.002) -> Steps:
    stage.engine.pause = pause
    stage.engine.answers.insert(0, [text[i : i + 6] for i in range(0, len(text), 6)])
    stage.controller.chats.new_chat()
    yield 0.1
    stage.ask("Explain binary search.")
    yield lambda: pending(stage)
    yield lambda: not pending(stage)
    yield 0.1


def prose(stage: Stage) -> Steps:
    yield from _answer(stage, ANSWER * 3)


def table(stage: Stage) -> Steps:
    rows = "".join(f"| Row {n} | value {n * 37} of **{n}** | a somewhat longer cell, `{n:x}` |\n" for n in range(60))
    yield from _answer(stage, "| Name | Value | Remark |\n|:--|--:|:--|\n" + rows)


def code(stage: Stage) -> Steps:
    lines = "".join(
        f"def function_{n}(a: int, b: str = 'x{n}') -> bool:\n    return a > {n} and b\n" for n in range(150)
    )
    yield from _answer(stage, f"```python\n{lines}```\n")


def typing(stage: Stage) -> Steps:
    for letter in "What is the capital of France? " * 4:
        stage.window.composer.text.insertPlainText(letter)
        yield 0.01
    stage.window.composer.text.clear()
    yield 0.1


def resizing(stage: Stage) -> Steps:
    for step in range(30):
        stage.window.resize(1400 - 20 * step, 900 - 6 * step)
        yield 0.03
    stage.window.resize(1400, 900)
    yield 0.3


def sidebar(stage: Stage) -> Steps:
    for _ in range(2):
        stage.window.toggle_sidebar()
        yield 0.2
    stage.window.sidebar.search.setText("sort")
    yield 0.5
    stage.window.sidebar.search.clear()
    yield 0.4


def adapters(stage: Stage) -> Steps:
    from app.conversation import AdapterChoice

    folder = Path(tempfile.mkdtemp())
    choices = []
    for number in range(6):
        path = folder / f"adapter-{number}.gguf"
        path.touch()
        choices.append(AdapterChoice(path, 0.5))
    stage.controller.adapters.set_choices(choices)
    yield 0.4
    yield from settings(stage, "adapters")
    stage.controller.adapters.set_choices([])
    yield 0.2


SCENES: dict[str, Callable[[Stage], Steps]] = {
    "popup": popup,
    "settings: general": lambda stage: settings(stage, "general"),
    "settings: answers": lambda stage: settings(stage, "answers"),
    "settings: sampling": lambda stage: settings(stage, "sampling"),
    "settings: adapters": adapters,
    "settings: all pages": settings_all,
    "prose and code": prose,
    "theme": theme,
    "theme, settings open": theme_with_settings,
    "table of 60 rows": table,
    "code of 300 lines": code,
    "typing": typing,
    "resizing": resizing,
    "sidebar": sidebar,
    "1,000 messages": long_chat,
}


WHILE_ANSWERING = ("popup", "settings: sampling", "settings: all pages", "theme", "typing", "resizing", "sidebar")


def answering(scene: Callable[[Stage], Steps] | None) -> Callable[[Stage], Steps]:
    """A scene while the model answers."""

    def run(stage: Stage) -> Steps:
        stage.controller.chats.new_chat()
        yield 0.3
        stage.ask("Write a long story about a walk through Paris, with a table of the sights in the middle.")
        yield lambda: pending(stage)
        yield 0.5
        if scene is not None:
            yield from scene(stage)
        else:
            yield lambda: not pending(stage)
        stage.controller.messages.stop()
        yield lambda: not pending(stage)
        yield 0.2

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=float, default=16.0)
    parser.add_argument("--stacks", action="store_true")
    options = parser.parse_args()
    app = QApplication(sys.argv[:1])
    with tempfile.TemporaryDirectory() as data:
        os.environ["REALM_DATA_DIR"] = data
        stage = _real_stage(app, options) if options.model is not None else _scripted_stage(app, Path(data))
        names: dict[str, Callable[[Stage], Steps]] = SCENES
        if options.model is not None:
            names = {"the answer alone": answering(None)}
            names |= {f"answering, {name}": answering(SCENES[name]) for name in WHILE_ANSWERING}
        watch = Watch(options.stacks)
        watch.attach()
        chosen = [(name, scene) for name, scene in names.items() if options.only in name]
        runner = Runner(stage, chosen, watch, options.limit)
        app.exec()
        stage.window.hide()
        stage.controller.shut_down()
    sys.stdout.flush()
    os._exit(0 if runner.worst <= options.limit else 1)


def _scripted_stage(app: QApplication, folder: Path) -> Stage:
    from app.desktop.main import build
    from app.store import ChatStore
    from tests.desktop.fakes import FakeEngine, services

    engine = FakeEngine()
    model = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model.touch()
    with ChatStore.open(folder / "chats.sqlite3") as store:
        fill(store)
        store.settings.set("theme", "light")
        store.settings.set("last_model", str(model))
    window, controller = build(app, services(engine, folder))
    return _shown(Stage(app, window, controller, engine))


def _real_stage(app: QApplication, options: argparse.Namespace) -> Stage:
    from app.desktop.main import build, real_services
    from app.store import ChatStore

    with ChatStore.open() as store:
        fill(store)
        store.settings.set("theme", "light")
        store.settings.set("device", options.device)
        sampling = {"temperature": 0.7, "seed": 1}
        store.settings.set("chat_options", {"max_tokens": 600, "sampling": sampling})
    window, controller = build(app, real_services(), options.model)
    return _shown(Stage(app, window, controller, None))


def _shown(stage: Stage) -> Stage:
    stage.window.resize(1400, 900)
    stage.window.show()
    stage.controller.start()
    stage.until(lambda: stage.controller.service.model is not None and stage.controller.session is not None, 120)
    stage.settle(0.5)
    return stage


if __name__ == "__main__":
    main()
