"""Cutting text into the words that byte-level BPE merges within, per pre-tokenizer name of the GGUF format.

The expressions are the published ones of the models, read the way llama.cpp reads them: each stage cuts the pieces that
the stages before it left; what a stage does not match stays a piece; white space is Unicode's, and any letter outside
of ASCII counts as upper and lower case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import regex

from engine.tokenizer.later_characters import LATER_CHARACTERS

# Non-ASCII white space reads as a vertical tab, so that \s can mean ASCII white space (without U+001C..U+001F, which
# Python's own \s would include). Positions do not move.
_WIDE_SPACE = regex.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
# U+FFFF is no character of any kind.
_LATER = regex.compile(LATER_CHARACTERS)


@dataclass(frozen=True)
class GroupedDigits:
    """A stage that cuts runs of digits into threes from the right. (A lookahead would take quadratic time.)"""

    run: str

    def cut(self, text: str, start: int, end: int) -> list[int]:
        ends: list[int] = []
        last = start
        for match in regex.finditer(self.run, text, pos=start, endpos=end):
            first, stop = match.span()
            if first > last:
                ends.append(first)
            odd = (stop - first) % 3
            ends.extend(range(first + (odd or 3), stop + 1, 3))
            last = stop
        if last < end:
            ends.append(end)
        return ends


@dataclass(frozen=True)
class Pretokenizer:
    """How one family of models cuts text. `stages` are regular expressions; \\s in them is ASCII white space."""

    stages: tuple[str | GroupedDigits, ...]
    add_bos: bool = False
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    clean_spaces: bool = True  # detokenizing drops spaces before punctuation
    byte_level: bool = True  # tokens spell bytes as printable characters; else UTF-8 with U+2581 for spaces

    @cached_property
    def _cutters(self) -> tuple[Callable[[str, int, int], list[int]], ...]:
        return tuple(
            stage.cut
            if isinstance(stage, GroupedDigits)
            else partial(_cut, regex.compile(_with_ascii_space(stage), regex.V1))
            for stage in self.stages
        )

    def split(self, text: str) -> list[str]:
        """Cuts `text`; the pieces joined are the text again."""
        mapped = text if text.isascii() else _LATER.sub("\uffff", _WIDE_SPACE.sub("\v", text))
        first, *others = self._cutters
        cuts = first(mapped, 0, len(mapped))
        for cut in others:
            finer: list[int] = []
            start = 0
            for end in cuts:
                if end - start > 1:
                    finer.extend(cut(mapped, start, end))
                else:
                    finer.append(end)
                start = end
            cuts = finer
        words = []
        start = 0
        for end in cuts:
            words.append(text[start:end])
            start = end
        return words


def _cut(pattern: regex.Pattern[str], text: str, start: int, end: int) -> list[int]:
    """Returns the ascending ends of the pieces of text[start:end], matched and not; the last is `end`."""
    piece = text if start == 0 and end == len(text) else text[start:end]
    ends: list[int] = []
    last = start
    for match in pattern.finditer(piece):
        first, stop = match.span()
        if first + start > last:
            last = first + start
            ends.append(last)
        if stop + start > last:
            last = stop + start
            ends.append(last)
    if last < end:
        ends.append(end)
    return ends


def _with_ascii_space(expression: str) -> str:
    """Spells out \\s and \\S as the ECMAScript expressions of the reference mean them."""
    out: list[str] = []
    inside = False
    i = 0
    while i < len(expression):
        pair = expression[i : i + 2]
        if pair == "\\s":
            out.append(" \\t-\\r" if inside else "[ \\t-\\r]")
        elif pair == "\\S":
            out.append("[^ \\t-\\r]")
        elif pair[0] == "\\":
            out.append(pair)
        else:
            inside = (inside or pair[0] == "[") and pair[0] != "]"
            out.append(pair[0])
            i += 1
            continue
        i += 2
    return "".join(out)


_CONTRACTION = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _llama3(digits: str, spaces: str = _SPACES) -> str:
    return rf"(?:{_CONTRACTION})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{spaces}"


def _cased(upper: str, lower: str, tail: str, digits: str) -> str:
    """Words cut where a lower-case letter is followed by an upper-case one."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    rest = rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    return f"{lead}{upper}*{lower}+{tail}|{lead}{upper}+{lower}*{tail}|{rest}"


_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_UPPER_MARKS, _LOWER_MARKS = r"(?:(?=[\p{L}\p{M}])[^a-z])", r"(?:(?=[\p{L}\p{M}])[^A-Z])"
_ANY_CASE = r"[\p{L}\p{M}]"
_TAIL = f"(?:{_CONTRACTION})?"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = (
    rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_LATIN_GREEK_CYRILLIC = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_NEWLINES = r"[^\n]+|\n+"
_HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f\U0002b820-\U0002ceaf"
    "\U0002ceb0-\U0002ebef\uf900-\ufaff\U0002f800-\U0002fa1f"
)

_gpt2 = (_GPT2,)
_starcoder = (r"\p{N}", _GPT2)
_qwen2 = (_llama3(r"\p{N}"),)
_deepseek3 = (r"\p{N}{1,3}", _KANA, _DEEPSEEK3)
_gpt4o = (_cased(_UPPER, _LOWER, _TAIL, r"\p{N}{1,3}"),)

_LLAMA3 = Pretokenizer((_llama3(r"\p{N}{1,3}"),), add_bos=True, ignore_merges=True)
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_EXAONE_MOE = (
    rf"(?:{_CONTRACTION})|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_JAIS2_SPACES = r"\s*[\r\n]+|" + "|".join(rf"\s{{{2**k}}}(?!\S)" for k in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s{1}"

PRETOKENIZERS: dict[str, Pretokenizer] = {
    "default": Pretokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        _LLAMA3,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Pretokenizer((_llama3(r"\p{N}{1,3}"),))),
    "jais-2": Pretokenizer((_llama3(r"\p{N}{1,3}", _JAIS2_SPACES),)),
    "minicpm5": Pretokenizer((r"\p{N}{1,3}", _llama3(r"\p{N}+")), ignore_merges=True),
    "deepseek-llm": Pretokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_LATIN_GREEK_CYRILLIC}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+\Z",
            _CJK,
            r"\p{N}+",
        ),
        clean_spaces=False,
    ),
    "deepseek-coder": Pretokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"), clean_spaces=False),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), Pretokenizer(_deepseek3, clean_spaces=False)
    ),
    "falcon": Pretokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), Pretokenizer(_starcoder)
    ),
    **dict.fromkeys(("command-r", "smollm"), Pretokenizer(_starcoder, clean_spaces=False)),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum",
         "jina-v1-en", "modern-bert", "jina-v2-code", "roberta-bpe", "mpt", "olmo", "jais", "exaone4"),
        Pretokenizer(_gpt2),
    ),
    **dict.fromkeys(("trillion", "granite-docling"), Pretokenizer(_gpt2, clean_spaces=False)),
    "stablelm2": Pretokenizer(_qwen2),
    "megrez": Pretokenizer(_qwen2),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "hunyuan", "solar-open", "grok-2"),
        Pretokenizer(_qwen2, clean_spaces=False),
    ),
    "qwen35": Pretokenizer(
        (
            rf"(?:{_CONTRACTION})|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        ),
        clean_spaces=False,
    ),
    **dict.fromkeys(("poro-chat",), Pretokenizer((_BLOOM,), clean_spaces=False)),
    **dict.fromkeys(("bloom", "gpt3-finnish"), Pretokenizer((_BLOOM,))),
    "viking": Pretokenizer((_BLOOM, r"\p{N}"), clean_spaces=False),
    "tekken": Pretokenizer(
        (_cased(_UPPER, _LOWER, "", r"\p{N}"),), add_bos=True, ignore_merges=True, clean_spaces=False
    ),
    "chameleon": Pretokenizer(
        ("<sentinel:[0-9]+>", "(?:IMGIMG)[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]", _GPT2),
        add_bos=True,
        clean_spaces=False,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), Pretokenizer(_gpt4o, clean_spaces=False)),
    "granite-embed-multi-97m": Pretokenizer(
        (_cased(_UPPER_MARKS, _LOWER_MARKS, _TAIL, r"\p{N}{1,3}"),), ignore_merges=True, clean_spaces=False
    ),
    **dict.fromkeys(
        ("tiny_aya", "cohere2moe"),
        Pretokenizer(
            (GroupedDigits("[0-9]+"), _cased(_ANY_CASE, _ANY_CASE, _TAIL, r"\p{N}{1,3}")),
            clean_spaces=False,
        ),
    ),
    "superbpe": Pretokenizer((r"\p{N}+", GroupedDigits("[0-9]+")), clean_spaces=False),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), Pretokenizer((_BAILING,), clean_spaces=False)),
    "seed-coder": Pretokenizer(
        (
            rf"(?:{_CONTRACTION})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
        ),
        clean_spaces=False,
    ),
    "kimi-k2": Pretokenizer(
        (
            rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?(?:(?![{_HAN}])\p{{L}})+{_TAIL}"
            rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
        ),
        clean_spaces=False,
    ),
    "afmoe": Pretokenizer(
        (
            GroupedDigits(r"\p{N}+"),
            "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff"
            "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
            _DEEPSEEK3,
        ),
        clean_spaces=False,
    ),
    "exaone-moe": Pretokenizer((_EXAONE_MOE,)),
    "youtu": Pretokenizer(
        (
            "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|"
            "[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            _cased(_ANY_CASE, _ANY_CASE, _TAIL, r"\p{N}"),
        ),
        ignore_merges=True,
        clean_spaces=False,
    ),
    "gemma4": Pretokenizer((_NEWLINES,), add_bos=True, byte_level=False),
    "granite-embed-multi-311m": Pretokenizer((_NEWLINES,), add_bos=True, byte_level=False),
    "sarvam-moe": Pretokenizer((_NEWLINES,), clean_spaces=False, byte_level=False),
}  # fmt: skip
