"""What a prompt demands, read from its words: how many of things, how they stand to each other, and written text.

Sentence embeddings place "two cats" beside "six cats". For an image model these are different tasks: what helped with
one six helps with another six, whatever of. Words that are not English cost nothing but this distinction.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from gems.wording import content_words, jaccard, quoted_texts

__all__ = ["Demands", "demands_of"]

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
