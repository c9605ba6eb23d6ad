"""The words that the pocket models know are documented as they are, and near words are suggested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gems.errors import InputError
from gems.models.generators import ImageRequest
from gems.models.pocket.grammar import MAX_GROUPS, parse_prompt
from gems.models.pocket.vocabulary import MAX_COUNT, SYNONYMS, WORD_LISTS
from gems.models.registry import init_image_generator

PAGE = (Path(__file__).parents[4] / "docs" / "reference" / "pocket-words.md").read_text()
ROWS = dict(re.findall(r"^\| ([\w -]+) \| (.+) \|$", PAGE, re.MULTILINE))


def test_the_page_lists_every_word() -> None:
    for kind, words in WORD_LISTS.items():
        if kind != "other words for them":
            assert ROWS.pop(kind) == ", ".join(words)
    ROWS.pop("Kind"), ROWS.pop("Word")
    assert ROWS == SYNONYMS


def test_the_page_tells_the_limits() -> None:
    assert f"digits from 1 to {MAX_COUNT}" in PAGE
    assert (MAX_GROUPS, "up to three" in PAGE) == (3, True)


def test_every_listed_thing_can_be_asked_for() -> None:
    for word in WORD_LISTS["things"]:
        assert parse_prompt(f"a {word}").groups
    for kind in ("colours", "materials", "patterns"):
        for word in WORD_LISTS[kind]:
            assert parse_prompt(f"two {word} cars").groups[0].attribute
    for relation in (*WORD_LISTS["positions"], *WORD_LISTS["actions"]):
        assert parse_prompt(f"a dog {relation} a cat").relations
    for word in WORD_LISTS["numbers"]:
        assert parse_prompt(f"{word} {'car' if word == 'one' else 'cars'}").groups


@pytest.mark.parametrize(
    ("prompt", "near"), [("two red catz", "cats"), ("a Giraf", "giraffe"), ("a strip cow", "striped")]
)
def test_an_unknown_word_comes_with_near_ones(prompt: str, near: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean .*{near}"):
        parse_prompt(prompt)
    generator = init_image_generator("pocket")
    with pytest.raises(InputError, match=rf"did you mean .*{near}"):
        generator.generate([ImageRequest(prompt, 1)])
    assert near in generator.objection(prompt)  # type: ignore[attr-defined]


def test_a_word_unlike_all_others_comes_alone() -> None:
    with pytest.raises(InputError, match=r"vocabulary: 'zyzzyva'$"):
        init_image_generator("pocket").generate([ImageRequest("a zyzzyva", 1)])
