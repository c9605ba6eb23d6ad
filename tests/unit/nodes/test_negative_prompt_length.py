"""A chat model's questions, however long, give an image model a short negative prompt, and in a moment."""

from __future__ import annotations

import pytest

from gems.graph.state import Requirement
from gems.nodes.absence import negative_prompt_for


def _asking(*questions: str) -> list[Requirement]:
    return [Requirement(id=f"r{n}", question=question, kind="object") for n, question in enumerate(questions, 1)]


def test_a_negation_that_is_repeated_endlessly_names_its_thing_once() -> None:
    """Each negation read to the end of the question makes as many characters as the square of its length."""
    assert negative_prompt_for(_asking("Is there " + "no cat " * 5000 + "?")) == "cat"


@pytest.mark.parametrize("join", [" or ", ", no ", " no "])
def test_a_long_list_is_cut_between_two_things(join: str) -> None:
    things = [f"ab{n}c" for n in range(400)]
    parts = negative_prompt_for(_asking("Is there no " + join.join(things) + "?")).split(", ")
    assert len(parts) > 50
    assert parts == things[: len(parts)]
    assert len(", ".join(parts)) <= 1000


def test_one_endless_thing_leaves_room_for_the_others() -> None:
    endless = "Is there no " + " ".join(f"ab{n}c" for n in range(400)) + "?"
    assert negative_prompt_for(_asking(endless, "Is the image free of people?")) == "people"
