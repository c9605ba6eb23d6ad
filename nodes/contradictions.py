"""Finds what contradicts a yes: its own reason, what else its answer says, and the words around the answers.

What it finds makes a yes unsure, so that it is asked again. It is never a no: models write oddly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage

from gems.models.lenient import field_name, read_answer
from gems.models.structured import answered_objects, words_around
from gems.models.yes_or_no import plain_words

__all__ = ["denies", "remarks_in", "says_no_beside"]

_NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_NUMBER: Final = rf"(?:{'|'.join(_NUMBERS)}|\d{{1,3}})"
_PLACE: Final = r"(?:in|on|at|to|inside|near|next|behind|above|below|under|visible|present|shown|there|here)"
_COUNT_QUESTION: Final = re.compile(
    r"\b(?:are|is|does|do|can|has|have)\b[^?]*?"
    rf"\bexactly (?P<number>{_NUMBER}) (?P<thing>[\w' -]+?)(?: {_PLACE}\b[^?]*)?\?"
)
_ANY_QUESTION: Final = re.compile(
    rf"(?:are|is) there (?:any|some|an?|at least one) (?P<thing>[\w' -]+?)(?: {_PLACE}\b[^?]*)?\?"
)
_OPPOSITE: Final = re.compile(
    r"\W*(?:no\s*[,.:;!–—]|no\s+-"
    r"|(?:(?:this|that|it|the (?:requirement|condition|criterion)) (?:is|was|has) )?"
    r"(?:(?:false|incorrect|untrue|wrong|fail(?:s|ed)?|not (?:true|correct))(?= because| since|\s*[,.:;!–—]|\Z)"
    r"|not (?:met|satisfied|fulfilled)\b|unmet\b|violated\b))"
    r"|.*\b(?:answer|verdict|this|it) (?:is|should be|must be) [\"'*]*no\b(?! \w)|\W*should be [\"'*]*no\b(?! \w)"
    r"|.*\b(?:so|therefore|thus|hence)[,:]? [\"'*]*no\W*\Z",
    re.DOTALL,
)
"""Matches a reason that says the opposite of a yes, whatever was asked."""
_ADDS_UP: Final = re.compile(
    r"[,;+&]|\b(?:and|another|other|second|plus|more|each|every|per|with|also|beside|of|least|next|then|than)\b"
)
"""Matches what may add to a number, so that it is not the whole count."""


def denies(question: str, reason: str) -> bool:
    """Whether the reason of a yes says the opposite: in words, or by another count than was asked for."""
    words = " ".join(plain_words(reason).split())
    asked_question = " ".join(plain_words(question).split())
    if _OPPOSITE.match(words):
        return True
    if match := _COUNT_QUESTION.search(asked_question):
        return _is_none(match["thing"], words) or _is_other_count(_value(match["number"]), match["thing"], words)
    if match := _ANY_QUESTION.match(asked_question):
        return _is_none(match["thing"], words)
    return False


_BEGINS: Final = (
    r"\W*(?:i (?:see|count|find) |(?:there|the (?:image|picture)|it|this|image) "
    r"(?:is|are|was|were|has|have|shows?|contains?) )?"
)
_SHOWS_NO: Final = (
    r"\W*(?:(?:the|this) )?(?:image|picture|it|this) (?:does not|doesn't) (?:show|contain|have|depict)(?: any| an?)?"
)
_ENDS: Final = (
    r"(?:\W*\Z|[.;!]|(?: (?:is|are|can be|was|were))? (?:visible|present|seen|shown|there|found|depicted|anywhere"
    r"|(?:with)?in (?:the |this )?(?:image|picture|scene|photo))\b)"
)


def _is_none(thing: str, words: str) -> bool:
    things = _any_number_of(thing)
    absent = rf"(?:{_BEGINS}(?:no|zero|not any|not a single)|{_SHOWS_NO}) {things}{_ENDS}"
    missing = rf"\W*(?:the )?{things} (?:is|are) (?:absent|missing|not (?:there|present|visible|shown|seen))\b"
    return bool(re.match(absent, words) or re.match(missing, words))


def _is_other_count(number: int, thing: str, words: str) -> bool:
    """Whether a text states another number of things. A smaller one may be a part of the sum."""
    spelled = rf"(?:{number}|{_NUMBERS[number]})" if number < len(_NUMBERS) else str(number)
    denied = r"not exactly|(?:instead of|rather than|(?:does not|doesn't) (?:show|contain|have|depict))(?: exactly)?"
    if re.search(rf"\b(?:{denied}) {spelled}\b", words):
        return True
    numbers = [_value(word) for word in re.findall(rf"(?<![\w.,/]){_NUMBER}(?![\w%/]|[.,]\d)", words)]
    adjectives = r"(?:(?!(?:and|or|of|in|on|with)\b)[^\W\d]+ ){0,2}"
    of_thing = rf"(?<![\w.,/])({_NUMBER}) {adjectives}{_any_number_of(thing)}\b"
    counts = [_value(word) for word in re.findall(of_thing, words)]
    if not counts or number in numbers or re.search(r"\b(?:pair|couple|both|dozen|single)\b", words):
        return False
    return max(counts) > number or (len(numbers) == 1 and not _ADDS_UP.search(words))


def _any_number_of(thing: str) -> str:
    """Matches a thing in the singular or in the plural."""
    name = thing.strip()
    forms = {name, f"{name}s", f"{name}es", name.removesuffix("s"), name.removesuffix("es")}
    forms |= {re.sub(r"ies\Z", "y", name), re.sub(r"y\Z", "ies", name)}
    return f"(?:{'|'.join(map(re.escape, sorted(forms, key=len, reverse=True)))})"


def _value(word: str) -> int:
    return _NUMBERS.index(word) if word in _NUMBERS else int(word)


# --- what stands beside the answers -----------------------------------------------------------------------------------

_POSITIVE_NAME: Final = re.compile(
    r"(?:.*_)?(?:overall|met|satisf(?:ied|ies)|fulfill?ed|match(?:es|ed)?|pass(?:es|ed)?|correct|valid|verified|success"
    r"|ok|answer|verdict|result|judge?ment|decision|conclusion|compliant|compliance|holds?|accurate|status|assessment)"
    r"(?:_(?:verdict|result|answer|assessment|status|match|pass|met|yes_no))?"
)
_NEGATIVE_NAME: Final = re.compile(
    r"(?:(?:is|was|has|did)_)?(?:fail(?:s|ed|ure)?|mismatch(?:ed)?|violat(?:ed|ion)|unmet|incorrect|wrong)"
)
_OTHER_NAME: Final = re.compile(
    r"(?:.*_)?(?:not|no|un\w*|if|should|expected|previous|before|prior|initial|first|draft|example|old|ocr)(?:_.*)?"
)
_FAILURES: Final = re.compile(
    r"(?:.*_)?(?:fail(?:s|ed|ures?)?|unmet|violat(?:ed|ions?)|mismatch(?:es|ed)?|unsatisfied|unfulfilled|not_met)"
    r"(?:_(?:requirements?|questions?|checks?|ids?|criteria|items?))?"
)


def says_no_beside(name: object, value: object) -> bool:
    """Whether a field with a name says no, beside the answer itself."""
    plain = field_name(name)
    if _NEGATIVE_NAME.fullmatch(plain):
        return value is True
    if not isinstance(value, (str, bool)) or not _POSITIVE_NAME.fullmatch(plain) or _OTHER_NAME.fullmatch(plain):
        return False
    try:
        return read_answer(value) == "no"
    except ValueError:
        return False


def remarks_in(message: AIMessage, ids: Sequence[str]) -> tuple[set[str], bool]:
    """What an answer says besides the list of its answers: in words, and in fields of its own.

    Returns:
        The questions to which the answer is no by that; and whether the image as a whole is said to fail.
    """
    denied, texts, is_failure = set[str](), [words_around(message)], False
    for name, value in _fields_beside(answered_objects(message)):
        if _FAILURES.fullmatch(field_name(name)) and isinstance(value, (list, Mapping)):
            denied |= {i for i in ids if re.search(rf"(?<!\w){re.escape(i)}(?!\w)", json.dumps(value))}
        elif isinstance(value, str):
            texts.append(value)
        is_failure = is_failure or says_no_beside(name, value)
    for text in texts:
        denied |= {i for i in ids if _NEGATIVE.match(_last_answer(plain_words(text), i))}
        is_failure = is_failure or says_failure(text)
    return denied, is_failure


def _fields_beside(value: Any, depth: int = 4) -> Iterator[tuple[object, Any]]:
    """The fields of the objects that a list of answers stands in."""
    if isinstance(value, list) and depth:
        for item in value:
            yield from _fields_beside(item, depth - 1)
    elif isinstance(value, Mapping) and depth and not _is_answer(value):
        for name, inner in value.items():
            yield name, inner
            yield from _fields_beside(inner, depth - 1)


def _is_answer(item: Mapping[Any, Any]) -> bool:
    return any(field_name(name) in _ID_FIELDS for name in item)


_ID_FIELDS: Final = frozenset({"id", "question_id", "requirement_id", "question", "requirement", "qid"})


_OVERALL: Final = re.compile(
    r"(?:^|[\n.!])[\W_]*(?:(?:overall|final|the|verdict|result|assessment|conclusion|image|status)[\W_]+){1,4}"
    r"(?:is |was )?(?:fail(?:s|ed)?|no|rejected|not (?:met|satisfied|correct))\b"
    r"(?! (?:issue|problem|error|flaw|arte?i?fact|defect|doubt)s?)"
    r"|\b(?:image|picture) (?:does not|doesn't|fails to) (?:fully |completely )?(?:match|meet|satisfy|fulfil|follow)"
    r"|\bnot all (?:\w+ )?(?:requirements|questions|conditions|criteria) (?:are|were) (?:met|satisfied|fulfilled)"
)


def says_failure(text: str) -> bool:
    """Whether a text says of the whole image that it is not what was asked for."""
    return bool(_OVERALL.search(plain_words(text)))


_NO: Final = (
    r"(?:is |was |should be |must be |becomes |to be |to |are )*(?:the )?(?:answer )?(?:is |should be )?"
    r"(?:actually |really |in fact |therefore |clearly |still |in reality )*"
    r"(?P<answer>no|false|fails?|failed|incorrect|wrong|unmet|not (?:met|satisfied|fulfilled|true|correct)|yes|true|met"
    r"|satisfied|correct|pass(?:es|ed)?)\b(?! (?:issue|problem|error|flaw|artefact|artifact|defect|doubt)s?)"
)
_NEGATIVE: Final = re.compile(r"no|false|fail|incorrect|wrong|unmet|not ")


def _last_answer(words: str, name: str) -> str:
    """What a text says last about a question that it names."""
    answers = re.finditer(
        rf"(?<!\w){re.escape(plain_words(name))}(?!\w)[\s)\]'(]*(?:[:=,–—→>-]+\s*)*[\['(]*{_NO}", words
    )
    return next((match["answer"] for match in list(answers)[::-1]), "")
