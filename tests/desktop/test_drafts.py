"""Guessing ahead: chosen in the model manager, remembered per model, measured on the last answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QAbstractButton, QLineEdit

from app.desktop.draft_page import DraftPage
from engine.api import DraftKind
from engine.errors import DeviceError, RequestError
from tests.desktop.fakes import Guess, figures
from tests.gguf.builder import ARRAY, INT32, STRING, UINT32, Array, Model, Tensor

WORDS = ["<s>", "</s>", "a", "b", "c", "d"]


def model_file(path: Path, tokens: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    keys: dict[str | bytes, tuple[int, object]] = {
        "general.architecture": (STRING, "llama"),
        "llama.context_length": (UINT32, 64),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.tokens": (ARRAY, Array(STRING, list(tokens))),
        "tokenizer.ggml.token_type": (ARRAY, Array(INT32, [3, 3, *([1] * (len(tokens) - 2))])),
        "tokenizer.ggml.merges": (ARRAY, Array(STRING, [])),
        "tokenizer.ggml.bos_token_id": (UINT32, 0),
        "tokenizer.ggml.eos_token_id": (UINT32, 1),
    }
    path.write_bytes(bytes(Model(keys, [Tensor("output_norm.weight", [4])])))
    return path


@pytest.fixture
def fitting(tmp_path: Path) -> Path:
    return model_file(tmp_path / "models" / "small.Q4_0.gguf", WORDS)


@pytest.fixture
def drafting(open_stage, tmp_path: Path, fitting: Path):
    """A stage with a model, a draft that fits it and one that does not."""
    model_file(tmp_path / "models" / "other.gguf", [*WORDS[:4], "x", "y"])
    stage = open_stage()
    model_file(tmp_path / "SmolLM2.gguf", WORDS)
    stage.controller.service.find_models(tmp_path / "models")
    stage.until(lambda: len(stage.controller.service.models) == 3)
    return stage


def open_page(stage) -> DraftPage:
    stage.window.open_model_popup("draft")
    stage.until(lambda: all(c.fit is not None for c in stage.controller.drafts.drafts.candidates()))
    stage.until(lambda: stage.controller.drafts.page is not None and len(stage.controller.drafts.page.rows) == 4)
    return stage.controller.drafts.page


def words(row) -> str:
    return row.accessibleName()


def test_every_model_says_why_it_fits_or_not(drafting, fitting, tmp_path):
    page = open_page(drafting)
    good, bad = page.rows[str(fitting)], page.rows[str(tmp_path / "models" / "other.gguf")]
    assert good.isEnabled()
    assert "fits" in words(good)
    assert not bad.isEnabled()
    assert "Token 4 is 'c' in the model, but 'x' in the draft (2 tokens differ)." in words(bad)
    assert words(page.rows["off"]).endswith("(current)")


def test_choosing_reaches_the_next_request_and_later_chats(drafting, fitting):
    stage = drafting
    page = open_page(stage)
    page.rows["ngram"].click()
    stage.ask("one")
    assert stage.engine.requests[-1].draft.kind == DraftKind.NGRAM
    page.rows[str(fitting)].click()
    stage.until(lambda: stage.controller.drafts.drafts.draft is not None)
    page = open_page(stage)
    assert words(page.rows[str(fitting)]).endswith("(current)")
    page.length.setValue(9)
    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded)
    stage.ask("two")
    assert stage.engine.requests[-1].draft.kind == DraftKind.MODEL
    assert stage.engine.requests[-1].draft.draft_k == 9
    page.rows["off"].click()
    stage.until(lambda: stage.controller.drafts.drafts.draft is None)
    stage.ask("three")
    assert stage.engine.requests[-1].draft is None
    assert stage.engine.drafts == [fitting, None]


def test_a_layer_of_the_models_own_file_is_offered_and_measured(drafting):
    stage = drafting
    status = stage.engine.status()
    stage.engine._status = replace(status, model=replace(status.model, predicts=True))
    stage.controller.service.refresh()
    own = status.model.path
    stage.window.open_model_popup("draft")
    stage.until(lambda: stage.controller.drafts.page is not None and len(stage.controller.drafts.page.rows) == 5)
    row = stage.controller.drafts.page.rows[str(own)]
    assert "The model's own layer" in words(row)
    row.click()
    stage.until(lambda: stage.controller.drafts.drafts.draft is not None)
    stage.ask("one")
    assert stage.engine.requests[-1].draft.kind == DraftKind.MODEL
    assert stage.engine.drafts == [own]
    stage.window.open_model_popup("draft")
    stage.until(lambda: words(stage.controller.drafts.page.rows[str(own)]).endswith("(current)"))
    assert "Loaded, " in words(stage.controller.drafts.page.rows[str(own)])
    stage.controller.drafts.find_fastest()
    stage.until(lambda: stage.controller.drafts.drafts.results)
    assert "The model's own layer" in [result.way.name for result in stage.controller.drafts.drafts.results]


def test_the_draft_comes_back_with_its_model(open_stage, drafting, fitting):
    open_page(drafting).rows[str(fitting)].click()
    drafting.until(lambda: drafting.controller.drafts.drafts.draft is not None)
    drafting.ask("one")
    chat = drafting.controller.session.chat_id
    drafting.window.hide()
    drafting.controller.shut_down()
    drafting.engine.closed = False
    drafting.engine.unload()
    again = open_stage()
    again.until(lambda: again.engine.drafts == [fitting, fitting])
    again.controller.chats.open_chat(chat)
    again.until(lambda: len(again.texts) == 2)
    again.ask("two")
    assert again.engine.requests[-1].draft.kind is DraftKind.MODEL


def test_a_draft_that_cannot_be_loaded_is_said_and_nothing_is_guessed(drafting, fitting):
    drafting.engine.draft_errors.append(
        DeviceError("The draft wants 9 GB and there are 2 GB.", "Choose a smaller one.")
    )
    open_page(drafting).rows[str(fitting)].click()
    drafting.until(lambda: drafting.window.notices.notice("draft"))
    assert "nothing is guessed: The draft wants 9 GB" in drafting.window.notices.notice("draft").sentence
    drafting.ask("one")
    assert drafting.engine.requests[-1].draft is None


def test_an_answer_without_its_draft_can_be_had_without_guesses(stage):
    stage.controller.drafts._set(stage.controller.drafts._options_for(DraftKind.MODEL))
    stage.engine.answers = [[RequestError("The request asks for guesses of a draft model, but none is loaded.")], "Ok."]
    stage.ask("Hello")
    stage.press("answer", "Answer without guessing")
    stage.until(lambda: stage.texts[-1] == ("assistant", "Ok.") and not stage.pending)
    assert stage.engine.requests[-1].draft is None


def test_gain_is_shown_while_chatting_and_pauses_are_said(stage):
    stage.controller.drafts.choose_ngram()
    measured = replace(figures(9), drafted_tokens=200, accepted_tokens=150, draft_gain=1.62)
    stage.engine.answers = [[measured, "Yes"], [replace(measured, drafting_paused=True), "No"]]
    stage.ask("one")
    assert stage.window.footer.drafting.text() == "75% accepted · 1.6× as fast"
    assert "75% of 200 guesses accepted, 1.62 times as fast" in stage.window.footer.drafting.accessibleName()
    stage.ask("two")
    assert stage.window.footer.drafting.text() == "guessing paused: does not pay"
    stage.controller.drafts.choose_off()
    assert not stage.window.footer.drafting.isVisible()


def test_the_fastest_way_is_found_on_the_last_answer_and_kept(drafting, fitting):
    stage = drafting
    page = open_page(stage)
    assert not page.measure_button.isEnabled()
    assert "Ask something first" in page.status.text()
    stage.ask("Tell me")
    page = open_page(stage)
    stage.engine.speeds = {"": 20.0, "ngram": 26.5, "small.Q4_0": 31.0}
    before = len(stage.engine.requests)
    stage.qtbot.mouseClick(page.measure_button, Qt.MouseButton.LeftButton)
    stage.until(lambda: stage.controller.drafts.drafts.results)
    trial = stage.engine.requests[before + 1 :]
    kinds = [None, DraftKind.NGRAM, DraftKind.MODEL, DraftKind.MODEL]  # a draft's first run is not measured
    assert [r.draft.kind if r.draft else None for r in trial] == kinds
    assert {r.messages[-1]["content"] for r in trial} == {"Tell me"}
    assert {r.sampling.temperature for r in trial} == {0.0}
    stage.until(lambda: stage.controller.session.options.draft is not None)
    assert stage.controller.session.options.draft.kind is DraftKind.MODEL
    assert stage.controller.drafts.drafts.draft.path == fitting
    assert stage.texts == [("user", "Tell me"), ("assistant", "Fine.")], "the chat itself stays as it is"
    page = open_page(stage)
    stage.until(lambda: page.results.count() == 12)
    assert "small.Q4_0, 31.0 tokens/s" in stage.window.toast.accessibleName()
    bar = stage.window.popup._scroll.verticalScrollBar()
    stage.until(lambda: bar.value() == bar.maximum())  # where the results stand


def test_measuring_can_be_given_up_and_leaves_the_choice(drafting, fitting):
    stage = drafting
    stage.controller.drafts.choose_ngram()
    stage.ask("Tell me")
    page = open_page(stage)
    stage.engine.hold.clear()
    page.measure_button.click()
    stage.until(lambda: stage.controller.drafts.drafts.trial is not None)
    page = open_page(stage)
    assert page.bar.isVisible()
    page.cancel_button.click()
    stage.until(lambda: stage.controller.drafts.drafts.trial is None)
    stage.engine.hold.set()
    assert stage.controller.drafts.drafts.results == []
    assert stage.controller.session.options.draft.kind is DraftKind.NGRAM


def test_guesses_are_tinted_on_request_in_this_and_the_next_window(open_stage, stage):
    stage.engine.answers = [["Not ", Guess("this "), Guess("one "), "it."]]
    stage.ask("Say")
    item = stage.window.transcript.items[-1]
    assert item.data.drafted == ((4, 13),)
    assert all(widget.tint == () for widget in item.widgets.values())
    stage.window.open_model_popup("draft")
    stage.controller.drafts.page.tint.click()
    assert [widget.tint for widget in item.widgets.values()] == [((4, 12),)]
    chat = stage.controller.session.chat_id
    stage.window.hide()
    stage.controller.shut_down()
    again = open_stage()
    again.controller.chats.open_chat(chat)
    again.until(lambda: again.window.transcript.items and again.window.transcript.items[-1].widgets)
    again.until(lambda: again.window.transcript.items[-1].widgets[0].tint == ((4, 12),))


def test_the_page_can_be_used_by_keys_and_by_ear(drafting):
    page = open_page(drafting)
    for button in page.findChildren(QAbstractButton):
        if not isinstance(button.parent(), QLineEdit):
            assert button.accessibleName() or button.text()
    page.rows["ngram"].setFocus()
    drafting.qtbot.keyClick(page.rows["ngram"], Qt.Key.Key_Space)
    assert drafting.controller.session.options.draft.kind is DraftKind.NGRAM
