"""Compares what a chat model says that words of the prompt became with the words themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cache, partial
from typing import Final, NamedTuple

from gems.languages import Language, Words, fold
from gems.reading import Reading, alike, negation_in, read

__all__ = [
    "AFTER_A_THING",
    "VAGUE",
    "affirms",
    "contradicts",
    "frees",
    "is_affirmed_at",
    "is_copied",
    "is_free_of",
    "is_gone",
    "is_light",
    "locate",
    "misplaced",
    "other_colour",
    "quotation_in",
    "same_language",
    "says_absent",
    "unmatched",
]


_LIGHT: Final = Words(
    "stand* sit sits sitting seated lie lies lying laid hang hangs hanging rest* perch* run runs lean* shot shoot* "
    "thrown place* position* word words letter* text title style format overall feel feeling mood different drawn art "
    "design* look* concept content element* version type kinds detail* quality background foreground view serve* "
    "appear* show* visible come comes coming fall falls falling go goes going take takes taking wait* see seen hold* "
    "wear* remain* color colour everything uses big small little large inscription running fly* flies caption* label* "
    "wide high"
)
"""English words that a draft or a question may leave out: what they say is said by the words around them."""


def is_light(reading: Reading, index: int) -> bool:
    """Whether a word can be left out without a loss, where the words around it are there."""
    return reading.language.name == "en" and reading.words[index] in _LIGHT


def locate(prompt: Reading, words: str) -> frozenset[int]:
    """The indexes of the prompt's words that a chat model's ``words`` name; empty if they name none.

    They may be inflected, in another order, and a few may be wrong.
    """
    own = read(words, prompt.language)
    if run := _run(prompt.words, own.words):
        return run
    required = [own.words[i] for i in own.content] or own.words
    matches = {word: [i for i, other in enumerate(prompt.words) if alike(word, other)] for word in required}
    hits = sum(bool(places) for places in matches.values())
    if not required or hits * 3 < len(matches) * 2:
        return frozenset()
    places = {i for indexes in matches.values() for i in indexes}
    inside = {i for i, word in enumerate(prompt.words) if word in own.words and min(places) - 3 <= i <= max(places) + 3}
    return frozenset(places | inside)


def _run(words: list[str], part: list[str]) -> frozenset[int]:
    if not part:
        return frozenset()
    starts = [i for i in range(len(words) - len(part) + 1) if words[i : i + len(part)] == part]
    return frozenset(i for start in starts for i in range(start, start + len(part)))


def is_copied(prompt: Reading, words: str) -> bool:
    """Whether words stand in the prompt as they are."""
    return bool(_run(prompt.words, read(words, prompt.language).words))


def same_language(a: Reading, b: Reading) -> bool:
    """Whether words of two texts can be compared by their letters."""
    return a.language.name == b.language.name


def unmatched(reading: Reading, indexes: Iterable[int], other: Reading) -> list[int]:
    """Those of a text's words that another text has in no form."""
    return [i for i in indexes if not _has(reading, i, other)]


def _has(reading: Reading, index: int, other: Reading) -> bool:
    word = reading.words[index]
    if not reading.language.spaced:
        return word in other.joint
    compounds = ["".join(reading.words[i : i + 2]) for i in (index - 1, index) if 0 <= i < len(reading.words) - 1]
    return (
        other.has(word)
        or (len(word) > 4 and word in other.joint)
        or any(compound in other.vocabulary for compound in compounds)  # "sea shore", "seashore"
    )


def quotation_in(quotation: str, text: str) -> bool:
    """Whether a quotation stands in a text, in whatever case and spacing."""
    return _letters(quotation) in _letters(text)


def _letters(text: str) -> str:
    return " ".join(re.sub(r"[\"“”„«»‘’'`]", "'", text).casefold().split())


# --- contradictions -------------------------------------------------------------------------------------------------

VAGUE: Final = Words(
    "several few some many multiple various numerous group crowd flock bunch row lots dozens hundreds "
    "thousands family herd "
    "mehrere einige viele paar gruppe plusieurs quelques beaucoup groupe varios varias muchos muchas "
    "grupo несколько много "
    "группа vari diversi molti gruppo vários várias muitos कई कुछ عدة بعض كثير 여러 몇 几 幾 些 许 許 多 "
    "群 数 複 team band class pile "
    "at least each every per both"
)
"""Words after which any number is right."""


def contradicts(words: Reading, text: Reading) -> bool:
    """Whether a text says another number or colour than the words that it stands for, or their opposite."""
    return _other_numbers(words, text) or _other_colours(words, text) or _opposite(words, text)


def _other_numbers(words: Reading, text: Reading) -> bool:
    required = {n.value for n in words.numbers}
    counts = [n for n in text.numbers if not text.tokens[n.position].is_joined]
    stated = {n.value for n in counts if n.value > 1 and text.words[n.position] != "both"}
    if not required or not stated or required & text.values or any(word in VAGUE for word in words.words):
        return False
    total = sum(n.value for n in text.numbers)
    sums = {total, max(stated) * min(stated)} | ({total + 1} if "and" in text.words else set())  # "a grey one and two"
    return not required & sums and max(required | stated) > 1


def _other_colours(words: Reading, text: Reading) -> bool:
    negated = {i for group in words.negated for i in group}
    affirmed = [i for i in range(len(words.tokens)) if i not in negated]
    required, stated = words.colours(affirmed, shades=False), text.colours(shades=False)
    return bool(required and stated and not required & text.colours() and not stated & words.colours(affirmed))


_ABSENT: Final = Words(
    "no not without none never nobody nothing free empty desert* absent absence lack* missing devoid "
    "clear bare* bald* blank unoccupied uninhabited abandoned instead minus zero un-peopled unpeopled "
    "vacant undisturbed unadorned unmarked unbranded wordless textless cloudless leafless treeless "
    "sleeveless beardless strapless faceless shirtless hatless shoeless barefoot nude removed omitted "
    "avoid* exclud* omit* except undecorated unlit untitled unlabeled unlabelled neither nor anywhere "
    "uncovered"
)
"""English words that say that something is absent."""
_ALONE: Final = Words(
    "only just solely exclusively clean* plain* alone own lone* solitary solo single pure* simple silent "
    "smooth entirely minimal* dry pristine untouched uncluttered closed off hidden cropped out"
)
"""English words after which nothing else is there, or from which it follows that something is absent."""
_FULL_OF: Final = re.compile(
    r"\b(?:with|including|featuring|full of|surrounded by|crowd\w*|packed|bustling|filled)\b", re.IGNORECASE
)
"""How an English phrase says that something is there besides."""
_AFFIRMS: Final = re.compile(
    r"^(?:is|are) there\b|^(?:does|do|can) .*\b(?:show|have|contain|include|wear|see|hold)\b"
    r"|\b(?:is|are) .*\b(?:visible|present|wearing|holding)\b"
    rf"|{_FULL_OF.pattern}",
    re.IGNORECASE,
)
"""How an English text says that something is there."""


def is_free_of(text: Reading) -> bool:
    """Whether an English text says of anything that it is absent."""
    return negation_in(text) or any(map(frees, text.words))


def frees(word: str) -> bool:
    """Whether an English word alone says of anything that it is absent."""
    return word in _ALONE or _says_absent(word)


def says_absent(text: Reading) -> bool:
    """Whether an English text says so in words that mean nothing else."""
    return negation_in(text) or any(map(_says_absent, text.words))


def _says_absent(word: str) -> bool:
    return word in _ABSENT or bool(_ABSENT_BY_FORM.fullmatch(word))


_ABSENT_BY_FORM: Final = re.compile(r".{3,}(?:less|free)|un(?!der|it|iv|iq|if|ic|til|ion)\w{4,}")
"""Words that say by their form that something is absent: cloudless, unbranded."""


def _opposite(words: Reading, text: Reading) -> bool:
    """Whether the words negate something that the text affirms."""
    if not words.is_negated or text.is_negated:
        return False
    if text.language.name == "en" and is_free_of(text):
        return False
    if same_language(words, text):
        return any(not unmatched(words, group, text) for group in words.negated)
    return text.language.name == "en" and bool(_AFFIRMS.search(text.text))


def affirms(text: Reading, thing: Sequence[str]) -> bool:
    """Whether a text says that there is a thing; its last word names it, those before it say more of it."""
    *more, name = thing
    described = [word for word in more if not word.endswith("ing")]
    return any(
        all(any(alike(d, w) for w in text.words[max(0, i - 4) : i]) for d in described) and not _is_negated_at(text, i)
        for i in text.places_of(name)
    )


def is_affirmed_at(text: Reading, name: str, places: Collection[int]) -> bool:
    """Whether a text names a thing at some of these places, and nowhere there says that it is absent."""
    mentions = [i for i in text.places_of(name) if i in places]
    return bool(mentions) and not any(_is_negated_at(text, i) for i in mentions)


_ABSENCE_WORDS: Final = Words("absent missing removed omitted gone nowhere excluded unworn")
_WITH_A_THING: Final = Words("a an the its his her their")


def is_gone(words: Sequence[str], index: int) -> bool:
    """Whether a word says in English of what stands before it that it is absent.

    "Missing a tooth" says it of the tooth.
    """
    return words[index] in _ABSENCE_WORDS and not any(word in _WITH_A_THING for word in words[index + 1 : index + 2])


AFTER_A_THING: Final = Words(
    "in on at with of under over behind beside near from through across against into onto above below to for that "
    "which who whose while cut and or nor as between around inside outside next front top"
)
"""English words that end what a thing is called."""
_LONGEST_ENTRY: Final = 4
"""Words up to which a clause may be an entry of a list: "free of cars, modern buildings and advertising"."""


def _is_negated_at(text: Reading, index: int) -> bool:
    clause = first = text.tokens[index].clause
    while first and sum(token.clause == first for token in text.tokens) <= _LONGEST_ENTRY:
        first -= 1
    before = [i for i in text.negations if i < index and (first <= text.tokens[i].clause <= clause or index - i < 5)]
    near = [text.words[i] for i in range(max(0, index - 8), index + 1) if first <= text.tokens[i].clause <= clause]
    after = [i for i in range(index, min(len(text.words), index + 4)) if text.tokens[i].clause == clause]
    is_absent = any(is_gone(text.words, i) for i in after) or [text.words[i] for i in after[1:2]] == ["free"]
    return bool(before) or is_absent or negation_in(read(" ".join(near))) or any(map(_says_absent, near))


def misplaced(prompt: Reading, text: Reading) -> list[int]:
    """Indexes of numbers and colours of the prompt that the text gives to another thing, or of which it has another.

    In "a red cube and two balls", red is about the cube, and two about the balls. In "two birds, one red and one blue"
    the two are shared out, and a text may have one of each. Only for English texts.
    """
    if prompt.language.name != "en" or text.language.name != "en":
        return []
    pairs = {i: (prompt.words[i], prompt.words[noun]) for i, noun in _pairs(prompt)}
    described = cache(partial(_described, text))
    verdicts = {pair: _has_another(prompt.language, *pair, text, described) for pair in set(pairs.values())}
    shared_out = sum(n.value for n in prompt.numbers if n.position not in pairs and not n.is_measure)
    return [
        i
        for i, pair in pairs.items()
        if verdicts[pair] and not (shared_out and prompt.language.number(prompt.words[i]) == shared_out)
    ]


def _pairs(reading: Reading) -> list[tuple[int, int]]:
    """Numbers and colours, each with the thing that it is about: the last content word of the run that follows."""
    counts = {n.position for n in reading.numbers if not n.is_measure}
    return [
        (i, noun)
        for i, token in enumerate(reading.tokens)
        if not token.is_quoted and (i in counts or reading.language.colours_of(token.word))
        for noun in [_noun_after(reading, i)]
        if noun is not None
    ]


def _noun_after(reading: Reading, index: int) -> int | None:
    """The thing that a number or colour is about; "black and white cat" has two colours of one thing."""
    if reading.tokens[index].is_joined:
        return index + 1  # "a six-panel comic"
    run = index + 1
    while run < len(reading.words) and (
        reading.words[run] in ("and", "or") or reading.language.colours_of(reading.words[run])
    ):
        run += 1
    while run in reading.content_places and reading.tokens[run].clause == reading.tokens[index].clause:
        if _is_noun_like(reading, run):
            return run
        run += 1
    return None


def _is_noun_like(reading: Reading, index: int) -> bool:
    word = reading.words[index]
    return not reading.language.colours_of(word) and (
        index + 1 not in reading.content_places or word.endswith("s") or reading.words[index + 1].endswith("ing")
    )


def _has_another(
    language: Language, word: str, noun: str, text: Reading, described: Callable[[int], _Description]
) -> bool:
    """Whether each time that a text names a thing, it gives it another number or colour than this word."""
    places = text.places_of(noun)
    places = [i for i in places if text.tokens[i - 1].is_joined or not _is_modifier(text, i)] or places
    value, colours = language.number(word), language.colours_of(word)
    return bool(places) and all(_differs(value, colours, described(place)) for place in places)


def _is_modifier(text: Reading, index: int) -> bool:
    """Whether a word may only say what kind the next thing is of, as in "chili oil"."""
    return index + 1 in text.content_places and not text.words[index].endswith("s")


class _Description(NamedTuple):
    """What stands in front of a thing."""

    numbers: AbstractSet[int]
    colours: AbstractSet[str]


def _described(text: Reading, place: int) -> _Description:
    before = [
        i
        for i in range(max(0, place - 4), place)
        if text.tokens[i].clause == text.tokens[place].clause
        and not any(_is_other_thing(text, k) for k in range(i + 1, place))
    ]
    numbers = [n for n in text.numbers if n.position in before]
    stated = {n.value for n in numbers if (_noun_after(text, n.position) or place) <= place}
    return _Description(stated, text.colours(before))


def _differs(value: int | None, colours: AbstractSet[str], description: _Description) -> bool:
    if value is not None:
        return bool(description.numbers) and value not in description.numbers and value != 1
    return bool(description.colours) and not description.colours & colours


def _is_other_thing(text: Reading, index: int) -> bool:
    """Whether a word ends the description of what follows: a preposition or an article begins another one.

    In "blue and white", the "and" does not.
    """
    is_between_colours = bool(text.colours([index - 1]) and index + 1 < len(text.words) and text.colours([index + 1]))
    return fold(text.words[index]) in _BREAKS and not is_between_colours


_BREAKS: Final = Words("and or with on in at by of under over behind beside near a an the to from is are next")


def other_colour(prompt: Reading, text: Reading) -> bool:
    """Whether a short English text about one thing gives it a colour that the prompt gives to another, or to none."""
    if prompt.language.name != "en" or text.language.name != "en":
        return False
    colours, bound = text.colours(shades=False), [(prompt.colours([i]), noun) for i, noun in _pairs(prompt)]
    present = [(own, noun) for own, noun in bound if own and text.has(prompt.words[noun])]
    has_own = any(own & colours for own, _ in present)
    return bool(colours and present) and not has_own
