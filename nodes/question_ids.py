"""Finds out which question an answer is about, where a chat model writes a question's id in another way."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from gems.graph.state import Requirement

__all__ = ["name_of_place", "name_with_question", "question_of", "questions_of"]

_ID: Final = re.compile(
    r"\W*+(?:(?:question|requirement|item|id|req|nr|no)[\W_]++(?=[^\W\d_]))?"
    r"(?P<prefix>[^\W\d_]*+)[\W_]*+(?:0(?=\d))*+(?P<number>\d++)(?P<rest>\W.*|)",
    re.DOTALL,
)
_REPEATS: Final = "\x1f"
"""Stands between the id of an answer and the question that it repeats."""
_PLACE: Final = re.compile(r"answer (?P<place>\d+) of (?P<count>\d+)")
_MEANINGLESS: Final = frozenset({"", "id", "q", "qid", "question", "req", "requirement", "no", "nr", "number", "item"})
"""Words in front of a number that do not say which series of questions it belongs to."""


def name_of_place(place: int, count: int) -> str:
    """Stands for the id of an answer that has none: its place, from 1, among so many answers."""
    return f"answer {place} of {count}"


def name_with_question(name: str, question: str) -> str:
    """The id of an answer that repeats its question too."""
    return f"{name}{_REPEATS}{' '.join(question.split())}"


def questions_of(names: Sequence[str], requirements: Sequence[Requirement]) -> dict[str, Requirement]:
    """The requirements that ids mean, without the ids that mean none.

    Some models number the questions anew, from 0 or 1. If there are as many ids as questions, with numbers in a row of
    which one is no question's, then the order of the ids counts: by their numbers, answers would be about other
    questions. Where an answer repeats its question, the question counts; if it is another one than the id's,
    ids say nothing.

    Args:
        names: The ids as a model wrote them, each once.
        requirements: What the model was asked about.
    """
    places = [match for name in names if (match := _PLACE.fullmatch(name))]
    if places:  # answers without ids are about the questions in their order, if each has one
        is_all = len(places) == len(names) == len(requirements) == int(places[0]["count"])
        return dict(zip(names, requirements, strict=True)) if is_all else {}
    repeated = {name: question for name in names if (question := _repeated_question(name, requirements))}
    if any(question_of(name.partition(_REPEATS)[0], requirements) != question for name, question in repeated.items()):
        return repeated
    questions_by_name = {name: question for name in names if (question := question_of(name, requirements))}
    questions_by_name |= {name.partition(_REPEATS)[0]: question for name, question in questions_by_name.items()}
    numbers = [int(match["number"]) if (match := _ID.fullmatch(_plain(name))) else -1 for name in names]
    is_row = len(names) == len(requirements) and numbers in (list(range(len(names))), list(range(1, len(names) + 1)))
    is_renumbered = is_row and not all(name in questions_by_name for name in names)
    return dict(zip(names, requirements, strict=True)) if is_renumbered else questions_by_name


def _repeated_question(name: str, requirements: Sequence[Requirement]) -> Requirement | None:
    text = _plain(name.partition(_REPEATS)[2])
    matches = [r for r in requirements if text and text == _plain(r.question)]
    return matches[0] if len(matches) == 1 else None


def question_of(name: str, requirements: Sequence[Requirement]) -> Requirement | None:
    """The requirement that an id means: by its id, its number if that is unambiguous, or the question itself.

    Args:
        name: The id as a model wrote it, such as "R1", "r1.", "1" or "r1: Are there any cars?".
        requirements: What the model was asked about.
    """
    name = name.partition(_REPEATS)[0]
    matches = [r for r in requirements if r.id == name.strip()] or [r for r in requirements if _means(name, r)]
    return matches[0] if len(matches) == 1 else None


def _means(name: str, requirement: Requirement) -> bool:
    words, question = _plain(name), _plain(requirement.question)
    if words == question:
        return True
    match, own = _ID.fullmatch(words), _ID.fullmatch(_plain(requirement.id))
    if match is None or own is None:
        return False
    same_series = match["prefix"] == own["prefix"] or match["prefix"] in _MEANINGLESS
    return same_series and match["number"] == own["number"] and match["rest"].strip(" .:)]-\"'*") in ("", question)


def _plain(text: str) -> str:
    """The text in lower case and without the punctuation around it."""
    return re.sub(r"^\W++|(?<!\W)\W++$", "", unicodedata.normalize("NFKC", text).casefold())
