"""The gates on what a strong chat model writes, and on the mistakes that any may make.

``wishes.jsonl`` has wishes in eleven languages, each with a plan and questions as a strong model writes them: in other
words, in another order, with mappings that are not always exact. ``bad_answers.jsonl`` has mistakes made by hand;
others are made here from the good answers, with mappings that still look right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gems.nodes.mapping_checks import quotation_in
from gems.nodes.prompt_checks import Part, lost_words
from gems.nodes.question_checks import Mapped, is_mapped, missing_parts, sound_questions
from gems.reading import read


def _rows(name: str) -> list[dict[str, Any]]:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


WISHES = _rows("wishes.jsonl")
MISTAKES = _rows("bad_answers.jsonl")


def _parts(row: dict[str, Any]) -> list[Part]:
    return [Part(**part) for part in row["parts"]]


def _questions(row: dict[str, Any]) -> list[Mapped]:
    return [Mapped(row["wish"], item["question"], item["words"]) for item in row["questions"]]


def _id(row: dict[str, Any]) -> str:
    return f"{row['kind']}: {row['wish'][:40]}"


# --- good answers ---------------------------------------------------------------------------------------------------


def test_the_wishes_are_of_all_kinds() -> None:
    kinds = [row["kind"] for row in WISHES]
    assert len(kinds) >= 100
    assert all(kinds.count(kind) >= 10 for kind in ("negated", "quoted", "implied", "conversational", "long"))
    assert (
        sum(kinds.count(language) for language in ("de", "fr", "es", "zh", "ja", "ru", "ar", "hi", "ko", "pt", "it"))
        >= 30
    )


@pytest.mark.parametrize("row", WISHES, ids=_id)
def test_a_good_plan_loses_nothing(row: dict[str, Any]) -> None:
    assert lost_words(row["wish"], row["prompt"], _parts(row)) == []


@pytest.mark.parametrize("row", WISHES, ids=_id)
def test_no_valid_question_is_dropped(row: dict[str, Any]) -> None:
    questions = _questions(row)
    assert is_mapped(questions)
    assert sound_questions(questions) == questions


def test_without_mappings_few_good_answers_are_doubted() -> None:
    lossy = [row["wish"] for row in WISHES if lost_words(row["wish"], row["prompt"])]
    bare = [[Mapped(q.prompt, q.question) for q in _questions(row)] for row in WISHES]
    dropped = sum(len(questions) - len(sound_questions(questions)) for questions in bare)
    assert len(lossy) <= 0.25 * len(WISHES), lossy
    assert dropped <= 0.03 * sum(map(len, bare))


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
        (kind, bool(lost_words(row["wish"], row["prompt"], _parts(row))), f"{row['wish'][:60]} -> {row['prompt'][:90]}")
        for kind, row in bad_plans()
    ]
    assert len(caught) >= 100
    assert sum(ok for _, ok, _ in caught) >= 0.9 * len(caught), _report(caught)


def test_bad_questions_are_caught() -> None:
    caught = [
        (kind, mapped not in sound_questions(questions), f"{row['wish'][:60]} -> {mapped.question} [{mapped.words}]")
        for kind, row, questions, mapped in bad_questions()
    ]
    assert len(caught) >= 100
    assert sum(ok for _, ok, _ in caught) >= 0.9 * len(caught), _report(caught)


def test_what_no_question_stands_for_is_named() -> None:
    caught = []
    for row in WISHES:
        for index in range(len(row["questions"])):
            left = _questions(row)
            del left[index]
            others = frozenset[int]().union(*(q.places for q in left))
            own = _questions(row)[index].places - others
            if any(i in read(row["wish"]).content for i in own) and row["kind"] != "long":
                caught.append(("forgotten", bool(missing_parts(row["wish"], left)), f"{row['wish'][:60]} {index}"))
    assert len(caught) >= 100
    assert sum(ok for _, ok, _ in caught) >= 0.9 * len(caught), _report(caught)
