from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engine.answer_text import AnswerText
from tests.engine.fakes import FakeDecoder


class Pieces:
    """Decodes token n to the n-th piece."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def push(self, token: int) -> str:
        return self._pieces[token]

    def flush(self) -> str:
        return ""


def run(pieces: list[str], stop: list[str]) -> tuple[list[str], bool]:
    answer, out = AnswerText(Pieces(pieces), stop), []
    for token in range(len(pieces)):
        out.append(answer.push(token))
        if answer.stopped:
            return out, True
    return [*out, answer.finish()], False


def test_text_that_may_become_a_stop_string_is_held_back_and_no_more() -> None:
    assert run(["a<", "st", "art>"], ["<stop>"]) == (["a", "", "<start>", ""], False)
    assert run(["a<", "st", "op> more"], ["<stop>"]) == (["a", "", ""], True)
    assert run(["a", "b<"], ["<stop>"]) == (["a", "b", "<"], False)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert run(["xabcd"], ["abcd", "bc"]) == (["xa"], True)
    assert run(["xab", "cd"], ["abcd", "bc"]) == (["x", "a"], True)


def test_bytes_of_one_character_come_out_together_and_a_broken_one_is_replaced() -> None:
    answer = AnswerText(FakeDecoder())
    assert [answer.push(byte) for byte in "aé€".encode()] == ["a", "", "é", "", "", "€"]
    answer.push(0xE2)
    assert answer.finish() == "\ufffd"


def expected(text: str, stop: list[str]) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        hits = [s for s in stop if text[:end].endswith(s)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


@given(
    st.text("ab<", max_size=24),
    st.lists(st.text("ab<", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 24), max_size=8),
)
def test_the_answer_does_not_depend_on_where_tokens_end(text: str, stop: list[str], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    out, stopped = run(pieces, stop)
    assert ("".join(out), stopped) == expected(text, stop)
