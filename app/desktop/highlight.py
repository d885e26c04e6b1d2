"""Colours for code by Pygments, a slice at a time so that long code never holds up the window."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from pygments.lexer import Lexer  # type: ignore[import-untyped]
from pygments.lexers import find_lexer_class_by_name  # type: ignore[import-untyped]
from pygments.lexers._mapping import LEXERS  # type: ignore[import-untyped]
from pygments.token import Token as T  # type: ignore[import-untyped]
from pygments.token import _TokenType
from pygments.util import ClassNotFound  # type: ignore[import-untyped]

_COLORS: tuple[tuple[_TokenType, str], ...] = (
    (T.Comment.Preproc, "syntax_meta"),
    (T.Comment, "syntax_comment"),
    (T.Keyword.Type, "syntax_type"),
    (T.Keyword.Constant, "syntax_number"),
    (T.Keyword, "syntax_keyword"),
    (T.Operator.Word, "syntax_keyword"),
    (T.Operator, "syntax_operator"),
    (T.Literal.String.Escape, "syntax_number"),
    (T.Literal.String.Interpol, "syntax_meta"),
    (T.Literal.String, "syntax_string"),
    (T.Literal.Number, "syntax_number"),
    (T.Literal.Date, "syntax_number"),
    (T.Name.Function, "syntax_function"),
    (T.Name.Class, "syntax_type"),
    (T.Name.Exception, "syntax_type"),
    (T.Name.Builtin, "syntax_function"),
    (T.Name.Decorator, "syntax_meta"),
    (T.Name.Tag, "syntax_keyword"),
    (T.Name.Attribute, "syntax_type"),
    (T.Name.Constant, "syntax_number"),
    (T.Name.Namespace, "syntax_type"),
    (T.Generic.Inserted, "syntax_string"),
    (T.Generic.Deleted, "syntax_removed"),
    (T.Generic.Heading, "syntax_keyword"),
    (T.Generic.Subheading, "syntax_keyword"),
    (T.Generic.Prompt, "syntax_comment"),
)


@cache
def _color(kind: _TokenType) -> str:
    return next((color for ground, color in _COLORS if kind in ground), "")


@cache
def _lexer_class(language: str) -> type[Lexer] | None:
    try:
        found: type[Lexer] | None = find_lexer_class_by_name(language)
    except (ClassNotFound, ValueError):
        return None
    return found


@cache
def _names() -> dict[str, str]:
    return {alias: name for _module, name, aliases, _files, _types in LEXERS.values() for alias in aliases}


def language_name(language: str) -> str:
    """What a code block's head calls its language: "python" is "Python", an unknown name stays as it is."""
    return _names().get(language.lower(), language) or "Text"


def load_language(language: str) -> None:
    """Imports and compiles what colouring a language takes, on another thread than the window's: it takes long."""
    found = _lexer_class(language.lower()) if language else None
    if found is not None:
        found()  # the first one compiles the expressions of all


def colored_runs(text: str, language: str) -> Iterator[tuple[int, int, str]]:
    """Yields (start, end, theme colour) in code points, ascending; nothing for an unknown language."""
    found = _lexer_class(language.lower()) if language else None
    if found is None:
        return
    lexer = found(stripnl=False, ensurenl=False)
    for start, kind, piece in lexer.get_tokens_unprocessed(text):
        color = _color(kind)
        if color:
            yield start, start + len(piece), color
