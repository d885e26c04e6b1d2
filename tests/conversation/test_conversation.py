"""A chat as its window sees it: what is stored when, what is told, and what goes wrong without being lost."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.conversation import (
    ActionFailed,
    AdapterChoice,
    AdaptersInForce,
    AnswerFailed,
    AnswerFinished,
    AnswerSaved,
    AnswerStarted,
    AnswerText,
    ChatCreated,
    ChatOptions,
    Conversation,
    ConversationLoaded,
    MessageAdded,
    MessagesRemoved,
    MessagesRestored,
    OptionsChanged,
    PrefillProgress,
    SavingFailed,
    TitleChanged,
)
from app.store import ChatStore, MessageState, StoredMessage
from app.store import database as database_module
from engine import api
from engine.api import GenerateRequest, SamplingParams, StopReason
from engine.errors import DeviceError, RequestError
from engine.stream import Stream
from tests.conversation.scripted_engine import Listener, ScriptedEngine, wait_for

NO_MODEL = RequestError("No model is loaded.", "Choose a model first.")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatStore]:
    monkeypatch.setattr(database_module.connect, "__kwdefaults__", {"timeout": 0.05})
    with ChatStore.open(tmp_path / "chats.sqlite3") as store:
        yield store


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def conversation(engine: ScriptedEngine, store: ChatStore, listener: Listener) -> Iterator[Conversation]:
    with Conversation(engine, store, None, listener) as conversation:
        yield conversation


def done(conversation: Conversation) -> None:
    assert conversation.wait_idle(10)


def stored(store: ChatStore, conversation: Conversation) -> list[StoredMessage]:
    assert conversation.chat_id is not None
    return store.messages(conversation.chat_id)


def transcript(store: ChatStore, conversation: Conversation) -> list[str]:
    return [f"{message.role}: {message.content}" for message in stored(store, conversation)]


def ask(conversation: Conversation, engine: ScriptedEngine, text: str, reply: str) -> None:
    engine.reply = reply
    conversation.send(text)
    done(conversation)
    engine.reply = None


# Sending


def test_a_first_message_creates_names_and_answers_the_chat(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("What is a tensor?")
    stream = engine.stream()
    stream.put(api.PrefillProgress(2, 4))
    stream.say("An ", "array", ".")
    stream.finish()
    done(conversation)
    kinds = [kind for kind in listener.kinds if kind not in ("AnswerText", "PrefillProgress")]
    assert kinds == [
        "ConversationLoaded",
        "ChatCreated",
        "MessageAdded",
        "TitleChanged",
        "AnswerStarted",
        "AnswerFinished",
    ]
    assert listener.last(ConversationLoaded).chat is None
    assert listener.last(TitleChanged).title == "What is a tensor?"
    assert listener.last(PrefillProgress).total == 4
    assert "".join(event.text for event in listener.of(AnswerText)) == "An array."
    end = listener.last(AnswerFinished)
    assert (end.reason, end.saved, end.message.state) == (StopReason.EOS, True, MessageState.COMPLETE)
    question, answer = stored(store, conversation)
    assert answer == end.message
    assert (question.content, answer.content, answer.model) == ("What is a tensor?", "An array.", "Tiny")
    assert answer.figures is not None
    assert answer.figures["stop_reason"] == "eos"
    chat = store.chat(listener.last(ChatCreated).chat.id)
    assert (chat.title, chat.model_path) == ("What is a tensor?", "/models/tiny.gguf")
    assert listener.threads == {"conversation"}


def test_the_prompt_is_stored_before_the_engine_hears_of_it(store: ChatStore, listener: Listener) -> None:
    seen: list[list[str]] = []

    class Engine(ScriptedEngine):
        def submit(self, request: GenerateRequest) -> Stream:
            with closing(sqlite3.connect(store.path)) as other:  # sees only what has been committed
                seen.append([row[0] for row in other.execute("SELECT content FROM messages WHERE role = 'user'")])
            return super().submit(request)

    engine = Engine()
    engine.reply = "yes"
    with Conversation(engine, store, None, listener) as conversation:
        conversation.send("kept?")
        done(conversation)
    assert seen == [["kept?"]]
    assert listener.kinds.index("MessageAdded") < listener.kinds.index("AnswerStarted")


def test_text_is_journaled_while_it_streams(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore
) -> None:
    conversation.send("go")
    engine.stream().say("half an ")
    wait_for(lambda: stored(store, conversation)[-1].content == "half an ", 1.0)
    assert stored(store, conversation)[-1].state is MessageState.STREAMING
    engine.stream().finish("answer")
    done(conversation)
    assert stored(store, conversation)[-1].content == "half an answer"


def test_a_second_message_while_an_answer_streams_is_refused(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore
) -> None:
    conversation.send("one")
    for refused in (
        lambda: conversation.send("two"),
        conversation.regenerate,
        conversation.undo,
        lambda: conversation.edit_and_resend(1, "two"),
        lambda: conversation.delete_message(1),
    ):
        with pytest.raises(RequestError, match="still being written"):
            refused()
    engine.stream().finish("done")
    done(conversation)
    assert not conversation.busy
    assert transcript(store, conversation) == ["user: one", "assistant: done"]


def test_the_next_message_may_be_sent_as_soon_as_the_end_is_told(engine: ScriptedEngine, store: ChatStore) -> None:
    engine.reply = "ok"
    conversations: list[Conversation] = []

    def listen(events: object) -> None:
        assert isinstance(events, tuple)
        if any(isinstance(event, AnswerFinished) for event in events) and len(engine.requests) < 3:
            conversations[0].send("again")

    conversations.append(Conversation(engine, store, None, listen))
    conversations[0].send("first")
    wait_for(lambda: len(engine.requests) == 3)
    done(conversations[0])
    conversations[0].close()


def test_nothing_to_send_is_refused(conversation: Conversation) -> None:
    with pytest.raises(RequestError, match="nothing to send"):
        conversation.send(" \n")
    done(conversation)
    assert conversation.chat_id is None


def test_the_model_is_told_the_chat_so_far(conversation: Conversation, engine: ScriptedEngine) -> None:
    conversation.set_system_prompt("Be brief.")
    ask(conversation, engine, "one", "eins")
    ask(conversation, engine, "two", "zwei")
    assert engine.asked == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "eins"},
        {"role": "user", "content": "two"},
    ]


# Pace


def test_many_tokens_come_as_few_batches(
    conversation: Conversation, engine: ScriptedEngine, listener: Listener
) -> None:
    conversation.send("count")
    stream = engine.stream()
    begun = time.monotonic()
    for number in range(300):
        stream.say(f"{number} ")
        time.sleep(0.001)
    stream.finish()
    done(conversation)
    seconds = time.monotonic() - begun
    assert len(listener.of(AnswerText)) <= seconds * 25 + 2
    assert "".join(event.text for event in listener.of(AnswerText)) == "".join(f"{number} " for number in range(300))
    assert [event.message_id for event in listener.of(AnswerText)] == [listener.last(AnswerStarted).message.id] * len(
        listener.of(AnswerText)
    )


def test_no_call_waits_for_a_slow_disk_or_engine(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore
) -> None:
    inside, go = threading.Event(), threading.Event()

    def hold() -> None:
        with store.transaction():
            inside.set()
            go.wait(10)

    holding = threading.Thread(target=hold)
    holding.start()
    assert inside.wait(10)
    engine.reply = "ok"
    begun = time.monotonic()
    conversation.send("hello")
    conversation.set_options(ChatOptions(max_tokens=5))
    conversation.set_system_prompt("x")
    conversation.stop()
    assert conversation.options == ChatOptions()
    assert time.monotonic() - begun < 1
    go.set()
    holding.join()
    done(conversation)


# Failures


@pytest.mark.parametrize("when", ["on submit", "in the stream"])
def test_without_a_model_the_prompt_is_kept_and_the_answer_is_a_stored_failure(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener, when: str
) -> None:
    engine.model = None
    if when == "on submit":
        engine.refusal = NO_MODEL
    else:
        engine.reply = NO_MODEL
    conversation.send("hello?")
    done(conversation)
    failure = listener.last(AnswerFailed)
    assert (failure.sentence, failure.hint) == ("No model is loaded.", "Choose a model first.")
    question, answer = stored(store, conversation)
    assert question.content == "hello?"
    assert (answer.state, answer.content) == (MessageState.FAILED, "")
    assert answer.error == "No model is loaded. Choose a model first."
    assert failure.message == answer
    engine.model, engine.refusal, engine.reply = None, None, "here I am"
    conversation.regenerate()
    done(conversation)
    assert transcript(store, conversation) == ["user: hello?", "assistant: here I am"]


def test_an_answer_that_breaks_keeps_its_text_and_is_not_sent_as_an_answer(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("tell me")
    engine.stream().say("It all be")
    engine.stream().fail(DeviceError("The device was lost.", "Load the model again."))
    done(conversation)
    answer = stored(store, conversation)[-1]
    assert (answer.content, answer.state) == ("It all be", MessageState.FAILED)
    assert listener.last(AnswerFailed).message == answer
    ask(conversation, engine, "and now?", "fine")
    assert engine.asked == [{"role": "user", "content": "tell me\n\nand now?"}]


def test_an_engine_that_breaks_its_own_rules_is_a_failure_not_a_crash(
    store: ChatStore, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    class Engine(ScriptedEngine):
        def submit(self, request: GenerateRequest) -> Stream:
            raise ZeroDivisionError("by zero")

    with Conversation(Engine(), store, None, listener) as conversation:
        conversation.send("hello")
        done(conversation)
        assert "unexpected" in listener.last(AnswerFailed).sentence
        assert stored(store, conversation)[-1].state is MessageState.FAILED
        conversation.rename("still alive")
        done(conversation)
        assert listener.last(TitleChanged).title == "still alive"


def test_a_prompt_that_cannot_be_stored_is_not_sent(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        conversation.send("hello")
        done(conversation)
    failed = listener.last(ActionFailed)
    assert (failed.action, failed.text) == ("send", "hello")
    assert "locked" in failed.sentence
    assert engine.requests == []
    assert not conversation.busy
    ask(conversation, engine, "hello", "hi")
    assert transcript(store, conversation) == ["user: hello", "assistant: hi"]


def test_an_answer_goes_on_while_it_cannot_be_saved_and_is_saved_later(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("hello")
    listener.wait(AnswerStarted)
    stream = engine.stream()
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        stream.say("text ")
        assert "locked" in listener.wait(SavingFailed).sentence
        stream.say("and more")
        stream.finish()
        end = listener.wait(AnswerFinished)
        assert not end.saved
        assert end.message.content == "text and more"
    assert listener.wait(AnswerSaved).message == end.message
    assert stored(store, conversation)[-1] == end.message
    assert len(listener.of(SavingFailed)) == 1


def test_a_listener_that_fails_does_not_end_the_chat(
    engine: ScriptedEngine, store: ChatStore, caplog: pytest.LogCaptureFixture
) -> None:
    def listen(events: object) -> None:
        raise RuntimeError("deleted")

    engine.reply = "ok"
    with Conversation(engine, store, None, listen) as conversation:
        conversation.send("hello")
        done(conversation)
        assert transcript(store, conversation) == ["user: hello", "assistant: ok"]


def test_a_chat_that_is_gone_says_so(engine: ScriptedEngine, store: ChatStore, listener: Listener) -> None:
    chat = store.create_chat()
    store.delete_chat(chat.id)
    with Conversation(engine, store, chat.id, listener) as conversation:
        done(conversation)
        assert "deleted" in listener.last(ActionFailed).sentence
        conversation.send("hello")
        done(conversation)
        assert listener.last(ActionFailed).action == "send"
        assert not conversation.busy


# Stopping and closing


def test_stop_keeps_the_text_and_it_counts_as_an_answer(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("count")
    engine.stream().say("one two")
    listener.wait(AnswerText)
    conversation.stop()
    done(conversation)
    end = listener.last(AnswerFinished)
    assert (end.message.state, end.message.content, end.reason) == (
        MessageState.CANCELLED,
        "one two",
        StopReason.CANCELLED,
    )
    ask(conversation, engine, "more", "three")
    assert engine.asked[1] == {"role": "assistant", "content": "one two"}


def test_stop_right_after_send_stops_that_answer(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore
) -> None:
    conversation.send("count")
    conversation.stop()
    done(conversation)
    assert stored(store, conversation)[-1].state is MessageState.CANCELLED
    conversation.stop()  # nothing streams: nothing happens
    ask(conversation, engine, "again", "fine")
    assert stored(store, conversation)[-1].state is MessageState.COMPLETE


def test_closing_interrupts_the_answer_and_keeps_its_text(
    engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation = Conversation(engine, store, None, listener)
    conversation.send("tell me")
    engine.stream().say("Once upon")
    listener.wait(AnswerText)
    conversation.close()
    answer = stored(store, conversation)[-1]
    assert (answer.content, answer.state) == ("Once upon", MessageState.INTERRUPTED)
    assert listener.last(AnswerFinished).message == answer
    assert engine.streams[-1].cancelled
    with pytest.raises(RequestError, match="closed"):
        conversation.send("more")
    conversation.close()
    assert conversation.wait_idle(1)


def test_an_engine_that_closes_interrupts_the_answer(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore
) -> None:
    conversation.send("tell me")
    engine.stream().say("Once")
    engine.stream().finish(reason=StopReason.CANCELLED)
    done(conversation)
    assert stored(store, conversation)[-1].state is MessageState.INTERRUPTED


def test_reopening_a_chat_brings_messages_and_options(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore
) -> None:
    options = ChatOptions("Rhyme.", SamplingParams(temperature=0.0, seed=7), max_tokens=9, stop=("END",))
    conversation.set_options(options)
    ask(conversation, engine, "one", "eins")
    messages = tuple(stored(store, conversation))
    again = Listener()
    with Conversation(engine, store, conversation.chat_id, again) as second:
        done(second)
        loaded = again.last(ConversationLoaded)
        assert loaded.messages == messages
        assert loaded.options == second.options == options
        ask(second, engine, "two", "zwei")
        assert engine.requests[-1].sampling == options.sampling
        assert (engine.requests[-1].max_tokens, engine.requests[-1].stop) == (9, ("END",))
        assert not again.of(TitleChanged)  # it has a name already


# Changing what was said


def test_regenerate_replaces_the_answer_and_undo_brings_it_back(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    ask(conversation, engine, "one", "eins")
    engine.reply = "uno"
    conversation.regenerate()
    done(conversation)
    assert transcript(store, conversation) == ["user: one", "assistant: uno"]
    assert listener.last(MessagesRemoved).undoable
    assert engine.asked == [{"role": "user", "content": "one"}]
    assert conversation.can_undo
    conversation.undo()
    done(conversation)
    assert transcript(store, conversation) == ["user: one", "assistant: eins"]
    assert [message.content for message in listener.last(MessagesRestored).messages] == ["eins"]
    conversation.undo()
    done(conversation)
    assert "nothing to take back" in listener.last(ActionFailed).sentence


@pytest.mark.parametrize("when", ["on submit", "in the stream"])
def test_a_regenerate_that_comes_to_nothing_leaves_the_old_answer(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener, when: str
) -> None:
    ask(conversation, engine, "one", "eins")
    before = stored(store, conversation)
    if when == "on submit":
        engine.refusal = NO_MODEL
    else:
        engine.reply = NO_MODEL
    conversation.regenerate()
    done(conversation)
    failure = listener.last(AnswerFailed)
    assert (failure.message, failure.sentence) == (None, "No model is loaded.")
    assert stored(store, conversation) == before
    assert not conversation.can_undo


def test_regenerate_without_a_question_is_refused(conversation: Conversation, listener: Listener) -> None:
    conversation.regenerate()
    done(conversation)
    assert listener.last(ActionFailed).action == "regenerate"
    assert not conversation.busy


def test_edit_replaces_the_message_and_all_after_it(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    ask(conversation, engine, "one", "eins")
    ask(conversation, engine, "two", "zwei")
    before = stored(store, conversation)
    engine.reply = "drei"
    conversation.edit_and_resend(before[2].id, "three")
    done(conversation)
    assert transcript(store, conversation) == ["user: one", "assistant: eins", "user: three", "assistant: drei"]
    assert listener.last(MessagesRemoved).message_ids == (before[2].id, before[3].id)
    conversation.undo()
    done(conversation)
    assert stored(store, conversation) == before
    conversation.edit_and_resend(before[1].id, "put words into its mouth")
    done(conversation)
    assert listener.last(ActionFailed).text == "put words into its mouth"
    assert stored(store, conversation) == before


def test_delete_and_undo_go_back_step_by_step_until_something_is_sent(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    ask(conversation, engine, "one", "eins")
    before = stored(store, conversation)
    for message in before:
        conversation.delete_message(message.id)
    done(conversation)
    assert stored(store, conversation) == []
    conversation.undo()
    conversation.undo()
    done(conversation)
    assert stored(store, conversation) == before
    conversation.delete_message(before[1].id)
    ask(conversation, engine, "two", "zwei")
    assert not conversation.can_undo
    conversation.delete_message(before[1].id)
    done(conversation)
    assert "no longer in the chat" in listener.last(ActionFailed).sentence


def test_messages_of_other_chats_are_out_of_reach(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    other = store.add_message(store.create_chat().id, "user", "elsewhere")
    ask(conversation, engine, "one", "eins")
    conversation.delete_message(other.id)
    conversation.edit_and_resend(other.id, "changed")
    done(conversation)
    assert [event.action for event in listener.of(ActionFailed)] == ["delete_message", "edit_and_resend"]
    assert store.messages(other.chat_id) == [other]


def test_names_and_options_may_change_while_an_answer_streams(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("go")
    listener.wait(AnswerStarted)
    conversation.rename("  a   better name ")
    conversation.set_options(replace(conversation.options, max_tokens=3))
    assert listener.wait(OptionsChanged).options.max_tokens == 3
    assert listener.last(TitleChanged).title == "a better name"
    engine.stream().finish("done")
    done(conversation)
    ask(conversation, engine, "next", "ok")
    assert [request.max_tokens for request in engine.requests] == [None, 3]
    with pytest.raises(RequestError, match="empty title"):
        conversation.rename(" ")
    with pytest.raises(RequestError, match="temperature"):
        conversation.set_options(ChatOptions(sampling=SamplingParams(temperature=-1)))


def test_an_answer_cut_by_the_context_is_complete_and_says_why(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("go on for ever")
    engine.stream().say("and on")
    engine.stream().finish(reason=StopReason.CONTEXT)
    done(conversation)
    assert listener.last(AnswerFinished).reason is StopReason.CONTEXT
    answer = stored(store, conversation)[-1]
    assert answer.state is MessageState.COMPLETE
    assert answer.figures is not None
    assert answer.figures["stop_reason"] == "context"


def test_added_messages_are_told_with_their_ids(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    ask(conversation, engine, "one", "eins")
    assert listener.last(MessageAdded).message == stored(store, conversation)[0]


# Adapters, guesses, and answers that go on


POET, PIRATE = AdapterChoice(Path("/adapters/poet.gguf"), 0.5), AdapterChoice(Path("/adapters/pirate"), 1.0)


def uses(*choices: AdapterChoice) -> tuple[api.AdapterUse, ...]:
    return tuple(api.AdapterUse(choice.path, choice.strength) for choice in choices)


def test_a_request_says_how_it_is_to_be_answered(
    conversation: Conversation, engine: ScriptedEngine, listener: Listener
) -> None:
    draft = api.DraftOptions(api.DraftKind.NGRAM, draft_k=7)
    off = replace(PIRATE, on=False)
    conversation.set_options(ChatOptions(adapters=(POET, off), draft=draft, context_policy=api.ContextPolicy.SHIFT))
    ask(conversation, engine, "one", "eins")
    request = engine.requests[-1]
    assert (request.adapters, request.draft) == (uses(POET), draft)
    assert request.context_policy is api.ContextPolicy.SHIFT
    assert listener.last(AdaptersInForce).adapters == uses(POET)


def test_other_adapters_act_on_the_running_answer(
    conversation: Conversation, engine: ScriptedEngine, listener: Listener
) -> None:
    conversation.send("go")
    stream = engine.stream()
    conversation.set_options(ChatOptions(adapters=(POET,)))
    wait_for(lambda: len(engine.changes) == 1)
    asked_for, adapters, change = engine.changes[0]
    assert (asked_for, adapters) == (stream, uses(POET))
    assert not listener.of(AdaptersInForce), "nothing acts before the engine says so"
    # What is overtaken while that change is made never reaches the engine.
    conversation.set_options(ChatOptions(adapters=(POET, PIRATE)))
    conversation.set_options(ChatOptions(adapters=(PIRATE,)))
    change.make()
    assert listener.wait(AdaptersInForce).adapters == uses(POET)
    wait_for(lambda: len(engine.changes) == 2)
    assert engine.changes[1][1] == uses(PIRATE)
    engine.changes[1][2].make()
    assert listener.wait(AdaptersInForce, 2).adapters == uses(PIRATE)
    stream.finish("done")
    done(conversation)
    conversation.set_options(ChatOptions())
    done(conversation)
    assert len(engine.changes) == 2, "an answer that has ended is left alone"


def test_adapters_that_are_refused_leave_those_that_act(
    conversation: Conversation, engine: ScriptedEngine, listener: Listener
) -> None:
    conversation.set_options(ChatOptions(adapters=(POET,)))
    conversation.send("go")
    engine.stream()
    conversation.set_options(ChatOptions(adapters=(PIRATE,)))
    wait_for(lambda: len(engine.changes) == 1)
    engine.changes[0][2].make(RequestError("The adapter pirate is for another model.", "Remove it."))
    told = listener.wait(AdaptersInForce, 2)
    assert told.adapters == uses(POET)
    assert (told.sentence, told.hint) == ("The adapter pirate is for another model.", "Remove it.")
    engine.stream().finish("done")
    done(conversation)


def test_accepted_guesses_are_known_by_their_place_and_stored(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("count")
    stream = engine.stream()
    stream.say("one ")
    stream.say("two ", "", "three ", drafted=True)
    stream.say("\N{OWL} ")
    stream.say("five", drafted=True)
    stream.finish("!")
    done(conversation)
    text = "one two three \N{OWL} five!"
    assert listener.of(AnswerText)[-1].drafted == ((4, 14), (16, 20))
    assert [text[start:end] for start, end in listener.of(AnswerText)[-1].drafted] == ["two three ", "five"]
    figures = stored(store, conversation)[-1].figures
    assert figures is not None
    assert figures["drafted"] == [[4, 14], [16, 20]]


def test_an_answer_goes_on_where_it_ended(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.send("count")
    stream = engine.stream()
    stream.say("one ", drafted=True)
    stream.say("two")
    stream.finish(reason=StopReason.CONTEXT)
    done(conversation)
    conversation.go_on()
    wait_for(lambda: len(engine.requests) == 2)
    request = engine.requests[-1]
    assert (request.answer_so_far, engine.asked) == ("one two", [{"role": "user", "content": "count"}])
    assert listener.last(AnswerStarted).message.content == "one two"
    engine.stream().say(" three", drafted=True)
    engine.stream().finish()
    done(conversation)
    assert transcript(store, conversation) == ["user: count", "assistant: one two three"]
    assert listener.of(AnswerText)[-1].text == " three"
    assert listener.of(AnswerText)[-1].drafted == ((0, 4), (7, 13))
    conversation.undo()
    done(conversation)
    assert transcript(store, conversation) == ["user: count", "assistant: one two"]


def test_going_on_in_vain_leaves_the_answer_as_it_was(
    conversation: Conversation, engine: ScriptedEngine, store: ChatStore, listener: Listener
) -> None:
    conversation.go_on()
    done(conversation)
    assert listener.last(ActionFailed).action == "go_on"
    ask(conversation, engine, "count", "one two")
    before = stored(store, conversation)
    engine.reply = NO_MODEL
    conversation.go_on()
    done(conversation)
    assert listener.last(AnswerFailed).sentence == "No model is loaded."
    assert stored(store, conversation) == before
    conversation.delete_message(before[-1].id)
    conversation.go_on()
    done(conversation)
    assert "no answer to go on with" in listener.last(ActionFailed).sentence
