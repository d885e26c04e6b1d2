"""The rack of adapters: what it does to the chat, at once and for later, driven as a person would."""

from __future__ import annotations

from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtWidgets import QAbstractButton, QLineEdit

from app.desktop.adapter_shelf import is_adapter
from engine.api import AdapterUse
from engine.errors import AdapterError, RequestError
from tests.gguf.builder import STRING, Model


@pytest.fixture
def pirate(tmp_path: Path) -> Path:
    path = tmp_path / "pirate.safetensors"
    path.touch()
    return path


@pytest.fixture
def poet(tmp_path: Path) -> Path:
    folder = tmp_path / "poet"
    folder.mkdir()
    return folder


def open_rack(stage):
    stage.controller.settings.open_settings("adapters")
    return stage.controller.settings.dialog.rack


def drop(widget, *paths: Path) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    action, left, none = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPoint(30, 30), action, data, left, none)
    widget.dragEnterEvent(enter)
    assert enter.isAccepted()
    widget.dropEvent(QDropEvent(QPointF(30, 30), action, data, left, none))


def use(path: Path, strength: float = 1.0) -> AdapterUse:
    return AdapterUse(path, strength)


def test_a_dropped_adapter_acts_on_the_next_answer(stage, pirate, poet):
    rack = open_rack(stage)
    assert rack.drop_place.title.text() == "Drop an adapter here"
    drop(rack, pirate, poet)
    stage.until(lambda: all("rank 16" in card.detail.text() for card in rack.cards.values()) and len(rack.cards) == 2)
    stage.until(lambda: len(stage.controller.session.options.adapters) == 2)
    stage.ask("Hello")
    assert stage.engine.requests[-1].adapters == (use(pirate), use(poet))
    assert "pirate 1.00 + poet 1.00" in stage.window.footer.adapters.accessibleName()


def test_a_slider_acts_on_the_answer_that_is_being_written_once_it_rests(stage, pirate):
    rack = open_rack(stage)
    drop(rack, pirate)
    stage.until(lambda: len(stage.controller.session.options.adapters) == 1)
    stage.engine.answers = [["Arr ", "me ", "hearties"]]
    stage.engine.hold.clear()
    stage.engine.change_at_once = False
    stage.ask("Hello", wait=False)
    stage.until(lambda: stage.controller.session.in_force == (use(pirate),))
    slider = rack.cards[pirate].slider
    for value in range(90, 45, -5):  # a drag
        slider.setValue(value)
    assert rack.cards[pirate].number.value() == 0.5
    stage.until(lambda: stage.engine.adapter_changes)
    assert stage.engine.adapter_changes == [(use(pirate, 0.5),)], "only where the drag ended"
    assert "In force now: pirate 1.00. About to change to pirate 0.50." in rack.in_force.text()
    stage.engine.jobs[-1].finish()
    stage.until(lambda: rack.in_force.text() == "In force now: pirate 0.50.")
    stage.qtbot.mouseClick(rack.cards[pirate].switch, Qt.MouseButton.LeftButton)
    stage.until(lambda: len(stage.engine.adapter_changes) == 2)
    assert stage.engine.adapter_changes[-1] == ()
    stage.engine.jobs[-1].finish()
    stage.until(lambda: stage.controller.session.in_force == ())
    stage.engine.hold.set()
    stage.until(lambda: not stage.pending)


def test_a_change_that_the_engine_refuses_is_said_and_what_acts_stays_in_sight(stage, pirate):
    stage.engine.answers = [["One ", "two"]]
    stage.engine.hold.clear()
    stage.engine.change_at_once = False
    stage.ask("Count", wait=False)
    stage.until(lambda: stage.controller.session.messages[-1:] and stage.controller.session.messages[-1].id < 2**62)
    rack = open_rack(stage)
    drop(rack, pirate)
    stage.until(lambda: stage.engine.adapter_changes)
    stage.engine.jobs[-1].fail(RequestError("There is no room for pirate.", "Remove another."))
    stage.until(lambda: stage.window.notices.notice("adapters"))
    assert stage.window.notices.notice("adapters").sentence == "There is no room for pirate."
    assert "In force now: the model as it is" in rack.in_force.text()
    stage.engine.hold.set()
    stage.until(lambda: not stage.pending)


def test_one_that_does_not_fit_says_why_on_its_card(stage, pirate, tmp_path):
    stage.engine.adapter_errors["pirate.safetensors"] = AdapterError(
        "It is for llama, this is qwen2.", "Choose another."
    )
    rack = open_rack(stage)
    drop(rack, pirate, tmp_path / "gone.gguf")
    stage.until(lambda: all(card.problem.text() for card in rack.cards.values()) and len(rack.cards) == 2)
    assert rack.cards[pirate].problem.text() == "It is for llama, this is qwen2. Choose another."
    assert "no longer there" in rack.cards[tmp_path / "gone.gguf"].problem.text()
    card = rack.cards[pirate]
    assert not card.slider.isVisible()
    assert not card.switch.isChecked()
    assert not card.switch.isEnabled()
    stage.ask("Hello")
    assert stage.engine.requests[-1].adapters == ()


def test_one_that_the_new_model_refuses_is_off_until_its_own_comes_back(stage, pirate, tmp_path):
    drop(stage.window, pirate)
    stage.until(lambda: stage.controller.session.options.adapter_uses())
    other = tmp_path / "other.gguf"
    other.touch()
    stage.engine.adapter_errors["pirate.safetensors"] = AdapterError("It is for llama, this is qwen2.")
    stage.controller.models.load_model(other)
    stage.until(lambda: stage.window.notices.notice("adapters"))
    assert "pirate is switched off: It is for llama" in stage.window.notices.notice("adapters").sentence
    stage.ask("Hello")
    assert stage.engine.requests[-1].adapters == ()
    stage.engine.adapter_errors.clear()
    stage.controller.models.load_model(tmp_path / "SmolLM2.gguf")
    stage.until(lambda: stage.controller.session.options.adapter_uses() == (use(pirate),))


def test_an_answer_that_an_adapter_prevents_can_be_had_without(stage, pirate):
    drop(open_rack(stage), pirate)
    stage.controller.settings.dialog.reject()
    stage.until(lambda: stage.controller.session.options.adapters)
    stage.engine.answers = [[AdapterError("The adapter pirate.gguf is for another model.")], "Plain."]
    stage.ask("Hello")
    stage.press("answer", "Answer without adapters")
    stage.until(lambda: stage.texts[-1:] == [("assistant", "Plain.")] and not stage.pending)
    assert [request.adapters for request in stage.engine.requests] == [(use(pirate),), ()]
    assert [choice.on for choice in stage.controller.session.options.adapters] == [False], "the card is still there"


def test_chats_keep_their_own_and_new_ones_begin_with_those_of_the_model(open_stage, stage, pirate, poet):
    rack = open_rack(stage)
    drop(rack, pirate)
    stage.until(lambda: rack.cards and stage.controller.session.options.adapters)
    rack.cards[pirate].number.setValue(0.75)
    stage.until(lambda: stage.controller.session.options.adapters[0].strength == 0.75)
    assert not rack.default.isChecked()
    rack.default.click()
    stage.ask("one")
    first = stage.controller.session.chat_id
    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded)
    stage.ask("two")
    assert stage.engine.requests[-1].adapters == (use(pirate, 0.75),)
    rack.default.click()  # this chat keeps it, later ones begin without
    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded)
    stage.ask("three")
    assert stage.engine.requests[-1].adapters == ()
    stage.controller.settings.dialog.reject()
    stage.window.hide()
    stage.controller.shut_down()
    again = open_stage()
    again.controller.chats.open_chat(first)
    again.until(lambda: len(again.texts) == 2)
    again.ask("four")
    assert again.engine.requests[-1].adapters == (use(pirate, 0.75),)


def test_the_default_of_a_model_waits_for_the_model(open_stage, tmp_path, pirate):
    model = str(tmp_path / "SmolLM2.gguf")
    stage = open_stage(model_adapters={model: [{"path": str(pirate), "strength": 0.5, "on": True}]})
    stage.until(lambda: stage.controller.session.options.adapters)
    stage.ask("Hello")
    assert stage.engine.requests[-1].adapters == (use(pirate, 0.5),)


def test_removing_can_be_taken_back(stage, pirate):
    rack = open_rack(stage)
    drop(rack, pirate)
    stage.until(lambda: pirate in rack.cards)
    rack.cards[pirate].remove_button.click()
    assert rack.cards == {}
    stage.qtbot.mouseClick(stage.window.toast.button, Qt.MouseButton.LeftButton)
    assert list(rack.cards) == [pirate]


def test_the_window_tells_an_adapter_from_a_model(stage, tmp_path):
    adapter, model = tmp_path / "adapter.gguf", tmp_path / "model.gguf"
    adapter.write_bytes(bytes(Model({"general.type": (STRING, "adapter"), "general.architecture": (STRING, "llama")})))
    model.write_bytes(bytes(Model({"general.architecture": (STRING, "llama")})))
    drop(stage.window, adapter)
    stage.until(lambda: [choice.path for choice in stage.controller.session.options.adapters] == [adapter])
    assert stage.window.toast.isVisible()
    loads = len(stage.engine.loads)
    drop(stage.window, model)
    stage.until(lambda: len(stage.engine.loads) == loads + 1)
    assert stage.engine.loads[-1][0] == model


def test_the_rack_can_be_used_by_keys_and_by_ear(stage, pirate):
    rack = open_rack(stage)
    drop(rack, pirate)
    stage.until(lambda: stage.controller.session.options.adapters)
    card = rack.cards[pirate]
    card.slider.setFocus()
    stage.qtbot.keyClick(card.slider, Qt.Key.Key_Left)
    assert card.number.value() == 0.95
    stage.until(lambda: stage.controller.session.options.adapters[0].strength == 0.95)
    stage.qtbot.keyClick(card.switch, Qt.Key.Key_Space)
    stage.until(lambda: not stage.controller.session.options.adapters[0].on)
    assert card.slider.accessibleName() == "Strength of pirate"
    for button in rack.findChildren(QAbstractButton):
        if not isinstance(button.parent(), QLineEdit):
            assert button.accessibleName() or button.text()


def test_one_whose_file_is_gone_by_the_time_it_is_used_is_looked_at_again(stage, pirate):
    rack = open_rack(stage)
    drop(rack, pirate)
    stage.until(lambda: "rank 16" in rack.cards[pirate].detail.text())
    stage.controller.settings.dialog.reject()
    pirate.unlink()
    stage.engine.answers = [[AdapterError(f"There is no adapter at {pirate}.", "Check the path.")]]
    stage.ask("Hello")
    stage.until(lambda: not stage.controller.adapters.choices[0].on)
    assert [way.label for way in stage.window.notices.notice("answer").ways] == ["Answer without adapters", "Try again"]
    assert stage.window.notices.notice("adapters") is None  # the same, said twice
    rack = open_rack(stage)
    stage.until(lambda: "no longer there" in rack.cards[pirate].problem.text())


def test_the_settings_file_of_a_peft_folder_is_an_adapter_too(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_adapter(tmp_path / "adapter_config.json")
