"""Nouns that name no group of a wish: they only say what kind of thing the noun beside them is."""

from __future__ import annotations

import re
from typing import Final

from gems.languages import fold, pieces_of
from gems.models.open.phrasebook import Match, Meaning, listed_plurals
from gems.models.open.things import INDEX, THINGS
from gems.models.open.wish_bonds import CONTAINERS
from gems.models.open.wish_scenery import Scenery

__all__ = ["Nouns"]


class Nouns(Scenery):
    """A cursor that knows which nouns are about others."""

    def is_adjective(self, meaning: Meaning) -> bool:
        """Whether a word for old people is about the noun beside it: "velha árvore", "casa vieja"."""
        following = next(iter(self.next_matches()), None)
        before = self.matches[self.position - 1] if self.noun_precedes() else following
        is_beside = before is not None and before.of("thing") is not None
        return (
            self.book.language in _ROMANCE and meaning.value in ("old man", "old woman", "elderly person") and is_beside
        ) or self._is_round(meaning)

    def is_old_somebody(self, meaning: Meaning) -> bool:
        """Whether an Italian word for "old" names a man or woman: "un vecchio con un cappello"."""
        is_word = self.book.language == "it" and meaning.value in ("old man", "old woman")
        is_before_noun = self.noun_follows() or any(not m.meanings or m.of("thing") for m in self.next_matches()[:1])
        return is_word and not (is_before_noun or self.noun_precedes() or self.is_word(1, "and", "ignore"))

    def _is_round(self, meaning: Meaning) -> bool:
        """Whether the French word for a circle is about the noun before it: "un tapis rond"."""
        is_after_noun = self.noun_precedes() or bool(self.waiting.unknown)
        return self.book.language == "fr" and meaning.value == "circle" and is_after_noun

    def is_sail(self, thing: int) -> bool:
        """Whether the word for a candle means a sail, which has no drawing: "un barco sin velas"."""
        return (
            self.book.language in ("es", "pt")
            and THINGS[thing].name == "candle"
            and bool(self.groups)
            and (THINGS[self.groups[-1].thing].kind, THINGS[self.groups[-1].thing].home) == ("vehicle", "water")
        )

    def is_ingredient(self, thing: int) -> bool:
        """Whether a noun only says of what the one before it is: "zumo de naranja", "bouquet de roses"."""
        if self.book.language not in _ROMANCE or not self.noun_precedes() or not self.is_word(-1, "ignore"):
            return False
        last = THINGS[self.groups[-1].thing]
        is_food = {last.kind, THINGS[thing].kind} <= {"food", "drink"}
        return is_food or (last.name == "bouquet" and THINGS[thing].kind == "plant")

    def follows_of(self) -> bool:
        """Whether an "of" stands between the noun before and what stands here, which then is no colour."""
        is_after_noun = self.book.language in ("en", *_ROMANCE) and self.noun_precedes()
        return is_after_noun and fold(self.matches[self.position - 1].text) in ("of", "de", "d", "di")

    def is_of_last(self) -> bool:
        """Whether an "of" and a number or look stand between the last noun and this one: "a basket of red apples"."""
        if self.book.language not in (*_OF, *_ROMANCE) or not self.groups or self.is_separated or self.negation:
            return False
        at = self.position - 1
        while at > 0 and any(self.matches[at].of(kind) for kind in ("number", "look", "size")):
            at -= 1
        if self.book.language in _OF and _OF[self.book.language] == "":  # "Korb Äpfel", "бочка мёда"
            return at >= 0 and self.matches[at].of("thing") is not None
        is_noun = at > 0 and self.matches[at - 1].of("thing") is not None
        return is_noun and fold(self.matches[at].text) in ("of", "de", "d", "di")

    def is_material(self, thing: int) -> bool:
        """Whether a noun says what the one before it is made of: "casa de ladrillo", "ein Haus aus Ziegeln"."""
        texts = [fold(match.text) for match in self.matches[max(0, self.position - 2) : self.position]]
        if not (THINGS[thing].name in _MATERIALS and self.groups and texts) or self.waiting.number:
            return False
        last = THINGS[self.groups[-1].thing]
        is_full = last.name in CONTAINERS and last.kind != "building"  # "una caja de piedras"
        is_made = texts[-1] in _MADE_OF.get(self.book.language, ()) or texts == ["made", "of"]
        return is_made and not is_full

    def wears_last_but_one(self) -> bool:
        """Whether Japanese says of the last group that it wears the one before: 赤い帽子の雪だるま."""
        last = len(self.groups) - 1
        is_of = self.book.language == "ja" and last > 0 and self.position > 0
        if not is_of or self.matches[self.position - 1].text != "の":
            return False
        return THINGS[self.groups[last - 1].thing].kind == "clothing" and self.can_hold(last, last - 1)

    def dress_last(self) -> None:
        """Whoever is said to be "of" clothes wears them: "um velho de chapéu"."""
        last = len(self.groups) - 1
        is_worn = last > 0 and THINGS[self.groups[last].thing].kind == "clothing"
        if is_worn and self.book.language in _ROMANCE and self.can_hold(last - 1, last):
            self.relate("holding", last - 1, last)

    def as_counted(self, meaning: Meaning, match: Match) -> Meaning:
        """What a noun means with its number: a plural of pairs is one, and "two glasses" are no spectacles."""
        number, is_pair = self.waiting.number, meaning.value.startswith("pair of") or meaning.value == "goggles"
        is_one = number == "2" and _PAIR.search(self.number_text) is not None
        if is_pair and is_one:
            self.waiting.number = "1"
        elif is_pair and number.isdecimal() and int(number) > 1 and fold(match.text) == "glasses":
            return Meaning("thing", "glass of milk", is_plural=True, is_stand_in=True)
        form = tuple(fold(piece.group()) for piece in pieces_of(match.text))
        if not is_pair or form in listed_plurals(self.book.language).get(meaning.value, ()):
            return meaning
        if number == "some" and self.book.language in (*_ROMANCE, "en", "ru", "pl"):
            self.waiting.number = "1"  # "unas tijeras"
        return meaning._replace(is_plural=False)

    def is_bunch(self, match: Match) -> bool:
        """Whether the Dutch word for a forest means a bunch: "een bos gele tulpen"."""
        noun = next((t for m in self.next_matches() if (t := m.of("thing")) and not m.of("look")), None)
        is_bos = self.book.language == "nl" and fold(match.text) == "bos" and self.group_follows_soon()
        return is_bos and noun is not None and THINGS[INDEX[noun.value]].kind in ("plant", "food")

    def is_green(self, match: Match) -> bool:
        """Whether the Japanese word for blue means green: 青りんご, 青い信号."""
        following = next(iter(self.next_matches()), None)
        noun = following.of("thing") if following else None
        if self.book.language != "ja" or match.text[:1] != "青" or noun is None:
            return False
        is_compound = match.text == "青" and THINGS[INDEX[noun.value]].kind == "food"
        return is_compound or noun.value in _GREEN

    def is_modifier(self, match: Match) -> bool:
        """Whether a noun only says what kind of thing the next noun is: "toy cars"."""
        following = next(iter(self.next_matches()), None)
        return (
            self.book.language in ("en", "de", "nl")
            and following is not None
            and following.of("thing") is not None
            and not any(m.kind in ("look", "word", "number") for m in following.meanings)
            and not (match.of("thing") or Meaning("", "")).is_plural
        )


_GREEN: Final = ("apple", "banana", "tomato", "plum", "traffic light", "horizontal traffic light", "autumn leaf")
_PAIR: Final = re.compile(r"\b(?:pair|par|paire|paio|para|pare|пара|пару)\b")
_ROMANCE: Final = ("es", "pt", "it", "fr")
_OF: Final = {"en": "of", "de": "", "nl": "", "pl": "", "ru": ""}
"""The "of" of what a vessel is full of; languages with an empty one say the noun alone."""
_MATERIALS: Final = ("brick", "rock", "log")
_MADE_OF: Final = {
    "es": ("de",),
    "pt": ("de",),
    "it": ("di", "in"),
    "fr": ("de", "en"),
    "de": ("aus",),
    "nl": ("van", "uit"),
    "pl": ("z", "ze"),
    "ru": ("из",),
}
"""Words before what something is made of."""
