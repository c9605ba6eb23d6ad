"""Ordinary sentences of every language: what they ask for, and how many of them are read rightly."""

from __future__ import annotations

from pathlib import Path

import pytest

from gems.errors import InputError
from gems.models.open.draft_wording import terse
from gems.models.open.phrasebook import TONGUES
from gems.models.open.tokens import quoted
from gems.models.open.wish_reading import read


def _sentences() -> dict[str, list[tuple[str, str]]]:
    sentences: dict[str, list[tuple[str, str]]] = {}
    for line in (Path(__file__).parent / "sentences.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            language = line.strip("[]")
            sentences[language] = []
        elif line and not line.startswith("#"):
            text, _, meaning = line.rpartition(" = ")
            sentences[language].append((text, meaning))
    return sentences


SENTENCES = _sentences()


def _is_right(text: str, meaning: str, language: str) -> bool:
    try:
        reading = read(text)
    except InputError:
        return False
    return (terse(reading.wish), reading.language) == (meaning, language)


@pytest.mark.parametrize("language", TONGUES[1:])
def test_most_sentences_of_a_language_are_read_rightly(language: str) -> None:
    wrong = [text for text, meaning in SENTENCES[language] if not _is_right(text, meaning, language)]
    assert len(wrong) <= 0.2 * len(SENTENCES[language]), wrong


def test_the_share_of_sentences_that_are_read_rightly() -> None:
    results = [_is_right(*pair, language) for language, pairs in SENTENCES.items() for pair in pairs]
    assert len(results) == 410
    assert sum(results) / len(results) >= 0.94


@pytest.mark.parametrize("text", ["'t huis en Hans' auto's", "the '60s cars and the dogs' bowls"])
def test_an_apostrophe_opens_no_text_that_is_to_be_written(text: str) -> None:
    assert quoted(text) == (text, [])


def test_photographs_of_things_are_those_things_in_dutch_too() -> None:
    assert read("foto's van twee taxi's").wish == read("een foto van twee taxi's").wish
