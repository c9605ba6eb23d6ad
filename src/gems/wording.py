"""The words of a prompt: its check, quotations, content words, stems, and the overlap of two bags of words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

from gems.errors import InputError

__all__ = [
    "ELISION",
    "MAX_PROMPT_LENGTH",
    "STOP_WORDS",
    "check_prompt",
    "content_words",
    "hyphenated_words",
    "jaccard",
    "quoted_texts",
    "request_signature",
    "stem",
]

MAX_PROMPT_LENGTH: Final = 4000
"""Characters. Longer than any text encoder reads, short enough to be a prompt."""

_NUMBER_WORDS: Final = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
)
_NUMBERS: Final = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split(), start=2)} | {
    "pair": "2",
    "couple": "2",
    "dozen": "12",
}
_ARTICLES: Final = frozenset({"a", "an", "the", "one", "1"})
"""Articles and "one" add no constraint."""

_WORD: Final = re.compile(r"\w+")
_HYPHENATED_WORD: Final = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
ELISION: Final = r"(?:[‘’'](?:[stnkmr]|em|tis|twas|til)|(?<=the )[‘’']\d0s)(?=[\s,;:.!?])"
"""A word that begins with an apostrophe, which opens no quotation: Dutch "'s morgens" and "'t huis", "the '60s"."""
_QUOTATION: Final = re.compile(
    r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|「([^」]+)」|『([^』]+)』|"
    rf"(?<!\w)(?!{ELISION})[‘']([^‘’']+(?:[’']\w+[^‘’']*)*)[’'](?!\w)"
)


def check_prompt(prompt: object) -> str:
    """The user's prompt with its white space tidied.

    Raises:
        InputError: It is not text, is empty or too long, or has control characters.
    """
    if not isinstance(prompt, str):
        raise InputError("the input needs a prompt: a text that says what the image should show")
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InputError(f"the prompt has {len(prompt):,} characters; the limit is {MAX_PROMPT_LENGTH:,}")
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t" for c in prompt):
        raise InputError("the prompt holds control characters; remove them and try again")
    tidy = " ".join(prompt.split())
    if not tidy:
        raise InputError("the prompt is empty; say what the image should show")
    return tidy


def quoted_texts(text: str) -> list[str]:
    """The texts between quotation marks, in order, each once."""
    quotations = (next(filter(None, groups)).strip() for groups in _QUOTATION.findall(text))
    return [quotation for quotation in dict.fromkeys(quotations) if quotation]


def content_words(text: str) -> list[str]:
    """The words in order, in lower case, with numbers as digits and without articles."""
    words = (_NUMBERS.get(word, word) for word in _WORD.findall(text.lower()))
    return [word for word in words if word not in _ARTICLES]


def request_signature(prompt: str) -> tuple[str, ...]:
    """What a prompt asks for, in whatever wording and order: its things, their attributes and its numbers, sorted.

    "six red cars and a dog" and "A dog, with 6 cars that are red" have the same signature. How things relate is left
    out, because the same relation is put in several ways: left of and right of, chasing and chased by.
    """
    words = (word for word in content_words(prompt) if word not in STOP_WORDS and word not in _FILLERS)
    return tuple(sorted({stem(word) for word in words}))


def hyphenated_words(text: str) -> list[str]:
    """The words in order, in lower case; a hyphenated compound is one word."""
    return _HYPHENATED_WORD.findall(text.lower())


def stem(word: str) -> str:
    """The word without an English plural ending, for comparing singular with plural. It need not be a real word."""
    for endings in (("s",), ("ie", "e", "y")):
        for ending in endings:
            if len(word) - len(ending) > 2 and word.endswith(ending) and not word.endswith("ss"):
                word = word.removesuffix(ending)
                break
    return word


def jaccard(a: Counter[str], b: Counter[str] | Sequence[str]) -> float:
    """Jaccard similarity of two bags of words, in [0, 1]; 1 if both are empty."""
    b = b if isinstance(b, Counter) else Counter(b)
    union = (a | b).total()
    return (a & b).total() / union if union else 1.0


STOP_WORDS: Final = frozenset(
    hyphenated_words(
        "a an the and or of to in on at by with from for as is are be it its that which this these there one each some "
        "any left right front behind under over above below top bottom next near beside between inside outside through "
        "across against please draw show make create image picture photo me"
    )
)
"""Stop words and prepositions; losing them does not change the request."""
_FILLERS: Final = frozenset(
    hyphenated_words(
        "i we you want need would like could can give add put also along together plus both all only just exactly "
        "precisely altogether total side other another containing featuring showing shows depicting depicts having has "
        "have where while they them their who whose colored coloured"
    )
)
"""More words that say how something is asked for, not what."""
