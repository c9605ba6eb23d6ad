"""Reads yes or no from an answer in words, if it clearly says one of them and takes nothing back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from gems.graph.state import Answer

__all__ = ["is_one_word", "plain_words", "takes_back", "yes_or_no"]

_YES: Final = (
    "yes", "yep", "yeah", "true", "correct", "pass", "passed", "passes", "met", "satisfied", "fulfilled", "confirmed"
)  # fmt: skip
_NO: Final = (
    "no", "nope", "false", "untrue", "incorrect", "wrong", "fail", "failed", "fails", "unmet", "absent", "not present",
    "unsatisfied", "unfulfilled", "not met", "not satisfied", "not fulfilled", "not correct", "not true", "not passed"
)  # fmt: skip
"""Words that an explanation may follow. What is there or missing may be what was asked for, or just that which must not
be, so "present" is no yes."""
_YES_MARKS: Final = "✅✓✔☑👍"
_NO_MARKS: Final = "❌✗✘✖👎"
_OTHER_YES: Final = (
    "ja", "jawohl", "richtig", "wahr", "oui", "vrai", "sí", "si", "sì", "sim", "vero", "cierto", "да", "верно",
    "так", "tak", "ano", "igen", "evet", "ya", "vâng", "是", "是的", "对", "对的", "正确", "符合",
    "真", "はい", "네", "예", "نعم", "हाँ", "हां", "כן"
)  # fmt: skip
_OTHER_NO: Final = (
    "nein", "falsch", "unwahr", "nee", "nej", "nei", "non", "faux", "não", "nao", "falso", "нет", "неверно", "ні",
    "nie", "ne", "nem", "hayır", "hayir", "tidak", "không", "否", "不", "不是", "不对", "错",
    "错误", "不正确", "不符合", "假", "いいえ", "아니요",
    "아니오", "아니", "لا", "नहीं", "לא"
)  # fmt: skip
"""The same in other languages, which are read only where nothing follows: reservations are not known in all of them."""
_YES_ALONE: Final = frozenset({*_YES, *_YES_MARKS, "y", "1", "1.0", *_OTHER_YES})
_NO_ALONE: Final = frozenset({*_NO, *_NO_MARKS, "n", "0", "0.0", *_OTHER_NO})

_LABEL: Final = re.compile(r"(?:the |final |my )*(?:answer|verdict|result|assessment|a)\s*[:=]\s*")


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
    word = _bare(words)
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


def is_one_word(text: str) -> bool:
    """Whether a text is a yes or a no and nothing else."""
    return _bare(plain_words(text)) in _YES_ALONE | _NO_ALONE


def _bare(words: str) -> str:
    """Words without brackets around them; "!yes" is a negation in code, and "-1" a number."""
    return words.strip(" \t\n'([<").rstrip(" \t\n')]>.!,;:。、।")


def takes_back(text: str) -> bool:
    """Whether a text has words that make an answer before it less than certain."""
    return bool(_TAKES_BACK.search(plain_words(text)))


def plain_words(text: str) -> str:
    """The text in lower case and without emphasis and typographic quotes."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_QUOTES)
    return re.sub(r'[*_`"“”\ufe0f]|\$\\text(?:bf)?\{|\}\$', "", plain).strip()


_QUOTES: Final = str.maketrans("’‘", "''")


def _is_improbable(text: str) -> bool:
    """Whether a text states a share below a half."""
    for match in _SHARE.finditer(text):
        percentage = match["percentage"]
        share = float(percentage.replace(",", ".")) / 100 if percentage else float(f"0.{match['decimals']}")
        if share < 0.5:
            return True
    return False
