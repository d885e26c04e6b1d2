"""What the reader of grammars takes, and what it says of grammars that it does not."""

from __future__ import annotations

import pytest

from engine.errors import RequestError
from engine.grammar import CompiledGrammar
from tests.grammar.spelling import Spelled

SPELLING = Spelled([bytes([byte]) for byte in range(256)])


def matches(grammar: str, text: str) -> bool:
    constraint = CompiledGrammar(grammar, SPELLING, SPELLING.n_vocab).start()
    for byte in text.encode():
        if not constraint.permits(byte):
            return False
        constraint.accept(byte)
    return constraint.may_end


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('root ::= "a"', ["a"], ["", "b", "aa"]),
        ('root ::= "tab\\tquote\\"back\\\\slash\\x41\\u00e9\\U0001F600"', ['tab\tquote"back\\slashAé😀'], ["tab"]),
        ("root ::= [a-cx]+", ["abcx"], ["d", ""]),
        ("root ::= [^a-c\\n]*", ["xyz😀", ""], ["xa", "\n"]),
        ("root ::= [a\\-c\\]\\[^]+", ["a-c][^"], ["b", "\\"]),
        ("root ::= [-a] [a-]", ["-a", "a-"], ["bb"]),
        ("root ::= [\\u4e00-\\u9fff]{2}", ["中文"], ["中", "中a", "中文字"]),
        ("root ::= .", ["a", "\n", "é", "😀"], ["", "ab"]),
        ('root ::= "a"{2} "b"{1,} "c"{0,2} "d"{ 1 , 2 }', ["aabd", "aabbbccdd"], ["abd", "aabcccd", "aab", "aabddd"]),
        ('root ::= "ab"* "c"', ["c", "abab" + "c"], ["abbc", "abac"]),
        ('root ::= "a" | "b" |\n  "c"', ["a", "b", "c"], ["ab"]),
        ('root ::= ( "a"\n  # inside\n  | "b" )+ # behind\n\n# alone\nother ::= "x"', ["abba"], ["x"]),
        ('root ::= item ("," item)*\r\nitem ::= [0-9]+ sub-rule_1?\r\nsub-rule_1 ::= "!"', ["1,22!,3"], ["1,", "!"]),
        ("root ::=\n  x\nx ::= | \"a\" x", ["", "aaa"], ["b"]),
        ('root ::= "a"?*', ["", "aaa"], ["b"]),
        ('root ::= "x"{0} "y"', ["y"], ["xy"]),
        ('root ::= ("a" | "b" "c"){2}', ["abc", "bcbc"], ["a", "abcb"]),
        ('root ::= never | "a"\nnever ::= "b" never', ["a"], ["b", "bb"]),
        ("root ::= [aa-ce]+", ["ace"], ["d"]),
    ],
)  # fmt: skip
def test_a_grammar_means_what_it_says(grammar: str, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not matches(grammar, text)] == []
    assert [text for text in no if matches(grammar, text)] == []


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("", "no rule named root"),
        ('start ::= "a"', "no rule named root"),
        ("root ::= missing", "there is no rule missing (line 1, column 10)"),
        ('root ::= "a"\nroot ::= "b"', "defined before, at line 1, column 1 (line 2, column 1)"),
        ('root ::= root "a" | "b"', "the rule root (line 1, column 1) begins with itself"),
        ('root ::= a\na ::= b? a "x"\nb ::= "b"', "the rule a (line 2, column 1) begins with itself"),
        ('root ::= a\na ::= b "x"\nb ::= "" a', "begins with itself"),
        ('root ::= "a" root', "no text that ends"),
        ('root ::= "abc', 'not closed by " (line 1, column 10)'),
        ("root ::= [abc", "not closed by ] (line 1, column 10)"),
        ("root ::= [z-a]", "runs backwards (line 1, column 11)"),
        ("root ::= []", "empty (line 1, column 10)"),
        ('root ::= ("a"', "not closed by ) (line 1, column 10)"),
        ('root ::= "a")', "')' cannot stand here (line 1, column 13)"),
        ('root ::= "\\q"', "\\q is no escape (line 1, column 11)"),
        ('root ::= "\\u12"', "needs 4 hexadecimal digits (line 1, column 11)"),
        ('root ::= "\\U00110000"', "there is no character 0x110000"),
        ('root ::= "\\ud800"', "half of a surrogate pair"),
        ("root ::= *", "nothing that * could repeat (line 1, column 10)"),
        ('root ::= "a"{3,2}', "fewer than at least (line 1, column 13)"),
        ('root ::= "a"{99999}', "99999 repetitions are more than"),
        ('root ::= "a"{999999999999999999999}', "repetitions are more than"),
        ('root ::= ((("abc"{1000}){1000}){1000})', "too large"),
        ('root ::= "a"{x}', "a number has to stand here (line 1, column 14)"),
        ('root ::= "a"{1', "not closed by }"),
        ('root = "a"', "::= has to follow the name of the rule root (line 1, column 6)"),
        ('root ::= "a"\n::= "b"', "the name of a rule has to stand here (line 2, column 1)"),
        ("root ::= <[99999]>", "names the token 99999, but this model's tokens are 0 to 257 (line 1, column 10)"),
        ("root ::= <[abc]>", "<[abc]> names no token"),
        ("root ::= <two words>", "is no single token of this model (line 1, column 10)"),
        ("root ::= <open", "not closed by > (line 1, column 10)"),
        ("root ::= !", "a token such as"),
        ("root" * 5000, "has to follow the name of the rule root"),
        ("root ::= " + "x" * 5000, "there is no rule xxx"),
        ("root ::= " + "(" * 2000, "groups stand inside each other"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_grammar_is_said_with_its_place(grammar: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        CompiledGrammar(grammar, SPELLING, SPELLING.n_vocab)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000
