"""The checks of what a strong chat model writes, and of the mistakes that any may make.

``wishes.jsonl`` has wishes in twenty languages, each with a plan and questions as a strong model writes them: in other
words, in another order, with accounts that are not always exact; some also with mistakes of a careless model.
``bad_answers.jsonl`` has mistakes made by hand; others are made here from the good answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gems.graph.state import Requirement
from gems.nodes.absence import negative_prompt_for
from gems.nodes.agreement import forgotten, is_invented, left_out
from gems.nodes.mapping_checks import quotation_in
from gems.nodes.prompt_checks import Part, lost_words
from gems.nodes.question_checks import Mapped, is_contradicted, is_mapped
from gems.reading import read


def _rows(name: str) -> list[dict[str, Any]]:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


WISHES = _rows("wishes.jsonl")
MISTAKES = _rows("bad_answers.jsonl")
LANGUAGES = ("de", "fr", "es", "zh", "ja", "ru", "ar", "hi", "ko", "pt", "it")


# Cached, with what is read of them: most answers here differ from another one in a single part or question.
_part, _mapped = cache(Part), cache(Mapped)


def _parts(answer: dict[str, Any]) -> list[Part]:
    return [_part(**part) for part in answer.get("parts", [])]


def _questions(row: dict[str, Any]) -> list[Mapped]:
    return [_mapped(row["wish"], item["question"], item["words"]) for item in row.get("questions", [])]


def losses(wish: str, plan: dict[str, Any], questions: list[Mapped]) -> list[str]:
    """What the graph would ask the planner to mend."""
    parts = _parts(plan)
    things = forgotten(wish, plan["prompt"], parts, questions)
    return [*lost_words(wish, plan["prompt"], parts), *(q.question for q in things)]


def is_dropped(q: Mapped, questions: list[Mapped], plan: dict[str, Any]) -> bool:
    """Whether the graph would not check a question that stands among these."""
    rest = [other for other in questions if other is not q]
    return is_contradicted(q) or is_invented(q, rest, plan.get("prompt", q.prompt), _parts(plan))


# --- good answers ---------------------------------------------------------------------------------------------------


def test_the_wishes_are_of_all_kinds() -> None:
    kinds = " ".join(row["kind"] for row in WISHES)
    assert len(WISHES) >= 200
    assert all(kinds.count(kind) >= 10 for kind in ("negat", "quoted", "implied", "conversational", "long"))
    assert sum(read(row["wish"]).language.name != "en" for row in WISHES) >= 50


def test_good_plans_lose_nothing() -> None:
    lossy = {row["wish"]: lost for row in WISHES if (lost := losses(row["wish"], row, _questions(row)))}
    assert len(lossy) <= 0.01 * len(WISHES), lossy


def test_valid_questions_are_not_dropped() -> None:
    answers = [(row, _questions(row)) for row in WISHES]
    assert all(is_mapped(questions) for _, questions in answers)
    assert not [(q.question, q.words) for row, questions in answers for q in questions if is_dropped(q, questions, row)]


def test_without_accounts_few_good_answers_are_doubted() -> None:
    lossy = [row["wish"] for row in WISHES if losses(row["wish"], {"prompt": row["prompt"]}, _questions(row))]
    assert len(lossy) <= 0.3 * len(WISHES), lossy


def _is_invented_beside(wish: str, question: str, words: str, *others: str) -> bool:
    """Whether a question is dropped beside others that stand for all of the wish."""
    return is_invented(Mapped(wish, question, words), [Mapped(wish, other, wish) for other in others], wish)


@pytest.mark.parametrize(
    ("wish", "question", "words", "is_ruled_out"),
    [
        ("a book lying face down, no faces", "Is the book face down?", "a book lying face down", False),
        ("a book lying face down, no faces", "Is there a smiling face?", "no faces", True),
        ("she is scared of sharks, so no sharks", "Is there a shark?", "no sharks", True),
    ],
)
def test_what_must_be_absent_may_be_a_word_of_something_else(
    wish: str, question: str, words: str, is_ruled_out: bool
) -> None:
    absent = wish.rpartition("no ")[2]
    assert _is_invented_beside(wish, question, words, f"Are there no {absent}?") is is_ruled_out


@pytest.mark.parametrize(
    ("question", "is_new"),
    [
        ("Does it look like a German dance hall?", False),
        ("Does it look like a wooden dance hall?", True),
        ("Is it a picture of Hamburg?", True),
        ("Is there a man?", True),
        ("Is there a woman who is a singer?", False),
    ],
)
def test_a_question_may_say_a_name_otherwise_and_invents_nobody(question: str, is_new: bool) -> None:
    wish = "a singer in a dance hall in Bremen"
    others = ("Is there a singer?", "Is it a dance hall?", "Is it in Bremen?")
    assert _is_invented_beside(wish, question, wish, *others) is is_new


@pytest.mark.parametrize(
    ("question", "absent"),
    [
        ("Is the hat missing?", "hat"),
        ("Are all price tags removed from the shelf?", "price tags"),
        ("Is the man missing a tooth?", ""),
        ("Are there no people except the child?", ""),
        ("Is the sky free of birds, and are there no other animals?", "birds"),
    ],
)
def test_what_a_question_says_is_gone(question: str, absent: str) -> None:
    assert negative_prompt_for([Requirement(id="r1", question=question, kind="object")]) == absent


# --- mistakes -------------------------------------------------------------------------------------------------------

_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "pink", "orange", "grey", "purple")
_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight")


def _other(word: str, words: tuple[str, ...]) -> str:
    return words[(words.index(word) + 3) % len(words)]


def _swapped(text: str, words: tuple[str, ...]) -> str:
    """The text with the first of the words replaced by another one, with the same letter case."""
    match = re.search(rf"\b(?:{'|'.join(words)})\b", text, re.IGNORECASE)
    if not match:
        return text
    new = _other(match.group().lower(), words)
    new = new.capitalize() if match.group()[0].isupper() else new
    return text[: match.start()] + new + text[match.end() :]


def _is_asked_for(wish: str, word: str) -> bool:
    """Whether a colour or number of an English text is that of the wish, in its language."""
    reading = read(wish)
    value = read(word).values
    return bool(value & reading.values if value else read(word).colours() & reading.colours(shades=False))


def _swaps(row: dict[str, Any], words: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    prompt = row["prompt"]
    match = re.search(rf"\b(?:{'|'.join(words)})\b", prompt, re.IGNORECASE)
    if match and _is_asked_for(row["wish"], match.group().lower()):
        new = _swapped(prompt, words)
        start, end = match.start(), match.end() + len(new) - len(prompt)
        parts = [
            {**part, "phrase": _swapped(part["phrase"], words)}
            if match.group() in part["phrase"] and prompt.find(part["phrase"]) <= start < end + 40
            else part
            for part in row["parts"]
        ]
        yield {**row, "prompt": new, "parts": parts}


def bad_plans() -> Iterator[tuple[str, dict[str, Any]]]:
    """Plans with one mistake, and mappings that look right."""
    for row in WISHES:
        for words, name in ((_NUMBERS, "number"), (_COLOURS, "colour")):
            yield from ((name, changed) for changed in _swaps(row, words))
        for quotation in read(row["wish"]).quotations:
            letters = quotation[:-2] + quotation[-1] if len(quotation) > 3 else "?"
            if quotation in row["prompt"]:
                parts = [{**p, "phrase": p["phrase"].replace(quotation, letters)} for p in row["parts"]]
                yield "quotation", {**row, "prompt": row["prompt"].replace(quotation, letters), "parts": parts}
        for index, part in enumerate(row["parts"]):
            if part["phrase"] in row["prompt"] and len(part["phrase"]) > 9 and index % 2 == 0:
                parts = row["parts"] if index % 4 else row["parts"][:index] + row["parts"][index + 1 :]
                prompt = " ".join(row["prompt"].replace(part["phrase"], "").split())
                yield "forgotten", {**row, "prompt": prompt, "parts": parts}
    yield from (("by hand", row) for row in MISTAKES if row["kind"] == "plan")
    yield from ((bad["fault"], {**row, **bad}) for row in WISHES for bad in row.get("bad", []) if bad["type"] == "plan")


def _swapped_questions(row: dict[str, Any], item: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    for words, name in ((_NUMBERS, "number"), (_COLOURS, "colour")):
        match = re.search(rf"\b(?:{'|'.join(words)})\b", item["question"], re.IGNORECASE)
        if match and _is_asked_for(item["words"], match.group().lower()):
            yield name, {**item, "question": _swapped(item["question"], words)}
    for quotation in read(item["question"]).quotations:
        if quotation_in(quotation, row["wish"]):
            yield "quotation", {**item, "question": item["question"].replace(quotation, quotation[:-2] + "x")}


_ADDITIONS = ("made of wood", "wearing sunglasses", "covered in moss", "holding a trumpet", "glowing in the dark")


def bad_questions() -> Iterator[tuple[str, dict[str, Any], list[Mapped], Mapped]]:
    """Lists of questions with a bad one; its kind, the wish, the list, and the bad question."""
    for number, row in enumerate(WISHES):
        good = _questions(row)
        for index, item in enumerate(row["questions"]):
            for name, bad in _swapped_questions(row, item):
                mapped = Mapped(row["wish"], bad["question"], bad["words"])
                yield name, row, [*good[:index], mapped, *good[index + 1 :]], mapped
        match = re.fullmatch(r"Is there an? (\w+)\?", row["questions"][0]["question"])
        if match:
            addition = _ADDITIONS[number % len(_ADDITIONS)]
            words = row["questions"][0]["words"]
            mapped = Mapped(row["wish"], f"Is the {match.group(1)} {addition}?", words)
            yield "invented", row, [*good, mapped], mapped
            mapped = Mapped(row["wish"], "Is there a zeppelin?", "zeppelin")
            yield "invented", row, [*good, mapped], mapped
        for bad in row.get("bad", []):
            if bad["type"] == "question":
                mapped = Mapped(row["wish"], bad["question"], bad["words"])
                yield bad["fault"], row, [*good, mapped], mapped
    for row in MISTAKES:
        if row["kind"] == "questions":
            mapped = Mapped(row["wish"], row["question"]["question"], row["question"]["words"])
            whole = Mapped(row["wish"], "Does the image show all of it?", row["wish"])
            yield "by hand", row, [whole, mapped], mapped


def _report(caught: list[tuple[str, bool, str]]) -> str:
    kinds = {kind for kind, _, _ in caught}
    shares = {
        k: (sum(ok for kind, ok, _ in caught if kind == k), sum(kind == k for kind, _, _ in caught)) for k in kinds
    }
    return f"{shares}\n" + "\n".join(f"{kind}: {text}" for kind, ok, text in caught if not ok)


def test_bad_plans_are_caught() -> None:
    caught = [
        (kind, bool(losses(row["wish"], row, _questions(row))), f"{row['wish'][:60]} -> {row['prompt'][:90]}")
        for kind, row in bad_plans()
    ]
    assert len(caught) >= 100
    assert sum(ok for _, ok, _ in caught) >= 0.85 * len(caught), _report(caught)


def test_bad_questions_are_caught() -> None:
    caught = [
        (kind, is_dropped(mapped, questions, row), f"{row['wish'][:60]} -> {mapped.question} [{mapped.words}]")
        for kind, row, questions, mapped in bad_questions()
    ]
    assert len(caught) >= 100
    assert sum(ok for _, ok, _ in caught) >= 0.85 * len(caught), _report(caught)


def test_what_no_question_stands_for_is_named() -> None:
    caught = []
    for row in WISHES:
        for index in range(len(row["questions"])):
            rest = _questions(row)
            del rest[index]
            others = frozenset[int]().union(*(q.places for q in rest))
            own = _questions(row)[index].places - others
            if any(i in read(row["wish"]).content for i in own) and "long" not in row["kind"]:
                named = left_out(row["wish"], row["prompt"], _parts(row), rest)
                caught.append(("forgotten", bool(named), f"{row['wish'][:60]} {index}"))
    assert len(caught) >= 100
    assert sum(ok for _, ok, _ in caught) >= 0.85 * len(caught), _report(caught)
