"""A grammar as an automaton over bytes: states with arcs for bytes, for tokens, for calls of rules, and for free.

What repeats without recursion becomes a loop or a row of states, so only rules that need it are called.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from engine.errors import RequestError
from engine.grammar.syntax import Alt, Chars, Grammar, Node, Ref, Repeat, Seq, TokenIs
from engine.grammar.utf8 import byte_ranges

MOST_STATES = 200_000
LARGEST_INLINE = 256  # states; a rule that refers to no other is written into its callers up to this size


class Automaton:
    """arcs[state]: (first byte, last byte, next state). calls[state]: (rule, state after it). free[state]: states that
    are reached at once. tokens[state]: (token id, negated, next state). starts, finals: by number of the rule.
    """

    def __init__(self) -> None:
        self.n_states = 0
        self.arcs: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self.calls: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        self.free: defaultdict[int, list[int]] = defaultdict(list)
        self.tokens: defaultdict[int, list[tuple[int, bool, int]]] = defaultdict(list)
        self.starts: list[int] = []
        self.finals: list[int] = []
        self.nullable: set[int] = set()  # rules that match the empty text

    def state(self) -> int:
        self.n_states += 1
        self.check_size(self.n_states)
        return self.n_states - 1

    @staticmethod
    def check_size(n_states: int) -> None:
        """Raises RequestError for more states than are allowed."""
        if n_states > MOST_STATES:
            raise RequestError(
                f"The grammar is too large: its repetitions make more than {MOST_STATES:,} states.".replace(",", " "),
                "Repeat less often, or without an upper limit.",
            )


def build(grammar: Grammar, token_of: Callable[[TokenIs], int]) -> Automaton:
    """The automaton of a grammar whose references are all there; rule 0 is root.

    token_of: the id of a token that the grammar names. Raises RequestError for a left recursion, for a rule that no
    finite text matches where the root needs it, and for a grammar that is too large.
    """
    return _Builder(grammar, token_of).build()


class _Builder:
    def __init__(self, grammar: Grammar, token_of: Callable[[TokenIs], int]) -> None:
        self._grammar = grammar
        self._token_of = token_of
        self._automaton = Automaton()
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._sizes: dict[str, int | None] = {}

    def build(self) -> Automaton:
        self._number("root")
        automaton = self._automaton
        done = 0
        while done < len(self._names):
            rule = self._grammar[self._names[done]]
            automaton.check_size(automaton.n_states + self._estimate(rule.body))
            self._write(rule.body, automaton.starts[done], automaton.finals[done], 1)
            done += 1
        self._find_nullable()
        self._refuse_left_recursion()
        self._drop_unproductive()
        return automaton

    def _estimate(self, node: Node) -> int:
        """How many states this takes at least."""
        match node:
            case Seq() | Alt():
                return sum(self._estimate(item) for item in node.items)
            case Repeat():
                return self._estimate(node.item) * max(node.least, node.most or 0, 1)
            case _:
                return 1

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
            self._automaton.starts.append(self._automaton.state())
            self._automaton.finals.append(self._automaton.state())
        return self._numbers[name]

    # From rules to states

    def _write(self, node: Node, start: int, end: int, times: int) -> None:
        """States between two states. times: how often a repetition around writes this."""
        automaton = self._automaton
        match node:
            case Chars():
                self._write_chars(node, start, end)
            case TokenIs():
                automaton.tokens[start].append((self._token_of(node), node.negated, end))
            case Ref():
                size = self._inline_size(node.name)
                if size is not None and size * times <= LARGEST_INLINE:
                    self._write(self._grammar[node.name].body, start, end, times)
                else:
                    automaton.calls[start].append((self._number(node.name), end))
            case Seq():
                for item in node.items[:-1]:
                    middle = automaton.state()
                    self._write(item, start, middle, times)
                    start = middle
                if node.items:
                    self._write(node.items[-1], start, end, times)
                else:
                    automaton.free[start].append(end)
            case Alt():
                for item in node.items:
                    self._write(item, start, end, times)
            case Repeat():
                self._write_repeat(node, start, end, times)

    def _write_repeat(self, node: Repeat, start: int, end: int, times: int) -> None:
        automaton = self._automaton
        copies = max(node.least, node.most or 0, 1)
        if node.most is None:
            loop = automaton.state()
            for _ in range(node.least):
                middle = automaton.state()
                self._write(node.item, start, middle, times * (copies + 1))
                start = middle
            back = automaton.state()
            automaton.free[start].append(loop)
            self._write(node.item, loop, back, times * (copies + 1))
            automaton.free[back].append(loop)
            automaton.free[loop].append(end)
            return
        for done in range(node.most):
            if done >= node.least:
                automaton.free[start].append(end)
            middle = automaton.state()
            self._write(node.item, start, middle, times * copies)
            start = middle
        automaton.free[start].append(end)

    def _write_chars(self, node: Chars, start: int, end: int) -> None:
        """One state for each different rest of a character."""
        automaton = self._automaton
        rests: dict[tuple[tuple[int, int], ...], int] = {(): end}
        written = set()
        for sequence in byte_ranges(node.ranges):
            at = start
            for place, (low, high) in enumerate(sequence):
                rest = sequence[place + 1 :]
                if rest not in rests:
                    rests[rest] = automaton.state()
                if (at, low, high, rest) not in written:
                    written.add((at, low, high, rest))
                    automaton.arcs[at].append((low, high, rests[rest]))
                at = rests[rest]

    def _inline_size(self, name: str) -> int | None:
        """How many states a rule takes that refers to no rule; None for others."""
        if name not in self._sizes:
            self._sizes[name] = _size(self._grammar[name].body)
        return self._sizes[name]

    # What may go wrong

    def _find_nullable(self) -> None:
        automaton = self._automaton
        users = defaultdict(list)
        for state, calls in automaton.calls.items():
            for rule, _ in calls:
                users[rule].append(state)
        reached: list[set[int]] = [set() for _ in automaton.starts]
        todo = [(rule, start) for rule, start in enumerate(automaton.starts)]
        while todo:
            rule, state = todo.pop()
            if state in reached[rule]:
                continue
            reached[rule].add(state)
            todo += [(rule, other) for other in automaton.free.get(state, ())]
            todo += [(rule, after) for called, after in automaton.calls.get(state, ()) if called in automaton.nullable]
            if state == automaton.finals[rule] and rule not in automaton.nullable:
                automaton.nullable.add(rule)
                for caller, states in enumerate(reached):
                    for at in states & set(users[rule]):
                        todo += [(caller, after) for called, after in automaton.calls[at] if called == rule]
        self._first_states = reached

    def _refuse_left_recursion(self) -> None:
        automaton = self._automaton
        first = [
            sorted({called for state in states for called, _ in automaton.calls.get(state, ())})
            for states in self._first_states
        ]
        colour = [0] * len(first)
        for root in range(len(first)):
            path: list[tuple[int, int]] = [(root, 0)] if not colour[root] else []
            while path:
                rule, place = path[-1]
                colour[rule] = 1
                if place == len(first[rule]):
                    colour[rule] = 2
                    path.pop()
                    continue
                path[-1] = (rule, place + 1)
                called = first[rule][place]
                if colour[called] == 1:
                    at = self._grammar[self._names[called]].place
                    raise RequestError(
                        f"The grammar cannot be used: the rule {self._names[called]} ({at}) begins with itself, so "
                        "reading it never comes to an end.",
                        'Write the repetition behind: list ::= item ("," item)*.',
                    )
                if not colour[called]:
                    path.append((called, 0))

    def _drop_unproductive(self) -> None:
        """Takes out the arcs after which no text ever ends, so that a state that is alive can be completed."""
        automaton = self._automaton
        before: defaultdict[int, list[int]] = defaultdict(list)
        waiting: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for state, arcs in automaton.arcs.items():
            for _, _, after in arcs:
                before[after].append(state)
        for state, others in automaton.free.items():
            for after in others:
                before[after].append(state)
        for state, tokens in automaton.tokens.items():
            for _, _, after in tokens:
                before[after].append(state)
        rule_of = {start: rule for rule, start in enumerate(automaton.starts)}
        for state, calls in automaton.calls.items():
            for rule, after in calls:
                waiting[rule].append((state, after))
                before[after].append(~state)  # holds only once the rule itself ends
        productive: set[int] = set()
        ended: set[int] = set()
        todo = list(automaton.finals)
        while todo:
            state = todo.pop()
            if state in productive:
                continue
            productive.add(state)
            for previous in before[state]:
                if previous >= 0:
                    todo.append(previous)
                elif any(r in ended and after == state for r, after in automaton.calls[~previous]):
                    todo.append(~previous)
            begun = rule_of.get(state)
            if begun is not None and begun not in ended:
                ended.add(begun)
                todo += [caller for caller, after in waiting[begun] if after in productive]
        if automaton.starts[0] not in productive:
            raise RequestError(
                "The grammar cannot be used: no text that ends matches its root.",
                "Give each rule that refers back to itself a way out, as in list ::= item list | item.",
            )
        for state in automaton.arcs:
            automaton.arcs[state] = [arc for arc in automaton.arcs[state] if arc[2] in productive]
        for state in automaton.tokens:
            automaton.tokens[state] = [token for token in automaton.tokens[state] if token[2] in productive]
        for state in automaton.free:
            automaton.free[state] = [after for after in automaton.free[state] if after in productive]
        for state in automaton.calls:
            automaton.calls[state] = [(r, a) for r, a in automaton.calls[state] if r in ended and a in productive]


def _size(node: Node) -> int | None:
    match node:
        case Chars():
            return 1 + len(node.ranges)
        case Seq() | Alt():
            return _sum(_size(item) for item in node.items)
        case Repeat():
            size = _size(node.item)
            return None if size is None else size * max(node.least + 1, node.most or 0)
        case _:
            return None


def _sum(sizes: Iterable[int | None]) -> int | None:
    total = 0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total
