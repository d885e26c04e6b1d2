"""Answers that match a grammar: GBNF and JSON Schema, as masks over the tokens of a vocabulary."""

from engine.grammar.constraint import CompiledGrammar, Constraint
from engine.grammar.grammars import Grammars
from engine.grammar.schema import schema_gbnf

__all__ = ["CompiledGrammar", "Constraint", "Grammars", "schema_gbnf"]
