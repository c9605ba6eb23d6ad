"""Reads yes or no from an answer in words, if it clearly says one of them and takes nothing back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from gems.graph.state import Answer

__all__ = ["plain_words", "takes_back", "yes_or_no"]

_YES: Final = (
    "yes", "yep", "yeah", "true", "correct", "pass", "passed", "passes", "met", "satisfied", "fulfilled", "confirmed"
)  # fmt: skip
_NO: Final = (
    "no", "nope", "false", "untrue", "incorrect", "wrong", "fail", "failed", "fails", "unmet", "absent", "not present",
    "not met", "not satisfied", "not fulfilled", "not correct", "not true", "not passed"
)  # fmt: skip
"""Words that an explanation may follow. What is there or missing may be what was asked for, or just that which must not
be, so "present" is no yes."""
_YES_MARKS: Final = "✅✓✔☑👍"
_NO_MARKS: Final = "❌✗✘✖👎"
_YES_ALONE: Final = frozenset({*_YES, *_YES_MARKS, "y", "1", "1.0", "ja", "oui", "sí", "да", "是", "はい"})
_NO_ALONE: Final = frozenset({*_NO, *_NO_MARKS, "n", "0", "0.0", "nein", "non", "нет", "否", "不是", "いいえ"})

_LABEL: Final = re.compile(r"(?:the |final |my )*(?:answer|verdict|result|assessment)\s*[:=]\s*")


def _leading(words: Iterable[str], marks: str) -> re.Pattern[str]:
    longest_first = "|".join(sorted(words, key=len, reverse=True))
    return re.compile(rf"(?:{longest_first})(?:\s*[,.:;!|(\[—–→\n\t{marks}]|\s+-+\s)|[{marks}]")


_LEADING_YES: Final = _leading(_YES, _YES_MARKS)
_LEADING_NO: Final = _leading(_NO, _NO_MARKS)

_TAKES_BACK: Final = re.compile(
    r"\b(?:but|however|(?:al)?though|except\w*|unless|despite|apart|instead|rather|otherwise|yet|wait|actually|correction"
    r"|maybe|perhaps|probabl[ey]|possibl[ey]|(?:un)?likely|might|may|could|would|should|seem\w*|appear\w*|guess\w*"
    r"|think|believe|assum\w+|suppose|doubt\w*|depend\w*|debatable|questionable|arguabl[ey]|ambiguous|contradict\w*"
    r"|un(?:sure|clear|certain|able)|hard|difficult|cannot|can't|couldn't|could not|cant)\b"
)
_IS_NO_YES: Final = re.compile(
    r"\b(?:not|no|none|never|nothing|nobody|nowhere|neither|nor|n|without|lack\w*|miss\w*|absent|false|fail\w*|wrong"
    r"|incorrect|untrue|unmet|nope|only|just|if|or|almost|nearly|most(?:ly)?|part(?:s|ly|ial|ially)?|half|somewhat"
    r"|sort of|kind of|ish|barely|hardly|scarcely|roughly|approximately|technically|incomplete\w*|fewer|less"
    r"|more than|too (?:many|few|much|small|large|big)|aber|nicht|kein\w*|nein|mais|pero|non"
    r"|(?:is|are|do|does|did|was|were|has|have|wo)nt)\b|n't\b|[?/不没無但" + _NO_MARKS + "]"
)
_IS_NO_NO: Final = re.compile(
    r"\b(?:yes|yep|yeah|y|true|correct|pass\w*|met|satisf\w+|sorry|tell|idea|problems?|issues?|errors?|fine|good|ok"
    rf"|okay|ja|oui)\b|[?/{_YES_MARKS}]"
)
_SHARE: Final = re.compile(r"(?<!\d)(?P<percentage>\d++(?:[.,]\d++)?)\s*+%|(?<![\d.,])0?[.,](?P<decimals>\d+)")


def yes_or_no(text: str) -> Answer:
    """What an answer says; unsure if it says neither yes nor no, both, or one of them with a reservation."""
    words = plain_words(text)
    words = words[match.end() :] if (match := _LABEL.match(words)) else words
    word = words.strip(" \t\n'([<").rstrip(" \t\n')]>.!,;:。、")
    # "!yes" is a negation in code, and "-1" a number.
    if word in _YES_ALONE:
        return "yes"
    if word in _NO_ALONE:
        return "no"
    for answer, leading, contradicts in (("yes", _LEADING_YES, _IS_NO_YES), ("no", _LEADING_NO, _IS_NO_NO)):
        if match := leading.match(word):
            rest = word[match.end() :]
            is_clear = not (contradicts.search(rest) or takes_back(rest) or _is_improbable(rest))
            return ("yes" if answer == "yes" else "no") if is_clear else "unsure"
    return "unsure"


def takes_back(text: str) -> bool:
    """Whether a text has words that make an answer before it less than certain."""
    return bool(_TAKES_BACK.search(plain_words(text)))


def plain_words(text: str) -> str:
    """The text in lower case and without emphasis and typographic quotes."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_QUOTES)
    return re.sub(r'[*_`"“”\ufe0f]', "", plain).strip()


_QUOTES: Final = str.maketrans("’‘", "''")


def _is_improbable(text: str) -> bool:
    """Whether a text states a share below a half."""
    for match in _SHARE.finditer(text):
        percentage = match["percentage"]
        share = float(percentage.replace(",", ".")) / 100 if percentage else float(f"0.{match['decimals']}")
        if share < 0.5:
            return True
    return False
