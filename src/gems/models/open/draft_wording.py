"""Drafts: the prompts that the open generator is given, in plain English of its own.

A terse draft says what a wish says and leaves the layout open ("three blue cars to the left of a striped elephant"). A
rich one also says where everything stands ("three blue cars in a row on the left to the left of one striped elephant on
the right").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np

from gems.models.open.phrasebook import phrasebook
from gems.models.open.stage import Item, Scene, place_of
from gems.models.open.things import DEPTHS, LOOK_NAMES, MAX_COUNT, THINGS
from gems.models.open.wish import Group, Wish

__all__ = [
    "BACKGROUND_PHRASES",
    "NUMBERS",
    "SCENERY_NAMES",
    "clause",
    "depth_of",
    "joined",
    "noun_of",
    "phrase",
    "place_phrase",
    "rich",
    "terse",
]

NUMBERS: Final = (*("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),)


@cache
def _forms(name: str) -> tuple[str, str]:
    """Singular and plural of a thing, as the English table has them."""
    singular, _, plural = phrasebook("en").first_words("thing", name).partition(" / ")
    return singular.strip(), plural.strip() or singular.strip()


def noun_of(thing: int, count: int = 1) -> str:
    """The noun of a thing in the singular, or for another count in the plural."""
    return _forms(THINGS[thing].name)[count != 1]


def phrase(group: Group, number: str = "") -> str:
    """A noun phrase such as "three huge blue cars". ``number`` replaces the number ("a" by default for one)."""
    if group.more:
        number = number or ("some" if group.count < 5 else "many")
    count = 2 if group.more else group.count
    words = [group.size, LOOK_NAMES[group.look], noun_of(group.thing, count)]
    text = " ".join(word for word in words if word)
    if not number:
        article = "an" if text[0] in "aeiou" else "a"
        number = article if count == 1 else NUMBERS[min(group.count, MAX_COUNT) - 1]
    saying = f' {"that says" if count == 1 else "that say"} "{group.text}"' if group.text else ""
    return f"{number} {text}{saying}"


def place_phrase(place: str) -> str:
    """A place as it is said: "on the left", "in the top right corner", "in the background"."""
    if place in DEPTHS or place in ("middle", "corner"):
        return f"in the {place}" if place != "corner" else "in the corner"
    if " " in place:
        return f"at the {place}"
    return f"on the {place}" if place in ("left", "right") else f"at the {place}"


BACKGROUND_PHRASES: Final = {
    "night": "at night",
    "sunset": "at sunset",
    "space": "in outer space",
    "sea": "on the sea",
    "room": "in a room",
    "plain": "on a plain background",
    "sky": "in the sky",
    "meadow": "in a meadow",
    "forest": "in a forest",
    "desert": "in a desert",
    "snow": "in the snow",
    "city": "in a city",
}

SCENERY_NAMES: Final = {
    "night": "night",
    "space": "outer space",
    "sea": "the sea",
    "plain": "a plain background",
    "sky": "the sky",
    "snow": "snow",
}
"""Names of backgrounds that are not said with an "a"."""


def terse(wish: Wish, *, absent: bool = True) -> str:
    """A wish in a sentence. Groups without a relation are joined by commas."""
    clauses = [phrase(group) + (f" {place_phrase(group.place)}" if group.place else "") for group in wish.groups]
    parts = [joined(wish, clauses, ", "), BACKGROUND_PHRASES[wish.background] if wish.background else ""]
    if absent and wish.absent:
        parts.append("without " + " and ".join(noun_of(thing, 2) for thing in wish.absent))
    return ", ".join(part for part in parts if part)


def joined(wish: Wish, clauses: Sequence[str], separator: str) -> str:
    """The groups' clauses, with the relations between them, or where there is none with ``separator``."""
    between = next((r for r in wish.relations if r.name == "between"), None)
    by_pair = {(r.a, r.b): r for r in wish.relations if r is not between}
    is_inline = between is not None and (between.a, between.b, between.c) == (0, 1, 2)
    text = ""
    for index, words in enumerate(clauses):
        if relation := by_pair.get((index - 1, index)):
            text += f" {relation.name} {words}"
        elif is_inline and index in (1, 2):
            text += f" {'between' if index == 1 else 'and'} {words}"
        else:
            text += separator * bool(index) + words
    for (a, b), relation in by_pair.items():
        if b != a + 1:
            text += f"{separator}{_the(wish.groups[a])} {relation.name} {_the(wish.groups[b])}"
    if between and not is_inline:
        middle, first, second = (_the(wish.groups[index]) for index in (between.a, between.b, between.c))
        text += f"{separator}{middle} between {first} and {second}"
    return text


def _the(group: Group) -> str:
    return f"the {noun_of(group.thing, group.count)}"


def depth_of(items: Sequence[Item]) -> str:
    """The word "foreground" or "background"; an empty string for items in between."""
    depth = float(np.mean([i.depth for i in items]))
    return DEPTHS[depth > 0.5] if abs(depth - 0.5) > 0.15 else ""


def clause(
    group: Group,
    *,
    count: int = 0,
    arrangement: str = "",
    place: str = "",
    places: Sequence[str] = (),
    depth: str = "",
    exactly: bool = False,
) -> str:
    """One group of a rich draft: "exactly three blue cars in a row on the left in the background".

    ``places`` gives each thing a place of its own instead: "three blue cars placed top left, top and right".
    """
    count = count or group.count
    number = NUMBERS[min(count, MAX_COUNT) - 1]
    fixed = Group(group.thing, count, False, group.look, group.size, "", group.text)
    parts = [phrase(fixed, f"exactly {number}" if exactly else number), arrangement]
    if places:
        parts.append("placed " + ", ".join(places))
    elif place:
        parts.append(place_phrase(place))
    parts.append(f"in the {depth}" if depth else "")
    return " ".join(p for p in parts if p)


def rich(scene: Scene, rng: np.random.Generator) -> str:
    """A random rich wording of a scene: a clause for each group, sometimes with gaps, and the relations between them.

    Large models are trained on captions like these, long descriptions of what a picture shows. That is why those
    models, and this one, follow a rich prompt better than a terse one.
    """
    itemise = rng.random() < 0.12
    clauses = []
    for group, members, arrangement in zip(scene.wish.groups, scene.members, scene.arrangements, strict=True):
        clauses.append(
            clause(
                group,
                count=len(members),
                arrangement=arrangement if rng.random() < 0.85 else "",
                place=place_of(members) if rng.random() < 0.95 else "",
                places=[place_of([i]) for i in members] if itemise and 1 < len(members) < 6 else (),
                depth=depth_of(members) if rng.random() < 0.9 else "",
                exactly=rng.random() < 0.4,
            )
        )
    parts = [joined(scene.wish, clauses, "; ") if rng.random() < 0.85 else "; ".join(clauses)]
    if not clauses or rng.random() < (0.85 if scene.wish.background else 0.5):
        parts.append(BACKGROUND_PHRASES[scene.background])
    return "; ".join(part for part in parts if part)
