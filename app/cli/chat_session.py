"""One chat at the terminal: messages, commands, and the answers as they stream."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from app.cli.answers import figures_line
from app.cli.models import load, model_path
from app.cli.options import adapter_uses, grammar_text, sampling_params, schema_of, stop_strings
from app.cli.prompt import LineSource, read_message
from app.cli.stream_options import context_policy, session_path
from app.cli.terminal import ProgressBar, bytes_text, is_terminal, printable, say, styled, write_answer
from app.conversation import (
    ActionFailed,
    AdapterChoice,
    AnswerFailed,
    AnswerFinished,
    AnswerText,
    ChatOptions,
    Conversation,
    ConversationEvent,
    PrefillProgress,
    SavingFailed,
)
from app.store import ChatStore
from engine.api import DraftKind, DraftOptions, Figures, LoadOptions, ModelInfo
from engine.engine import Engine
from engine.errors import RealmError, RequestError

PROMPT = "> "


class ChatSession:
    """A conversation, the commands that steer it, and where its answers are written."""

    def __init__(
        self,
        engine: Engine,
        store: ChatStore,
        info: ModelInfo,
        load_options: LoadOptions,
        options: Mapping[str, Any],
        system: str | None,
        draft: DraftOptions | None = None,
    ) -> None:
        """options: request options of the command line, by name; they and `system` hold for every chat opened here.

        The option "session" is for the chat that this begins with, or goes on with: one file is of one chat.
        """
        self._engine = engine
        self._store = store
        self._info = info
        self._load_options = load_options
        self._options = options
        self._system = system
        self._draft = draft
        self._session = session_path(options)
        self._figures: Figures | None = None
        self._failed = False
        self._open(None)

    def close(self) -> None:
        self._conversation.close()

    def run(self, source: LineSource, *, typed: bool) -> int:
        """Reads and answers messages until the input ends or /quit; returns the exit code.

        typed: a person sits there. Otherwise an answer that failed makes the exit code 1.
        """
        if typed:
            say(f"{self._info.name} on {self._info.device.name}. /help tells the commands, Ctrl-D leaves.", "dim")
        while True:
            try:
                message = read_message(source, PROMPT if typed else "")
            except KeyboardInterrupt:
                if not typed:
                    raise
                with _on_interrupt(lambda: None):  # one more at once does not leave either
                    say("\nCtrl-D or /quit leaves.", "dim")
                continue
            if message is None:
                if typed:
                    say("")
                break
            try:
                if not self._handle(message):
                    break
            except RealmError as error:
                self._tell(str(error))
        return 1 if self._failed and not typed else 0

    def open_latest(self) -> None:
        chats = self._store.chats()
        if chats:
            self._open(chats[0].id)
            say(f"Going on with: {chats[0].title or 'the last chat'}", "dim")

    def _handle(self, message: str) -> bool:
        """Does what a message or command asks; False when it asks to leave."""
        if not message.strip():
            return True
        if message.startswith("/"):
            name, _, argument = message[1:].partition(" ")
            command = COMMANDS.get(name.strip().lower())
            if command is None:
                raise RequestError(
                    f"There is no command /{name}; /help lists them.", "Put a space before it to send it as a message."
                )
            return command.action(self, argument.strip()) is not False
        self._conversation.send(message.removeprefix(" ") if message.startswith(" /") else message)
        self._follow()
        return True

    def _follow(self) -> None:
        """Writes the answer as it streams; Ctrl-C stops it."""
        bar = ProgressBar("reading")
        with _on_interrupt(self._conversation.stop):
            while True:
                try:
                    event = self._events.get(timeout=0.1)  # in short steps, so that Ctrl-C is heard on every system
                except queue.Empty:
                    continue
                match event:
                    case PrefillProgress():
                        bar.update(event.done / max(event.total, 1), f"{event.done} of {event.total} tokens")
                    case AnswerText():
                        bar.clear()
                        write_answer(event.text)
                    case SavingFailed():
                        say(f"{event.sentence} {event.hint}".strip(), "red")
                    case AnswerFinished():
                        bar.clear()
                        if not event.message.content.endswith("\n"):
                            print(flush=True)
                        self._figures = event.figures
                        if event.figures is not None:
                            say(figures_line(event.figures, event.reason), "dim")
                        return
                    case AnswerFailed() | ActionFailed():
                        bar.clear()
                        self._tell(f"{event.sentence} {event.hint}".strip())
                        return
                    case _:
                        pass

    def _tell(self, sentence: str) -> None:
        self._failed = True
        say(sentence, "red")

    def _open(self, chat_id: int | None) -> None:
        events: queue.SimpleQueue[ConversationEvent] = queue.SimpleQueue()
        self._events = events  # a queue per chat: what one that was left still says is not heard

        def listen(batch: Sequence[ConversationEvent]) -> None:
            for event in batch:
                events.put(event)

        self._conversation = Conversation(self._engine, self._store, chat_id, listen, self._session)
        self._conversation.wait_idle()
        before = self._conversation.options
        if chat_id is None:  # as the window does
            before = ChatOptions.from_json(self._store.settings.get("chat_options"))
        options = replace(
            before, sampling=sampling_params(self._options, before.sampling), draft=self._draft_of(before)
        )
        if "max_tokens" in self._options:
            options = replace(options, max_tokens=self._options["max_tokens"])
        if "lora" in self._options:
            choices = tuple(AdapterChoice(use.path.absolute(), use.strength) for use in adapter_uses(self._options))
            options = replace(options, adapters=choices)
        if "stop" in self._options:
            options = replace(options, stop=stop_strings(self._options))
        grammar, schema = grammar_text(self._options), schema_of(self._options)
        if grammar is not None or schema is not None:
            options = replace(options, grammar=grammar, json_schema=schema)
        if "context_policy" in self._options:
            options = replace(options, context_policy=context_policy(self._options))
        if self._system is not None:
            options = replace(options, system_prompt=self._system)
        if options != self._conversation.options:
            self._conversation.set_options(options)
            self._conversation.wait_idle()

    def _draft_of(self, before: ChatOptions) -> DraftOptions | None:
        """How a chat guesses: as the command line says, else as it did, if what it takes is loaded."""
        if self._draft is not None:
            wanted = self._draft
        elif before.draft is not None:
            wanted = before.draft
        else:
            return None
        return wanted if wanted.kind is not DraftKind.MODEL or self._engine.status().draft else None

    def _switch(self, chat_id: int | None) -> None:
        self._conversation.close()
        self._figures = self._session = None
        self._open(chat_id)

    # Commands. Each takes the rest of its line; False leaves the chat.

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            if command.help:
                say(f"  {f'/{name} {command.argument}':<15}{command.help}")
        say('  """            begins and ends a message of several lines; a paste of several lines is one message')
        say("  Ctrl-C         stops the answer; Ctrl-D leaves")

    def new(self, _: str) -> None:
        self._switch(None)
        say("A new chat.", "dim")

    def regenerate(self, _: str) -> None:
        self._conversation.regenerate()
        self._follow()

    def undo(self, _: str) -> None:
        self._conversation.undo()
        self._settle("Undone.")

    def system(self, text: str) -> None:
        if not text:
            say(self._conversation.options.system_prompt or "There is no system prompt; /system TEXT sets one.")
            return
        self._conversation.set_system_prompt(text)
        self._settle("The model will be told that before the chat.")

    def free(self, _: str) -> None:
        options = self._conversation.options
        if options.grammar is None and options.json_schema is None:
            say("Answers have any form already.")
            return
        self._conversation.set_options(replace(options, grammar=None, json_schema=None))
        self._settle("Answers have any form from now on.")

    def model(self, name: str) -> None:
        if name:
            self._info = load(self._engine, model_path(name), self._load_options, chats=True)
            options = self._conversation.options
            if (draft := self._draft_of(options)) != options.draft:  # it did not fit the new model
                self._conversation.set_options(replace(options, draft=draft))
                self._conversation.wait_idle()
        info = self._info
        say(
            f"{info.name} ({info.architecture}, {info.quantisation}, {bytes_text(info.file_bytes)}) on "
            f"{info.device.name}, context {info.context_length} of {info.trained_context_length} tokens"
        )

    def stats(self, _: str) -> None:
        self.model("")
        info, figures = self._info, self._figures
        say(
            f"memory: {bytes_text(info.weight_bytes)} weights, {bytes_text(info.kv_bytes)} KV cache, "
            f"{bytes_text(info.scratch_bytes)} scratch; loaded in {info.load_s:.2f} s"
        )
        if figures is None:
            say("No answer yet.")
            return
        share = figures.decode_bandwidth_share
        of_measured = "" if share is None else f", {share:.0%} of the bandwidth measured"
        say(
            f"last answer: {figures.prompt_tokens} prompt tokens ({figures.cached_tokens} from the cache) at "
            f"{figures.prefill_tokens_per_s:.1f} tokens/s, {figures.generated_tokens} generated at "
            f"{figures.decode_tokens_per_s:.1f} tokens/s, {figures.decode_gb_per_s:.1f} GB/s{of_measured}"
        )
        say(figures_line(figures))

    def chats(self, _: str) -> None:
        chats = self._store.chats()
        for chat in chats[:20]:
            here = "*" if chat.id == self._conversation.chat_id else " "
            say(f"{here} {chat.id:>5}  {chat.updated.astimezone():%Y-%m-%d %H:%M}  {chat.title or chat.snippet}")
        say("/open NUMBER goes on with one of them." if chats else "There are no chats yet.", "dim")

    def open(self, argument: str) -> None:
        if not argument.isdecimal():
            raise RequestError("/open needs the number of a chat.", "/chats lists them.")
        chat = self._store.chat(int(argument))
        self._switch(chat.id)
        for message in self._store.messages(chat.id):
            if message.role == "user":
                print(styled(printable(f"{PROMPT}{message.content}"), "bold", sys.stdout))
            else:
                print(printable(message.content) if is_terminal(sys.stdout) else message.content)
        sys.stdout.flush()

    def quit(self, _: str) -> bool:
        return False

    def _settle(self, done: str) -> None:
        """Waits for an action that brings no answer and tells how it went."""
        self._conversation.wait_idle()
        while not self._events.empty():
            event = self._events.get()
            if isinstance(event, ActionFailed | SavingFailed):
                raise RequestError(event.sentence, event.hint)
        say(done, "dim")


class _Command:
    def __init__(self, action: Callable[[ChatSession, str], bool | None], argument: str = "", help: str = "") -> None:
        self.action, self.argument, self.help = action, argument, help


COMMANDS: dict[str, _Command] = {
    "help": _Command(ChatSession.help, help="this list"),
    "new": _Command(ChatSession.new, help="begin a new chat"),
    "regenerate": _Command(ChatSession.regenerate, help="answer the last message again"),
    "undo": _Command(ChatSession.undo, help="take back the last /regenerate"),
    "system": _Command(ChatSession.system, "TEXT", "what the model is told before the chat"),
    "free": _Command(ChatSession.free, help="no grammar or JSON schema for this chat any longer"),
    "model": _Command(ChatSession.model, "MODEL", "load another model, or say which is loaded"),
    "stats": _Command(ChatSession.stats, help="figures of the model and of the last answer"),
    "chats": _Command(ChatSession.chats, help="list the chats, the window's too"),
    "open": _Command(ChatSession.open, "NUMBER", "go on with a chat of the list"),
    "quit": _Command(ChatSession.quit, help="leave"),
    "exit": _Command(ChatSession.quit),
    "bye": _Command(ChatSession.quit),
}


@contextmanager
def _on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `action` inside of the block; a second one interrupts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        action()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
