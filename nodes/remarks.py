"""Collects what an answer says beside its answers, in whatever lists and objects of its JSON that stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from langchain_core.messages import AIMessage

from gems.graph.state import Requirement
from gems.models.lenient import ANSWER_NAMES, field_name
from gems.models.thoughts import answer_text, answered_objects, words_around
from gems.nodes.question_ids import question_of

__all__ = ["REASON_NAME", "Remark", "remarks_beside"]


class Remark(NamedTuple):
    """Something that an answer says."""

    name: str
    """The name of its field, as names of fields are written; empty for words around the JSON."""
    value: Any
    """What it says; of a field with a list or an object, that, and then what is in it."""
    question_id: str = ""
    """The question that it is about; empty if it is about the image, or does not say that."""
    is_answer: bool = False
    """Whether it stands under the id of its question itself: ``{"r2": "no"}``."""
    owners: tuple[str, ...] = ()
    """The names of the objects and lists that it is in, outermost first."""


REASON_NAME: Final = re.compile(
    r"(?:.*_)?(?:reason(?:ing)?|explanation|rationale|justification|evidence|observation|comment|note|remark)s?"
)
"""Matches the names of what explains answers, and is none."""
_ONE_EACH: Final = re.compile(r"(?:.*_)?(?:reason(?:ing)?|explanation|rationale|justification|observation)s?")
"""Matches the names of lists that have a text for each answer, in their order."""
_ID_NAMES: Final = frozenset({"id", "question_id", "requirement_id", "question", "requirement", "qid"})
_ANSWERS: Final = frozenset({"answer", *ANSWER_NAMES})
_LISTS: Final = frozenset({"verdicts", "answers", "results"})
_REPEATS: Final = re.compile(
    r"(?:.*_)?(?:id|question|requirement|qid|prompt|request|instructions?|example|schema|ocr)|question_text"
    r"|(?:\w+_)?text_(?:in|on)_\w+|(?:visible|detected|recogni[sz]ed|written)_text"
)
"""Matches the names of texts that repeat other words than the model's own."""
_DEPTH: Final = 7
_TEXT_OR_COMMENT: Final = re.compile(
    r'"(?P<text>[^"\\\n]*+(?:\\.[^"\\\n]*+)*+)"|//(?P<line>[^\n]*)|/\*(?P<block>.{0,2000}?)\*/', re.DOTALL
)


def remarks_beside(
    message: AIMessage, requirements: Sequence[Requirement], questions: Mapping[str, Requirement]
) -> list[Remark]:
    """Everything that an answer says beside its answers, in words and in fields of its own.

    Args:
        message: The answer.
        requirements: The questions.
        questions: The questions that the ids in the answer mean.
    """
    objects, walk = answered_objects(message), _Walk(requirements, questions)
    forms = [index for index, value in enumerate(objects) if isinstance(value, Mapping) and _has_answers(value)]
    # Of several forms, the last one counts: what the others say of single questions belongs to a draft.
    parts = [[*walk.within(value, is_draft=index in forms[:-1])] for index, value in enumerate(objects)]
    comments = walk.comments_in(answer_text(message))
    return [Remark("", words_around(message)), *comments, *(remark for part in parts for remark in part)]


def _has_answers(value: Mapping[Any, Any]) -> bool:
    return any(field_name(name) in _LISTS for name in value)


class _Walk:
    def __init__(self, requirements: Sequence[Requirement], questions: Mapping[str, Requirement]) -> None:
        self._requirements, self._questions = requirements, questions

    def within(self, value: Any, *, is_draft: bool) -> Iterator[Remark]:
        for remark in self._in(Remark("", value), _DEPTH):
            is_repeated = isinstance(remark.value, str) and _REPEATS.fullmatch(remark.name)
            if not is_repeated and not (is_draft and remark.question_id):
                yield remark

    def comments_in(self, text: str) -> Iterator[Remark]:
        """The comments in the JSON of a text: about the last id before them, or the one that they name."""
        about = ""
        for match in _TEXT_OR_COMMENT.finditer(text) if "//" in text or "/*" in text else ():
            if match["text"] is None:
                comment = match["line"] or match["block"] or ""
                yield from (Remark("comment", comment, question_id) for question_id in dict.fromkeys(("", about)))
            elif question := self._questions.get(match["text"]):
                about = question.id

    def _in(self, parent: Remark, depth: int) -> Iterator[Remark]:
        value = parent.value
        if not depth:
            return
        if isinstance(value, list):
            yield from self._in_list(parent, depth)
        elif isinstance(value, Mapping):
            own = next((q for name, v in value.items() if field_name(name) in _ID_NAMES and (q := self._about(v))), "")
            owners = (*parent.owners, parent.name) if parent.name else parent.owners
            for name, inner in value.items():
                plain = field_name(name)
                of_name = self._about(name) or self._about_part(plain)
                is_answer = bool(self._about(name))
                remark = Remark(plain, inner, of_name or own or parent.question_id, is_answer, owners)
                yield remark
                yield from self._in(remark, depth - 1)

    def _in_list(self, parent: Remark, depth: int) -> Iterator[Remark]:
        is_in_order = len(parent.value) == len(self._requirements) and all(
            isinstance(item, str) if _ONE_EACH.fullmatch(parent.name) else _is_bare_answer(item)
            for item in parent.value
        )
        for place, item in enumerate(parent.value):
            in_order = self._requirements[place].id if is_in_order else ""
            remark = parent._replace(value=item, question_id=parent.question_id or in_order)
            if not isinstance(item, (list, Mapping)):
                yield remark
            yield from self._in(remark, depth - 1)

    def _about(self, name: object) -> str:
        """The id of the question that a name means; empty if it means none."""
        text = str(name)
        question = self._questions.get(text) or question_of(text, self._requirements)
        return question.id if question else ""

    def _about_part(self, name: str) -> str:
        """The same, of a name such as "r2_reason" or "note_r2"."""
        first, _, rest = name.partition("_")
        last = rest.rpartition("_")[2]
        ends = [end for end in (first, last) if rest and re.fullmatch(r"[^\W\d]+\d+", end)]
        return next((question for end in ends if (question := self._about(end))), "")


def _is_bare_answer(item: Any) -> bool:
    """Whether an item of a list has an answer, and does not say to which question."""
    names = set(map(field_name, item)) if isinstance(item, Mapping) else set()
    return bool(names & _ANSWERS) and not names & _ID_NAMES
