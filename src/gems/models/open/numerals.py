"""Numbers as people write them: digits with marks between them, number words side by side, and units.

What the models cannot count (1,000, 2.5, 2-3, two dozen) is one number that means UNCOUNTABLE, never a part of it.
A number that counts no things ("3-legged", "100 dollar", "24-hour") is a word to leave out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from gems.models.open.things import MAX_COUNT

__all__ = ["UNCOUNTABLE", "Numeral", "numeral_at", "product"]

UNCOUNTABLE: Final = "above"
"""The value of numbers that the models cannot count: fractions, ranges, and all above twelve."""

_NUMERAL: Final = re.compile(
    r"(?P<whole>[1-9]\d{0,2}(?:[.,'’٬\s]\d{3})+(?!\d)|\d+|(?=[¼-¾⅐-⅞]))"
    r"(?P<more>[.,٫]\d+|\s?[/⁄]\s?\d+|\s?[¼-¾⅐-⅞])?(?P<range>\s?[-–—~〜～]\s?\d+)?"
)
_SPACED_LETTER: Final = r"(?![\u3005\u3040-\u30ff\u3400-\u9fff])[^\W\d_]"
_SUFFIX: Final = re.compile(rf"(?P<joint>[-‐‑–]?)(?P<word>(?:{_SPACED_LETTER})+(?:[-‐‑](?:{_SPACED_LETTER})+)*)")
_COUNTING_SUFFIX: Final = re.compile(r"x|х|ти|ми|мя|и|шт", re.IGNORECASE)
"""Endings of a number that counts things all the same: "3x", and the Russian "20-ти"."""
_KOREAN_UNIT: Final = re.compile("층|시|년|살|원|분|초|도|인용|세|킬로|미터|센티|월|일|번|호|학년")
_SIGN_BEFORE: Final = re.compile(r"[$€£¥₽₹₩#№第]\s?$")
_SIGN_AFTER: Final = re.compile(r"\s?[%°€$£¥₽₩]")


class Numeral(NamedTuple):
    """A number in digits: where its digits end, where all of it ends, and its value; empty if it counts no things."""

    digits_end: int
    end: int
    value: str


def numeral_at(text: str, start: int) -> Numeral | None:
    """The number in digits that begins at a place of a text; None if there is none."""
    match = _NUMERAL.match(text, start)
    if match is None:
        return None
    number = int(re.sub(r"\D", "", match["whole"]) or 0)
    value = UNCOUNTABLE if match["more"] or match["range"] or number > MAX_COUNT else str(number)
    end = match.end()
    if suffix := _SUFFIX.match(text, end):
        word = suffix["word"]
        if re.fullmatch("[kK]", word) and number not in (2, 4, 5, 8, 16):
            value = UNCOUNTABLE  # "10k cats", and not "4K"
        elif not (_COUNTING_SUFFIX.fullmatch(word) or (_is_hangul(word) and not _KOREAN_UNIT.match(word))):
            value = ""
        end = suffix.end()
    elif _SIGN_BEFORE.search(text, 0, start) or _SIGN_AFTER.match(text, end):
        value = ""
    return Numeral(match.end(), end, value)


def _is_hangul(word: str) -> bool:
    return "\uac00" <= word[0] <= "\ud7a3"


def product(values: Iterable[str], gap: str) -> str:
    """The value of two numbers side by side: "a hundred", "two dozen", "two groups of"."""
    first, second = values
    if UNCOUNTABLE in (first, second):
        return UNCOUNTABLE
    if second == "many" and first.isdecimal() and first != "1":
        return UNCOUNTABLE  # "dos docenas de"
    if not second.isdecimal() or not first.isdecimal() or (first == "1" and not gap.strip()):
        return second
    return UNCOUNTABLE
