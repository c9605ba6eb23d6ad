"""Compares what a chat model says that words of the prompt became with the words themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cache, partial
from typing import Final, NamedTuple

from gems.languages import Words, fold
from gems.reading import Reading, alike, negation_in, read

__all__ = [
    "VAGUE",
    "affirms",
    "contradicts",
    "is_copied",
    "is_free_of",
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
    "stand* sit sits sitting seated lie lies lying laid hang hangs hanging rest* perch* run runs lean* "
    "shot shoot* thrown place* "
    "position* word words letter* text title style format overall feel feeling mood different drawn art "
    "artwork design* look* "
    "concept content element* version type kind kinds detail* quality background foreground view serve* "
    "appear* show* visible "
    "come comes coming fall falls falling go goes going take takes taking wait* see seen hold* wear* "
    "remain* color colour everything use uses using big small little large inscription "
    "running fly* flies lettering caption* label* reading reads saying says written writing wide high"
)
"""English words that a draft or a question may leave out: what they say is said by the words around them."""


def is_light(reading: Reading, index: int) -> bool:
    """Whether a word can be left out without a loss, where the words around it are there."""
    word = reading.words[index]
    return reading.language.name == "en" and (word in _LIGHT or (len(word) > 5 and word.endswith("ly")))


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
    starts = [
        i
        for i in range(len(words) - len(part) + 1)
        if words[i : i + len(part) - 1] == part[:-1] and _ends_alike(words[i + len(part) - 1], part[-1])
    ]
    return frozenset(i for start in starts for i in range(start, start + len(part)))


def _ends_alike(word: str, other: str) -> bool:
    """Whether the last words of two runs are the same; in some languages particles are written together with it."""
    return word == other or (
        not word.isascii() and len(other) > 1 and word.startswith(other) and len(word) - len(other) < 3
    )


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
    word, joint = reading.words[index], "".join(other.words)
    if not reading.language.spaced:
        return word in joint
    compounds = ["".join(reading.words[i : i + 2]) for i in (index - 1, index) if 0 <= i < len(reading.words) - 1]
    return (
        other.has(word)
        or (len(word) > 4 and word in joint)
        or any(compound in other.words for compound in compounds)  # "sea shore", "seashore"
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
    "only just solely exclusively clean* plain* alone lone* solitary solo single pure* simple silent "
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
    return says_absent(text) or any(word in _ALONE for word in text.words)


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
        not _is_negated_at(text, i) and all(any(alike(d, w) for w in text.words[max(0, i - 4) : i]) for d in described)
        for i, word in enumerate(text.words)
        if alike(name, word)
    )


_ABSENT_BEFORE: Final = Words("absent missing removed omitted gone none nowhere lacking excluded unworn")
"""English words that say of what stands before them that it is absent."""
_LONGEST_ENTRY: Final = 4
"""Words up to which a clause may be an entry of a list: "free of cars, modern buildings and advertising"."""


def _is_negated_at(text: Reading, index: int) -> bool:
    clause = first = text.tokens[index].clause
    while first and sum(token.clause == first for token in text.tokens) <= _LONGEST_ENTRY:
        first -= 1
    before = [i for i in text.negations if i < index and (first <= text.tokens[i].clause <= clause or index - i < 5)]
    near = [text.words[i] for i in range(max(0, index - 8), index + 1) if first <= text.tokens[i].clause <= clause]
    after = [text.words[i] for i in range(index, min(len(text.words), index + 4)) if text.tokens[i].clause == clause]
    is_gone = any(word in _ABSENT_BEFORE for word in after) or after[1:2] == ["free"]
    return bool(before) or is_gone or negation_in(read(" ".join(near))) or any(map(_says_absent, near))


def misplaced(prompt: Reading, text: Reading) -> list[int]:
    """Indexes of numbers and colours of the prompt that the text gives to another thing, or of which it has another.

    In "a red cube and two balls", red is about the cube, and two about the balls. Only for English texts.
    """
    if prompt.language.name != "en" or text.language.name != "en":
        return []
    pairs = [(i, noun, (prompt.words[i], prompt.words[noun])) for i, noun in _pairs(prompt)]
    described = cache(partial(_described, text))
    # A prompt may say "two cars" a thousand times.
    first_places = {words: (i, noun) for i, noun, words in reversed(pairs)}
    has_another = {words: _has_another(prompt, *place, text, described) for words, place in first_places.items()}
    return [i for i, _, words in pairs if has_another[words]]


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
    run, content = index + 1, set(reading.content)
    while run < len(reading.words) and (
        reading.words[run] in ("and", "or") or reading.language.colours_of(reading.words[run])
    ):
        run += 1
    while run in content and reading.tokens[run].clause == reading.tokens[index].clause:
        if _is_noun_like(reading, run):
            return run
        run += 1
    return None


def _is_noun_like(reading: Reading, index: int) -> bool:
    word = reading.words[index]
    return not reading.language.colours_of(word) and (
        index + 1 not in reading.content or word.endswith("s") or reading.words[index + 1].endswith("ing")
    )


def _has_another(
    prompt: Reading, index: int, noun: int, text: Reading, described: Callable[[int], _Description]
) -> bool:
    """Whether each time that the text names the thing, it gives it another number or colour than the prompt."""
    places = [i for i, word in enumerate(text.words) if alike(prompt.words[noun], word)]
    places = [i for i in places if text.tokens[i - 1].is_joined or not _is_modifier(text, i)] or places
    value = prompt.language.number(prompt.words[index])
    required = prompt.language.colours_of(prompt.words[index])
    verdicts = [_differs(value, required, described(place)) for place in places]
    return bool(verdicts) and all(verdicts)


def _is_modifier(text: Reading, index: int) -> bool:
    """Whether a word may only say what kind the next thing is of, as in "chili oil"."""
    return index + 1 in text.content and not text.words[index].endswith("s")


class _Description(NamedTuple):
    """What stands in front of a thing, in its description."""

    numbers: frozenset[int]
    colours: frozenset[str]


def _described(text: Reading, place: int) -> _Description:
    before = [
        i
        for i in range(max(0, place - 4), place)
        if text.tokens[i].clause == text.tokens[place].clause
        and not any(_is_other_thing(text, k) for k in range(i + 1, place))
    ]
    numbers = [n for n in text.numbers if n.position in before]
    stated = {n.value for n in numbers if (_noun_after(text, n.position) or place) <= place}
    stated -= {1} if _may_pick_one(text) else set()
    return _Description(frozenset(stated), frozenset(text.colours(before)))


def _differs(value: int | None, required: AbstractSet[str], description: _Description) -> bool:
    if value is not None:
        return bool(description.numbers) and value not in description.numbers and value != 1
    return bool(description.colours) and not description.colours & required


def _may_pick_one(text: Reading) -> bool:
    """Whether "one" in a question may be one of several: "Does one man stand on the ladder?"."""
    return text.text.endswith("?") and "exactly" not in text.words


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
