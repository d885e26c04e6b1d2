"""Renders the real window in its various states into PNG files.

    python -m tests.tools.screenshots FOLDER [--scale 1|2] [--only NAME]
    python -m tests.tools.screenshots FILE.png --model MODEL.gguf --prompt TEXT... [--device D] [--dark]

The first form scripts the answers; the second has a real model give them. Without a display set
QT_QPA_PLATFORM=offscreen. --scale is the device pixel ratio.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.desktop.controller import Controller
from app.desktop.window import MainWindow

SIZES = {"large": (1400, 900), "small": (420, 560)}

ANSWER = """A **binary search** finds a value in a *sorted* list by halving the part that can still hold it. \
It needs at most `log2(n)` comparisons, so a million entries take twenty steps \
([more about it](https://en.wikipedia.org/wiki/Binary_search)).

### How it goes

1. Look at the entry in the middle.
2. If it is smaller than the target, go on to the right of it;
   - otherwise to the left,
   - and stop when nothing is left.
3. Return the index, or `None`.

```python
def binary_search(items: list[int], target: int) -> int | None:
    \"\"\"Return an index of target in the sorted items, or None.\"\"\"
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2  # rounds down, so it is always below high
        if items[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low if low < len(items) and items[low] == target else None
```

> Although the basic idea is comparatively straightforward, the details can be surprisingly tricky.
>
> — Donald Knuth

| Search | Steps for *n* entries | Needs |
|:--|--:|:--|
| Linear | n | nothing |
| Binary | log2(n) | a sorted list |
| Hash table | 1 | memory for the table |

Shall I add tests for it?
"""

TESTS = """Gladly. These cover the edges that go wrong most often:

```python
import pytest

@pytest.mark.parametrize(("items", "target", "index"), [
    ([], 3, None),
    ([3], 3, 0),
    ([1, 3, 5, 7], 7, 3),
    ([1, 3, 5, 7], 4, None),
])
def test_binary_search(items, target, index):
    assert binary_search(items, target) == index
```

- [x] the empty list
- [x] one entry
- [x] first and last entry
- [ ] equal entries
"""

TITLES = (
    ("Binary search in Python", 0), ("Names for a small boat", 0), ("Why the sky is blue", 1),
    ("Packing list for Norway", 1), ("Letter to the landlord", 3), ("Regular expressions, explained", 4),
    ("Bread without kneading", 6), ("Sorting algorithms compared", 12), ("A toast for Anna and Jonas", 20),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", default="1")
    parser.add_argument("--only", default="")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--size", default="1180x820")
    options = parser.parse_args()
    os.environ["QT_SCALE_FACTOR"] = options.scale
    with tempfile.TemporaryDirectory() as data:
        os.environ["REALM_DATA_DIR"] = data
        if options.model is not None:
            render_real(options)
        else:
            render(options.folder, options.scale, options.only)
    sys.stdout.flush()
    os._exit(0)


def render(folder: Path, scale: str, only: str) -> None:
    from PySide6.QtWidgets import QApplication, QWidget

    folder.mkdir(parents=True, exist_ok=True)
    app = QApplication.instance() or QApplication(sys.argv[:1])
    for state, prepare in STATES.items():
        if only and only not in state:
            continue
        for look in ("light", "dark"):
            for size, (width, height) in SIZES.items():
                with scene(app, look, width, height, state) as stage:
                    extra = prepare(stage)
                    stage.settle(0.35)
                    shown = extra if isinstance(extra, QWidget) else stage.window
                    picture = shown.grab()
                    picture.save(str(folder / f"{state}-{look}-{size}@{scale}x.png"))


def render_real(options: argparse.Namespace) -> None:
    """One picture of a chat with a real model."""
    from PySide6.QtWidgets import QApplication

    from app.desktop.main import build, real_services
    from app.store import ChatStore

    app = QApplication(sys.argv[:1])
    with ChatStore.open() as store:
        fill(store)
        store.settings.set("theme", "dark" if options.dark else "light")
        store.settings.set("device", options.device)
        sampling = {"temperature": 0.0 if options.seed is None else 0.6, "seed": options.seed}
        store.settings.set("chat_options", {"max_tokens": 400, "sampling": sampling})
    window, controller = build(app, real_services(), options.model)
    window.show()
    controller.start()
    stage = Stage(app, window, controller, None)
    stage.until(lambda: controller.service.model is not None and controller.session is not None, 120)
    width, _, height = options.size.partition("x")
    window.resize(int(width), int(height))
    for prompt in options.prompt:
        stage.ask(prompt)
        session = controller.session
        assert session is not None
        stage.answered(300)
        print([message.text for message in session.messages[-1:]], session.figures, sep="\n")
    stage.settle(1.0)
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    window.grab().toImage().save(str(options.folder), quality=0)
    controller.shut_down()


class Stage:
    def __init__(self, app, window: MainWindow, controller: Controller, engine) -> None:
        self.app, self.window, self.controller, self.engine = app, window, controller, engine

    def settle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.app.processEvents()
            time.sleep(0.005)

    def until(self, condition: Callable[[], bool], seconds: float = 8.0) -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            self.app.processEvents()
            time.sleep(0.005)

    def ask(self, text: str) -> None:
        self.window.composer.set_text(text)
        self.window.composer.submit()

    def answered(self, seconds: float = 8.0) -> None:
        session = self.controller.session
        assert session is not None
        self.until(lambda: session.pending, 2)
        self.until(lambda: not session.pending, seconds)


@contextmanager
def scene(app, look: str, width: int, height: int, state: str) -> Iterator[Stage]:
    from app.desktop.main import build
    from app.store import ChatStore
    from tests.desktop.fakes import FakeEngine, services

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = FakeEngine(ANSWER, TESTS)
        model = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
        with ChatStore.open(folder / "chats.sqlite3") as store:
            fill(store)
            store.settings.set("theme", look)
            if state not in ("first-start", "fetching"):
                model.touch()
                store.settings.set("last_model", str(model))
                store.settings.set("recent_models", [str(model), str(folder / "Mistral-7B-Instruct-v0.3.Q4_K_M.gguf")])
        if state == "loading":
            engine.load_at_once = False
        window, controller = build(app, services(engine, folder, fetch=lambda note, _cancel: slow_fetch(note)))
        window.resize(width, height)
        window.show()
        controller.start()
        stage = Stage(app, window, controller, engine)
        stage.until(lambda: controller.session is not None and not window.welcome.starting)
        stage.settle(0.1)
        window.resize(width, height)
        stage.settle(0.1)
        yield stage
        engine.hold.set()
        window.hide()
        controller.shut_down()
        window.deleteLater()
        stage.settle(0.05)


def fill(store) -> None:
    """Some chats of the last weeks. The store gives them its own time, so theirs is set behind its back."""
    for title, days in reversed(TITLES):
        chat = store.create_chat(title)
        store.add_message(chat.id, "user", title)
        with sqlite3.connect(store.path) as raw:
            now = raw.execute("select updated from chats where id = ?", (chat.id,)).fetchone()[0]
            per_second = 10 ** (len(str(now)) - 10)  # the unit: a time in seconds has ten digits
            raw.execute("update chats set updated = ? where id = ?", (now - days * 86400 * per_second, chat.id))


def slow_fetch(note: Callable[[int, int], None]) -> Path:
    note(41_300_000, 98_362_432)
    time.sleep(2.5)
    raise RuntimeError("never ends")


def conversation(stage: Stage) -> None:
    stage.ask("Explain binary search and show it in Python.")
    stage.answered()
    stage.ask("Yes, please. With pytest.")
    stage.answered()
    stage.window.transcript.verticalScrollBar().setValue(0)


def conversation_end(stage: Stage) -> None:
    conversation(stage)
    stage.window.transcript.jump_to_latest()


def streaming(stage: Stage) -> None:
    stage.engine.pause = 0.008
    stage.ask("Explain binary search and show it in Python.")
    session = stage.controller.session
    assert session is not None
    stage.until(lambda: bool(session.messages) and len(session.messages[-1].text) > 780)
    stage.engine.hold.clear()


def failed(stage: Stage) -> None:
    from engine.errors import DeviceError

    stage.engine.answers[0] = [
        "The sky is blue because air scatters ",
        DeviceError(
            "The graphics card stopped answering while this answer was computed.",
            "Loading the model again often helps.",
        ),
    ]
    stage.ask("Why is the sky blue?")
    stage.answered()


def damaged(stage: Stage) -> None:
    from engine.errors import ModelFileError

    stage.engine.unload()
    stage.engine.load_errors.append(
        ModelFileError("The model file ends inside of the tensor blk.11.ffn_down.weight.", "Download the file again.")
    )
    stage.controller.models.load_model(Path("/models/Mistral-7B-Instruct-v0.3.Q4_K_M.gguf"))


def popup(stage: Stage):
    stage.window.open_model_popup()
    stage.settle(0.2)
    return stage.window.popup


def settings(stage: Stage, page: str = "general"):
    stage.controller.settings.open_settings(page)
    stage.settle(0.1)
    return stage.controller.settings.dialog


def adapters(stage: Stage):
    """A rack with one that acts, one that is off, one for another model, and one whose file is gone."""
    from app.conversation import AdapterChoice
    from engine.errors import AdapterError

    folder = stage.controller.desk.service.models[0].path.parent
    names = ("pirate-speech.gguf", "json-answers", "norwegian-13b.gguf")
    for name in names:
        (folder / name).touch()
    stage.engine.adapter_errors["norwegian-13b.gguf"] = AdapterError(
        "It is for a model whose attn_q is 5120 wide; that of SmolLM2 is 576.", "Load the model that it was made for."
    )
    strengths = ((0.8, True), (1.25, False), (1.0, True))
    choices = [
        AdapterChoice(folder / name, strength, on) for name, (strength, on) in zip(names, strengths, strict=True)
    ]
    stage.controller.adapters.set_choices([*choices, AdapterChoice(folder / "gone.safetensors")])
    return settings(stage, "adapters")


def with_drafts(stage: Stage) -> None:
    """Two models that fit as drafts and one that does not."""
    from engine.drafts.fit import DraftFit

    service = stage.controller.service
    folder = service.models[0].path.parent
    fits = {
        "SmolLM2-135M-Instruct.Q2_K.gguf": DraftFit(True, ""),
        "SmolLM2-360M-Instruct.Q4_K_M.gguf": DraftFit(
            True, "17 tokens that are padding or added in only one of the two are never guessed."
        ),
        "Mistral-7B-Instruct-v0.3.Q4_K_M.gguf": DraftFit(
            False, "Token 1 is '<|im_start|>' in the model, but '<s>' in the draft (32768 tokens differ)."
        ),
    }
    drafts = stage.controller.drafts.drafts
    for size, (name, fit) in enumerate(fits.items(), 1):
        with (folder / name).open("wb") as file:
            file.truncate(size * 52_000_000)
        key = (service.models[0].path, folder / name, size * 52_000_000)
        drafts._asked.add(key)
        drafts._fits[key] = fit
    service.recent = [str(service.models[0].path), *(str(folder / name) for name in fits)]
    service.find_models(folder)
    stage.until(lambda: len(service.models) == 4)


def draft(stage: Stage, tab: str = "draft"):
    with_drafts(stage)
    stage.window.open_model_popup(tab)
    stage.settle(0.2)
    return stage.window.popup


def draft_measuring(stage: Stage):
    with_drafts(stage)
    stage.ask("Explain binary search.")
    stage.answered()
    stage.engine.pause = 0.4
    stage.controller.drafts.find_fastest()
    stage.settle(1.2)
    stage.window.open_model_popup("draft")
    stage.settle(0.2)
    return stage.window.popup


def draft_measured(stage: Stage):
    with_drafts(stage)
    stage.ask("Explain binary search.")
    stage.answered()
    stage.engine.speeds = {
        "": 21.3, "ngram": 30.9, "SmolLM2-135M-Instruct.Q2_K": 33.4, "SmolLM2-360M-Instruct.Q4_K_M": 18.2,
    }  # fmt: skip
    stage.controller.drafts.find_fastest()
    stage.until(lambda: bool(stage.controller.drafts.drafts.results))
    stage.window.open_model_popup("draft")
    stage.settle(0.3)
    return stage.window.popup


def with_own_layer(stage: Stage) -> None:
    """A model whose file carries a layer that predicts, which guesses."""
    from dataclasses import replace

    status = stage.engine.status()
    assert status.model is not None
    stage.engine._status = replace(status, model=replace(status.model, predicts=True))
    stage.controller.service.refresh()
    stage.controller.drafts.choose_draft(status.model.path)
    stage.until(lambda: stage.controller.drafts.drafts.draft is not None, 3)


def draft_own_layer(stage: Stage):
    with_drafts(stage)
    with_own_layer(stage)
    stage.ask("Explain binary search.")
    stage.answered()
    stage.engine.speeds = {"": 21.3, "ngram": 30.9, "SmolLM2-135M-Instruct.Q2_K": 33.4}
    stage.engine.speeds["SmolLM2-360M-Instruct.Q4_K_M"] = 18.2
    stage.engine.speeds["SmolLM2-135M-Instruct.Q4_1"] = 38.2
    stage.controller.drafts.find_fastest()
    stage.until(lambda: bool(stage.controller.drafts.drafts.results))
    stage.window.open_model_popup("draft")
    stage.settle(0.3)
    stage.window.popup.show_end()
    return stage.window.popup


def tinted(stage: Stage) -> None:
    """An answer of which two thirds were guessed, with adapters and figures in the footer."""
    from dataclasses import replace

    from app.conversation import AdapterChoice
    from engine.api import DraftKind, DraftOptions
    from tests.desktop.fakes import Guess, figures

    folder = stage.controller.service.models[0].path.parent
    (folder / "pirate-speech.gguf").touch()
    stage.controller.adapters.set_choices([AdapterChoice(folder / "pirate-speech.gguf", 0.8)])
    stage.controller.drafts._set(DraftOptions(DraftKind.NGRAM))
    stage.controller.drafts.set_tint(True)
    stage.settle(0.3)
    pieces = [ANSWER[i : i + 5] for i in range(0, len(ANSWER), 5)]
    measured = replace(
        figures(212), drafted_tokens=180, accepted_tokens=131, draft_gain=1.62, dropped_tokens=0, generated_tokens=212
    )
    stage.engine.answers[0] = [measured, *(Guess(p) if i % 7 < 4 else p for i, p in enumerate(pieces))]
    stage.ask("Explain binary search and show it in Python.")
    stage.answered()
    stage.window.transcript.verticalScrollBar().setValue(0)


def context_full(stage: Stage) -> None:
    from engine.api import StopReason

    stage.engine.answers[0] = ["The story goes on and on, and", StopReason.CONTEXT]
    stage.ask("Tell me a very long story.")
    stage.answered()


def fetching(stage: Stage) -> None:
    stage.controller.models.fetch_starter()


def editing(stage: Stage) -> None:
    conversation(stage)
    stage.window.transcript.jump_to_latest()
    stage.controller.messages.edit_last()


def sidebar(stage: Stage) -> None:
    if stage.window.narrow:
        stage.window.toggle_sidebar()


def deleted(stage: Stage) -> None:
    conversation_end(stage)
    session = stage.controller.session
    assert session is not None
    stage.controller.messages.message_action("delete", session.messages[-1].id)


STATES: dict[str, Callable[[Stage], object]] = {
    "conversation": conversation,
    "conversation-end": conversation_end,
    "streaming": streaming,
    "first-start": lambda stage: None,
    "ready": lambda stage: None,
    "loading": lambda stage: None,
    "fetching": fetching,
    "failed": failed,
    "damaged": damaged,
    "popup": popup,
    "settings": settings,
    "settings-answers": lambda stage: settings(stage, "answers"),
    "settings-sampling": lambda stage: settings(stage, "sampling"),
    "adapters-none": lambda stage: settings(stage, "adapters"),
    "adapters": adapters,
    "draft": draft,
    "draft-measuring": draft_measuring,
    "draft-measured": draft_measured,
    "draft-own-layer": draft_own_layer,
    "tinted": tinted,
    "context-full": context_full,
    "editing": editing,
    "sidebar": sidebar,
    "deleted": deleted,
}

if __name__ == "__main__":
    main()
