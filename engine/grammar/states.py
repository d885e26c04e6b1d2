"""What may come next in a grammar: states of the automaton with the rules that were called around them, made as needed.

A *frame* is a set of automaton states that share their caller (so the automaton is deterministic within a rule). A
*node* is a frame with the node that goes on when the frame's rule ends: a stack, of which equal parts are shared. A
*state* is a set of nodes: all the ways to read what was read. All three are interned and known by number.

Node 0 is the end of the whole grammar. Node 1 stands for a caller that is not said: what lies above it holds for any
caller, which is what makes masks of tokens worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.grammar.automaton import Automaton
from engine.grammar.trie import CLASS_BITS, MULTIBYTE

END, ANY_CALLER = 0, 1
DEAD = 0  # the state without nodes
MOST_WAYS = 4096
"""Ways to read one text that are followed side by side."""
MANY = 256
_UNFILLED = -1
_TAIL = (0x80, 0xBF)
_LEADS: tuple[tuple[Any, ...], ...] = (
    (0xC2, 0xDF, _TAIL),
    (0xE0, 0xE0, (0xA0, 0xBF), _TAIL),
    (0xE1, 0xEC, _TAIL, _TAIL),
    (0xED, 0xED, (0x80, 0x9F), _TAIL),
    (0xEE, 0xEF, _TAIL, _TAIL),
    (0xF0, 0xF0, (0x90, 0xBF), _TAIL, _TAIL),
    (0xF1, 0xF3, _TAIL, _TAIL, _TAIL),
    (0xF4, 0xF4, (0x80, 0x8F), _TAIL, _TAIL),
)
"""The first byte, from and to, of characters of several bytes, and what may follow it."""


class Frame:
    """arcs: (first byte, last byte, frame they lead to), apart from each other. row[byte]: that frame, or -1.
    calls: (frame of the called rules, frame after them). may_end: the rule may end here.
    only: the one byte that can come, MANY, or -1 where none can, calls left aside."""

    def __init__(
        self,
        arcs: list[tuple[int, int, int]],
        calls: list[tuple[int, int]],
        may_end: bool,
        tokens: list[tuple[int, bool, int]],
    ) -> None:
        self.row = [-1] * 256
        bits: dict[int, int] = {}
        for first, last, after in arcs:
            self.row[first : last + 1] = [after] * (last + 1 - first)
            bits[after] = bits.get(after, 0) | (2 << last) - (1 << first)
        self.bits = list(bits.items())
        self.calls = calls
        self.may_end = may_end
        self.tokens = tokens
        self.only = -1 if not arcs else arcs[0][0] if len(arcs) == 1 and arcs[0][0] == arcs[0][1] else MANY
        self.empty = not (arcs or calls or tokens)


class States:
    """Frames, nodes and states of one automaton.

    table int32 [rows, 256]: the state after a byte, DEAD where there is none; row_of int32: the row of a state in it,
    or -1 until `fill` makes it. open_below, may_end bool: per state, whether the callers of its nodes may be reached at
    once, down to ANY_CALLER or END. loops uint64: the classes of bytes that lead back to the state, once `find_loops`
    has looked.
    """

    def __init__(self, automaton: Automaton) -> None:
        self._automaton = automaton
        finals = frozenset(automaton.finals)
        self._finals = finals
        self._frames: list[Frame | None] = []
        self._frame_sets: list[frozenset[int]] = []
        self._frame_ids: dict[frozenset[int], int] = {}
        self.node_frame = [-1, -1]
        self.node_caller = [-1, -1]
        self._node_ids: dict[tuple[int, int], int] = {}
        self._active: dict[int, tuple[int, ...]] = {}
        self.nodes: list[tuple[int, ...]] = []
        self._state_ids: dict[tuple[int, ...], int] = {}
        self._steps: dict[int, int] = {}
        self.n_rows = 0
        self.table: NDArray[np.int32] = np.zeros((64, 256), np.int32)
        self.row_of: NDArray[np.int32] = np.zeros(256, np.int32)
        self.open_below: NDArray[np.bool_] = np.zeros(256, bool)
        self.may_end: NDArray[np.bool_] = np.zeros(256, bool)
        self.loops: NDArray[np.uint64] = np.zeros(256, np.uint64)
        self.loops_known: NDArray[np.bool_] = np.zeros(256, bool)
        self.state(())
        self.start = self.state([self._node(self._frame([automaton.starts[0]]), END)])

    @property
    def n_states(self) -> int:
        return len(self.nodes)

    # Steps

    def step(self, state: int, byte: int) -> int:
        """The state after a byte; DEAD where it cannot come."""
        key = state << 8 | byte
        after = self._steps.get(key)
        if after is None:
            nodes = []
            for node in self.active(state):
                frame = self.frame(self.node_frame[node]).row[byte]
                if frame >= 0:
                    nodes.append(self._node(frame, self.node_caller[node]))
            after = self._steps[key] = self.state(nodes)
        return after

    def step_all(self, state: int, text: bytes) -> int:
        for byte in text:
            state = self.step(state, byte)
            if state == DEAD:
                break
        return state

    def fill(self, states: Iterable[int]) -> None:
        """Makes the rows of these states in `table`."""
        for state in states:
            if self.row_of[state] == _UNFILLED:
                row = self._row(state)
                if self.n_rows == len(self.table):
                    self.table = np.concatenate([self.table, np.zeros_like(self.table)])
                self.table[self.n_rows] = row
                self.row_of[state] = self.n_rows
                self.n_rows += 1

    def find_loops(self, states: Iterable[int]) -> None:
        """Fills `loops` for these states, whose rows are filled."""
        for state in states:
            if self.loops_known[state]:
                continue
            self.loops_known[state] = True
            if self.open_below[state]:
                continue  # their callers have to be told of every place below
            back = self.table[self.row_of[state]] == state
            bits = int(np.bitwise_or.reduce(CLASS_BITS[:128][back[:128]], initial=np.uint64(0)))
            bits &= ~int(np.bitwise_or.reduce(CLASS_BITS[:128][~back[:128]], initial=np.uint64(0)))
            if self._takes_characters(state):
                bits |= int(MULTIBYTE)
            self.loops[state] = bits

    def _takes_characters(self, state: int) -> bool:
        """Whether every character of several bytes leads from the state back to it."""

        def after(at: int, first: int, last: int) -> int:
            """The one state that all these bytes lead to, else DEAD."""
            self.fill((at,))
            row = self.table[self.row_of[at], first : last + 1]
            return int(row[0]) if (row == row[0]).all() else DEAD

        for low, high, *rest in _LEADS:
            at = after(state, low, high)
            for first, last in rest:
                at = after(at, first, last)
            if at != state:
                return False
        return True

    def _row(self, state: int) -> NDArray[np.int32]:
        row = np.zeros(256, np.int32)
        parts: list[tuple[int, list[int]]] = []  # sets of bytes, as bits, and the nodes that they lead to
        for node in self.active(state):
            caller = self.node_caller[node]
            for frame, bits in self.frame(self.node_frame[node]).bits:
                after = self._node(frame, caller)
                for place in range(len(parts)):
                    shared = parts[place][0] & bits
                    if shared:
                        old, nodes = parts[place]
                        parts[place] = (shared, [*nodes, after])
                        if old != shared:
                            parts.append((old & ~shared, nodes))
                        bits &= ~shared
                if bits:
                    parts.append((bits, [after]))
        for bits, nodes in parts:
            row[_bytes_of(bits)] = self.state(nodes)
        return row

    def step_token(self, state: int, token: int) -> int:
        """The state after a token that the grammar asks for as such; DEAD where it does not."""
        nodes = []
        for node in self.active(state):
            for wanted, negated, after in self.frame(self.node_frame[node]).tokens:
                if (wanted == token) != negated:
                    nodes.append(self._node(self._frame([after]), self.node_caller[node]))
        return self.state(nodes)

    def tokens(self, state: int) -> list[tuple[int, bool]]:
        """The tokens that may come as such: (id, negated)."""
        return [
            (wanted, negated)
            for node in self.active(state)
            for wanted, negated, _ in self.frame(self.node_frame[node]).tokens
        ]

    def forced_byte(self, state: int) -> int:
        """The only byte that can come, or -1 where there is a choice or the text may end."""
        if self.may_end[state]:
            return -1
        found = -1
        for node in self.active(state):
            frame = self.frame(self.node_frame[node])
            if frame.tokens or frame.only == MANY or (frame.only >= 0 and found not in (-1, frame.only)):
                return -1
            found = max(found, frame.only)
        return found

    # Sets of nodes

    def state(self, nodes: Iterable[int]) -> int:
        key = tuple(sorted(set(nodes)))
        known = self._state_ids.get(key)
        if known is not None:
            return known
        if len(key) > MOST_WAYS:
            raise RequestError(
                f"The grammar cannot be followed: a text can be read in more than {MOST_WAYS} ways at once.",
                "Leave fewer ways to read the same text: rules that begin alike, or repetitions of repetitions.",
            )
        number = self._state_ids[key] = len(self.nodes)
        self.nodes.append(key)
        if number == len(self.row_of):
            for name in ("row_of", "open_below", "may_end", "loops", "loops_known"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
        self.row_of[number] = _UNFILLED
        reached = [self._bottom(node) for node in key]
        self.open_below[number] = ANY_CALLER in reached
        self.may_end[number] = END in reached
        return number

    def above_any_caller(self, frame: int) -> int:
        """The state of a frame whose caller is not said."""
        return self.state([self._node(frame, ANY_CALLER)])

    def active(self, state: int) -> tuple[int, ...]:
        """The nodes that take the next byte: those of the state, of the rules they call, and of the callers that go
        on at once where a rule may end."""
        found = self._active.get(state)
        if found is None:
            todo, seen = list(self.nodes[state]), set(self.nodes[state])
            while todo:
                node = todo.pop()
                if node <= ANY_CALLER:
                    continue
                frame = self.frame(self.node_frame[node])
                more = [self._node(called, self._node(after, self.node_caller[node])) for called, after in frame.calls]
                if frame.may_end:
                    more.append(self.node_caller[node])
                todo += [other for other in more if other not in seen]
                seen.update(more)
            found = self._active[state] = tuple(sorted(node for node in seen if node > ANY_CALLER))
        return found

    def _bottom(self, node: int) -> int:
        """END or ANY_CALLER where the node and all its callers may end at once, else -1."""
        while node > ANY_CALLER and self.frame(self.node_frame[node]).may_end:
            node = self.node_caller[node]
        return node if node <= ANY_CALLER else -1

    def _node(self, frame: int, caller: int) -> int:
        made = self.frame(frame)
        if made.empty and made.may_end:
            return caller
        key = (frame, caller)
        node = self._node_ids.get(key)
        if node is None:
            node = self._node_ids[key] = len(self.node_frame)
            self.node_frame.append(frame)
            self.node_caller.append(caller)
        return node

    # Sets of automaton states

    def frame(self, number: int) -> Frame:
        found = self._frames[number]
        if found is None:
            found = self._frames[number] = self._make(self._frame_sets[number])
        return found

    def _frame(self, states: Iterable[int]) -> int:
        """The frame of the automaton states that are reached from these for free."""
        automaton = self._automaton
        seen, todo = set(states), list(states)
        while todo:
            state = todo.pop()
            more = list(automaton.free.get(state, ()))
            for rule, after in automaton.calls.get(state, ()):
                if self._ends(
                    after
                ):  # the caller has nothing left to do: what goes on when the rule ends is its caller
                    more.append(automaton.starts[rule])
                elif rule in automaton.nullable:
                    more.append(after)
            todo += [other for other in more if other not in seen]
            seen.update(more)
        kept = frozenset(
            state
            for state in seen
            if state in self._finals
            or automaton.arcs.get(state)
            or automaton.tokens.get(state)
            or any(not self._ends(after) for _, after in automaton.calls.get(state, ()))
        )
        number = self._frame_ids.get(kept)
        if number is None:
            number = self._frame_ids[kept] = len(self._frames)
            self._frames.append(None)
            self._frame_sets.append(kept)
        return number

    def _ends(self, state: int) -> bool:
        """Whether nothing but the end of the rule can follow."""
        automaton = self._automaton
        seen: set[int] = set()
        todo = [state]
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            if automaton.arcs.get(at) or automaton.tokens.get(at) or automaton.calls.get(at):
                return False
            todo += automaton.free.get(at, ())
        return True

    def _make(self, states: frozenset[int]) -> Frame:
        automaton = self._automaton
        returns: dict[int, set[int]] = {}
        for state in states:
            for rule, after in automaton.calls.get(state, ()):
                if not self._ends(after):
                    returns.setdefault(rule, set()).add(after)
        callers: dict[int, list[int]] = {}
        for rule, returned in returns.items():
            callers.setdefault(self._frame(returned), []).append(automaton.starts[rule])
        calls = [(self._frame(starts), after) for after, starts in callers.items()]
        tokens = [token for state in states for token in automaton.tokens.get(state, ())]
        arcs = [arc for state in states for arc in automaton.arcs.get(state, ())]
        return Frame(self._apart(arcs), calls, bool(states & self._finals), tokens)

    def _apart(self, arcs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Arcs to automaton states as arcs to frames that share no byte."""
        borders = sorted({low for low, _, _ in arcs} | {high + 1 for _, high, _ in arcs})
        out = []
        for low, end in pairwise(borders):
            after = [target for first, last, target in arcs if first <= low <= last]
            if after:
                out.append((low, end - 1, self._frame(after)))
        return out


@lru_cache(maxsize=4096)
def _bytes_of(bits: int) -> NDArray[np.intp]:
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits.to_bytes(32, "little"), np.uint8), bitorder="little"))
