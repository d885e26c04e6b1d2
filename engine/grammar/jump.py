"""Tokens for text that a grammar leaves no choice about."""

from __future__ import annotations

from engine.grammar.trie import Spelling

SHORTEST_JUMP = 3  # bytes; less would be a token at most
MOST_BEFORE = 3  # tokens that the tokenizer may put before the text


def jump_tokens(text: bytes, spelling: Spelling, pieces: list[bytes]) -> list[int]:
    """Tokens that spell the beginning of a text, as the vocabulary's own tokenizer cuts it.

    The last token is left out: what follows the text may belong into one token with it, and the model chooses that.
    """
    if len(text) < SHORTEST_JUMP:
        return []
    whole = text.decode("utf-8", "ignore")  # the end may be the beginning of a character
    wanted = whole.encode()
    if not text.startswith(wanted):
        return []
    for before in ("", "\n"):  # some tokenizers put a space before a text; behind a line end it is not in the way
        tokens = spelling.encode(before + whole, add_special=False)
        for first in range(min(len(tokens), MOST_BEFORE) + 1):
            rest = [pieces[token] if token < len(pieces) else b"" for token in tokens[first:]]
            if all(rest) and b"".join(rest) == wanted:
                return tokens[first:-1]
    return []
