"""What words mean, by language: the tables ``words/XX.txt``, and the meanings that stand in a text.

A table has a section for each kind of meaning and a line for each meaning: ``dog = dog / dogs, hound / hounds``. A
form after a slash is a plural. A word after ``~`` names something else that the drawing may stand in for, such as a
breed: it is drawn, and the user is told. The longest phrase wins; a word that no table has as it is written is looked
up by its stem.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Final, NamedTuple

import snowballstemmer

from gems.languages import fold, pieces_of
from gems.models.open.things import INDEX, WORDS_FOLDER

__all__ = ["TONGUES", "Match", "Meaning", "Phrasebook", "phrasebook"]

_STEMMERS: Final = {
    "en": "english",
    "de": "german",
    "nl": "dutch",
    "fr": "french",
    "it": "italian",
    "es": "spanish",
    "pt": "portuguese",
    "pl": "polish",
    "ru": "russian",
    "tr": "turkish",
}
TONGUES: Final = (*_STEMMERS, "zh", "ja", "ko")
"""The languages there are tables for, by ISO 639 code; English first."""

_KINDS: Final = {
    "numbers": "number",
    "looks": "look",
    "sizes": "size",
    "relations": "relation",
    "places": "place",
    "backgrounds": "background",
    "words": "word",
    "nouns": "thing",
}
_KOREAN_PARTICLE: Final = re.compile(
    r"(?<=..)(?:에서|으로|에게|한테|이랑|하고|은|는|이|가|을|를|의|에|와|과|도|로|랑|들)$|(?<=.)(?:은|는|이|가|을|를|의|에|와|과|도|로)$"
)


class Meaning(NamedTuple):
    """One meaning of a phrase.

    Attributes:
        kind: "number", "look", "size", "relation", "place", "background", "word" or "thing".
        value: The meaning, a name of ``gems.models.open.things``.
        is_plural: Whether the form is a plural; for things.
        is_stand_in: Whether the thing only stands in for what the phrase names.
    """

    kind: str
    value: str
    is_plural: bool = False
    is_stand_in: bool = False


class Match(NamedTuple):
    """A phrase of a text: as it was written, with all that it can mean; nothing if no table has it.

    ``is_exact`` is false if only its stem is known.
    """

    text: str
    meanings: tuple[Meaning, ...]
    is_exact: bool = True

    def of(self, kind: str) -> Meaning | None:
        """The meaning of a kind; None if it has none."""
        return next((m for m in self.meanings if m.kind == kind), None)


class Phrasebook:
    """The table of one language.

    Attributes:
        language: Its code.
        adjectives: Where looks stand: "before" their noun, "after" it, or "both".
        relations: Where relations stand: "between" their things, or "after" the second one.
    """

    def __init__(self, language: str) -> None:
        self.language, self.adjectives, self.relations = language, "before", "between"
        self._stemmer = snowballstemmer.stemmer(_STEMMERS[language]) if language in _STEMMERS else None
        self._phrases: dict[tuple[str, ...], list[Meaning]] = {}
        self._stems: dict[tuple[str, ...], list[Meaning]] = {}
        self._first: dict[tuple[str, str], str] = {}
        self._stem = lru_cache(maxsize=8192)(self._stem_of)
        for kind, meaning, words in _lines(language):
            if kind == "order":
                setattr(self, meaning, words)
                continue
            self._first[kind, meaning] = words.split(",")[0]
            for number, phrase in enumerate(words.split(",")):
                if number == 0 or kind != "thing" or not self._says_look(phrase):
                    self._add(kind, meaning, phrase.strip())
        self._longest = max(map(len, self._phrases))

    def _add(self, kind: str, value: str, phrase: str) -> None:
        is_stand_in = phrase.startswith("~")
        forms = [form.strip() for form in phrase.lstrip("~").split(" / ")]
        for number, form in enumerate(forms):
            words = [piece.group() for piece in pieces_of(form)]
            key = tuple(map(fold, words))
            meaning = Meaning(kind, value, number > 0, is_stand_in)
            for table, entry in ((self._phrases, key), (self._stems, tuple(map(self._stem, words)))):
                meanings = table.setdefault(entry, [])
                if key and not any(m.kind == kind and (m.value == value or not m.is_stand_in) for m in meanings):
                    meanings[:] = [m for m in meanings if m.kind != kind] + [meaning]

    def _says_look(self, phrase: str) -> bool:
        """Whether a name of several words says a look too, as "red apple" does: the look is read by itself."""
        words = [(fold(piece.group()),) for piece in pieces_of(phrase)]
        return len(words) > 1 and any(m.kind == "look" for w in words for m in self._phrases.get(w, ()))

    def _stem_of(self, word: str) -> str:
        """A word's stem, folded after it is stemmed: stemmers know their language's accents."""
        if self.language == "ko":
            return fold(_KOREAN_PARTICLE.sub("", word))
        return fold(self._stemmer.stemWord(word.lower()) if self._stemmer else word)

    def matches(self, text: str) -> list[Match]:
        """The phrases of a text, in order, each as long as there is one in the table; commas are matches too."""
        return list(self._matches(text))

    def _matches(self, text: str) -> Iterator[Match]:
        pieces = [
            (m.group(), fold(m.group()), m.start(), m.end()) for m in pieces_of(unicodedata.normalize("NFC", text))
        ]
        position = 0
        while position < len(pieces):
            length, meanings, is_exact = self._longest_at(pieces[position : position + self._longest])
            end = position + max(1, length)
            yield Match(text[pieces[position][2] : pieces[end - 1][3]], meanings, is_exact)
            until = pieces[end][2] if end < len(pieces) else len(text)
            if re.search(r"[,;:.،、，；。]", text[pieces[end - 1][3] : until]):
                yield Match(",", (_COMMA,))
            position = end

    def _longest_at(self, pieces: Sequence[tuple[str, str, int, int]]) -> tuple[int, tuple[Meaning, ...], bool]:
        words, stems = [p[1] for p in pieces], [self._stem(p[0]) for p in pieces]
        for length in range(len(words), 0, -1):
            for table, key in ((self._phrases, words), (self._stems, stems)):
                if meanings := table.get(tuple(key[:length])):
                    return length, tuple(meanings), table is self._phrases
        return 0, (), False

    def first_words(self, kind: str, value: str) -> str:
        """The usual words for a meaning: singular and, after a slash, plural."""
        return self._first[kind, value]

    def words_of(self, kind: str) -> list[str]:
        """The phrases that have a meaning of a kind, for messages."""
        return [" ".join(key) for key, meanings in self._phrases.items() if any(m.kind == kind for m in meanings)]


_COMMA: Final = Meaning("word", "and")


def _lines(language: str) -> Iterator[tuple[str, str, str]]:
    """Kind, meaning and words of each line of a table."""
    section = ""
    for line in (WORDS_FOLDER / f"{language}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[] ")
        elif " = " in line and not line.startswith("#"):
            meaning, _, words = line.partition(" = ")
            if section != "nouns" or meaning.strip() in INDEX:
                yield _KINDS.get(section, section), meaning.strip(), words.strip()


@cache
def phrasebook(language: str) -> Phrasebook:
    """The phrasebook of one of TONGUES, loaded once."""
    return Phrasebook(language)
