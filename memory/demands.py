"""What a prompt demands, read from its English words: counts, spatial relations, and written text.

Sentence embeddings put "two cats" close to "six cats". For an image model these are different tasks: advice on drawing
six things helps with any six things. For prompts in other languages this distinction is lost, and nothing else.
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
"""The name of a relation, by each word that expresses it."""


class Demands(NamedTuple):
    """A bag of features: each number and relation of a prompt, and how many numbers and relations it has."""

    features: Counter[str]

    def closeness(self, other: Demands) -> float:
        """Jaccard similarity of the two bags, in [0, 1]; 1 if neither demands anything."""
        return jaccard(self.features, other.features)


def demands_of(prompt: str) -> Demands:
    """What a prompt demands."""
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
