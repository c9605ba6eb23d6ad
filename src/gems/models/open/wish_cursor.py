"""The cursor over a prompt's phrases, and what it sees before and after it."""

from __future__ import annotations

from collections.abc import Sequence

from gems.models.open.phrasebook import Match, Phrasebook
from gems.models.open.wish_bonds import DOING, is_perch
from gems.models.open.wish_sketch import Neighbour, Sketch

__all__ = ["Cursor"]


class Cursor(Sketch):
    """A place in a prompt's phrases, beside the wish that has been read so far.

    Args:
        book: The words of the prompt's language.
        matches: The prompt's phrases.
        texts: Its quoted parts.
        neighbour: Finds the thing that an unknown noun is nearest to.
    """

    def __init__(
        self, book: Phrasebook, matches: Sequence[Match], texts: list[str], neighbour: Neighbour | None
    ) -> None:
        super().__init__(book, texts, neighbour)
        self.matches, self.position = matches, 0
        self.undrawn_at = -1
        """Where the last noun is that is no group: a background, or what has no drawing."""

    def next_matches(self) -> Sequence[Match]:
        """The phrases after the cursor."""
        return self.matches[self.position + 1 :]

    def noun_follows(self) -> bool:
        """Whether the next phrase that is not a look or a size is a noun."""
        names_thing = False
        for match in self.next_matches():
            if match.of("thing") and not match.of("look"):
                return True
            if self.book.language == "tr" and match.of("number"):
                continue  # "sarı bir balon" is a yellow balloon
            if not (match.of("look") or match.of("size")):
                return names_thing or (not match.meanings and not self.waiting.is_empty)
            names_thing = match.of("thing") is not None  # "an orange orange"
        return names_thing

    def noun_precedes(self) -> bool:
        """Whether what stands here may be about the last noun."""
        return bool(self.groups) and not self.is_separated and self.waiting.is_empty

    def group_follows(self) -> bool:
        """Whether a noun comes before the next comma."""
        for match in self.next_matches():
            if match.of("thing") or match.of("background"):
                return True
            if match.text == "," or match.of("word"):
                return False
        return False

    def thing_follows(self) -> bool:
        """Whether a thing comes before the next comma, joint or background."""
        for match in self.next_matches():
            if match.of("thing"):
                return True
            if match.of("background") or ((word := match.of("word")) and word.value != "ignore"):
                return False
        return False

    def group_follows_soon(self) -> bool:
        """Whether a noun comes next, adjectives and particles aside."""
        for match in self.next_matches():
            if match.of("thing"):
                return True
            word = match.of("word")
            if not (match.of("look") or match.of("size") or (word and word.value == "ignore")):
                return False
        return False

    def subject_of(self, name: str, match: Match) -> int:
        """Who is in a relation: what a verb after a comma or an "and" tells is of whom all before it was said."""
        last = len(self.groups) - 1
        is_verb = name in DOING or match.text.lower().split()[0].endswith("ing")
        head = self.head(last) if self.is_word(-1, "and") and is_verb else last
        return head if self.is_alive(head) and head != last else self.subject(name)

    def perches(self, thing: int) -> bool:
        """Whether the language's "in" says of a thing that others are on it: "en una flor", "em uma árvore"."""
        return self.book.language in ("es", "pt") and is_perch(thing)

    def is_said_to_be_at(self) -> bool:
        """Whether Chinese says after a comma where the last thing but one is: "一辆车,停在房子前面"."""
        at = self.position - 1
        while at > 0 and any(self.matches[at].of(kind) for kind in ("thing", "number", "look", "size")):
            at -= 1
        return self.book.language == "zh" and at > 0 and self.matches[at].text.endswith("在")

    def end_at_undrawn(self) -> None:
        """Remember that what stands here is no group: what follows is not about the group before it."""
        self.undrawn_at, self.is_separated = self.position, True
        if self.groups:
            at = self.relation[1] if self.relation and self.relation[1] >= 0 else len(self.groups) - 1
            self.groups[at].is_settled = True

    def follows_undrawn(self) -> bool:
        """Whether the last noun is no group, adjectives and particles after it aside."""
        between = self.matches[self.undrawn_at + 1 : self.position]
        return self.undrawn_at >= 0 and all(
            match.of("look") or match.of("size") or ((word := match.of("word")) and word.value == "ignore")
            for match in between
        )

    def is_scene_before(self) -> bool:
        """Whether the last noun that is no group is a background."""
        return self.matches[self.undrawn_at].of("background") is not None

    def is_about_undrawn(self, match: Match) -> bool:
        """Whether an adjective is about a noun before it that is no group; it goes with it."""
        if self.book.adjectives == "before" or not self.follows_undrawn() or self.noun_follows():
            return False
        self.left_out += [match.text] if self.is_scene_before() else []
        return True

    def another_follows(self) -> bool:
        """Whether "and" comes next, and a noun after it."""
        following = [match for match in self.next_matches() if not match.of("place")]
        return bool(following) and following[0].of("word") is not None and any(m.of("thing") for m in following[1:5])

    def is_word(self, offset: int, *values: str) -> bool:
        """Whether the phrase so many places further on is one of some function words."""
        index = self.position + offset
        word = self.matches[index].of("word") if 0 <= index < len(self.matches) else None
        return word is not None and word.value in values
