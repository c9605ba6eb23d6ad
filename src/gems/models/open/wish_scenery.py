"""The backgrounds of prompts, and the relations to what was named before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gems.models.open.phrasebook import Match, Meaning
from gems.models.open.things import LOOK_NAMES, THINGS
from gems.models.open.wish_negations import Negations
from gems.models.open.wish_sketch import Waiting

__all__ = ["ABOVE", "Scenery"]


class Scenery(Negations):
    """A cursor that knows where things are."""

    def take_background(self, meaning: Meaning, match: Match) -> None:
        """Read a background."""
        if self.negation and not self.waiting.unknown:
            self.deny(f"{self.negation} {match.text}")
        is_told_apart = self.waiting.number not in ("", "1") or (self.relation and self._begins_anew(meaning))
        if self.waiting.unknown and is_told_apart:
            self.end_phrase()  # "five waterfalls in a meadow", "a cat on a roof at night"
        self._set_scene(meaning, match)
        if self.leading in ABOVE and not self.groups:
            self.waiting.place = self.waiting.place or "top"  # "over the city flies an airplane"
        self.end_at_undrawn()
        self.relation, self.waiting, self.leading = None, Waiting(place=self.waiting.place), ""

    def take_adverb(self, meaning: Meaning, match: Match) -> None:
        """Read a relation to what was named before: "a dragon above it", "daneben ein Hund"."""
        self.end_group(match)
        if not self.groups:
            self.left_out.append(match.text)
        elif self.thing_follows():
            self.relation = (meaning.value, -1 - self.referent(len(self.groups) - 1))
            self.relation_text = match.text
            self.is_separated = True
        elif len(self.groups) > 1 and not any(len(self.groups) - 1 in (r.a, r.b) for r in self.relations):
            self.relate(meaning.value, len(self.groups) - 1, self.referent(len(self.groups) - 2))
            if self.left_out[-1:] == [self.with_text]:  # "a house with a tree next to it"
                self.left_out.pop()
        else:
            self.left_out.append(match.text)

    def take_flying(self, match: Match) -> None:
        """Read a verb of flying: what is said to be above something flies over it, and over a background at the top."""
        self.end_phrase()
        last = len(self.groups) - 1
        over = next((k for k, r in enumerate(self.relations) if r.name in _UPON and last in (r.a, r.b)), None)
        if self.leading in _UPON:
            self.leading = "flying over"
        elif self.background and last < 0:
            self.waiting.place = self.waiting.place or "top"
        elif self.background and self.book.relations == "after" and over is None:
            self.groups[last].place = self.groups[last].place or "top"
        elif over is not None:
            self.relations[over] = replace(self.relations[over], name="flying over")
        elif last < 0 or not (self.groups[last].place == "top" or self.background == "sky"):
            self.left_out.append(match.text)

    def says_flying(self, match: Match) -> bool:
        """Whether a noun such as "flies" is a verb here: "above the city flies an airplane"."""
        word = match.of("word")
        is_verb = word is not None and word.value == "flies"
        is_after_place = not self.groups and bool(self.leading or self.background)
        return is_verb and is_after_place and self.waiting.is_empty and self.group_follows()

    def _begins_anew(self, meaning: Meaning) -> bool:
        """Whether no unknown adjective of a background stands before it, and an unknown word there is a noun."""
        return meaning.value in ("night", "sunset") or self.book.adjectives == "after"

    def _set_scene(self, meaning: Meaning, match: Match) -> None:
        self.leave_number()
        self.left_out += self.waiting.unknown
        if self.waiting.look:
            self.left_out.append(LOOK_NAMES[self.waiting.look])
        self.waiting.unknown = []
        if self.background not in ("", meaning.value):
            self.missing.append(match.text)
            self.scenes.append(match.text)
        elif meaning.is_told:
            self.stand_ins.append((match.text, meaning.value))
        self.background = self.background or meaning.value
        if self.relation and self.relation[1] >= 0:
            group = self.groups[self.relation[1]]
            if self.relation[0] in ABOVE or self._is_over(group.thing):
                group.place = group.place or "top"

    def _is_over(self, thing: int) -> bool:
        """Whether the Spanish "sobre" is said of what flies: "un avión sobre la ciudad"."""
        is_on = self.relation_text.lower() == "sobre" and THINGS[thing].home == "air"
        return is_on and (THINGS[thing].kind == "vehicle" or self.background in ("city", "sea", "forest"))


ABOVE: Final = ("flying over", "above")
_UPON: Final = ("above", "on")
