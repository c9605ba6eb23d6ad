"""Nouns that name no group of a wish: they only say what kind of thing the noun beside them is."""

from __future__ import annotations

from gems.models.open.phrasebook import Match, Meaning
from gems.models.open.things import THINGS
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
            self.book.language in ("es", "pt", "it", "fr")
            and meaning.value in ("old man", "old woman", "elderly person")
            and is_beside
        )

    def is_sail(self, thing: int) -> bool:
        """Whether the word for a candle means a sail, which has no drawing: "un barco sin velas"."""
        return (
            self.book.language in ("es", "pt")
            and THINGS[thing].name == "candle"
            and bool(self.groups)
            and (THINGS[self.groups[-1].thing].kind, THINGS[self.groups[-1].thing].home) == ("vehicle", "water")
        )

    def is_ingredient(self, thing: int) -> bool:
        """Whether a food only says what kind the food before it is: "tarte aux pommes", "zumo de naranja"."""
        return (
            self.book.language in ("es", "pt", "it", "fr")
            and self.noun_precedes()
            and self.is_word(-1, "ignore")
            and all(THINGS[index].kind in ("food", "drink") for index in (thing, self.groups[-1].thing))
        )

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
