from __future__ import annotations

import numpy as np
import pytest

from gems.errors import InputError
from gems.models.pocket.captions import terse_caption
from gems.models.pocket.grammar import parse_prompt, parse_question, questions_of
from gems.models.pocket.scene import sample_spec


def test_every_sentence_of_the_grammar_is_understood() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        spec = sample_spec(rng)
        assert parse_prompt(terse_caption(spec)) == spec
        for text, meaning in questions_of(spec):
            assert parse_question(text) == meaning


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        ("Draw me a picture of 3 blue automobiles left of an elephant.", "three blue cars to the left of a elephant"),
        ("a photo of two bunnies above a wooden doughnut", "two rabbits on top of a wooden donut"),
        ("A Cat, a dog and the bird", "a cat and a dog and a bird"),
        ("a cat that is behind a chair", "a cat behind a chair"),
        ("seven sheep beneath a crystal clock", "seven sheeps under a glass clock"),
        ("two ponies with a kitten", "two horses and a cat"),
        ("dog", "a dog"),
        ("a scarlet umbrella; 2 toys", "a red umbrella and two toys"),
    ],
)
def test_plain_variants_are_mapped(variant: str, sentence: str) -> None:
    assert terse_caption(parse_prompt(variant)) == sentence


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a blue dragon", r"'dragon'.*--mllm and --generator"),
        ("two catz and a hoarse", r"'catz' \(did you mean cat.*'hoarse' \(did you mean horse"),
        ("cars", "how many cars"),
        ("12 cars", "from one to seven"),
        ("nine cars", "'nine'"),
        ("0 cars", "'0'"),
        ("a cat a", "expected"),
        ("a red", "expected an object"),
        ("a cat on the left", "to the left of"),
        ("a cat and a dog and a bird and a pig", "at most 3"),
        ("a red car and a blue car", "two groups of cars"),
        ("a ☃ cat", "☃"),
        ("and", "expected"),
    ],
)
def test_text_outside_the_grammar_is_named(prompt: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    "text", ["", "Is it nice?", "Are the cars dragons?", "Are there exactly nine cars in the image?"]
)
def test_a_question_outside_the_grammar_has_no_meaning(text: str) -> None:
    assert parse_question(text) is None
