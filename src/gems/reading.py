"""What checks read in a text of any language: its content words, numbers, quotations, negations and colours."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from gems.languages import LANGUAGES, Language, Words, fold, language_of, pieces_of, without_particle
from gems.wording import quoted_texts

__all__ = ["Number", "Reading", "Token", "alike", "negation_in", "plain_text", "read"]


@dataclass(frozen=True)
class Token:
    """A word of a text."""

    word: str
    """Folded, see ``gems.languages.fold``."""
    text: str
    """As it was written."""
    clause: int
    """Counts the clauses: punctuation ends one."""
    is_quoted: bool
    is_joined: bool = False
    """Whether a hyphen joins it with the next one."""

    @property
    def is_name(self) -> bool:
        """Whether it has a capital letter."""
        return self.text != self.text.lower()


@dataclass(frozen=True)
class Number:
    """A number of things."""

    value: int
    position: int
    """Index of its token."""
    is_measure: bool = False
    """Whether it says how old, late, long or large something is."""


_CLAUSE_END: Final = re.compile(r"[.,;:!?()、。，；：！？—–…|]")
_UNITS: Final = Words(
    "am pm a p o clock oclock uhr h heures hora horas jahre jahren jahr years year yr yrs ans anos "
    "years-old mm cm m km "
    "percent k px mph kmh st nd rd th degrees degree inch inches feet ft meter meters metre metres minutes century "
    "лет год года 岁 歳 時 点 点钟 % °"
)
_NEGATED_BY: Final = re.compile(
    r"\b(?:free|devoid|empty|clear|absence|lack|instead) of\b|\b\w+-free\b|\brather than\b"
    r"|\b(?:lacking|lacks|avoid\w*|exclud\w*|omit\w*)\b",
    re.IGNORECASE,
)
_DIGITS: Final = re.compile(r"(?a:\d){1,9}")
_CONTRACTION: Final = re.compile(r"n['’]t\b", re.IGNORECASE)


class Reading:
    """A text as checks read it. Use ``read``, which remembers what it has read."""

    def __init__(self, text: str, language: Language | None = None) -> None:
        self.text = plain_text(_CONTRACTION.sub(" not", text))
        self.quotations = [quotation.rstrip(".,;:!?") or quotation for quotation in quoted_texts(self.text)]
        self.language = language or language_of(_without(self.text, quoted_texts(self.text)) or self.text)
        self.tokens = list(_tokens(self.text, quoted_texts(self.text)))
        self.words = [token.word for token in self.tokens]

    @cached_property
    def numbers(self) -> list[Number]:
        """The numbers of things in it, in order; articles that are also the number one count as one."""
        return [*_spaced_numbers(self)] if self.language.spaced else [*_unspaced_numbers(self)]

    @cached_property
    def values(self) -> frozenset[int]:
        """The numbers in it."""
        in_words = (_DIGITS.findall(token.word) for token in self.tokens if not token.is_quoted)  # "30x20", "1920s"
        return frozenset(
            [*(n.value for n in self.numbers), *(int(digits) for numerals in in_words for digits in numerals)]
        )

    @cached_property
    def content(self) -> list[int]:
        """Indexes of the words that ask for something: no function words, numbers or negations, nothing quoted."""
        skipped = {number.position for number in self.numbers} | self.asides
        return [i for i in range(len(self.tokens)) if i not in skipped and self._is_content(i)]

    @cached_property
    def content_places(self) -> frozenset[int]:
        """``content``, to ask whether a word is in it."""
        return frozenset(self.content)

    @cached_property
    def asides(self) -> frozenset[int]:
        """Indexes of what a text says about its writer, and of what the image is for."""
        by_clause: dict[int, list[int]] = {}
        for i, token in enumerate(self.tokens):
            by_clause.setdefault(token.clause, []).append(i)
        find = _aside if self.language.name == "en" else _purpose
        return frozenset(i for clause in by_clause.values() for i in find(self, clause))

    def _is_content(self, index: int) -> bool:
        token, language = self.tokens[index], self.language
        if token.is_quoted or token.word in language.negations:
            return False
        if token.word.isascii() and language.name not in _LATIN_LETTERS:  # a name amid another script
            return len(token.word) > 2 and not token.word.isdecimal()
        if not language.spaced and _HIRAGANA.match(token.word):
            return False
        is_long = len(token.word) >= _SHORTEST.get(language.name, 3)
        return is_long and token.word not in language.function and not token.word.isdecimal()

    @cached_property
    def negations(self) -> list[int]:
        """Indexes of the words that negate."""
        return [
            i for i, token in enumerate(self.tokens) if token.word in self.language.negations and not token.is_quoted
        ]

    @cached_property
    def is_negated(self) -> bool:
        """Whether something in it is negated."""
        if (pattern := _UNSPACED_NEGATIONS.get(self.language.name)) is not None:
            return bool(pattern.search(self.text))
        return bool(self.negations) or negation_in(self)

    @cached_property
    def negated(self) -> list[tuple[int, ...]]:
        """What is negated: for each thing, the indexes of its content words; only in languages with spaces."""
        return (
            [group for start in self.negations for group in self._negated_after(start)] if self.language.spaced else []
        )

    def _negated_after(self, start: int) -> Iterator[tuple[int, ...]]:
        group: list[int] = []
        for i in range(start + 1, min(len(self.tokens), start + 9)):
            token = self.tokens[i]
            joins = token.word in _JOINING
            is_new = joins and self.words[i + 1 : i + 2] == ["the"]  # "no phones, and the walls are bare"
            is_outside = token.clause != self.tokens[start].clause
            ends = is_outside or is_new or token.word in _ENDING or i in self.negations
            if (joins or ends) and group:
                yield tuple(group)
                group = []
            if ends:
                return
            if i in self.content_places:
                group.append(i)
        if group:
            yield tuple(group)

    def colours(self, indexes: Collection[int] | None = None, *, shades: bool = True) -> frozenset[str]:
        """The colours named, in the whole text or at these indexes."""
        positions = range(len(self.tokens)) if indexes is None else indexes
        words = [self.tokens[i].word for i in positions if not self.tokens[i].is_quoted]
        if not self.language.spaced:
            words = list(_NO_COLOURS.sub("", "".join(words)))
        return frozenset(c for word in words for c in self.language.colours_of(word, shades=shades))

    def has(self, word: str) -> bool:
        """Whether it has a word in any form."""
        return any(self._forms_of(word))

    def places_of(self, word: str) -> list[int]:
        """Indexes of a word in all its forms."""
        forms = set(self._forms_of(word))
        return [i for i, other in enumerate(self.words) if other in forms] if forms else []

    def _forms_of(self, word: str) -> Iterator[str]:
        """Those of its words that are forms of a word, some perhaps twice."""
        return (other for key in _keys(word) for other in self._by_key.get(key, ()) if alike(word, other))

    @cached_property
    def _by_key(self) -> dict[str | int, list[str]]:
        """Its different words by their ``_keys``: a long text is not searched from end to end for each word."""
        by_key: dict[str | int, list[str]] = {}
        for word in self.vocabulary:
            for key in _keys(word):
                by_key.setdefault(key, []).append(word)
        return by_key

    @cached_property
    def vocabulary(self) -> Mapping[str, None]:
        """Its different words, in order."""
        return dict.fromkeys(self.words)

    @cached_property
    def joint(self) -> str:
        """Its words written together."""
        return "".join(self.words)

    def spell(self, indexes: Collection[int]) -> list[str]:
        """The words at indexes as they were written; neighbours are joined."""
        runs: list[list[int]] = []
        for i in sorted(indexes):
            if runs and i == runs[-1][-1] + 1:
                runs[-1].append(i)
            else:
                runs.append([i])
        joint = " " if self.language.spaced else ""
        return list(dict.fromkeys(joint.join(self.tokens[i].text for i in run) for run in runs))


@lru_cache(maxsize=512)
def read(text: str, language: Language | None = None) -> Reading:
    """The reading of a text, in its own language or in the one of the text that it is taken from."""
    return Reading(text, language)


_LATIN_LETTERS: Final = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "tr", "xx")
_SHORTEST: Final = {"en": 2, "ar": 2, "hi": 2, "ko": 1, "zh": 1, "ja": 1, "xx": 4}
"""Letters of the shortest content words; three in other languages."""
_HIRAGANA: Final = re.compile("[\u3040-\u309f\u30fc]")
_NO_COLOURS: Final = re.compile(
    "白天|白昼|黄昏|黑夜|黑暗|空白|青[年春蛙]|粉[丝末]|黑板|黄河|红绿灯|白领|茶(?!色)|桃(?!色)|橙(?!色)|"
    "橘(?![色猫])|紫禁城|面白|灰皿|赤ちゃん"
)
_JOINING: Final = Words("or and nor oder und noch ou et ni o y e и или ни و أو और या")
_ENDING: Final = Words(
    "in on at with by under over behind beside near from but around during while in im am auf mit bei "
    "unter uber dans only just instead "
    "sur avec en con sobre mais pero aber ma no na в на с под но is are except apart ausser кроме"
)


def plain_text(text: str) -> str:
    """The text with composed characters, plain quotation marks for apostrophes, and single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).replace("’", "'").split())


def _without(text: str, parts: Sequence[str]) -> str:
    for part in parts:
        text = text.replace(part, " ")
    return text if re.search(r"[^\W\d_]", text) else ""


def _tokens(text: str, quotations: Sequence[str]) -> Iterator[Token]:
    """The words, each with its clause; hyphens and apostrophes separate words."""
    quoted_ranges = [(start, start + len(q)) for q in quotations for start in [text.find(q)] if start >= 0]
    clause = position = 0
    pieces = [*pieces_of(text)]
    for piece in pieces:
        start = piece.start()
        clause += bool(_CLAUSE_END.search(text[position:start]))
        position = piece.end()
        is_quoted = any(a <= start < b for a, b in quoted_ranges)
        is_joined = piece is not pieces[-1] and text[position : position + 1] == "-"
        yield Token(fold(piece.group()), piece.group(), clause, is_quoted, is_joined)


def _spaced_numbers(reading: Reading) -> Iterator[Number]:
    for i, token in enumerate(reading.tokens):
        if token.is_quoted:
            continue
        value = reading.language.number(token.word)
        if value is None and token.word.isascii():
            value = _FOREIGN.get(token.word) if reading.language.name not in _LATIN_LETTERS else None
        if value is None:
            continue
        following = reading.words[i + 1] if i + 1 < len(reading.words) else ""
        if reading.language.name == "ko" and not token.word.isdecimal() and not following:
            continue
        yield Number(value, i, is_measure=following in _UNITS or _names_a_kind(reading, i))


def _names_a_kind(reading: Reading, index: int) -> bool:
    """Whether a number is part of an English adjective: "a two-storey house"; "twenty-three" is a number."""
    is_joined = reading.tokens[index].is_joined and reading.language.name == "en"
    return is_joined and reading.language.number(reading.words[index + 1]) is None


_FOREIGN: Final = LANGUAGES["en"].numbers


def _unspaced_numbers(reading: Reading) -> Iterator[Number]:
    language, words, i = reading.language, reading.words, 0
    while i < len(words):
        end, value = i, 0
        while end < len(words) and words[end] in language.numbers and end - i < 3:
            digit = language.numbers[words[end]]
            value = (value or 1) * 10 if digit == 10 else value + digit if value % 10 == 0 else digit
            end += 1
        if words[i].isdecimal():
            end, value = i + 1, int(words[i][:9])
        following = words[end] if end < len(words) else ""
        if end > i and (
            words[i].isdecimal() or (following and following in language.counters) or words[i] in "两兩俩仨"
        ):
            yield Number(value, end - 1, is_measure=following in _UNITS)
        i = max(end, i + 1)


_WANTING: Final = Words(
    "want wants wanted need needs needed like love have having make create generate draw drawing get give paint whip "
    "design produce render show see imagine picture put do use"
)
_SPEAKERS: Final = Words("i we you me us")
_TELLING: Final = Words(
    "is are was were s loves love likes turns turning wants has needs said asked told thinks wrote runs "
    "opened open opening "
    "celebrating moved works keeps enjoys"
)
_OWNING: Final = Words("my our")


def _aside(reading: Reading, clause: list[int]) -> list[int]:
    """What one clause of an English text adds about the writer, or about what the image is for."""
    words = [reading.words[i] for i in clause]
    speaks = [k for k, word in enumerate(words) if word in _SPEAKERS]
    aside: list[int] = []
    if speaks and not any(reading.tokens[i].is_quoted for i in clause):
        wanting = [k for k, word in enumerate(words) if word in _WANTING and k > speaks[0]]
        aside += clause[: wanting[0] + 1] if wanting else clause[speaks[0] if speaks[0] > 2 else 0 :]
    owners = [k for k, word in enumerate(words[:4]) if word in _OWNING]
    if owners and any(word in _TELLING for word in words[owners[0] + 1 : owners[0] + 4]):
        aside += clause
    if " so that it " in f" {' '.join(words)} ":
        aside += clause[words.index("so") :]
    for k, word in enumerate(
        words
    ):  # "for my shop", "for the cover of my novel"; "I'd love a scene for a bedroom wall"
        is_ours = word in ("for", "on", "at", "to") and any(
            w in _OWNING for w in words[k + 1 : k + 6 if word == "for" else k + 2]
        )
        is_bare = word == "for" and speaks and not any(w not in LANGUAGES["en"].function for w in words[:k])
        if is_ours or is_bare:
            aside += clause[k:]
    return aside


_PURPOSES: Final = Words("fur pour para per для voor dla")
_OWNERS: Final = Words(
    "mein* unser* mon ma mes notre nos mi mis nuestr* mio mia nostr* meu minha noss* мо* наш* mijn onze "
    "ons moj* mojego nasz*"
)


def _purpose(reading: Reading, clause: list[int]) -> list[int]:
    """What one clause of another language says the image is for: from "für meine" to its end."""
    words = [reading.words[i] for i in clause]
    starts = [
        k for k, w in enumerate(words) if w in _PURPOSES and any(next_ in _OWNERS for next_ in words[k + 1 : k + 3])
    ]
    return clause[starts[0] :] if starts else []


# --- comparing ------------------------------------------------------------------------------------------------------

_IRREGULAR: Final = {
    "men": "man", "women": "woman", "mice": "mouse", "feet": "foot", "teeth": "tooth", "geese": "goose",
    "children": "child",
    "people": "person", "persons": "person", "leaves": "leaf", "knives": "knife", "wolves": "wolf", "wives": "wife",
    "lives": "life", "shelves": "shelf", "loaves": "loaf", "calves": "calf", "dice": "die", "worn": "wear",
    "wearing": "wear", "lit": "light", "shot": "shoot", "held": "hold", "grey": "gray", "colour": "color",
    "photograph": "photo", "cozy": "cosy", "watercolour": "watercolor", "armor": "armour",
    "photographic": "photo", "tshirt": "shirt",
    "carry": "carri", "carries": "carri", "carried": "carri", "carrying": "carri",
}  # fmt: skip
_SYNONYMS: Final = (
    "tiny small little mini miniature", "big large huge giant enormous massive gigantic",
    "old elderly aged ancient antique vintage", "light lighting glow illumination", "kid child toddler",
    "happy cheerful joyful smiling", "sad melancholy gloomy", "forest wood woodland woods", "street road lane",
    "sea ocean", "car automobile", "bike bicycle", "dawn daybreak sunrise", "dusk sunset sundown",
    "sleep asleep nap doze", "glasses spectacles eyeglasses", "cop police policeman officer", "couch sofa",
    "girl woman lady", "boy man guy", "empty desert vacant unoccupied", "bright luminous radiant",
    "wood timber", "stone rock",
    "dog puppy pup hound terrier retriever collie corgi poodle shiba husky beagle spaniel pug labrador bulldog",
    "dog dachshund dalmatian greyhound chihuahua pomeranian",
    "cat kitten tabby kitty", "shop store", "film movie", "cup mug", "jump leap", "run sprint", "watch observe",
    "ship boat vessel", "picture image", "yard garden", "fast quick rapid", "rain shower drizzle",
    "fog mist haze", "hill hillside", "mountain peak", "fall autumn", "ladybug ladybird",
    "text lettering writing inscription caption wording",
)  # fmt: skip
"""English words that a draft uses for one another."""
_SUFFIX: Final = re.compile(r"(?:ies|ied|ing|ers|est|ed|es|er|en|ly|s|y|e)$")


@lru_cache(maxsize=8192)
def alike(a: str, b: str) -> bool:
    """Whether two folded words are forms of one word, as far as their letters show."""
    if a == b:
        return True
    if "\uac00" <= a[0] <= "\ud7a3":  # Korean particles follow their word
        return (a.startswith(b) or b.startswith(a)) and abs(len(a) - len(b)) <= 2
    if not (a.isalpha() and b.isalpha()) or min(len(a), len(b)) < 3:
        return _root(a) == _root(b) and min(len(a), len(b)) > 1
    if _root(a) == _root(b) or _synonyms().get(_root(a), frozenset()) & _synonyms().get(_root(b), frozenset()):
        return True
    if "\u0600" <= a[0] <= "\u06ff":
        a, b = without_particle(a), without_particle(b)
    short, long = sorted((a, b), key=len)
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(short))
    inflected = common >= 4 and common >= 0.62 * len(long)
    beginning = _root(short) if len(_root(short)) > 4 else short
    compound = len(short) >= 4 and (long.startswith(beginning) or (len(short) > 4 and long.endswith(short)))
    return inflected or compound


@lru_cache(maxsize=8192)
def _keys(word: str) -> frozenset[str | int]:
    """What two different words share if they are ``alike``: one of these keys at least."""
    root, bare = _root(word), without_particle(word)
    beginnings = {word[:4], bare[:4], root[:4], word[:1] if "\uac00" <= word[:1] <= "\ud7a3" else root}
    return frozenset({root, *beginnings, f"-{word[-5:]}", f"-{bare[-5:]}", *_synonyms().get(root, ())})


@lru_cache(maxsize=1)
def _synonyms() -> dict[str, frozenset[int]]:
    """The groups of ``_SYNONYMS`` that a root is in."""
    groups: dict[str, frozenset[int]] = {}
    for number, words in enumerate(_SYNONYMS):
        for word in words.split():
            groups[_root(word)] = groups.get(_root(word), frozenset()) | {number}
    return groups


@lru_cache(maxsize=8192)
def _root(word: str) -> str:
    word = _IRREGULAR.get(word, word)
    if not word.isascii():
        return word
    for _ in range(2):
        shorter = _SUFFIX.sub("", word)
        if len(shorter) < 3 or word.endswith("ss"):
            break
        word = shorter
        if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls":
            word = word[:-1]
    return word


_UNSPACED_NEGATIONS: Final = {
    "zh": re.compile(
        "[没沒]|(?<![特个個区性级告])别|不(?![同锈断规规远久少仅只过错])|[无無](?![论限数尽边花論]|人机)|"
        "勿|(?<!非)非(?![常洲凡])"
    ),
    "ja": re.compile("ない|なし|なく|ません|無し|無人|ずに|抜き|以外"),
}
"""How languages without spaces negate; characters that belong to other words are left out."""


def negation_in(reading: Reading) -> bool:
    """Whether a text says in English that something is absent: "free of", "lacking", "sugar-free"."""
    return bool(_NEGATED_BY.search(reading.text)) or fold("without") in reading.words
