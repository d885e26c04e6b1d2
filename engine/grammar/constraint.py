"""A grammar at work on one answer."""

from __future__ import annotations

from engine.errors import RequestError
from engine.grammar.automaton import build
from engine.grammar.gbnf import parse_gbnf
from engine.grammar.jump import jump_tokens
from engine.grammar.masks import MOST_BYTES, Allowed, Masks
from engine.grammar.states import DEAD, END, States
from engine.grammar.syntax import TokenIs
from engine.grammar.trie import Spelling, token_trie

MOST_STATES = 100_000
LONGEST_JUMP = 1024  # bytes


class CompiledGrammar:
    """A grammar over the tokens of a vocabulary. What it learns of its states serves every answer that uses it.

    Raises RequestError for a grammar that cannot be used, with line and column where there is one.
    """

    def __init__(self, gbnf: str, spelling: Spelling, n_vocab: int) -> None:
        self._spelling = spelling
        self._n_vocab = n_vocab
        self._automaton = build(parse_gbnf(gbnf), self._token_of)
        self.trie = token_trie(spelling, n_vocab)
        self._begin()

    def start(self) -> Constraint:
        """The grammar at the beginning of an answer."""
        if self.states.n_states > MOST_STATES or self.masks.held_bytes > MOST_BYTES:
            self._begin()
        return Constraint(self.states, self.masks, self.trie.pieces, self._spelling)

    def _begin(self) -> None:
        self.states = States(self._automaton)
        self.masks = Masks(self.states, self.trie, self._spelling.end_tokens)

    def _token_of(self, wanted: TokenIs) -> int:
        if isinstance(wanted.token, int):
            if wanted.token < self._n_vocab:
                return wanted.token
            raise RequestError(
                f"The grammar cannot be used: it names the token {wanted.token}, but this model's tokens are 0 to "
                f"{self._n_vocab - 1} ({wanted.place})."
            )
        tokens = self._spelling.encode(wanted.token, add_special=False, parse_special=True)
        if len(tokens) != 1:
            raise RequestError(
                f"The grammar cannot be used: {wanted.token} is no single token of this model ({wanted.place}).",
                "Write text in quotation marks, and the number of a token as <[15]>.",
            )
        return tokens[0]


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, states: States, masks: Masks, pieces: list[bytes], spelling: Spelling) -> None:
        self._states = states
        self._masks = masks
        self._pieces = pieces
        self._spelling = spelling
        self._end_tokens = frozenset(token for token in spelling.end_tokens if token < len(pieces))
        self._state = states.start

    @property
    def complete(self) -> bool:
        """The answer matches the grammar, and nothing can be added to it."""
        return self._states.nodes[self._state] == (END,)

    @property
    def must_stop(self) -> bool:
        """It is complete, and this vocabulary has no token to say so."""
        return self.complete and not self._end_tokens

    @property
    def may_end(self) -> bool:
        """The answer matches the grammar as it is."""
        return bool(self._states.may_end[self._state])

    def allowed(self) -> Allowed:
        """The tokens after which the answer can still come to match the grammar; end tokens where it does already."""
        return self._masks.allowed(self._state)

    def read(self, text: str) -> None:
        """Moves on by text that is there already. Raises RequestError where it does not begin a text of the grammar."""
        self._state = self._states.step_all(self._state, text.encode())
        if self._state == DEAD:
            raise RequestError("What the answer has so far does not match the grammar.", "Answer from the beginning.")

    def permits(self, token: int) -> bool:
        """Whether `allowed` holds the token, found out for it alone; not for grammars that name tokens."""
        piece = self._pieces[token] if token < len(self._pieces) else b""
        if piece:
            return self._states.step_all(self._state, piece) != DEAD
        return self.may_end and token in self._end_tokens

    @property
    def worth_asking(self) -> bool:
        """Whether `permits` for some tokens is cheaper than `allowed`: it is as long as the mask is not known."""
        return not self._states.tokens(self._state) and self._masks.unknown(self._state)

    def accept(self, token: int) -> None:
        """Moves on by a token. Raises RequestError where the grammar does not allow it."""
        states = self._states
        piece = self._pieces[token] if token < len(self._pieces) else b""
        by_text = states.step_all(self._state, piece) if piece else DEAD
        by_token = states.step_token(self._state, token) if states.tokens(self._state) else DEAD
        if by_text != DEAD or by_token != DEAD:
            self._state = states.state([*states.nodes[by_text], *states.nodes[by_token]])
        elif self.may_end and token in self._end_tokens:
            self._state = DEAD
        else:
            raise RequestError(f"The grammar does not allow the token {token} here.")

    def forced(self) -> bytes:
        """The text that has to follow, as far as there is no choice."""
        text = bytearray()
        state = self._state
        while len(text) < LONGEST_JUMP and (byte := self._states.forced_byte(state)) >= 0:
            text.append(byte)
            state = self._states.step(state, byte)
        return bytes(text)

    def forced_tokens(self) -> list[int]:
        """Tokens that spell that text, all but the last; none where there is a choice at once."""
        return jump_tokens(self.forced(), self._spelling, self._pieces)
