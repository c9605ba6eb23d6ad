"""Wishes in other languages, in plain word order and uninflected, as the tables have their words."""

from __future__ import annotations

from functools import cache
from typing import Final

from gems.models.open.phrasebook import phrasebook
from gems.models.open.things import LOOK_NAMES, THINGS
from gems.models.open.wish import Group, Wish

__all__ = ["foreign"]

_UNSPACED: Final = ("zh", "ja")


def foreign(wish: Wish, language: str) -> str:
    """A wish's groups in another language: numbers, looks and nouns, joined by "and". Nothing else is said."""
    gap = "" if language in _UNSPACED else " "
    joint = f"{gap}{_word(language, 'word', 'and')}{gap}"
    return joint.join(_phrase(group, language, gap) for group in wish.groups)


def _phrase(group: Group, language: str, gap: str) -> str:
    number = _word(language, "number", str(group.count))
    look = _word(language, "look", LOOK_NAMES[group.look]) if group.look else ""
    noun = _word(language, "thing", THINGS[group.thing].name, plural=group.count > 1)
    words = [number, noun, look] if phrasebook(language).adjectives == "after" else [number, look, noun]
    return gap.join(word for word in words if word)


@cache
def _word(language: str, kind: str, value: str, *, plural: bool = False) -> str:
    """The first word of a table for a meaning; the plural, if it has one and that is wanted."""
    singular, _, several = phrasebook(language).first_words(kind, value).partition(" / ")
    return several.strip() if plural and several else singular.strip()
