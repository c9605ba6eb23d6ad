"""Instructions for writing the pocket generator's prompts, for chat models that do not know it."""

from __future__ import annotations

from functools import cache
from typing import Final

from tokenizers import Tokenizer

from gems.models.pocket.captions import ARRANGEMENTS, DEPTH_PHRASES
from gems.models.pocket.tokenizer import fault_of, word_tokenizer
from gems.models.pocket.vocabulary import ATTRIBUTES, NUMBER_WORDS, OBJECTS

__all__ = ["GUIDE", "objection"]


def objection(prompt: str) -> str:
    """Why the generator cannot read a prompt, in the words of the pipeline's error; empty if it can."""
    return fault_of(_tokenizer(), prompt)


@cache
def _tokenizer() -> Tokenizer:
    return word_tokenizer()


GUIDE: Final = f"""\
It knows few words. Use no others:
- things, also in the plural: {", ".join(word.singular for word in OBJECTS)}
- looks: {", ".join(ATTRIBUTES[1:])}
- numbers: {", ".join(NUMBER_WORDS)}
- arrangements of two or more: {", ".join(ARRANGEMENTS)}
- places: on the left, on the right, in the middle, at the top, at the bottom, at the top left, at the top right, \
at the bottom left, at the bottom right
- depth, only for "behind" and "in front of": {", ".join(DEPTH_PHRASES)}
It draws best from one clause for each kind of thing, with semicolons between them: NUMBER LOOK THING ARRANGEMENT \
PLACE DEPTH. Each kind stands in one clause only, and in a place of its own. Say where things stand, never how they \
relate: the wish itself must not be in the prompt.
Examples, wish and prompt:
three black penguins = three black penguins in a row in the middle
six red dogs to the right of a chair = six red dogs in two rows on the right; one chair on the left
a bear jumping over four metal clocks = one bear on the left; four metal clocks in a row on the right
three pigs chasing a blue car, and two cats = three pigs in a row on the left; one blue car on the right; two cats in \
a row at the bottom
a toy on top of five chairs = one toy at the top; five chairs in a row at the bottom
two cows under a green bird = two cows in a row at the bottom; one green bird at the top
five lions in front of two stone bagels = five lions in a row at the bottom in the foreground; two stone bagels in a \
row at the top in the background
six birds playing with two rabbits behind a pink guitar = six birds in two rows on the left; two rabbits in a row \
at the top right in the background; one pink guitar at the bottom right in the foreground"""
