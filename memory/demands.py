"""What a prompt demands, read from its words: how many of things, how they stand to each other, and written text.

Sentence embeddings place "two cats" beside "six cats". For an image model these are different tasks: what helped with
one six helps with another six, whatever of. Words that are not English cost nothing but this distinction.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Demands", "content_words", "demands_of", "jaccard", "quoted_texts"]

_WORDS: Final = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
)
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_WORDS.split(), start=2)} | {
    "pair": "2",
    "couple": "2",
    "dozen": "12",
}
_ARTICLES: Final = frozenset({"a", "an", "the", "one", "1"})
"""They ask for what every thing has: being there once."""
_RELATIONS: Final = {
    word: relation
    for relation, words in {
        "left": "left",
        "right": "right",
        "above": "above over atop",
        "below": "below under beneath underneath",
        "front": "front",
        "behind": "behind",
        "beside": "beside next near",
        "between": "between among",
        "inside": "inside within",
        "on": "on",
        "around": "around surrounding surrounded",
    }.items()
    for word in words.split()
}
_WORD: Final = re.compile(r"\w+")
_QUOTED: Final = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|「([^」]+)」|『([^』]+)』|(?<!\w)[‘']([^‘’']+(?:[’']\w+[^‘’']*)*)[’'](?!\w)"
)


class Demands(NamedTuple):
    """A bag of features, compared with ``closeness``: every number and relation, and that there are any at all."""

    features: Counter[str]

    def closeness(self, other: Demands) -> float:
        """Jaccard similarity of the two bags, in [0, 1]; 1 where neither demands anything."""
        return jaccard(self.features, other.features)


def demands_of(prompt: str) -> Demands:
    """Read a prompt."""
    features: Counter[str] = Counter()
    for word in content_words(prompt):
        if word.isdecimal():
            features[f"count {word}"] += 1
        elif word in _RELATIONS:
            features[f"relation {_RELATIONS[word]}"] += 1
    for kind in ("count", "relation"):
        features[kind] = sum(name.startswith(f"{kind} ") for name in features)
    if quoted_texts(prompt):
        features["text"] = 1
    return Demands(+features)


def quoted_texts(prompt: str) -> list[str]:
    """What stands in quotation marks, each once."""
    found = (next(filter(None, groups)).strip() for groups in _QUOTED.findall(prompt))
    return [text for text in dict.fromkeys(found) if text]


def content_words(prompt: str) -> list[str]:
    """The words in order, in small letters, without articles, numbers as digits."""
    words = (_NUMBERS.get(word, word) for word in _WORD.findall(prompt.lower()))
    return [word for word in words if word not in _ARTICLES]


def jaccard(a: Counter[str], b: Counter[str] | Sequence[str]) -> float:
    """Shared part of two bags, in [0, 1]; 1 where both are empty."""
    b = b if isinstance(b, Counter) else Counter(b)
    union = (a | b).total()
    return (a & b).total() / union if union else 1.0
