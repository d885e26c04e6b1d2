"""The real window with the real engine and the starter model: from typing to the finished answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import Qt

from app.desktop.main import build, real_services
from app.store import ChatStore

pytest.importorskip("engine.loader", reason="the engine cannot load models yet")


@pytest.mark.parametrize("device", ["auto", pytest.param("numpy", marks=pytest.mark.slow)])
def test_a_person_types_and_the_model_answers(qtbot, qapp, data_dir: Path, starter_model: Path, device: str):
    with ChatStore.open() as store:
        store.settings.set("device", device)
        store.settings.set("chat_options", {"max_tokens": 300, "sampling": {"temperature": 0.0}})
    window, controller = build(qapp, real_services(), starter_model)
    qtbot.addWidget(window)
    window.show()
    controller.start()
    try:
        qtbot.waitUntil(
            lambda: controller.service.model is not None or window.notices.notice("model") is not None, timeout=120_000
        )
        problem = window.notices.notice("model")
        assert problem is None, problem.sentence
        assert window.model_button.name.text()

        composer = window.composer.text
        qtbot.keyClicks(composer, "Write a long story about a walk through Paris.")
        qtbot.keyClick(composer, Qt.Key.Key_Return)
        grown: list[int] = []

        def answered() -> bool:
            items = window.transcript.items
            if len(items) == 2 and items[1].data.streaming:
                grown.append(len(items[1].data.text))
            return len(items) == 2 and controller.session is not None and not controller.session.pending

        qtbot.waitUntil(answered, timeout=120_000)
        answer = window.transcript.items[1].data
        assert not answer.problem, answer.note
        assert len(answer.text) > 10
        assert "Paris" in answer.text
        assert window.transcript.items[1].view is not None
        partial = [length for length in grown if 0 < length < len(answer.text)]
        assert partial, "the answer came all at once instead of streaming"
        assert "tokens/s" in window.footer.speed.text()
        assert "first token" in window.footer.first_token.text()
        assert "/ " in window.footer.context.text()
    finally:
        window.hide()
        controller.shut_down()
    with ChatStore.open() as store:
        (chat,) = store.chats()
        assert [message.content for message in store.messages(chat.id)][1] == answer.text
