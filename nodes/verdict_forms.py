"""The form in which a chat model hands in its verdicts, and the other ways in which models write them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, field_validator

from gems.graph.state import Answer
from gems.models.lenient import (
    ANSWER_NAMES,
    UNSTATED,
    Form,
    Item,
    Note,
    Prose,
    Share,
    Text,
    YesNo,
    field_name,
    items_of,
    read_answer,
)
from gems.models.yes_or_no import is_one_word, yes_or_no
from gems.nodes.answer_lines import ANSWER_LINE, answer_line, answers_in
from gems.nodes.contradictions import names_failures, says_no_beside
from gems.nodes.question_ids import name_of_place, name_with_question
from gems.nodes.remarks import REASON_NAME

__all__ = ["AnsweredQuestion", "Verdicts"]

_ID_NAMES: Final = (
    "question_id", "requirement_id", "qid", "req_id", "req", "requirement", "number", "nr", "#", "index", "key",
    "question", "nummer", "frage", "numéro", "número", "pregunta", "pergunta", "domanda", "номер", "вопрос", "编号",
    "题号", "序号", "问题", "番号", "質問", "번호", "질문"
)  # fmt: skip


class AnsweredQuestion(Item):
    """The answer to one question."""

    reads_prose: ClassVar[bool] = True
    other_names: ClassVar[Mapping[str, Sequence[str]]] = {
        "id": _ID_NAMES,
        "answer": ANSWER_NAMES,
        "confidence": (
            "certainty",
            "confidence_score",
            "confidence_level",
            "sicherheit",
            "confiance",
            "confianza",
            "置信度",
            "信頼度",
        ),
        "reason": ("reasoning", "explanation", "rationale", "justification", "evidence", "observation", "comment"),
    }

    id: Text = Field(description="The question's id, as given.")
    answer: YesNo = Field(description="yes or no; unsure only if the image does not let you tell.")
    confidence: Share = Field(ge=0, le=1, description="How sure you are of the answer: 0.5 is a guess, 1 is certain.")
    reason: Note = Field(default="", description="What you see, in at most ten words.")

    @field_validator("id")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name:
            raise ValueError("an answer needs the id of its question")
        return name

    @classmethod
    def by_field(cls, raw: Mapping[Any, Any]) -> dict[str, Any]:
        """See ``Form.by_field``; answers under several names must not contradict each other."""
        corrections = [value for key, value in raw.items() if _LIKE_AN_ANSWER.fullmatch(field_name(key))]
        corrections += [False for key, value in raw.items() if says_no_beside(key, value)]
        answers = {answer for value in [*cls.values_of("answer", raw), *corrections] if (answer := _answer_in(value))}
        fields = super().by_field(raw) | ({"answer": "unsure"} if {"yes", "no"} <= answers else {})
        text = next((v for key, v in raw.items() if field_name(key) in _QUESTION_NAMES and isinstance(v, str)), "")
        if isinstance(fields["id"], (str, int)) and text.strip() and text != fields["id"]:
            fields["id"] = name_with_question(str(fields["id"]), text)
        return fields

    @classmethod
    def from_pair(cls, key: str, value: Any) -> dict[str, Any]:
        """See ``Item.from_pair``: the key is the id, and the value is the answer with or without its other fields."""
        if not _LIKE_AN_ID.fullmatch(key):
            return cls._of_group(key, value)
        return {"id": key, **value} if isinstance(value, Mapping) else {"id": key, "answer": value}

    @classmethod
    def _of_group(cls, key: str, value: Any) -> dict[str, Any]:
        """One of the questions that have the same answer, which is written once for all of them."""
        answer = yes_or_no(key.replace("_", " "))
        if answer != "unsure" or key.strip().casefold() in _UNSURE_GROUPS:
            if isinstance(value, str) and _LIKE_AN_ID.fullmatch(value):
                return {"id": value, "answer": answer}
            if isinstance(value, Mapping) and value and cls.by_field(value).get("id") is not None:
                return {**value, "answer": [answer, *cls.values_of("answer", value)]}
        raise ValueError(f"{key!r} is not the id of a question")

    @classmethod
    def in_order(cls, raw_items: list[Any]) -> list[Any]:
        """See ``Item.in_order``: answers without any ids."""
        answers = [_bare_answer(item) for item in raw_items]
        if not answers or None in answers or not {"yes", "no"}.intersection(map(_answer_in, answers)):
            return raw_items
        names = (name_of_place(place, len(answers)) for place in range(1, len(answers) + 1))
        return [{**(answer or {}), "id": name} for name, answer in zip(names, answers, strict=True)]

    @classmethod
    def from_text(cls, text: str) -> dict[str, Any]:
        """See ``Item.from_text``: the id, and the answer with what was seen."""
        match = ANSWER_LINE.fullmatch(answer_line(text))
        if match is None:
            raise ValueError("an answer needs the id of its question")
        return {"id": match["id"], "answer": match["answer"], "reason": match["answer"]}

    @classmethod
    def items_in(cls, text: str) -> list[Any]:
        """See ``Item.items_in``: the lines of a list, or the rows of a table, if one of them has an answer."""
        items = answers_in(text)
        lines = [line for line in text.splitlines() if line.strip()]
        if isinstance(text, Prose) and not items and len(lines) < _MOST_BARE_ANSWERS and all(map(_bare_answer, lines)):
            return lines
        if not any(_is_decisive(item) for item in items):
            raise ValueError("it has no answers")
        return items

    @classmethod
    def stand_in(cls, raw: Any) -> AnsweredQuestion | None:
        """See ``Item.stand_in``: an unreadable answer is unsure, so that it contradicts a second answer."""
        fields = cls.by_field(raw) if isinstance(raw, Mapping) else {}
        name = fields.get("id")
        if not isinstance(name, (str, int)) or not str(name).strip() or fields.get("answer") is None:
            return None
        return cls(id=str(name), answer="unsure", confidence=0.0, reason="the answer cannot be read")


_QUESTION_NAMES: Final = ("question", "question_text", "requirement")
_LIKE_AN_ANSWER: Final = re.compile(
    r"(?:final|corrected|revised|updated|overall|second|my|the|actual|true|real|correct)_(?:answer|verdict|result|judge?ment|decision)"
    r"|final|correction|revision|review|conclusion"
)
"""Matches the name of what may take an answer back."""
_LIKE_AN_ID: Final = re.compile(r"\W*+[^\W\d_]*+[\W_]*+\d++\W*+|.+[?？][^\w?？]*+", re.DOTALL)
"""Matches an id with a number, or a question."""
_UNSURE_GROUPS: Final = frozenset(
    {"unsure", "unclear", "unknown", "uncertain", "maybe", "partial", "partially", "mixed"}
)
_MOST_BARE_ANSWERS: Final = 100


def _bare_answer(item: Any) -> dict[str, Any] | None:
    """The fields of an answer that does not say what it is about; None if it does, or is none."""
    if isinstance(item, (str, bool)):
        is_bare = isinstance(item, bool) or is_one_word(item) or item.strip().casefold() in _UNSURE_GROUPS
        return {"answer": item} if is_bare else None
    if not isinstance(item, Mapping) or not item:
        return None
    fields = {name: AnsweredQuestion.values_of(name, item) for name in AnsweredQuestion.model_fields}
    known_names = {"id", *AnsweredQuestion.model_fields, *itertools.chain(*AnsweredQuestion.other_names.values())}
    is_plain = known_names.issuperset(map(field_name, item)) and not any(
        isinstance(v, (Mapping, list)) for v in item.values()
    )
    is_bare = bool(fields["answer"]) and not any(str(name).strip() for name in fields["id"])
    return dict(item) if is_plain and is_bare else None


def _answer_in(value: Any) -> Answer | None:
    try:
        return read_answer(value)
    except ValueError:
        return None


def _is_decisive(item: Any) -> bool:
    if isinstance(item, str):
        match = ANSWER_LINE.fullmatch(item)
        return match is not None and _answer_in(match["answer"]) in ("yes", "no")
    return _answer_in(AnsweredQuestion.by_field(item)["answer"]) in ("yes", "no")


class Verdicts(Form):
    """The answers to all questions."""

    is_judgement: ClassVar[bool] = True
    other_names: ClassVar[Mapping[str, Sequence[str]]] = {
        "verdicts": ("answers", "results"),
        "quality": ("image_quality", "overall_quality", "quality_score"),
        "flaws": ("flaw", "defects"),
    }

    verdicts: Annotated[list[AnsweredQuestion], items_of(AnsweredQuestion)]
    quality: Share = Field(
        default=UNSTATED,
        json_schema_extra={"minimum": 0, "maximum": 1},
        description="How well the image is made: 1 without artefacts, with sound anatomy and legible letters.",
    )
    flaws: Note = Field(default="", description="What is badly made, in at most ten words.")

    @field_validator("flaws")
    @classmethod
    def _real(cls, flaws: str) -> str:
        return "" if _NO_FLAWS.fullmatch(flaws) else flaws

    @classmethod
    def by_field(cls, raw: Mapping[Any, Any]) -> dict[str, Any]:
        """See ``Form.by_field``. What is said of the whole image may stand among the answers, once or in each."""
        fields = super().by_field(raw)
        lists = list(_lists_within(raw))
        if len(lists) > 1:  # one for each image that the model believes to see: they must agree
            fields["verdicts"] = [item for items in lists for item in items]
        verdicts = fields["verdicts"]
        items = [verdicts] if isinstance(verdicts, Mapping) else verdicts if isinstance(verdicts, list) else []
        list_names = {"verdicts", *cls.other_names["verdicts"]}
        extra_answers = [
            item
            for key, value in raw.items()
            if field_name(key) not in list_names and not REASON_NAME.fullmatch(field_name(key))
            if not (names_failures(key) and isinstance(value, Mapping))
            for item in _answers_beside(value)
        ]
        if isinstance(verdicts, list) and extra_answers:  # where they contradict the list, the question is unsure
            fields["verdicts"] = [*verdicts, *extra_answers]
        for name in ("quality", "flaws"):
            values = [v for item in items if isinstance(item, Mapping) for v in cls.values_of(name, item)[:1]]
            if fields[name] is None and values and all(value == values[0] for value in values):
                fields[name] = values[0]
        return fields


def _lists_within(value: Any, depth: int = 3) -> Iterator[list[Any]]:
    """The lists of answers in an object, which has several where it has a form for each of several images."""
    if isinstance(value, Mapping) and depth:
        own = next((v for v in Verdicts.values_of("verdicts", value) if isinstance(v, list)), [])
        if own and not any(_lists_within_any(item) for item in own):
            yield own
        else:
            for inner in value.values():
                yield from _lists_within(inner, depth - 1)
    elif isinstance(value, list) and depth:
        for inner in value:
            yield from _lists_within(inner, depth - 1)


def _lists_within_any(item: Any) -> bool:
    return isinstance(item, Mapping) and any(isinstance(v, list) for v in Verdicts.values_of("verdicts", item))


def _answers_beside(value: Any, depth: int = 3) -> list[Any]:
    """The answers in what stands beside the list of answers, such as corrections."""
    if isinstance(value, list) and depth:
        return [answer for item in value for answer in _answers_beside(item, depth - 1)]
    if not isinstance(value, Mapping) or not depth:
        return []
    fields = AnsweredQuestion.by_field(value)
    if isinstance(fields["id"], (str, int)) and fields["answer"] is not None:
        return [value]
    pairs = [{key: inner} for key, inner in value.items() if _LIKE_AN_ID.fullmatch(str(key)) and _answer_in(inner)]
    return pairs or [answer for inner in value.values() for answer in _answers_beside(inner, depth - 1)]


_NO_FLAWS: Final = re.compile(
    r"\W*(?:(?:none|nothing|null|no|n/?a|无|無|keine?|aucune?|ninguno)\W*)?"
    r"(?:(?:(?<=\W)(?:visible|obvious|notable|major|significant)\W+)?"
    r"(?:(?<=\W)(?:flaws?|artefacts?|artifacts?|defects?|issues?|problems?))?\W*(?:seen|found|visible)?)?\W*",
    re.IGNORECASE,
)
"""Matches words that say of flaws that there are none."""
