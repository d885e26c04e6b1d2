"""Answers that match a grammar: GBNF and JSON Schema, as masks over the tokens of a vocabulary."""

from engine.grammar.constraint import CompiledGrammar, Constraint
from engine.grammar.grammars import Grammars

__all__ = ["CompiledGrammar", "Constraint", "Grammars"]
