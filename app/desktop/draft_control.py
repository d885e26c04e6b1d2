"""Guessing ahead in the open chat: chosen in the model manager, measured in the footer, tinted in the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QObject

from app.conversation import AnswerFinished, AnswerStarted, AnswerText, ConversationLoaded
from app.conversation.fastest import Measured, standard_ways, trial_request
from app.desktop.chat_control import ChatControl
from app.desktop.chat_session import ChatSession
from app.desktop.desk import Desk
from app.desktop.draft_page import OWN_LAYER, DraftPage, DraftState
from app.desktop.draft_service import DraftService
from app.desktop.message_control import MessageControl
from app.desktop.model_service import model_name
from app.desktop.notices import Way
from engine.api import DraftKind, DraftOptions
from engine.errors import RealmError

DRAFTS = "drafts"
TINT = "tint_guesses"


class DraftControl(QObject):
    """Keeps the chat's choice, the loaded draft model and the page in step."""

    def __init__(self, desk: Desk, chats: ChatControl, messages: MessageControl, parent: QObject) -> None:
        super().__init__(parent)
        self._desk = desk
        self._chats = chats
        self._messages = messages
        self.drafts = DraftService(desk.service, desk.background, self)
        self.page: DraftPage | None = None
        self._measuring = (True, 0)
        self._before_trial: tuple[DraftOptions | None, Path | None] = (None, None)
        popup = desk.window.popup
        popup.make_draft_page = self._make_page
        popup.draft_shape = self._shape
        self.drafts.changed.connect(self._drafts_changed)
        self.drafts.load_failed.connect(self._load_failed)
        self.drafts.trial_ended.connect(self._keep_fastest)
        self.drafts.trial_failed.connect(self._trial_failed)
        desk.service.loaded.connect(lambda _model: self.ensure_draft())
        desk.window.footer.drafting.clicked.connect(lambda: desk.window.open_model_popup("draft"))
        chats.shown.connect(self._chat_shown)
        chats.told.connect(self._on_events)
        messages.without_guesses = lambda: self._set(None)
        messages.about_to_ask = self.drafts.cancel_trial

    # The choice

    @property
    def options(self) -> DraftOptions | None:
        """How the open chat guesses."""
        session = self._chats.session
        return session.options.draft if session is not None else self._desk.preferences.chat_options().draft

    def _set(self, options: DraftOptions | None) -> None:
        """For the open chat and for new ones."""
        preferences = self._desk.preferences
        preferences.set_chat_options(replace(preferences.chat_options(), draft=options))
        session = self._chats.session
        if session is not None and session.options.draft != options:
            self._messages.set_options(session, replace(session.options, draft=options))
        self.show_state()

    def _options_for(self, kind: DraftKind) -> DraftOptions:
        return replace(self.options or self._last_length(), kind=kind)

    def _last_length(self) -> DraftOptions:
        return DraftOptions(DraftKind.NGRAM, draft_k=self._desk.preferences.number("draft_k") or 5)

    def choose_off(self) -> None:
        """No guesses; the draft model's memory is freed."""
        self._set(None)
        self._let_go()

    def choose_ngram(self) -> None:
        """Guesses out of the chat itself."""
        self._set(self._options_for(DraftKind.NGRAM))
        self._let_go()

    def _let_go(self) -> None:
        used = any(
            session.pending and session.options.draft is not None and session.options.draft.kind is DraftKind.MODEL
            for session in self._chats.sessions
        )
        if self.drafts.draft is not None and not used:
            self.drafts.unload()

    def choose_draft(self, path: Path) -> None:
        """Guesses of a draft model, which is loaded beside the model."""
        self._remember(path)
        draft = self.drafts.draft
        if (draft is None or draft.path != path) and self.drafts.loading != path:
            self.drafts.load(path)
        self._set(self._options_for(DraftKind.MODEL))

    def set_length(self, length: int) -> None:
        """How many tokens are guessed at once."""
        self._desk.preferences.set("draft_k", length)
        if self.options is not None:
            longest = max(length, DraftOptions(DraftKind.NGRAM).max_draft_tokens)
            self._set(replace(self.options, draft_k=length, max_draft_tokens=longest))

    def set_tint(self, on: bool) -> None:
        """Whether accepted guesses are tinted."""
        self._desk.preferences.set(TINT, on)
        self._desk.window.transcript.set_tinted(on)
        self.show_state()

    # The draft model of a model

    def _remember(self, path: Path) -> None:
        model = self._desk.service.model
        if model is not None:
            stored = {**self._desk.preferences.mapping(DRAFTS), str(model.path): str(path)}
            self._desk.preferences.set(DRAFTS, stored)

    def _remembered(self) -> Path | None:
        model = self._desk.service.model
        name = self._desk.preferences.mapping(DRAFTS).get(str(model.path)) if model is not None else None
        return Path(name) if isinstance(name, str) else None

    def ensure_draft(self) -> None:
        """A chat that guesses by a draft model finds it loaded, or is told that there is none."""
        options, service = self.options, self._desk.service
        if options is None or options.kind is not DraftKind.MODEL or service.model is None:
            return
        if self.drafts.draft is not None or self.drafts.loading is not None or service.loading is not None:
            return
        path = self._remembered()
        if path is not None:
            self.drafts.load(path)
            return
        self._set(None)
        self._desk.window.notices.show_notice(
            "draft", "info", f"No draft is known for {model_name(service.model.path)}, so nothing is guessed.", "",
            (Way("Choose one…", lambda: self._desk.window.open_model_popup("draft"), primary=True),),
        )  # fmt: skip

    def _load_failed(self, error: RealmError, path: Path) -> None:
        self._set(None)
        self._desk.window.notices.show_notice(
            "draft", "warning", f"The draft model could not be used, so nothing is guessed: {error.message}",
            error.hint, (Way("Try again", lambda: self.choose_draft(path), primary=True),),
        )  # fmt: skip

    # Measuring

    def _why_not_measured(self) -> str:
        session = self._chats.session
        if self._desk.service.model is None:
            return "Load a model first."
        if session is None or session.chat_id is None or not any(m.role != "user" and m.text for m in session.messages):
            return "Ask something first: the last answer is what is measured."
        if session.pending:
            return "An answer is being written."
        if self.drafts.loading is not None:
            return "The draft model is being loaded."
        return ""

    def find_fastest(self) -> None:
        """Measures off, n-gram, the model's own layer and each draft that fits on the last answer, and keeps the
        fastest."""
        session, store = self._chats.session, self._desk.store
        if self._why_not_measured() or session is None or store is None or session.chat_id is None:
            return
        draft = self.drafts.draft
        self._before_trial = (self.options, draft.path if draft is not None else None)
        fitting = [c.model for c in self.drafts.candidates() if c.fit is not None and c.fit.fits]
        drafts = [(known.path.stem, known.path) for known in fitting]
        if (own := self.drafts.own_layer) is not None:
            drafts.insert(0, (OWN_LAYER, own))
        ways = standard_ways(drafts, self.options or self._last_length())
        chat_id, options = session.chat_id, session.options
        self._desk.window.notices.dismiss("draft")
        self.drafts.find_fastest(lambda: trial_request(store, chat_id, options), ways)

    def _keep_fastest(self, best: Measured) -> None:
        if best.way.path is not None:
            self.choose_draft(best.way.path)
        elif best.way.draft is not None:
            self.choose_ngram()
        else:
            self.choose_off()
        self._desk.window.toast.offer(f"Fastest here: {best.way.name}, {best.tokens_per_s:.1f} tokens/s")

    def _trial_failed(self, error: RealmError | None) -> None:
        options, path = self._before_trial
        if path is not None:
            self.choose_draft(path)
        elif options is None or options.kind is not DraftKind.MODEL:
            self._let_go()
        if error is not None:
            self._desk.window.notices.show_notice(
                "draft", "error", error.message, error.hint, (Way("Try again", self.find_fastest, primary=True),)
            )

    # What is seen

    def _chat_shown(self) -> None:
        self._desk.window.transcript.set_tinted(self._desk.preferences.flag(TINT, False))
        self.ensure_draft()
        self.show_state()

    def _on_events(self, session: ChatSession, events: Sequence[object]) -> None:
        if session is not self._chats.session:
            return
        if any(isinstance(event, ConversationLoaded) for event in events):
            self.ensure_draft()
        if any(isinstance(event, AnswerStarted | AnswerText | AnswerFinished | ConversationLoaded) for event in events):
            self.show_state()

    def _drafts_changed(self) -> None:
        self._desk.window.popup.refresh()
        self.show_state()

    def _shape(self) -> object:
        """Changes when the page has to be built anew."""
        drafts = self.drafts
        model = self._desk.service.model
        return (model.path if model else None, tuple(drafts.candidates()), drafts.draft, drafts.loading)

    def _make_page(self) -> DraftPage:
        model = self._desk.service.model
        page = DraftPage(self._desk.themes, self.drafts, model_name(model.path) if model is not None else "")
        page.off_chosen.connect(self.choose_off)
        page.ngram_chosen.connect(self.choose_ngram)
        page.draft_chosen.connect(self.choose_draft)
        page.length_set.connect(self.set_length)
        page.tint_set.connect(self.set_tint)
        page.measure_wanted.connect(self.find_fastest)
        page.cancel_wanted.connect(self.drafts.cancel_trial)
        page.destroyed.connect(lambda: self._forget(page))
        self.page = page
        self.show_state()
        return page

    def _forget(self, page: DraftPage) -> None:
        if self.page is page:
            self.page = None

    def show_state(self) -> None:
        """Brings page and footer up to date."""
        session, options = self._chats.session, self.options
        figures = session.figures if session is not None else None
        self._desk.window.footer.show_drafting(figures if options is not None else None)
        if self.page is not None:
            length = options.draft_k if options is not None else self._last_length().draft_k
            tint = self._desk.preferences.flag(TINT, False)
            kind = options.kind if options is not None else None
            if self.page.show_state(DraftState(kind, length, tint, figures, self._why_not_measured())):
                self._desk.window.popup.fit()
        measuring = (self.drafts.trial is None, len(self.drafts.results))
        if measuring != self._measuring:
            self._measuring = measuring
            self._desk.window.popup.show_end()  # that is where it is told
