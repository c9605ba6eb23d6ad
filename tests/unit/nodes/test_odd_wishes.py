"""Wishes that nobody means, of as many characters as a wish may have, are read in a moment and end no run."""

from __future__ import annotations

import time

import pytest

from gems.nodes.mapping_checks import misplaced, other_colour
from gems.nodes.prompt_checks import lost_words
from gems.reading import read

WISHES = {
    "numbers": "two thousand " * 300,
    "colours joined by hyphens": "red-" * 990,
    "numbers joined by hyphens": "2-" * 1990,
    "different numbers of one thing": " ".join(f"{n} cars" for n in range(2, 450)),
    "colours and numbers": "two red cars and " * 230,
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_a_wish_that_repeats_itself_is_compared_in_a_moment(wish: str) -> None:
    wish = wish.strip()[:4000]
    started = time.process_time()
    lost_words(wish, wish)
    lost_words(wish, f"a photo of {wish}"[:4000])
    assert time.process_time() - started < 5, "seconds; it took minutes"


@pytest.mark.parametrize("text", ["a dog, red-", "a dog, two-", "a dog and cars 2-", "red-", "2-", "-"])
def test_a_hyphen_at_the_end_joins_nothing(text: str) -> None:
    reading, other = read(text), read("a blue dog and three cars")
    assert not reading.tokens or not reading.tokens[-1].is_joined
    for a, b in ((reading, reading), (reading, other), (other, reading)):
        assert isinstance(misplaced(a, b), list)
        assert isinstance(other_colour(a, b), bool)
    assert lost_words(text, text) == []
    assert isinstance(reading.numbers, list)
