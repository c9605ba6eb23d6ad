"""What words mean, by language: the tables ``words/XX.txt``, and the meanings that stand in a text.

A table has a section for each kind of meaning and a line for each meaning: ``dog = dog / dogs, hound / hounds``. A
form after a slash is a plural. A word after ``~`` names something else that the drawing or background may stand in for,
such as a breed, or a table for its room: it is drawn, and the user is told. A word after ``~~`` is read as the others
of its line are, and yet says more or else than the picture shows, such as a pond for the sea, or cooking for holding:
the user is told that too. An adverb is a relation to what was named
before ("above it"). The longest phrase wins; a word that no table has as it is written is looked up by its stem, if it
is near enough to be a form of what the table has.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache
from typing import Final, NamedTuple, TypeAlias

import snowballstemmer

from gems.languages import fold, pieces_of
from gems.models.open.diminutives import bases
from gems.models.open.numerals import UNCOUNTABLE, numeral_at, product
from gems.models.open.plurals import is_case_of_plural, is_listed_plural
from gems.models.open.things import INDEX, THINGS, WORDS_FOLDER

__all__ = ["TONGUES", "Match", "Meaning", "Phrasebook", "listed_plurals", "phrasebook"]

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
    "adverbs": "adverb",
    "nouns": "thing",
}
_VERBAL: Final = {
    "en": ("ed",),
    "it": ("ato", "ata", "ati", "ate", "ando", "endo"),
    "es": ("ado", "ada", "ados", "adas", "ando", "iendo"),
    "pt": ("ado", "ada", "ados", "adas", "ando", "endo", "indo"),
    "fr": ("é", "ée", "és", "ées", "ant"),
}
"""Endings of participles: "parked" is no inflected form of "park"."""
_SHORTEST_IS_SINGULAR: Final = ("de", "nl", "fr", "es", "pt")
"""Languages in which no form of a noun is shorter than its singular: "Dach" is no form of "Dachs"."""
_LONGEST_ENDING: Final = {"de": 2, "nl": 2, "en": 2, "fr": 1, "it": 1, "es": 2, "pt": 2}
"""How many letters an inflected form of a short noun has more."""
_MATERIALS: Final = {
    "de": {"holz": "holz", "glas": "glas", "stein": "steinern", "metall": "metallisch", "plastik": "plastik"},
    "nl": {"houten": "hout", "hout": "hout", "glas": "glas", "steen": "stenen", "metaal": "metalen"},
}
"""What a compound may begin with, and the look that it is: "Holztisch" is a wooden table."""
_KOREAN_PARTICLE: Final = re.compile(
    r"(?<=.)들(?:은|이|을|의|과|도)$|(?<=..)(?:에서|으로|에게|한테|이랑|하고|은|는|이|가|을|를|의|에|와|과|도|로|랑|들)$|(?<=.)(?:은|는|이|가|을|를|의|에|와|과|도|로)$"
)
_JOINTS: Final = {"ko": re.compile(r"(?<=.)(?:이랑|하고|와|과|랑)$"), "tr": re.compile(r"(?<=..)l[ıiuü]$")}
"""Endings that join a noun to the next: Korean "and", and Turkish "with"."""


class Meaning(NamedTuple):
    """One meaning of a phrase.

    Attributes:
        kind: "number", "look", "size", "relation", "place", "background", "word", "adverb" or "thing".
        value: The meaning, a name of ``gems.models.open.things``.
        is_plural: Whether the form is a plural; for things.
        is_stand_in: Whether the thing only stands in for what the phrase names.
        is_told: Whether the phrase is read as the meaning, but says more or else than the picture will show.
    """

    kind: str
    value: str
    is_plural: bool = False
    is_stand_in: bool = False
    is_told: bool = False


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


_Table: TypeAlias = dict[tuple[str, ...], list[Meaning]]
_Piece: TypeAlias = tuple[str, str, int, int]
"""A word as it was written, folded, and where it begins and ends."""
_Reach: TypeAlias = tuple[int, tuple[Meaning, ...], bool]
"""How many pieces a phrase has, what it means, and whether it is in the table as it is written."""


def _enter(table: _Table, key: tuple[str, ...], meaning: Meaning) -> None:
    meanings = table.setdefault(key, [])
    if key and not any(m.kind == meaning.kind and (m.value == meaning.value or not m.is_stand_in) for m in meanings):
        meanings[:] = [m for m in meanings if m.kind != meaning.kind] + [meaning]


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
        self._phrases: _Table = {}
        self._entries: list[tuple[list[str], Meaning]] = []
        self._written: set[str] = set()
        self._first: dict[tuple[str, str], str] = {}
        self._stem = lru_cache(maxsize=8192)(self._stem_of)
        for kind, meaning, words in _lines(language):
            if kind == "order":
                setattr(self, meaning, words)
                continue
            self._first[kind, meaning] = words.split(",")[0]
            for number, phrase in enumerate(words.split(",")):
                if number == 0 or kind != "thing" or "~" in phrase or not self._says_more(meaning, phrase):
                    self._add(kind, meaning, phrase.strip())
        self._longest = max(map(len, self._phrases))

    def _add(self, kind: str, value: str, phrase: str) -> None:
        is_told = phrase.startswith("~~")
        is_stand_in = phrase.startswith("~") and not is_told
        forms = [form.strip() for form in phrase.lstrip("~").split(" / ")]
        for number, form in enumerate(forms):
            words = [piece.group() for piece in pieces_of(form)]
            is_plural = number > 0 or (
                kind == "thing" and is_listed_plural(form, self._first[kind, value], self.language)
            )
            meaning = Meaning(kind, value, is_plural, is_stand_in, is_told)
            _enter(self._phrases, tuple(map(fold, words)), meaning)
            self._written.update(map(str.lower, words))
            self._entries += [] if self._is_fixed(meaning) else [(words, meaning)]

    def _is_form(self, pieces: Sequence[_Piece], meaning: Meaning, key: tuple[str, ...]) -> bool:
        """Whether words of the same stem as a phrase can be a form of it."""
        if self._is_fixed(meaning) or meaning.kind not in ("thing", "background"):
            return not self._is_fixed(meaning)
        word = pieces[-1][0].lower()
        if word.endswith(_VERBAL.get(self.language, ())):
            return False
        return any(_is_near(fold(word), form, self.language) for form in self._forms.get((key, meaning), (fold(word),)))

    @cached_property
    def _forms(self) -> dict[tuple[tuple[str, ...], Meaning], list[str]]:
        """By stem and meaning: the last words of the phrases that have them."""
        forms: dict[tuple[tuple[str, ...], Meaning], list[str]] = {}
        for words, meaning in self._entries:
            if words:
                forms.setdefault((tuple(map(self._stem, words)), meaning), []).append(fold(words[-1]))
        return forms

    def _is_fixed(self, meaning: Meaning) -> bool:
        """Whether words have a meaning only as they are: what begins as a number does is often another word."""
        return meaning.value == UNCOUNTABLE or (meaning.kind == "number" and self.language == "tr")

    @cached_property
    def _stems(self) -> _Table:
        """The meanings by the stems of words: to stem takes most of the time, and few prompts need all languages."""
        table: _Table = {}
        for words, meaning in self._entries:
            _enter(table, tuple(map(self._stem, words)), meaning)
        return table

    def _says_more(self, value: str, phrase: str) -> bool:
        """Whether a name of several words says a look or size too, as "red apple" does: that is read by itself."""
        first, *rest = [fold(piece.group()) for piece in pieces_of(phrase)]
        if not rest:
            return False
        if THINGS[INDEX[value]].kind == "drink" and any(m.value == "glass" for m in self._phrases.get((first,), ())):
            return False  # "glass of wine"
        ends = len(rest) - (self.language == "en")  # the last word is the noun itself: "ice cream"
        says_look = any(m.kind == "look" for w in (first, *rest[:ends]) for m in self._phrases.get((w,), ()))
        is_name = any(m.value == value for m in self._phrases.get(tuple(rest), ()))
        return says_look or (is_name and any(m.kind == "size" for m in self._phrases.get((first,), ())))

    def _stem_of(self, word: str) -> str:
        """A word's stem, folded after it is stemmed: stemmers know their language's accents."""
        if self.language == "ko":
            return fold(_KOREAN_PARTICLE.sub("", word))
        return fold(self._stemmer.stemWord(word.lower()) if self._stemmer else word)

    def exact_share(self, text: str) -> float:
        """The share of a text's letters in words that the table has as they are written."""
        words = [fold(piece.group()) for piece in pieces_of(unicodedata.normalize("NFC", text))]
        position = letters = 0
        while position < len(words):
            lengths = range(min(self._longest, len(words) - position), 0, -1)
            length = next((n for n in lengths if tuple(words[position : position + n]) in self._phrases), 0)
            letters += sum(map(len, words[position : position + length]))
            position += max(1, length)
        return letters / max(1, sum(map(len, words)))

    def written_share(self, text: str) -> float:
        """The share of a text's letters in words that the table has with the same accents, in whatever phrases."""
        words = [piece.group().lower() for piece in pieces_of(unicodedata.normalize("NFC", text))]
        return sum(len(word) for word in words if word in self._written) / max(1, sum(map(len, words)))

    def matches(self, text: str) -> list[Match]:
        """The phrases of a text, in order, each as long as there is one in the table; commas are matches too."""
        return list(self._matches(text))

    def _matches(self, text: str) -> Iterator[Match]:
        text = unicodedata.normalize("NFC", text)
        spans = self._with_numbers(text)
        for index, span in enumerate(spans):
            yield span.match
            until = spans[index + 1].start if index + 1 < len(spans) else len(text)
            if re.search(r"[,;:.،、，；。]", text[span.end : until]):
                yield Match(",", (_COMMA,))

    def _spans(self, text: str) -> Iterator[_Span]:
        """The longest phrases of a text, in order."""
        pieces = [piece for m in pieces_of(text) for piece in self._pieces_of(m.group(), m.start())]
        position = 0
        while position < len(pieces):
            length, meanings, is_exact = self._phrase_at(pieces, position)
            start, after = pieces[position][2], position + max(1, length)
            numeral = numeral_at(text, start)
            if numeral and not (is_exact and numeral.end <= pieces[after - 1][3] and (numeral.value or length > 1)):
                meanings = (Meaning("number", numeral.value),) if numeral.value else (_LEFT_OUT,)
                after = next((k for k in range(position, len(pieces)) if pieces[k][2] >= numeral.end), len(pieces))
            yield _Span(start, pieces[after - 1][3], Match(text[start : pieces[after - 1][3]], meanings, is_exact))
            position = after

    def _phrase_at(self, pieces: list[_Piece], position: int) -> _Reach:
        """The longest phrase at a place, unless its last word begins a longer one.

        Of "on the moon cakes" that is "on the", and of "sitting on top of" it is "sitting".
        """
        length, meanings, is_exact = self._longest_at(pieces[position : position + self._longest])
        last = position + length - 1
        is_whole = self.language == "ja" and any(m.kind == "relation" for m in meanings)  # の前に止まっている
        if length > 1 and not is_whole and all(meaning.kind != "thing" for meaning in meanings):
            further, longer_meanings, is_certain = self._longest_at(pieces[last : last + self._longest])
            kinds = {meaning.kind for meaning in longer_meanings}
            if further > 1 and ("thing" in kinds or (is_certain and kinds & {"relation", "place"})):
                return self._longest_at(pieces[position:last])
        return length, meanings, is_exact

    def _pieces_of(self, word: str, start: int) -> list[_Piece]:
        """A word, folded, and where it stands; apart from an "and" or "with" that is written together with it."""
        joint = joints.search(word) if (joints := _JOINTS.get(self.language)) else None
        is_known = joint is None or (fold(word),) in self._phrases
        if joint and not is_known and (fold(word[: joint.start()]),) in self._phrases:
            return [self._piece(word[: joint.start()], start), self._piece(joint.group(), start + joint.start())]
        return self._compound(word, start) or self._diminutive(word, start) or [self._piece(word, start)]

    def _diminutive(self, word: str, start: int) -> list[_Piece]:
        """The noun of a diminutive, after "small"; none unless no table has the word, and one has its noun."""
        piece = self._piece(word, start)
        if (piece[1],) in self._phrases or self._longest_at([piece])[0]:
            return []
        for base, is_plural in bases(word, self.language):
            thing = next((m for m in self._phrases.get((base,), ()) if m.kind == "thing" and not m.is_plural), None)
            if thing is not None:
                forms = listed_plurals(self.language).get(thing.value, ()) if is_plural else ()
                noun = next((form[0] for form in forms if len(form) == 1), base)
                small = self._first["size", "small"]
                return [(small, fold(small), start, start), (noun, noun, start, start + len(word))]
        return []

    def _compound(self, word: str, start: int) -> list[_Piece]:
        """The parts of "Holztisch"; none unless it is a material and a noun that is known, and not known itself."""
        if self.language not in _MATERIALS or (fold(word),) in self._phrases:
            return []
        for material, look in _MATERIALS[self.language].items():
            noun = word[len(material) :]
            meanings = self._phrases.get((fold(noun),), ())
            if word.lower().startswith(material) and any(m.kind in ("thing", "background") for m in meanings):
                return [(look, fold(look), start, start + len(material)), self._piece(noun, start + len(material))]
        return []

    @staticmethod
    def _piece(word: str, start: int) -> _Piece:
        return word, fold(word), start, start + len(word)

    def _with_numbers(self, text: str) -> list[_Span]:
        """The phrases of a text, with numbers that stand side by side, or before a unit, as one."""
        result: list[_Span] = []
        for span in self._spans(text):
            previous = result[-1] if result else None
            joint = self._joint(text, previous, span) if previous else None
            if previous and _is_one_word(previous, span, self.language):
                result[-1] = _Span(previous.start, span.end, Match(text[previous.start : span.end], (), False))
            elif previous is None or joint is None:
                result.append(span)
            elif joint is _LEFT_OUT:  # of "a 100 dollar bill", the number alone
                result[-1:] = [_Span(previous.start, previous.end, Match(previous.match.text, (joint,))), span]
            else:
                result[-1] = _Span(previous.start, span.end, Match(text[previous.start : span.end], (joint,)))
        return result

    def _joint(self, text: str, previous: _Span, span: _Span) -> Meaning | None:
        """What a number means together with what comes next; None if it stands by itself."""
        number, gap = _number_alone(previous.match), text[previous.end : span.start]
        is_compound = len(gap) == 1 and gap in "-‐‑"
        if number is None or (gap.strip() and not is_compound):
            return None
        if following := _number_alone(span.match):
            return Meaning("number", product((number.value, following.value), gap))
        word, thing = span.match.of("word"), span.match.of("thing")
        if is_compound:  # "three-legged"
            return None if thing and thing.is_plural and span.match.is_exact else _UNIT
        if (
            thing
            and number.value == UNCOUNTABLE
            and not thing.is_plural
            and _begins_with_unit(span.match.text, self._phrases)
        ):
            return _LEFT_OUT
        return _UNIT if word and word.value == "unit" and not thing else None

    def _longest_at(self, pieces: Sequence[_Piece]) -> _Reach:
        words, stems = [p[1] for p in pieces], [self._stem(p[0]) for p in pieces]
        for length in range(len(words), 0, -1):
            whole = tuple(words[:length])
            # A noun's own stem may be shorter than it, and what is left of its case is the noun.
            lookups = ((self._phrases, whole), (self._phrases, (*whole[:-1], stems[length - 1])))
            for table, key in (*lookups, (self._stems, tuple(stems[:length]))):
                is_exact = key == whole and table is self._phrases
                meanings = [m for m in table.get(key, ()) if is_exact or self._is_form(pieces[:length], m, key)]
                if meanings and not (self.language == "ja" and _ends_in_relation(words, length, self._phrases)):
                    several = () if is_exact else self._several(words[length - 1], meanings, tuple(stems[:length]))
                    return length, tuple(several or meanings), is_exact
        return 0, (), False

    def _several(self, word: str, meanings: Sequence[Meaning], key: tuple[str, ...]) -> list[Meaning]:
        """What a case form of a noun that the table lacks means, if it is a plural; otherwise nothing."""
        plurals = [form for m in meanings for form in self._forms.get((key, m._replace(is_plural=True)), ())]
        is_plural = is_case_of_plural(word, plurals, self.language)
        # In Russian and Polish, whatever form has the stem may have been entered last.
        is_known = self.language not in ("ru", "pl")
        return [m._replace(is_plural=(is_known and m.is_plural) or (is_plural and m.kind == "thing")) for m in meanings]

    def first_words(self, kind: str, value: str) -> str:
        """The usual words for a meaning: singular and, after a slash, plural."""
        return self._first[kind, value]

    def words_of(self, kind: str) -> list[str]:
        """The phrases that have a meaning of a kind, for messages."""
        gap = "" if self.language in ("zh", "ja") else " "
        return [gap.join(key) for key, meanings in self._phrases.items() if any(m.kind == kind for m in meanings)]


_COMMA: Final = Meaning("word", "and")
_LEFT_OUT: Final = Meaning("word", "left out")
_UNIT: Final = Meaning("word", "unit")
"""What a number means together with its unit."""


class _Span(NamedTuple):
    """A phrase and where it stands in its text."""

    start: int
    end: int
    match: Match


def _begins_with_unit(text: str, phrases: _Table) -> bool:
    first = fold(next(pieces_of(text)).group())
    return any(m.value == "unit" for m in phrases.get((first,), ()))


def _ends_in_relation(words: Sequence[str], length: int, phrases: _Table) -> bool:
    """Whether the Japanese particle that ends a phrase begins a relation, as in 木の下に ("under a tree")."""
    if length < 2 or words[length - 1] != "の" or tuple(words[: length - 1]) not in phrases:
        return False
    ends = range(length + 1, len(words) + 1)
    return any(m.kind == "relation" for end in ends for m in phrases.get(tuple(words[length - 1 : end]), ()))


def _number_alone(match: Match) -> Meaning | None:
    """The number that a phrase means, if it means nothing else."""
    return match.meanings[0] if match.meanings and all(m.kind == "number" for m in match.meanings) else None


def _is_near(word: str, form: str, language: str) -> bool:
    """Whether little of a form is missing in a word that has its stem."""
    common = next((k for k, pair in enumerate(zip(word, form, strict=False)) if pair[0] != pair[1]), len(word))
    is_cut = len(word) < len(form) and language in _SHORTEST_IS_SINGULAR
    is_other = language in ("es", "pt") and {word[-1:], form[-1:]} == {"o", "e"}  # "hombro", "hombre"
    is_other |= language == "pl" and form.endswith("o") and word.endswith(("y", "e"))  # "taco", "taca"
    is_longer = len(form) <= 3 and len(word) - len(form) > _LONGEST_ENDING.get(language, 9)  # "sel", "selle"
    return not (is_cut or is_other or is_longer) and len(form) - min(common, len(form)) <= 3


def _is_one_word(previous: _Span, span: _Span, language: str) -> bool:
    """Whether neighbours that no table has are one word, in languages without spaces."""
    is_unknown = not previous.match.meanings and not span.match.meanings
    return language in ("zh", "ja") and is_unknown and previous.end == span.start


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
def listed_plurals(language: str) -> dict[str, list[tuple[str, ...]]]:
    """By thing, the folded forms that a table has as its plurals: "Brillen", and not "glasses", which are one pair."""
    plurals: dict[str, list[tuple[str, ...]]] = {}
    for kind, value, words in _lines(language):
        for phrase in words.split(",") if kind == "thing" else ():
            singular, *several = (tuple(fold(p.group()) for p in pieces_of(f)) for f in phrase.split(" / "))
            plurals.setdefault(value, []).extend(form for form in several if form != singular)
    return plurals


@cache
def phrasebook(language: str) -> Phrasebook:
    """The phrasebook of one of TONGUES, loaded once."""
    return Phrasebook(language)
