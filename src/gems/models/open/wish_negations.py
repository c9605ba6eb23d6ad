"""Negations in prompts: what must not be there, and what the models cannot keep away.

Things can be absent, and nothing else. A look, size, place, relation, background or text that must not be is refused:
what is asked for then would be the opposite.
"""

from __future__ import annotations

import re
from typing import Final

from gems.models.open.phrasebook import Match, Phrasebook
from gems.models.open.things import INDEX
from gems.models.open.tokens import TEXT_MARK
from gems.models.open.wish_cursor import Cursor

__all__ = ["Negations", "negated_text"]

_NOTHING: Final = re.compile("(?!)")
_LACKING_WORDS: Final = {
    "en": re.compile("(?!home)(.{3,})less"),
    "de": re.compile("(.{3,})los(?:e[mnrs]?)?"),
    "tr": re.compile("(.{2,})s[ıiuü]z"),
}
"""Words that say what a thing lacks: "a treeless meadow"."""
_OWNED: Final = re.compile("(.{2,}?)s?[ıiuü]$")
_NEGATING_AFTER: Final = ("ja", "ko", "tr")
"""Languages that say after a noun that it is not there."""


class Negations(Cursor):
    """A cursor that knows what negations are about."""

    stood_apart = True
    """Whether something stood between the last group and the negation after it."""

    def take_joint(self, value: str, match: Match) -> None:
        """Read an "and", "or", "with" or comma."""
        if self.relation and self.relation[0] == "between" and self.relation[1] >= 0:
            return
        self.end_phrase()
        if (
            value == "and"
            and match.text != ","
            and self.relation
            and self.relation[1] >= 0
            and self._ends_in_relation()
        ):
            self.drop_relation()  # "birds on the roof and a cat"
        if self.after_absent and value != "with" and self._denies_on(value, match):
            self.negation = "no"
            return
        if value == "or":
            self.left_out += [match.text] if self.waiting.is_empty else []
            return
        self.after_absent = ""
        self.said_comma = match.text == ","
        self.is_with_apart = value == "with" and self.is_word(-1, "and")
        self.with_text = match.text if value == "with" and _is_having(self.book) else ""
        self.said_with, self.said_and = value == "with", not self.said_comma
        self.is_separated = True
        if match.text == ",":
            self.drop_relation()
            if self.groups and self.groups[-1].more and _means_number(self.matches[self.position - 1]):
                self.leave_number()  # "cats: 3, dogs: 2"

    def _ends_in_relation(self) -> bool:
        """Whether a relation stands right before the cursor."""
        return self.position > 0 and self.matches[self.position - 1].of("relation") is not None

    def _denies_on(self, value: str, match: Match) -> bool:
        """Whether what must not be there goes on after a joint: "without cats and birds", "no cats, cows or pigs"."""
        article = ""
        for following in self.next_matches():
            word, number = following.of("word"), following.of("number")
            if following.of("thing") and not (following.of("look") and self.noun_follows()):
                is_alike = article in ("", self.after_absent)
                return value == "or" or (is_alike and (match.text != "," or self._list_goes_on()))
            if number and number.value == "1":
                article = "article"
            elif not (following.of("look") or following.of("size") or (word and word.value == "ignore")):
                return False
        return False

    def _list_goes_on(self) -> bool:
        """Whether an "and" or "or" comes before anything but nouns, adjectives and commas."""
        for following in self.next_matches():
            word = following.of("word")
            if word and word.value in ("and", "or") and following.text != ",":
                return True
            is_noun_phrase = any(following.of(kind) for kind in ("thing", "look", "size"))
            if not (is_noun_phrase or following.text == "," or (word and word.value == "ignore")):
                return False
        return False

    def take_no(self, match: Match) -> None:
        """A negation before its noun, or after it in languages that put it there."""
        unknown = self.waiting.unknown
        if self.book.language == "tr" and self._lacks_its(unknown):
            return
        if self.book.language in _NEGATING_AFTER and unknown:
            self.leave_denial(*unknown, match.text)
            self.waiting.unknown = []
            return
        self.end_phrase()
        if self.book.language not in _NEGATING_AFTER:
            self.deny_next(match.text)
            return
        before = [m for m in self.matches[: self.position] if not (w := m.of("word")) or w.value != "ignore"]
        kinds = {m.kind for m in before[-1].meanings} if before else set()
        if self.after_absent:  # "hiç kedi yok" has two negations
            return
        if kinds & {"look", "size", "relation", "place", "background"} and "thing" not in kinds:
            self.deny(f"{before[-1].text} {match.text}")
        if self.groups and kinds & {"thing", "number"}:
            self.deny_last()
        else:
            self.leave_denial(match.text)

    def _lacks_its(self, unknown: list[str]) -> bool:
        """Take a Turkish noun that is somebody's, before its negation: "şapkası olmayan"."""
        noun = _OWNED.match(unknown[0]) if len(unknown) == 1 else None
        thing = self.book.matches(noun[1])[0].of("thing") if noun else None
        if thing is None:
            return False
        self.absent.append(INDEX[thing.value])
        self.waiting.unknown, self.after_absent = [], "bare"
        return True

    def deny_next(self, text: str) -> None:
        """The next noun must not be there."""
        self.negation, self.stood_apart = text, self.is_separated

    def deny_last(self) -> None:
        """The last group must not be there, nor those that an "and" joins to it."""
        is_joined = True
        while self.groups and is_joined:
            draft = self.groups.pop()
            is_joined = draft.is_joined
            self.absent.insert(0, draft.thing)
        self.relations = [r for r in self.relations if max(r.a, r.b, r.c) < len(self.groups)]
        self.relation, self.after_absent, self.stood_apart = None, "bare", True

    def is_about_nothing(self, match: Match) -> bool:
        """Whether an adjective is about a thing that must not be there; then no such thing may be.

        Raises:
            InputError: The adjective itself is negated.
        """
        is_of_noun = self.noun_follows() or any(not following.meanings for following in self.next_matches()[:1])
        if self.negation and (self.is_word(-1, "not") or not is_of_noun):
            self.deny(f"{self.negation} {match.text}")
        return bool(self.after_absent) and self.book.adjectives != "before" and not self.noun_follows()

    def end_group(self, match: Match) -> None:
        """Settle what was read before a place, relation or background."""
        if self.negation and not self.waiting.unknown:
            self.deny(f"{self.negation} {match.text}")
        self.end_phrase()
        if self.groups:
            self.share_out()
        if self.book.relations == "between":
            self.leave_number()

    def lacks(self, word: str) -> bool:
        """Take a word that says what a thing lacks, such as "treeless"; False if it is another word."""
        match = _LACKING_WORDS.get(self.book.language, _NOTHING).fullmatch(word)
        if match is None:
            return False
        if thing := self.book.matches(match[1])[0].of("thing"):
            self.absent.append(INDEX[thing.value])
        else:
            self.leave_denial(word)
        return True


def _is_having(book: Phrasebook) -> bool:
    """Whether "with" says what a thing has; in Turkish, Japanese and Korean it only joins things."""
    return book.language not in ("tr", "ja", "ko")


def _means_number(match: Match) -> bool:
    return match.of("number") is not None


def negated_text(bare: str, book: Phrasebook) -> str:
    """The negation that a quoted text, or what carries it, is in; empty if there is none."""
    before, *later = bare.split(TEXT_MARK)
    for part in later:
        for match in reversed(book.matches(before)):
            word = match.of("word")
            if word and word.value in ("no", "not", "neither"):
                return match.text
            if match.of("relation") or match.of("background") or (word and word.value in ("and", "with", "there")):
                break
        following = [m for m in book.matches(part) if not (w := m.of("word")) or w.value not in ("ignore", "says")]
        negation = following[0].of("word") if following and book.language in _NEGATING_AFTER else None
        if negation and negation.value in ("no", "not"):
            return following[0].text
        before = part
    return ""
