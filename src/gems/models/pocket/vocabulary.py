"""The closed vocabulary that the pocket models speak: the words of the GenEval 2 benchmark (arXiv 2512.16853).

Forty objects, eighteen attributes, counts one to seven, six positions and three verbs. Everything else in
``gems.models.pocket`` (captions, sprites, detector, grammar) is derived from the tables here.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

__all__ = [
    "ATTRIBUTES",
    "COLORS",
    "COUNTS",
    "MATERIALS",
    "MAX_COUNT",
    "NO_ATTRIBUTE",
    "NUMBER_WORDS",
    "OBJECTS",
    "OBJECT_NAMES",
    "PATTERNS",
    "PLURALS",
    "POSITIONS",
    "RELATIONS",
    "SINGULARS",
    "SYNONYMS",
    "VERBS",
    "WORD_LISTS",
    "ObjectWord",
    "with_near_words",
]


class ObjectWord(NamedTuple):
    """One object: its two word forms and the code point of the Twemoji drawing that stands for it."""

    singular: str
    plural: str
    twemoji: str


OBJECTS: Final[tuple[ObjectWord, ...]] = (
    ObjectWord("bagel", "bagels", "1f96f"),
    ObjectWord("backpack", "backpacks", "1f392"),
    ObjectWord("bear", "bears", "1f43b"),
    ObjectWord("bicycle", "bicycles", "1f6b2"),
    ObjectWord("bird", "birds", "1f426"),
    ObjectWord("candle", "candles", "1f56f"),
    ObjectWord("car", "cars", "1f697"),
    ObjectWord("cat", "cats", "1f408"),
    ObjectWord("chair", "chairs", "1fa91"),
    ObjectWord("clock", "clocks", "23f0"),
    ObjectWord("cookie", "cookies", "1f36a"),
    ObjectWord("cow", "cows", "1f404"),
    ObjectWord("croissant", "croissants", "1f950"),
    ObjectWord("dog", "dogs", "1f415"),
    ObjectWord("donut", "donuts", "1f369"),
    ObjectWord("elephant", "elephants", "1f418"),
    ObjectWord("flamingo", "flamingos", "1f9a9"),
    ObjectWord("flower", "flowers", "1f33c"),
    ObjectWord("giraffe", "giraffes", "1f992"),
    ObjectWord("guitar", "guitars", "1f3b8"),
    ObjectWord("horse", "horses", "1f40e"),
    ObjectWord("kangaroo", "kangaroos", "1f998"),
    ObjectWord("koala", "koalas", "1f428"),
    ObjectWord("lion", "lions", "1f981"),
    ObjectWord("monkey", "monkeys", "1f412"),
    ObjectWord("motorcycle", "motorcycles", "1f3cd"),
    ObjectWord("mushroom", "mushrooms", "1f344"),
    ObjectWord("penguin", "penguins", "1f427"),
    ObjectWord("pig", "pigs", "1f416"),
    ObjectWord("rabbit", "rabbits", "1f407"),
    ObjectWord("raccoon", "raccoons", "1f99d"),
    ObjectWord("sheep", "sheeps", "1f411"),
    ObjectWord("suitcase", "suitcases", "1f9f3"),
    ObjectWord("toy", "toys", "1f9f8"),
    ObjectWord("truck", "trucks", "1f69a"),
    ObjectWord("trumpet", "trumpets", "1f3ba"),
    ObjectWord("turtle", "turtles", "1f422"),
    ObjectWord("umbrella", "umbrellas", "2602"),
    ObjectWord("violin", "violins", "1f3bb"),
    ObjectWord("zebra", "zebras", "1f993"),
)
"""An object's index in this table is its class index in every pocket model. "sheeps" is the benchmark's spelling."""

COLORS: Final = ("white", "brown", "red", "purple", "blue", "black", "pink", "green", "yellow")
MATERIALS: Final = ("glass", "metal", "stone", "plastic", "wooden")
PATTERNS: Final = ("sparkling", "checkered", "striped", "spotted")

NO_ATTRIBUTE: Final = ""
ATTRIBUTES: Final = (NO_ATTRIBUTE, *COLORS, *MATERIALS, *PATTERNS)
"""Nineteen entries: index 0 is "drawn in its natural colours", the rest are the eighteen attributes."""

NUMBER_WORDS: Final = ("one", "two", "three", "four", "five", "six", "seven")
MAX_COUNT: Final = len(NUMBER_WORDS)
COUNTS: Final[dict[str, int]] = {
    "a": 1,
    "an": 1,
    **{word: n for n, word in enumerate(NUMBER_WORDS, start=1)},
}

POSITIONS: Final = ("to the left of", "to the right of", "in front of", "behind", "under", "on top of")
VERBS: Final = ("chasing", "jumping over", "playing with")
RELATIONS: Final = (*POSITIONS, *VERBS)

OBJECT_NAMES: Final = tuple(word.singular for word in OBJECTS)
SINGULARS: Final[dict[str, int]] = {word.singular: i for i, word in enumerate(OBJECTS)}
PLURALS: Final[dict[str, int]] = {word.plural: i for i, word in enumerate(OBJECTS)} | {"sheep": SINGULARS["sheep"]}

SYNONYMS: Final[dict[str, str]] = {
    "automobile": "car",
    "bike": "bicycle",
    "blossom": "flower",
    "bunny": "rabbit",
    "doughnut": "donut",
    "fiddle": "violin",
    "hog": "pig",
    "kitten": "cat",
    "kitty": "cat",
    "lorry": "truck",
    "luggage": "suitcase",
    "motorbike": "motorcycle",
    "parasol": "umbrella",
    "pony": "horse",
    "puppy": "dog",
    "racoon": "raccoon",
    "rucksack": "backpack",
    "teddy": "toy",
    "toadstool": "mushroom",
    "tortoise": "turtle",
    # attributes
    "brass": "metal",
    "chequered": "checkered",
    "crimson": "red",
    "crystal": "glass",
    "dotted": "spotted",
    "emerald": "green",
    "glittering": "sparkling",
    "golden": "yellow",
    "metallic": "metal",
    "polka-dotted": "spotted",
    "scarlet": "red",
    "steel": "metal",
    "violet": "purple",
    "wood": "wooden",
}
"""Synonyms that the parser maps to a word of the vocabulary. It forms plurals in -s itself."""

WORD_LISTS: Final[dict[str, tuple[str, ...]]] = {
    "things": OBJECT_NAMES,
    "colours": COLORS,
    "materials": MATERIALS,
    "patterns": PATTERNS,
    "numbers": NUMBER_WORDS,
    "positions": POSITIONS,
    "actions": VERBS,
    "other words for them": tuple(SYNONYMS),
}
"""What a user's prompt can be made of, by kind, for the documentation and for ``gems doctor``."""


def with_near_words(words: Iterable[str], known_words: Collection[str]) -> str:
    """A list of unknown words for an error message, each with the known words that are spelt like it.

    Args:
        words: The unknown words.
        known_words: The words that could be meant.
    """
    candidates, parts = sorted(known_words), []
    for word in words:
        near = difflib.get_close_matches(word.lower(), candidates, n=3, cutoff=0.6)
        parts.append(f"{word!r}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
    return ", ".join(parts)
