"""Captions of scenes: the benchmark's terse sentences, and rich ones that also say where everything stands.

A terse caption leaves the layout open ("three blue cars to the left of a striped elephant"); a rich one narrows it
("three blue cars in a row on the left; one striped elephant on the right"). Both are always true of their scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from gems.models.pocket.scene import Group, Item, Scene, SceneSpec
from gems.models.pocket.vocabulary import ATTRIBUTES, NUMBER_WORDS, OBJECTS, RELATIONS

__all__ = [
    "ARRANGEMENTS",
    "DEPTH_PHRASES",
    "PLACES",
    "WORDS",
    "clause",
    "depth_phrase",
    "noun_phrase",
    "place_of",
    "rich_caption",
    "terse_caption",
]

PLACES: Final = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the nine parts of the canvas, row by row."""

ARRANGEMENTS: Final = ("in a row", "in a column", "in two rows", "in two columns", "in a ring")
DEPTH_PHRASES: Final = ("in the background", "in the foreground")

_EXTRA: Final = "a an and at in on the exactly placed each , ; : ."
WORDS: Final = tuple(
    sorted(
        {w.singular for w in OBJECTS}
        | {w.plural for w in OBJECTS}
        | {a for a in ATTRIBUTES if a}
        | set(NUMBER_WORDS)
        | {w for phrases in (RELATIONS, ARRANGEMENTS, DEPTH_PHRASES, *PLACES) for p in phrases for w in p.split()}
        | set(_EXTRA.split())
    )
)
"""Every word that a caption can contain. The generator's tokenizer is built from this list."""


def noun_phrase(group: Group, number: str | None = None) -> str:
    """A noun phrase such as "three blue cars". ``number`` replaces the number word ("a" by default for one)."""
    word = OBJECTS[group.object]
    number = number or ("a" if group.count == 1 else NUMBER_WORDS[group.count - 1])
    noun = word.singular if group.count == 1 else word.plural
    return " ".join(part for part in (number, ATTRIBUTES[group.attribute], noun) if part)


def terse_caption(spec: SceneSpec) -> str:
    """The benchmark's sentence. "and" joins groups without a relation, or ", and" if another pair has one."""
    joiner = " and " if not any(spec.relations) else ", and "
    text = noun_phrase(spec.groups[0])
    for relation, group in zip(spec.relations, spec.groups[1:], strict=True):
        text += (f" {relation} " if relation else joiner) + noun_phrase(group)
    return text


def place_of(items: Sequence[Item]) -> str:
    """The part of the canvas that contains the centre of the items."""
    column, row = (
        int(np.digitize(float(np.mean([getattr(i, axis) for i in items])), (0.36, 0.64))) for axis in ("x", "y")
    )
    return PLACES[row][column]


def depth_phrase(items: Sequence[Item]) -> str:
    """Return "in the foreground" or "in the background", or an empty string for items in between."""
    depth = float(np.mean([i.depth for i in items]))
    return DEPTH_PHRASES[depth > 0.5] if abs(depth - 0.5) > 0.15 else ""


def clause(
    group: Group,
    *,
    arrangement: str = "",
    place: str = "",
    places: Sequence[str] = (),
    depth: str = "",
    exactly: bool = False,
) -> str:
    """One group of a rich caption: "exactly three blue cars in a row on the left in the background".

    ``places`` gives each thing a place of its own instead: "three blue cars placed top left, top and right".
    """
    number = NUMBER_WORDS[group.count - 1]
    parts = [noun_phrase(group, f"exactly {number}" if exactly else number), arrangement]
    if places:
        parts.append("placed " + ", ".join(places))
    elif place:
        preposition = "on the" if place in ("left", "right") else "in the" if place == "middle" else "at the"
        parts.append(f"{preposition} {place}")
    parts.append(depth)
    return " ".join(p for p in parts if p)


def rich_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A random rich wording: clauses joined by ";", sometimes after the terse sentence, sometimes without some details.

    Large models are trained on captions like these: long descriptions of what a picture shows, which rarely spell out a
    relation. That is why those models, and this one, follow a rich prompt better than a terse one.
    """
    itemise = rng.random() < 0.15
    clauses = [
        clause(
            group,
            arrangement=arrangement if rng.random() < 0.85 else "",
            place=place_of(members) if rng.random() < 0.95 else "",
            places=[place_of([i]) for i in members] if itemise and group.count > 1 else (),
            depth=depth_phrase(members) if rng.random() < 0.95 else "",
            exactly=rng.random() < 0.4,
        )
        for group, members, arrangement in zip(scene.spec.groups, scene.members, scene.arrangements, strict=True)
    ]
    text = "; ".join(clauses)
    return f"{terse_caption(scene.spec)}: {text}" if rng.random() < 0.1 else text
