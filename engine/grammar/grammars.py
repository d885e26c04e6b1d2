"""The grammars that requests bring, compiled once for a vocabulary."""

from __future__ import annotations

from collections import OrderedDict

from engine.api import GenerateRequest
from engine.grammar.constraint import CompiledGrammar, Constraint
from engine.grammar.schema import schema_gbnf
from engine.grammar.trie import Spelling

KEPT = 16  # grammars


class Grammars:
    """Compiled grammars by their text, the ones used last."""

    def __init__(self, spelling: Spelling, n_vocab: int) -> None:
        self._spelling = spelling
        self._n_vocab = n_vocab
        self._kept: OrderedDict[str, CompiledGrammar] = OrderedDict()

    def constraint(self, request: GenerateRequest) -> Constraint | None:
        """The grammar of a checked request at the beginning of its answer, if it has one. Raises RequestError."""
        gbnf = request.grammar
        if request.json_schema is not None:
            gbnf = schema_gbnf(request.json_schema)
        if gbnf is None:
            return None
        constraint = self.compiled(gbnf).start()
        constraint.read(request.answer_so_far)
        return constraint

    def compiled(self, gbnf: str) -> CompiledGrammar:
        grammar = self._kept.get(gbnf)
        if grammar is None:
            grammar = self._kept[gbnf] = CompiledGrammar(gbnf, self._spelling, self._n_vocab)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(gbnf)
        return grammar
