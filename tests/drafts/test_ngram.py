"""Guesses from what stands in the sequence already."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drafts.ngram import LONGEST_MATCH, SIZES, NgramIndex

tokens_of_few = st.lists(st.integers(0, 2), max_size=60)


def longest_earlier_end(tokens: list[int]) -> int:
    """Length of the longest end of the tokens that ends somewhere before too, at most LONGEST_MATCH."""
    longest = 0
    for place in range(1, len(tokens)):
        match = 0
        while match < min(place, LONGEST_MATCH) and tokens[place - match - 1] == tokens[-match - 1]:
            match += 1
        longest = max(longest, match)
    return longest


@given(tokens_of_few, st.integers(1, 20))
@settings(deadline=None)
def test_a_guess_continues_an_earlier_occurrence_of_the_end(tokens: list[int], length: int) -> None:
    guess, match = NgramIndex().guess(tokens, length)
    longest = longest_earlier_end(tokens)
    assert match <= longest
    # the index knows ends of some sizes; the largest of them that occurs earlier is found at least
    assert match >= max((size for size in SIZES if size <= longest), default=0)
    if not match:
        assert guess == []
        return
    assert len(guess) == length
    end = tokens[-match:]
    text = tokens + guess
    places = [i for i in range(match, len(tokens)) if tokens[i - match : i] == end]
    assert any(text[place : place + length] == guess for place in places)


@given(tokens_of_few, st.lists(st.integers(1, 5), max_size=12))
@settings(deadline=None)
def test_growing_with_the_sequence_finds_what_reading_it_whole_finds(tokens: list[int], steps: list[int]) -> None:
    index, n = NgramIndex(), 0
    for step in steps:
        n += step
        assert index.guess(tokens[:n], 6) == NgramIndex().guess(tokens[:n], 6)


def test_the_longest_end_comes_first_and_of_equals_the_latest() -> None:
    assert NgramIndex().guess([7, 1, 2, 30, 9, 1, 2, 40, 7, 1, 2], 1) == ([30], 3)
    assert NgramIndex().guess([1, 2, 30, 9, 1, 2, 40, 8, 1, 2], 1) == ([40], 2)


def test_a_run_goes_on_with_itself() -> None:
    assert NgramIndex().guess([5, 1, 2, 3, 1, 2, 3], 7) == ([1, 2, 3, 1, 2, 3, 1], 3)


def test_a_sequence_that_was_rewritten_is_read_again() -> None:
    index = NgramIndex()
    index.guess([1, 2, 3, 1], 4)
    assert index.guess([1, 9], 4) == ([], 0)
    assert index.guess([4, 5, 6, 4], 2) == ([5, 6], 1)
