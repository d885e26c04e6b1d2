"""The tokenizer of a model: text to token ids and back."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from functools import cached_property

from engine.errors import TokenizerError
from engine.tokenizer.encoders import BYTE_OF_CHAR, SPACE, make_encoder
from engine.tokenizer.special import SpecialTokens
from engine.tokenizer.vocabulary import Attr, HasMetadata, Vocabulary, read_vocabulary


class Tokenizer:
    """Text to token ids and back. Safe to share between threads.

    Attributes:
        model: the kind of vocabulary, `tokenizer.ggml.model` ("gpt2", "llama", ...).
        pre: the pre-tokenizer's name; "default" where there is none.
        n_vocab: how many tokens there are.
        bos, eos: the tokens that begin and end a text, if the model has them.
        end_tokens: the tokens that end an answer (end of text, of turn, of message).
        add_bos, add_eos: whether `encode` adds them by default.
        warnings: sentences that the user should see.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._encoder = make_encoder(vocabulary)
        self._pieces: dict[int, bytes] = {}
        self.model = vocabulary.model
        self.pre = vocabulary.pre
        self.n_vocab = len(vocabulary.tokens)
        self.bos = vocabulary.special.get("bos")
        self.eos = vocabulary.special.get("eos")
        self.end_tokens = vocabulary.end_tokens
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.warnings = vocabulary.warnings

    @property
    def vocabulary(self) -> Vocabulary:
        """What the file says about the tokens."""
        return self._vocabulary

    @classmethod
    def from_gguf(cls, file: HasMetadata) -> Tokenizer:
        """Builds the tokenizer of a model. Raises TokenizerError or UnsupportedModelError, naming the metadata key."""
        return cls(read_vocabulary(file))

    # Text to ids

    @cached_property
    def _user_defined(self) -> SpecialTokens:
        return SpecialTokens(self._vocabulary, self._vocabulary.special_tokens(control=False))

    @cached_property
    def _all_special(self) -> SpecialTokens:
        return SpecialTokens(self._vocabulary, self._vocabulary.special_tokens(control=True))

    @cached_property
    def _unprotected(self) -> SpecialTokens:
        """The special tokens that what a person types may become."""
        protected = self._vocabulary.protected
        user_defined = self._vocabulary.special_tokens(control=False)
        return SpecialTokens(self._vocabulary, [token for token in user_defined if not protected[token]])

    @cached_property
    def control_texts(self) -> frozenset[str]:
        """The texts of the tokens that only a template may turn into tokens."""
        tokens = self._vocabulary.tokens
        return frozenset(tokens[token] for token in self._vocabulary.protected.nonzero()[0].tolist())

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False, guard: str = "") -> list[int]:
        """Turns text into token ids.

        add_special: add BOS and EOS as the model asks for.
        parse_special: the texts of control tokens in `text` become those tokens; otherwise they are plain text.
            (User-defined tokens always become tokens.)
        guard: a character that is taken out before plain text is tokenized, but after control tokens were looked for:
            a control token's text with a guard inside (or before it, if it is one character) stays plain text.
        """
        text = _LONE_SURROGATE.sub("\ufffd", text) if not text.isascii() else text
        pieces = (self._all_special if parse_special else self._user_defined).split(text)
        if guard:
            pieces = self._without_guard(pieces, guard)
        vocabulary = self._vocabulary
        out: list[int] = []
        if add_special and self.add_bos and self.bos is not None:
            out.append(self.bos)
        spaced = vocabulary.model == "llama" and vocabulary.add_space_prefix
        after_special = True
        for piece in pieces:
            if isinstance(piece, int):
                out.append(piece)
                after_special = True
            else:
                out.extend(self._encoder.encode(" " + piece if spaced and after_special else piece))
                after_special = False
        if add_special and vocabulary.model == "bert" and "sep" in vocabulary.special:
            out.append(vocabulary.special["sep"])
        elif add_special and self.add_eos and self.eos is not None:
            out.append(self.eos)
        return out

    def _without_guard(self, pieces: Iterable[str | int], guard: str) -> list[str | int]:
        out: list[str | int] = []
        plain = ""
        for piece in pieces:
            if isinstance(piece, str):
                plain += piece
            elif plain.endswith(guard) and len(text := self.token_text(piece)) == 1:
                plain += text  # too short for a guard inside
            else:
                out.extend(
                    self._unprotected.split(plain.replace(guard, "")) if guard in plain else [plain][: bool(plain)]
                )
                plain = ""
                out.append(piece)
        out.extend(self._unprotected.split(plain.replace(guard, "")) if guard in plain else [plain][: bool(plain)])
        return out

    # Ids to text

    def token_text(self, token: int) -> str:
        """The token as the vocabulary spells it, e.g. "Ġthe" or "<0x0A>". Raises TokenizerError if there is none."""
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(
                f"Token {token} is outside of the vocabulary of {self.n_vocab} tokens.",
                "The tokens probably belong to another model.",
            )
        return self._vocabulary.tokens[token]

    def is_control(self, token: int) -> bool:
        """Whether the token is hidden from a reader: a control token or the unknown token."""
        self.token_text(token)
        return bool(int(self._vocabulary.attrs[token]) & _HIDDEN)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; a control token's are its text. Raises TokenizerError if there is none."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._token_bytes(self.token_text(token), int(self._vocabulary.attrs[token]))
        return piece

    def _token_bytes(self, text: str, attr: int) -> bytes:
        if attr & (_HIDDEN | _USER_DEFINED):
            return _utf8(text)
        if attr & _NORMAL:
            pretokenizer = self._vocabulary.pretokenizer
            if pretokenizer is None or not pretokenizer.byte_level:
                return _utf8(text.replace(SPACE, " "))
            try:
                return bytes(map(BYTE_OF_CHAR.__getitem__, map(ord, text)))
            except KeyError:  # some character spells no byte
                return b"".join(bytes([BYTE_OF_CHAR[ord(c)]]) if ord(c) in BYTE_OF_CHAR else _utf8(c) for c in text)
        if attr & _BYTE and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return b""

    def text_pieces(self) -> list[bytes]:
        """The bytes of every token that is text to a reader; none for control, unknown and end tokens."""
        attrs = self._vocabulary.attrs.tolist()
        hidden = {token for token, attr in enumerate(attrs) if attr & _HIDDEN} | self.end_tokens
        return [b"" if token in hidden else self.token_bytes(token) for token in range(self.n_vocab)]

    def decode_bytes(self, ids: Iterable[int], *, keep_special: bool = True) -> bytes:
        """The bytes of the tokens, one after the other; without `keep_special`, control tokens are left out."""
        return b"".join(self.token_bytes(token) for token in ids if keep_special or not self.is_control(token))

    def decode(self, ids: Iterable[int], *, keep_special: bool = True) -> str:
        """Turns ids back into text, by the reference's rules for whole texts.

        These drop the space that `encode` puts first (SentencePiece) and, for vocabularies whose files ask for it,
        spaces before punctuation. `decode_bytes` and `StreamDecoder` do neither.
        """
        pieces = [b"" if not keep_special and self.is_control(t) else self.token_bytes(t) for t in ids]
        if pieces and self._vocabulary.add_space_prefix and pieces[0].startswith(b" "):
            pieces[0] = pieces[0][1:]
        raw = b"".join(pieces)
        pretokenizer = self._vocabulary.pretokenizer
        if self.model == "bert" or (pretokenizer is not None and pretokenizer.clean_spaces):
            raw = _clean_spaces(raw)
        return raw.decode("utf-8", "replace")

    def stream_decoder(self, *, keep_special: bool = True) -> StreamDecoder:
        """A decoder for tokens that arrive one by one."""
        return StreamDecoder(self, keep_special=keep_special)


class StreamDecoder:
    """Assembles text from tokens as they come; only whole UTF-8 characters come out.

    All that `push` and `flush` return, joined, is `decode_bytes(ids).decode("utf-8", "replace")`.
    """

    def __init__(self, tokenizer: Tokenizer, *, keep_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._keep_special = keep_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Returns the text that became certain with this token; may be empty."""
        if not self._keep_special and self._tokenizer.is_control(token):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """Returns what is left at the end; bytes that are no character become U+FFFD."""
        return self._decoder.decode(b"", final=True)


# as numbers: operations of an enumeration cost more than all the rest, and a vocabulary has 150 000 tokens
_HIDDEN, _USER_DEFINED = int(Attr.CONTROL | Attr.UNKNOWN), int(Attr.USER_DEFINED)
_NORMAL, _BYTE = int(Attr.NORMAL), int(Attr.BYTE)

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
# U+DC80..U+DCFF stand for bytes that were not UTF-8; any other surrogate in a str stands for nothing.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _clean_spaces(raw: bytes) -> bytes:
    """Undoes the spaces that word-based tokenizers put before punctuation and English contractions.

    In three passes, as in the reference: " ?" -> "?" (also ! . ,), " ' " -> "'", " 's" -> "'s" (also 'm 're 've).
    """
    raw = re.sub(rb" (?=[?!.,])", b"", raw)
    raw = re.sub(rb" ' ", b"'", raw)
    return re.sub(rb" '(?=[sm]|re|ve)", b"'", raw)
