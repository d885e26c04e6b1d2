"""The window with a scripted engine: chats, messages, failures and settings, driven as a person would."""

from __future__ import annotations

import gc
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtCore import Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QAbstractButton, QLineEdit, QPushButton

from app.desktop.blocks import BlockWidget
from app.desktop.chat_session import PENDING_ID
from app.desktop.main import catch_unexpected
from app.desktop.model_popup import ModelButton
from app.desktop.model_service import model_name
from app.desktop.notices import Way
from app.store import ChatStore
from engine.api import ContextPolicy, StopReason
from engine.errors import (
    ContextFullError,
    DeviceError,
    DownloadError,
    ModelFileError,
    OutOfMemoryError,
    RequestError,
    StoreError,
    TemplateError,
)
from tests.desktop.fakes import figures


def test_from_typing_to_the_finished_answer(stage):
    stage.engine.answers = ["It **works**, slowly."]
    assert stage.window.stack.currentWidget() is stage.window.welcome
    stage.ask("Does it work?")
    assert stage.texts == [("user", "Does it work?"), ("assistant", "It **works**, slowly.")]
    assert stage.window.stack.currentWidget() is stage.window.transcript
    assert stage.engine.requests[0].messages[-1]["content"] == "Does it work?"
    assert "47.3 tokens/s" in stage.window.footer.speed.text()
    assert "213 ms" in stage.window.footer.first_token.text()
    assert re.match(r"41\d / 8,192", stage.window.footer.context.text())
    assert stage.window.composer.button.accessibleName() == "Send"
    assert "Does it work?" in stage.window.windowTitle()


def test_figures_and_stop_button_live_while_streaming(stage):
    stage.engine.answers = [["One ", "two ", "three"]]
    stage.engine.pause = 0.05
    stage.ask("Count", wait=False)
    stage.until(lambda: stage.window.footer.speed.isVisible())
    stage.engine.hold.clear()
    assert stage.window.composer.button.accessibleName() == "Stop"
    stage.qtbot.keyClick(stage.window.composer.text, Qt.Key.Key_Escape)
    stage.until(lambda: not stage.pending)
    answer = stage.window.transcript.items[-1].data
    assert answer.note == "Stopped."
    assert "One two three".startswith(answer.text.strip())


def test_before_the_engine_begins_there_is_a_sign_of_life(stage):
    stage.engine.hold.clear()
    stage.engine.answers = ["Hello"]
    stage.ask("Hi", wait=False)
    stage.until(lambda: any(item.data.streaming for item in stage.window.transcript.items))
    stage.engine.hold.set()
    stage.until(lambda: not stage.pending)
    assert all(item.data.id != PENDING_ID for item in stage.window.transcript.items)


def test_a_second_window_shows_what_was_written(open_stage, stage):
    stage.ask("Remember me")
    stage.window.hide()
    stage.controller.shut_down()
    again = open_stage()
    chat = next(row for row in again.window.sidebar.model.rows if not isinstance(row, str))
    again.controller.chats.open_chat(chat.id)
    again.until(lambda: len(again.texts) == 2)
    assert again.texts == [("user", "Remember me"), ("assistant", "Fine.")]
    assert again.window.footer.speed.text() == "47.3 tokens/s"


def test_regenerate_replaces_the_answer_and_can_be_undone(stage):
    stage.engine.answers = ["First", "Second"]
    stage.ask("Say something")
    view = stage.window.transcript.items[-1].view
    stage.qtbot.mouseClick(view.button("regenerate"), Qt.MouseButton.LeftButton)
    stage.until(lambda: stage.texts == [("user", "Say something"), ("assistant", "Second")] and not stage.pending)
    assert stage.window.toast.isVisible()
    stage.qtbot.mouseClick(stage.window.toast.button, Qt.MouseButton.LeftButton)
    stage.until(lambda: stage.texts[-1] == ("assistant", "First"))


def test_regenerate_further_up_replaces_what_follows(stage):
    stage.engine.answers = ["A", "B", "C"]
    stage.ask("one")
    stage.ask("two")
    first_answer = stage.controller.session.messages[1]
    stage.controller.messages.message_action("regenerate", first_answer.id)
    stage.until(lambda: stage.texts == [("user", "one"), ("assistant", "C")] and not stage.pending)


def test_edit_and_resend_replaces_what_follows_and_can_be_undone(stage):
    stage.engine.answers = ["A", "B", "C"]
    stage.ask("one")
    stage.ask("two")
    question = stage.window.transcript.items[0]
    stage.qtbot.mouseClick(question.view.button("edit"), Qt.MouseButton.LeftButton)
    assert stage.window.composer.text.toPlainText() == "one"
    stage.ask(" more")
    stage.until(lambda: stage.texts == [("user", "one more"), ("assistant", "C")])
    stage.qtbot.mouseClick(stage.window.toast.button, Qt.MouseButton.LeftButton)
    stage.until(lambda: [text for _role, text in stage.texts] == ["one", "A", "two", "B"])


def test_up_in_an_empty_composer_edits_the_last_message(stage):
    stage.ask("tpyo")
    stage.qtbot.keyClick(stage.window.composer.text, Qt.Key.Key_Up)
    assert stage.window.composer.text.toPlainText() == "tpyo"
    assert stage.window.composer.editing is not None


def test_a_message_is_deleted_and_comes_back(stage):
    stage.ask("one")
    answer = stage.window.transcript.items[-1]
    stage.qtbot.mouseClick(answer.view.button("delete"), Qt.MouseButton.LeftButton)
    stage.until(lambda: stage.texts == [("user", "one")])
    stage.until(lambda: stage.window.toast.isVisible())
    stage.qtbot.mouseClick(stage.window.toast.button, Qt.MouseButton.LeftButton)
    stage.until(lambda: stage.texts == [("user", "one"), ("assistant", "Fine.")])


def test_copy_takes_the_markdown_source(stage):
    stage.engine.answers = ["**bold** `code`"]
    stage.ask("one")
    stage.qtbot.mouseClick(stage.window.transcript.items[-1].view.button("copy"), Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text() == "**bold** `code`"
    QGuiApplication.clipboard().clear()
    stage.window.copy_answer_wanted.emit()
    assert QGuiApplication.clipboard().text() == "**bold** `code`"


# Chats


def titles(stage) -> list[str]:
    return [row.title for row in stage.window.sidebar.model.rows if not isinstance(row, str)]


def test_chats_are_renamed_deleted_and_restored(stage):
    stage.ask("first chat")
    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded)
    stage.ask("second chat")
    stage.until(lambda: titles(stage) == ["second chat", "first chat"])
    sidebar = stage.window.sidebar
    first = next(row for row in sidebar.model.rows if not isinstance(row, str) and row.title == "first chat")
    sidebar.rename(first.id)
    editor = sidebar.view.findChild(QLineEdit)
    editor.selectAll()
    stage.qtbot.keyClicks(editor, "Renamed")
    stage.qtbot.keyClick(editor, Qt.Key.Key_Return)
    stage.until(lambda: "Renamed" in titles(stage))
    stage.controller.chats.open_chat(first.id)
    stage.until(lambda: len(stage.texts) == 2)
    sidebar.view.setFocus()
    stage.qtbot.keyClick(sidebar.view, Qt.Key.Key_Delete)
    stage.until(lambda: titles(stage) == ["second chat"])
    assert stage.window.stack.currentWidget() is stage.window.welcome
    stage.qtbot.mouseClick(stage.window.toast.button, Qt.MouseButton.LeftButton)
    stage.until(lambda: "Renamed" in titles(stage) and len(stage.texts) == 2)


def test_search_finds_titles_and_messages(stage):
    stage.engine.answers = ["The answer holds a platypus.", "Nothing here."]
    stage.ask("Animals")
    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded)
    stage.ask("Plants")
    stage.until(lambda: len(titles(stage)) == 2)
    stage.qtbot.keyClicks(stage.window.sidebar.search, "PLATYPUS")
    stage.until(lambda: titles(stage) == ["Animals"])
    stage.window.sidebar.search.setText("no such thing")
    stage.until(lambda: titles(stage) == [] and stage.window.sidebar.empty.isVisible())
    stage.window.sidebar.search.clear()
    stage.until(lambda: len(titles(stage)) == 2)


def test_an_answer_goes_on_while_another_chat_is_open(stage):
    stage.engine.answers = [["slow ", "answer"], "Quick."]
    stage.engine.hold.clear()
    stage.ask("first", wait=False)
    stage.until(lambda: stage.controller.session.chat_id is not None and len(stage.engine.requests) == 1)
    first = stage.controller.session.chat_id
    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded and stage.controller.session.chat_id is None)
    assert not stage.pending
    assert stage.window.sidebar.model.busy == {first}
    stage.engine.hold.set()
    stage.until(lambda: stage.window.sidebar.model.busy == set())
    stage.controller.chats.open_chat(first)
    stage.until(lambda: stage.texts == [("user", "first"), ("assistant", "slow answer")])


def test_a_chat_left_and_entered_again_while_it_streams_shows_all_of_it(stage):
    stage.engine.answers = [["one ", "two ", "three ", "four"]]
    stage.engine.pause = 0.1
    stage.ask("count", wait=False)
    stage.until(lambda: stage.texts and stage.texts[-1][0] == "assistant" and stage.texts[-1][1])
    chat = stage.controller.session.chat_id
    stage.controller.chats.new_chat()
    stage.qtbot.wait(120)
    stage.controller.chats.open_chat(chat)
    stage.until(lambda: not stage.pending)
    assert stage.texts == [("user", "count"), ("assistant", "one two three four")]


# Failures: each is a sentence with a way on


def test_without_a_model_the_window_offers_one(open_stage, tmp_path):
    fetched = tmp_path / "starter.gguf"

    def fetch(progress, cancel):
        progress(10, 100)
        fetched.touch()
        return fetched

    stage = open_stage(model=False, fetch=fetch)
    assert stage.window.welcome.state == "empty"
    stage.ask("Hello", wait=False)
    assert stage.engine.requests == []
    assert stage.window.composer.text.toPlainText() == "Hello", "what was typed must not be lost"
    assert "No model" in stage.window.notices.notice("no-model").sentence
    stage.press("no-model", "Fetch the starter model")
    stage.until(lambda: stage.controller.service.model is not None)
    assert stage.engine.loads[0][0] == fetched
    stage.ask("", wait=False)
    stage.until(lambda: stage.texts[-1:] == [("assistant", "Fine.")])


def test_after_fetching_a_model_one_can_type_at_once(open_stage, tmp_path):
    fetched = tmp_path / "starter.gguf"

    def fetch(progress, cancel):
        fetched.touch()
        return fetched

    stage = open_stage(model=False, fetch=fetch)
    button = next(each for each in stage.window.welcome.findChildren(QPushButton) if "starter" in each.text())
    button.setFocus()
    stage.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    stage.until(lambda: stage.controller.service.model is not None)
    assert stage.window.composer.text.hasFocus()


def test_a_message_sent_while_the_model_loads_waits_for_it(open_stage, engine):
    engine.load_at_once = False
    stage = open_stage()
    stage.until(lambda: stage.controller.service.loading is not None)
    assert stage.window.welcome.state == "working"
    assert "45%" in stage.window.model_button.detail.text()
    stage.ask("Early", wait=False)
    assert stage.window.notices.notice("held") is not None
    engine.ready()
    engine.jobs[0].finish()
    stage.until(lambda: stage.texts == [("user", "Early"), ("assistant", "Fine.")])
    assert stage.window.notices.keys() == []


def test_a_waiting_message_comes_back_when_loading_is_cancelled(open_stage, engine):
    engine.load_at_once = False
    stage = open_stage()
    stage.until(lambda: stage.controller.service.loading is not None)
    stage.ask("Early", wait=False)
    cancel = next(b for b in stage.window.welcome.findChildren(QPushButton) if b.text() == "Cancel")
    engine.unload()
    stage.qtbot.mouseClick(cancel, Qt.MouseButton.LeftButton)
    stage.until(lambda: stage.window.welcome.state == "empty")
    assert stage.window.composer.text.toPlainText() == "Early"
    assert engine.requests == []


def test_a_message_that_cannot_be_stored_comes_back(stage, monkeypatch):
    def full(*_args, **_kwargs):
        raise StoreError("The disk is full.", "Free some space.")

    monkeypatch.setattr(stage.controller.desk.store, "create_chat", full)
    stage.ask("Keep me", wait=False)
    stage.until(lambda: stage.window.notices.notice("action"))
    assert stage.window.notices.notice("action").sentence == "The disk is full."
    assert stage.window.composer.text.toPlainText() == "Keep me"
    assert not stage.pending
    assert stage.window.composer.button.accessibleName() == "Send"


def test_a_full_disk_is_told_once_and_no_longer_when_there_is_room(stage, monkeypatch):
    def full(*_args, **_kwargs):
        raise StoreError("The disk is full.", "Free some space.")

    notices = stage.window.notices
    notices.show_notice("saving", "error", "The disk is full.", "Free some space.")  # an answer could not be saved
    with monkeypatch.context() as patched:
        patched.setattr(stage.controller.desk.store, "create_chat", full)
        stage.ask("Keep me", wait=False)
        stage.until(lambda: notices.notice("action"))
    assert notices.keys() == ["action"]
    notices.show_notice("saving", "error", "The disk is still full.", "Free some space.")
    stage.ask("Keep me")
    assert notices.keys() == []


def test_a_damaged_file_is_named_with_ways_on(open_stage, engine):
    engine.load_errors.append(ModelFileError("The file ends inside of the tensor x.", "Download it again."))
    stage = open_stage()
    stage.until(lambda: stage.window.notices.notice("model"))
    notice = stage.window.notices.notice("model")
    assert notice.sentence == "The file ends inside of the tensor x."
    assert notice.hint == "Download it again."
    assert [way.label for way in notice.ways] == ["Open another model…", "Fetch the starter model"]


def test_a_download_that_fails_can_be_tried_again(open_stage, tmp_path):
    tries = []

    def fetch(progress, cancel):
        tries.append(1)
        if len(tries) == 1:
            raise DownloadError("The starter model could not be fetched: no network.", "Check the connection.")
        (tmp_path / "m.gguf").touch()
        return tmp_path / "m.gguf"

    stage = open_stage(model=False, fetch=fetch)
    stage.controller.models.fetch_starter()
    stage.until(lambda: stage.window.notices.notice("fetch"))
    stage.press("fetch", "Try again")
    stage.until(lambda: stage.controller.service.model is not None)


def test_numpy_takes_over_only_after_asking(open_stage, engine):
    engine.load_errors.append(DeviceError("The kernel did not compile on RTX 4070.", "Update the driver."))
    stage = open_stage()
    stage.until(lambda: stage.window.notices.notice("model"))
    assert [options.device for _path, options in engine.loads] == ["auto"]
    stage.press("model", "Use numpy instead (slower)")
    stage.until(lambda: stage.window.model_button.detail.text() == "numpy")
    assert [options.device for _path, options in engine.loads] == ["auto", "numpy"]
    assert stage.controller.service.device == "auto", "the choice for later stays"


def test_too_little_memory_leads_to_the_context_length(open_stage, engine):
    engine.load_errors.append(OutOfMemoryError("The model wants 9 GB and there are 8 GB.", "Choose a smaller context."))
    stage = open_stage()
    stage.until(lambda: stage.window.notices.notice("model"))
    stage.press("model", "Change the context length…")
    assert stage.controller.settings.dialog is not None
    stage.controller.settings.dialog.reject()


def test_a_lost_device_keeps_the_text_and_can_be_tried_again(stage):
    stage.engine.answers = [
        ["The sky ", DeviceError("The device was lost.", "Load the model again.")],
        "The sky is blue.",
    ]
    stage.ask("Why?")
    assert stage.texts[-1] == ("assistant", "The sky ")
    assert stage.window.transcript.items[-1].data.problem
    assert stage.window.notices.notice("answer").sentence == "The device was lost."
    stage.press("answer", "Try again")
    stage.until(lambda: stage.texts[-1] == ("assistant", "The sky is blue.") and not stage.pending)
    assert stage.window.notices.keys() == []


def test_a_failing_template_offers_a_plain_one(stage):
    stage.engine.answers = [[TemplateError("The chat template ran longer than 2 seconds and was stopped.")], "Hello."]
    stage.ask("Hi")
    assert "chat template" in stage.window.notices.notice("answer").sentence
    stage.press("answer", "Answer with a plain template")
    stage.until(lambda: stage.texts[-1] == ("assistant", "Hello.") and not stage.pending)
    assert [request.plain_template for request in stage.engine.requests] == [False, True]


def test_a_full_context_leads_to_a_new_chat(stage):
    stage.engine.answers = [["It goes on ", StopReason.CONTEXT]]
    stage.ask("Tell me everything")
    assert "context is full" in stage.window.notices.notice("context").sentence
    assert "context is full" in stage.window.transcript.items[-1].data.note
    stage.press("context", "Start a new chat")
    stage.until(lambda: stage.controller.session.chat_id is None and stage.controller.session.loaded)
    assert stage.window.stack.currentWidget() is stage.window.welcome


def test_a_prompt_that_does_not_fit_leads_to_a_new_chat(stage):
    full = [ContextFullError("The prompt has 9000 tokens and the context holds 8192.", "")]
    stage.engine.answers = ["Yes.", full]
    stage.ask("Short")
    stage.ask("Long")
    labels = [way.label for way in stage.window.notices.notice("context").ways]
    assert labels[2:] == ["Start a new chat", "Change the context length…"]
    stage.press("context", "Drop the oldest turns and go on")
    stage.until(lambda: stage.texts[-1:] == [("assistant", "Fine.")] and not stage.pending)
    assert stage.engine.requests[-1].context_policy is ContextPolicy.DROP_OLDEST
    assert stage.engine.requests[-1].answer_so_far == ""


def test_only_what_can_help_is_offered_when_the_context_is_full(stage):
    full = [ContextFullError("The prompt has 9000 tokens and the context holds 8192.", "")]
    stage.engine.answers = [full, full]
    stage.ask("Long")
    ways = stage.window.notices.notice("context").ways
    assert [way.label for way in ways if way.primary] == ["Shift and go on"]  # one turn: there is none to drop
    assert "Drop the oldest turns and go on" not in [way.label for way in ways]
    session = stage.controller.session
    stage.controller.messages.set_options(session, replace(session.options, context_policy=ContextPolicy.DROP_OLDEST))
    stage.ask("Long again")
    assert stage.window.notices.notice("context").ways[0].label == "Shift and go on"
    session = stage.controller.session
    stage.controller.messages.set_options(session, replace(session.options, context_policy=ContextPolicy.SHIFT))
    stage.engine.answers = [full]
    stage.ask("And again")
    assert stage.window.notices.notice("context").ways[0].label == "Start a new chat"


def test_a_form_that_cannot_be_used_can_be_left_or_changed(stage):
    stage.engine.answers = [[RequestError("The grammar cannot be used: there is no rule no.", "Known are root.")]]
    session = stage.controller.session
    stage.controller.messages.set_options(session, replace(session.options, grammar='root ::= "yes" | no'))
    stage.until(lambda: session.options.grammar)
    stage.ask("Well?")
    assert [way.label for way in stage.window.notices.notice("answer").ways] == [
        "Answer in any form",
        "Change the form…",
    ]
    stage.press("answer", "Answer in any form")
    stage.until(lambda: stage.texts[-1:] == [("assistant", "Fine.")] and not stage.pending)
    assert stage.engine.requests[-1].grammar is None


def test_an_empty_answer_is_said_to_be_one(stage):
    stage.engine.answers = [""]
    stage.ask("Well?")
    assert stage.window.transcript.items[-1].data.note == "The answer is empty."


def test_the_ways_of_a_notice_fill_the_rows_that_they_need(stage):
    ways = [Way(f"Go on in the way number {number}", lambda: None) for number in range(5)]
    stage.window.notices.show_notice("many", "info", "There are many ways.", "", ways)
    notice = stage.window.notices.notice("many")

    def rows():
        tops = {button.y() for button in notice.findChildren(QPushButton)}
        return len(tops)

    stage.until(lambda: 1 < rows() < 5)
    assert all(button.geometry().right() < notice.width() for button in notice.findChildren(QPushButton))
    stage.window.resize(420, 700)
    stage.until(lambda: rows() == 5)


def test_an_answer_that_met_the_end_of_the_context_goes_on_as_chosen(stage):
    dropped = replace(figures(5), dropped_tokens=1234)
    stage.engine.answers = [["It goes on ", StopReason.CONTEXT], ["and on", dropped]]
    stage.ask("Tell me everything")
    stage.press("context", "Shift and go on")
    stage.until(lambda: stage.texts[-1] == ("assistant", "It goes on and on") and not stage.pending)
    request = stage.engine.requests[-1]
    assert (request.context_policy, request.answer_so_far) == (ContextPolicy.SHIFT, "It goes on ")
    assert "1,234 dropped" in stage.window.footer.context.text()
    stage.controller.settings.open_settings("answers")
    dialog = stage.controller.settings.dialog
    assert dialog.answers.context_policy.value == "shift"
    dialog.answers.context_policy.buttons["stop"].click()
    dialog.save()
    stage.ask("more")
    assert stage.engine.requests[-1].context_policy is ContextPolicy.STOP


def test_a_history_that_cannot_be_opened_is_said_and_can_be_gone_without(qtbot, qapp, tmp_path, engine):
    from app.desktop.main import build
    from tests.desktop.conftest import Stage, close
    from tests.desktop.fakes import services

    (tmp_path / "chats.sqlite3").mkdir()
    model = tmp_path / "m.gguf"
    model.touch()
    window, controller = build(qapp, services(engine, tmp_path), model)
    qtbot.addWidget(window)
    window.show()
    controller.start()
    stage = Stage(qtbot, window, controller, engine)
    try:
        stage.until(lambda: window.notices.notice("store"))
        stage.press("store", "Go on without saving")
        stage.until(lambda: controller.session is not None and controller.service.model is not None)
        stage.ask("Hello")
        assert stage.texts[-1] == ("assistant", "Fine.")
    finally:
        close(stage)


def test_a_fault_of_the_program_is_a_sentence_and_a_log_entry(stage, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    import threading

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    catch_unexpected(stage.controller, tmp_path / "realm.log")
    sys.excepthook(ValueError, ValueError("a bug"), None)
    stage.until(lambda: stage.window.notices.notice("unexpected"))
    notice = stage.window.notices.notice("unexpected")
    assert "ValueError: a bug" in notice.sentence
    assert str(tmp_path / "realm.log") in notice.hint
    assert "unexpected error" in caplog.text


def test_notes_of_the_engine_are_shown(open_stage, engine):
    engine.notes = ("The pre-tokenizer is unknown; the default is used.",)
    stage = open_stage()
    stage.until(lambda: stage.window.notices.notice("model-notes"))
    assert "pre-tokenizer" in stage.window.notices.notice("model-notes").sentence


# Models, settings, keys


def test_the_popup_shows_model_device_and_lists_and_loads(stage, tmp_path):
    other = tmp_path / "models" / "Other-7B.gguf"
    other.parent.mkdir()
    other.touch()
    stage.controller.service.find_models(other.parent)
    stage.until(lambda: any(model.path == other for model in stage.controller.service.models))
    stage.until(lambda: len(stage.controller.service.devices) == 3)
    popup = stage.window.popup
    popup._rebuild()
    names = [button.accessibleName() for button in popup.findChildren(QPushButton)]
    assert any("RTX 4070" in name for name in names)
    row = next(b for b in popup.findChildren(QPushButton) if b.accessibleName().startswith("Other-7B"))
    row.click()
    stage.until(lambda: stage.engine.loads[-1][0] == other)
    device = next(b for b in popup.findChildren(QPushButton) if b.accessibleName().startswith("numpy"))
    device.click()
    stage.until(lambda: stage.engine.loads[-1][1].device == "numpy")


def test_unloading_frees_the_model(stage):
    stage.controller.service.unload()
    stage.until(lambda: stage.controller.service.model is None)
    assert stage.window.model_button.name.text() == "Choose a model"


def test_settings_reach_the_next_request_and_the_next_chat(stage):
    stage.controller.settings.open_settings()
    dialog = stage.controller.settings.dialog
    dialog.answers.system_prompt.setPlainText("Be brief.")
    dialog.sampling.fields["temperature"].setValue(0.25)
    dialog.sampling.fields["top_k"].setValue(7)
    dialog.sampling.seed.setText("42")
    dialog.answers.max_tokens.setValue(99)
    stage.qtbot.mouseClick(dialog.save_button, Qt.MouseButton.LeftButton)
    stage.ask("one")
    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded)
    stage.ask("two")
    for request in stage.engine.requests:
        assert request.sampling.temperature == 0.25
        assert request.sampling.top_k == 7
        assert request.sampling.seed == 42
        assert request.max_tokens == 99
        assert request.messages[0] == {"role": "system", "content": "Be brief."}


def test_answers_can_be_held_to_a_form(stage):
    stage.controller.settings.open_settings("answers")
    page = stage.controller.settings.dialog.answers
    assert not page.shape_text.isVisible()
    page.shape.buttons["grammar"].click()
    page.shape_text.setPlainText('root ::= "yes" | no')
    stage.until(lambda: page.shape_problem.isVisible())
    assert "no" in page.shape_problem.text()
    page.shape_text.setPlainText('root ::= "yes" | "no"')
    stage.until(lambda: not page.shape_problem.isVisible())
    page.shape.buttons["schema"].click()
    page.shape_text.setPlainText('{"type": "integer"')
    stage.until(lambda: page.shape_problem.isVisible())
    page.shape_text.setPlainText('{"type": "integer"}')
    stage.until(lambda: not page.shape_problem.isVisible())
    stage.controller.settings.dialog.save()
    stage.ask("How many?")
    assert (stage.engine.requests[-1].json_schema, stage.engine.requests[-1].grammar) == ('{"type": "integer"}', None)


def test_a_form_is_kept_with_its_chat(stage):
    stage.ask("How many?")
    held = stage.controller.session.chat_id
    stage.controller.settings.open_settings("answers")
    page = stage.controller.settings.dialog.answers
    page.shape.buttons["grammar"].click()
    page.shape_text.setPlainText('root ::= "many"')
    stage.controller.settings.dialog.save()
    stage.until(lambda: stage.window.footer.form.isVisible())

    stage.controller.chats.new_chat()
    stage.until(lambda: stage.controller.session.loaded)
    assert not stage.window.footer.form.isVisible()
    stage.ask("And here?")
    assert stage.engine.requests[-1].grammar is None
    stage.controller.chats.open_chat(held)
    stage.until(lambda: stage.window.footer.form.text() == "grammar")
    stage.ask("How many?")
    assert stage.engine.requests[-1].grammar == 'root ::= "many"'
    stage.qtbot.mouseClick(stage.window.footer.form, Qt.MouseButton.LeftButton)
    page = stage.controller.settings.dialog.answers
    assert (page.shape.value, page.shape_text.toPlainText()) == ("grammar", 'root ::= "many"')


def test_settings_outlive_the_window(open_stage, stage):
    stage.controller.settings.open_settings()
    dialog = stage.controller.settings.dialog
    dialog.sampling.fields["min_p"].setValue(0.33)
    dialog.general.theme.buttons["dark"].click()
    dialog.general.context_length.setCurrentIndex(dialog.general.context_length.findData(2048))
    dialog.save()
    stage.window.hide()
    stage.controller.shut_down()
    again = open_stage()
    assert again.controller.desk.themes.choice == "dark"
    assert again.controller.service.context_length == 2048
    assert again.engine.loads[-1][1].context_length == 2048
    again.ask("one")
    assert again.engine.requests[-1].sampling.min_p == 0.33
    again.controller.desk.themes.choose("light")


def test_saved_caches_have_a_budget_and_can_be_cleared(stage):
    store = stage.controller.desk.store
    store.sessions.path.mkdir()
    stage.ask("one")
    kept = stage.engine.requests[-1].session
    assert kept is not None
    kept.write_bytes(bytes(3_000_000))
    stage.controller.settings.open_settings()
    dialog = stage.controller.settings.dialog
    stage.until(lambda: dialog.general.session_use.text() == "3 MB in use")
    stage.qtbot.mouseClick(dialog.general.clear_button, Qt.MouseButton.LeftButton)
    stage.until(lambda: dialog.general.session_use.text() == "Nothing is kept yet")
    assert not kept.exists()
    dialog.general.session_budget.setCurrentIndex(dialog.general.session_budget.findData(0))
    dialog.save()
    stage.until(lambda: store.sessions.budget_bytes == 0)
    stage.ask("two")
    assert stage.engine.requests[-1].session is None


def test_a_new_context_length_loads_the_model_again(stage):
    loads = len(stage.engine.loads)
    stage.controller.settings.open_settings()
    dialog = stage.controller.settings.dialog
    dialog.general.context_length.setCurrentIndex(dialog.general.context_length.findData(4096))
    dialog.save()
    stage.until(lambda: len(stage.engine.loads) == loads + 1)
    assert stage.engine.loads[-1][1].context_length == 4096


def test_the_order_of_the_samplers_is_visible(stage):
    stage.controller.settings.open_settings()
    dialog = stage.controller.settings.dialog
    plain = re.sub(r"<[^>]+>|&nbsp;", "", dialog.sampling.chain.text())
    order = [part.strip() for part in plain.split("→")]
    assert order == ["Penalties (off)", "DRY (off)", "Top-n-sigma (off)", "Top-k", "Typical (off)", "Top-p", "Min-p",
                     "XTC (off)", "Temperature"]  # fmt: skip
    dialog.sampling.fields["temperature"].setValue(0)
    assert "Likeliest token" in dialog.sampling.chain.text()
    dialog.reject()


def test_cancelling_the_settings_puts_the_theme_back(stage):
    stage.controller.settings.open_settings()
    dialog = stage.controller.settings.dialog
    before = stage.controller.desk.themes.choice
    dialog.general.theme.buttons["dark"].click()
    assert stage.controller.desk.themes.current.dark
    dialog.reject()
    assert stage.controller.desk.themes.choice == before


def test_keys_reach_every_part(stage):
    window, qtbot = stage.window, stage.qtbot
    window.activateWindow()
    control = Qt.KeyboardModifier.ControlModifier
    qtbot.keyClick(window, Qt.Key.Key_F, control)
    stage.until(lambda: window.sidebar.search.hasFocus())
    qtbot.keyClick(window, Qt.Key.Key_L, control)
    assert window.composer.text.hasFocus()
    qtbot.keyClick(window, Qt.Key.Key_B, control)
    assert not window.sidebar.isVisible()
    qtbot.keyClick(window, Qt.Key.Key_B, control)
    assert window.sidebar.isVisible()
    qtbot.keyClick(window, Qt.Key.Key_Comma, control)
    assert stage.controller.settings.dialog is not None
    stage.controller.settings.dialog.reject()
    window.activateWindow()
    stage.until(window.isActiveWindow)
    stage.ask("one")
    stage.engine.answers = ["again"]
    qtbot.keyClick(window, Qt.Key.Key_R, control)
    stage.until(lambda: stage.texts[-1] == ("assistant", "again") and not stage.pending)
    qtbot.keyClick(window, Qt.Key.Key_N, control)
    stage.until(lambda: stage.controller.session.chat_id is None)


def test_every_button_has_a_name_for_screen_readers(stage):
    stage.ask("one")
    stage.controller.settings.open_settings()
    for root in (stage.window, stage.controller.settings.dialog):
        assert any(block.accessibleName() == "Fine." for block in stage.window.findChildren(BlockWidget))
        for button in root.findChildren(QAbstractButton):
            if button.objectName() == "qt_toolbar_ext_button" or isinstance(button.parent(), QLineEdit):
                continue
            assert button.accessibleName() or button.text(), button.objectName()
    stage.controller.settings.dialog.reject()


def test_in_a_narrow_window_the_list_lies_over_the_chat(stage):
    window = stage.window
    window.resize(420, 560)
    stage.qtbot.wait(20)
    assert not window.sidebar.isVisible()
    assert window.centre.width() == 420
    window.show_sidebar_button.click()
    assert window.sidebar.isVisible()
    assert window.centre.width() == 420
    stage.qtbot.mouseClick(window.scrim, Qt.MouseButton.LeftButton)
    assert not window.sidebar.isVisible()


def test_light_and_dark_follow_the_system_at_once(stage, monkeypatch):
    hints = QGuiApplication.styleHints()
    themes = stage.controller.desk.themes
    themes.choose("system")
    for scheme, dark in ((Qt.ColorScheme.Dark, True), (Qt.ColorScheme.Light, False)):
        monkeypatch.setattr("app.desktop.theme.system_is_dark", lambda dark=dark: dark)
        hints.colorSchemeChanged.emit(scheme)
        assert themes.current.dark is dark
        lightness = stage.window.grab().toImage().pixelColor(2, 300).lightness()
        assert lightness < 60 if dark else lightness > 200
    themes.choose("light")
    monkeypatch.setattr("app.desktop.theme.system_is_dark", lambda: True)
    hints.colorSchemeChanged.emit(Qt.ColorScheme.Dark)
    assert not themes.current.dark, "a choice of one's own wins over the system"


@pytest.mark.parametrize("name", ["light", "dark"])
def test_text_can_be_read_on_its_ground(name):
    from PySide6.QtGui import QColor

    from app.desktop.theme import DARK, LIGHT

    theme = LIGHT if name == "light" else DARK

    def luminance(color: str) -> float:
        shade = QColor(color)
        parts = [
            part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
            for part in (shade.redF(), shade.greenF(), shade.blueF())
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ground in (theme.window, theme.sidebar, theme.surface):
        for text in (theme.text, theme.text_soft, theme.text_faint):
            assert contrast(text, ground) >= 4.5, (text, ground)
    for syntax in (value for key, value in vars(theme).items() if key.startswith("syntax_")):
        assert contrast(syntax, theme.code_ground) >= 4.5, syntax
    assert contrast(theme.on_accent, theme.accent) >= 4.5
    assert contrast(theme.text, theme.raised) >= 7
    assert contrast(theme.danger, theme.window) >= 4.5


def test_the_store_keeps_what_the_window_showed(stage, tmp_path):
    stage.ask("one")
    stage.window.hide()
    stage.controller.shut_down()
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        (chat,) = store.chats()
        assert [m.content for m in store.messages(chat.id)] == ["one", "Fine."]


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("Mistral-7B-Instruct-v0.3.Q4_K_M.gguf", "Mistral-7B-Instruct-v0.3"),
        ("tinyllama-1.1b-chat-v1.0.IQ2_XXS.gguf", "tinyllama-1.1b-chat-v1.0"),
        ("Llama-3.3-70B-Q8_0-00001-of-00002.gguf", "Llama-3.3-70B"),
        ("model-f16.gguf", "model"),
        ("Q8_0.gguf", "Q8_0"),
    ],
)
def test_a_model_is_called_by_its_file_without_the_quantisation(file_name, name):
    assert model_name(Path("/models") / file_name) == name


def test_a_look_that_stays_dresses_nothing_anew(stage):
    dressed = []
    stage.controller.desk.themes.changed.connect(lambda: dressed.append(1))
    stage.controller.settings.open_settings()
    stage.controller.settings.dialog.reject()
    assert not dressed
    for count, look in enumerate(("dark", "light"), 1):
        stage.controller.desk.themes.choose(look)
        stage.qtbot.waitUntil(lambda count=count: len(dressed) == count)


def test_the_collector_passes_over_what_came_with_the_model(open_stage):
    """Looking at all of it would hold up the window amid an answer."""
    stage = open_stage()
    kept = gc.get_freeze_count()
    assert kept > 10_000
    stage.engine.load_at_once = False
    stage.controller.models.load_model(stage.controller.service.model.path)
    assert gc.get_freeze_count() == 0  # what belonged to the former model can go
    stage.engine.ready()
    stage.engine.jobs[-1].finish()
    stage.until(lambda: gc.get_freeze_count() > 10_000)


def test_the_model_button_cuts_what_is_said_of_a_load_before_the_name(qtbot, themes):
    button = ModelButton(themes)
    qtbot.addWidget(button)
    button.set_limit(300)
    button.show_text("SmolLM2-135M", "14% · Preparing this machine for the model, once")
    assert button.name.text() == "SmolLM2-135M"
    assert button.detail.text().startswith("14% · ")
    assert button.detail.text().endswith("…")
    assert "Preparing this machine for the model, once" in button.toolTip()
    assert button.sizeHint().width() <= 300
    button.show_text("Tiny", "OpenCL · GPU")
    assert (button.name.text(), button.detail.text()) == ("Tiny", "OpenCL · GPU")
