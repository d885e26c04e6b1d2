"""Which tokens of a vocabulary may come next in a grammar."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.grammar.states import ANY_CALLER, END, States
from engine.grammar.trie import TokenTrie

Ids = NDArray[np.int64]


MOST_BYTES = 256 * 2**20  # of what is kept
WORTH_PRUNING = 128  # nodes of the trie at one depth
PATIENCE = 4  # answers about single tokens before the whole mask is made
FEW, FEW_CHILDREN = 8, 32


@dataclass(frozen=True)
class Allowed:
    """Either the tokens that may come, or those that may not, whichever are fewer; int64, ascending."""

    ids: Ids | None
    banned: Ids | None

    @property
    def empty(self) -> bool:
        return self.ids is not None and not len(self.ids)


@dataclass
class _Reach:
    """What the tokens can do from one frame on, whoever called its rule.

    tokens: those that are read to their end within the frame and what it calls, int32. inner: nodes of the trie at
    which the frame's rule may have ended, from which its caller reads on. beyond: by the caller's frame, what those do.
    """

    tokens: NDArray[np.int32]
    inner: NDArray[np.int32]
    beyond: dict[int, _Reach] = field(default_factory=dict)


class Masks:
    """The tokens allowed in each state of a grammar, computed once for all states in which they are the same: how far
    a token reaches into the callers of a rule is found out frame by frame, and kept by these frames."""

    def __init__(self, states: States, trie: TokenTrie, end_tokens: frozenset[int]) -> None:
        self._states = states
        self._trie = trie
        self._end_tokens = np.array(sorted(token for token in end_tokens if token < trie.n_vocab), np.int64)
        self._tops: dict[int, _Reach] = {}
        self._allowed: dict[tuple[object, ...], Allowed] = {}
        self._of_state: dict[int, Allowed] = {}
        self._asked: dict[int, int] = {}
        self.held_bytes = 0

    def allowed(self, state: int) -> Allowed:
        found = self._of_state.get(state)
        if found is None:
            if self.held_bytes > MOST_BYTES:  # an answer that counts its characters has a mask of its own at each
                self._forget()
            found = self._of_state[state] = self._find(state)
        return found

    def _forget(self) -> None:
        for kept in (self._tops, self._allowed, self._of_state, self._asked):
            kept.clear()
        self.held_bytes = 0

    def unknown(self, state: int) -> bool:
        """Whether `allowed` would have to walk the vocabulary. Says so a few times only: a mask that is wanted again
        and again is worth its cost."""
        states = self._states
        for node in states.nodes[state] if state not in self._of_state else ():
            if node > ANY_CALLER and not self._is_known(node):
                frame = states.node_frame[node]
                asked = self._asked[frame] = self._asked.get(frame, 0) + 1
                return asked <= PATIENCE
        return False

    def _is_known(self, node: int) -> bool:
        states = self._states
        reach = self._tops.get(states.node_frame[node])
        caller = states.node_caller[node]
        while reach is not None and len(reach.inner) and caller != END:
            reach = reach.beyond.get(states.node_frame[caller])
            caller = states.node_caller[caller]
        return reach is not None

    def _find(self, state: int) -> Allowed:
        states = self._states
        chains = [self._chain(node) for node in states.nodes[state] if node > ANY_CALLER]
        tokens = tuple(sorted(set(states.tokens(state))))
        may_end = bool(states.may_end[state])
        key = (tuple(sorted(id(chain[-1]) for chain in chains)), tokens, may_end)
        found = self._allowed.get(key)
        if found is None:
            found = self._allowed[key] = self._union(chains, tokens, may_end)
            self.held_bytes += sum(ids.nbytes for ids in (found.ids, found.banned) if ids is not None)
        return found

    def _union(self, chains: list[list[_Reach]], tokens: tuple[tuple[int, bool], ...], may_end: bool) -> Allowed:
        allowed = np.zeros(self._trie.n_vocab, bool)
        for chain in chains:
            for reach in chain:
                allowed[reach.tokens] = True
        twins = self._trie.twins
        allowed[twins[:, 0]] = allowed[twins[:, 1]]
        for token, negated in tokens:
            if negated:
                kept = allowed[[token, *self._end_tokens]]
                allowed[:] = True
                allowed[[token, *self._end_tokens]] = kept
            else:
                allowed[token] = True
        if may_end:
            allowed[self._end_tokens] = True
        if 2 * np.count_nonzero(allowed) <= len(allowed):
            return Allowed(np.flatnonzero(allowed), None)
        return Allowed(None, np.flatnonzero(~allowed))

    def _chain(self, node: int) -> list[_Reach]:
        """What tokens can do in the frame of a node, in that of its caller, and so on as far as they reach."""
        states = self._states
        frame, caller = states.node_frame[node], states.node_caller[node]
        reach = self._tops.get(frame)
        if reach is None:
            reach = self._tops[frame] = self._walk(np.zeros(1, np.int32), frame)
        chain = [reach]
        while len(reach.inner) and caller != END:
            frame = states.node_frame[caller]
            further = reach.beyond.get(frame)
            if further is None:
                further = reach.beyond[frame] = self._walk(reach.inner, frame)
            reach = further
            chain.append(reach)
            caller = states.node_caller[caller]
        return chain

    def _walk(self, nodes: NDArray[np.int32], frame: int) -> _Reach:
        """Reads on from nodes of the trie in a frame whose caller is not said."""
        states, trie = self._states, self._trie
        start = states.above_any_caller(frame)
        at = np.full(len(nodes), start, np.int32)
        tokens: list[NDArray[np.int32]] = []
        inner = [nodes] if states.open_below[start] else []
        while len(nodes):
            counts = trie.n_children[nodes]
            if len(nodes) <= FEW and int(counts.sum()) <= FEW_CHILDREN:
                nodes, at = self._small_step(nodes.tolist(), at.tolist())
            else:
                nodes, at = self._step(nodes, at, counts, tokens)
            ended = trie.token[nodes]
            tokens.append(ended[ended >= 0])
            open_below = states.open_below[at]
            if open_below.any():
                inner.append(nodes[open_below])
        found = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
        below = np.concatenate(inner) if inner else np.zeros(0, np.int32)
        self.held_bytes += found.nbytes + below.nbytes
        return _Reach(found, below)

    def _step(
        self,
        nodes: NDArray[np.int32],
        at: NDArray[np.int32],
        counts: NDArray[np.int32],
        tokens: list[NDArray[np.int32]],
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The living children of nodes, and their states. Tokens of branches that are alive as a whole are added."""
        states, trie = self._states, self._trie
        unfilled = np.unique(at[states.row_of[at] < 0])
        if len(unfilled):
            states.fill(unfilled.tolist())
        if len(nodes) > WORTH_PRUNING:
            states.find_loops(np.flatnonzero(np.bincount(at) > WORTH_PRUNING).tolist())
            loops = states.loops[at]
            whole = ((trie.below[nodes] & ~loops) == 0) & (trie.inside[nodes] == 0) & (loops != 0)
            if whole.any():  # whatever is spelled below leads back to the same state
                tokens.append(self._under(nodes[whole]))
                nodes, at, counts = nodes[~whole], at[~whole], counts[~whole]
        ends = np.cumsum(counts)
        children = np.repeat(trie.first_child[nodes] - (ends - counts).astype(np.int32), counts)
        children += np.arange(len(children), dtype=np.int32)
        at = states.table[np.repeat(states.row_of[at], counts), trie.byte[children]]
        alive = np.flatnonzero(at)
        return children[alive], at[alive]

    def _small_step(self, nodes: list[int], at: list[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The same for a few nodes, for which arrays cost more than they save."""
        trie, step = self._trie, self._states.step
        children, after = [], []
        for node, state in zip(nodes, at, strict=True):
            first = int(trie.first_child[node])
            for child, byte in enumerate(trie.byte[first : first + int(trie.n_children[node])].tolist(), first):
                to = step(state, byte)
                if to:
                    children.append(child)
                    after.append(to)
        return np.array(children, np.int32), np.array(after, np.int32)

    def _under(self, nodes: NDArray[np.int32]) -> NDArray[np.int32]:
        """The tokens below nodes of the trie."""
        trie = self._trie
        first = trie.first[nodes] + (trie.token[nodes] >= 0)
        counts = trie.last[nodes] - first
        ends = np.cumsum(counts)
        places = np.repeat(first - (ends - counts), counts) + np.arange(int(ends[-1]))
        return trie.by_text[places]
