"""What checks read in texts of several languages."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import pytest

from gems.languages import LANGUAGES, language_of, tokens_of
from gems.reading import alike, read
from gems.wording import quoted_texts

WISHES = Path(__file__).parent / "nodes" / "wishes.jsonl"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("two cats on a roof", "en"),
        ("cyberpunk city, neon, 35mm", "en"),
        ("zwei Katzen auf einem Dach", "de"),
        ("trois chats sur un toit", "fr"),
        ("un perro sin collar", "es"),
        ("un gatto e due topi nella cucina", "it"),
        ("um gato e dois pássaros", "pt"),
        ("рыжий кот спит", "ru"),
        ("三只黑猫", "zh"),
        ("一个穿着Nike Air Jordan的男孩", "zh"),
        ("二匹の猫", "ja"),
        ("고양이 세 마리", "ko"),
        ("قطة سوداء", "ar"),
        ("तीन बच्चे", "hi"),
        ("a sign that says “三只黑猫在屋顶上”", "en"),
        ("γάτα σε στέγη", "xx"),
    ],
)
def test_the_language_of_a_text(text: str, language: str) -> None:
    assert read(text).language.name == language


def test_every_language_of_the_tables_can_be_told() -> None:
    assert {language_of(language).name for language in ("the", "der", "猫", "ねこ", "개", "кот")} <= {*LANGUAGES}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("two cats and 3 dogs", {2, 3}),
        ("a dozen eggs and a pair of shoes", {12, 2}),
        ("drei Hunde, zwölf Katzen", {3, 12}),
        ("trois chats", {3}),
        ("трёх голубей и двух собак", {3, 2}),
        ("三只猫和十二个苹果", {3, 12}),
        ("三明治", set()),
        ("二人の子供と犬三匹", {2, 3}),
        ("고양이 세 마리", {3}),
        ("لثلاثة جمال", {3}),
        ("तीन बच्चे", {3}),
        ('a sign that says "two"', set()),
    ],
)
def test_the_numbers_in_a_text(text: str, values: set[int]) -> None:
    assert read(text).values - {1} == values


@pytest.mark.parametrize(
    ("text", "is_negated"),
    [
        ("no people", True),
        ("isn't dark", True),
        ("dont put rings in it", True),
        ("un chat dont la tête est rousse", False),
        ("free of cars", True),
        ("sugar-free", True),
        ("without a hat", True),
        ("a notable northern knot", False),
        ("ohne Hut", True),
        ("没有人", True),
        ("不锈钢无人机，特别的颜色", False),
        ("人のいない駅", True),
        ("사람 없는 지하철", True),
        ("без собак", True),
        ("بدون أشخاص", True),
    ],
)
def test_what_is_negated(text: str, is_negated: bool) -> None:
    assert read(text).is_negated is is_negated


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("cats", "cat", True),
        ("wooden", "wood", True),
        ("raining", "rain", True),
        ("mice", "mouse", True),
        ("foggy", "fog", True),
        ("roter", "rote", True),
        ("собаку", "собака", True),
        ("kids", "children", True),
        ("cat", "car", False),
        ("cat", "catalog", False),
        ("seven", "several", False),
    ],
)
def test_forms_of_one_word(a: str, b: str, same: bool) -> None:
    assert alike(*tokens_of(a), *tokens_of(b)) is same


def test_a_text_has_the_words_that_are_alike_to_one_of_its_own() -> None:
    """The index by which words are looked up leaves none out."""
    rows = [json.loads(line) for line in WISHES.read_text(encoding="utf-8").splitlines()[::6]]
    for row in rows:
        wish, text = read(row["wish"]), read(row["prompt"])
        for a, b in ((wish, text), (text, wish), (text, read("the people, two wives and a photographic T-shirt"))):
            assert [w for w in a.words if b.has(w)] == [w for w in a.words if any(alike(w, o) for o in b.words)]


def test_a_long_text_is_not_searched_for_each_word() -> None:
    rng = random.Random(1)
    words = ["".join(rng.choices(string.ascii_lowercase, k=8)) for _ in range(1000)]
    text, before = read(" ".join(words[:500])), alike.cache_info()
    assert sum(map(text.has, words)) == 500
    after = alike.cache_info()
    assert after.hits + after.misses - before.hits - before.misses < 10 * len(words)


def test_what_the_writer_says_of_themselves_asks_for_nothing() -> None:
    reading = read("Could you draw a red fox for my shop window? My daughter loves foxes.")
    assert reading.spell(reading.content) == ["red fox"]


def test_vowel_signs_belong_to_their_words() -> None:
    assert tokens_of("हिन्दी में तीन") == ["हिन्दी", "में", "तीन"]


@pytest.mark.parametrize(
    ("text", "quotations"),
    [
        ("drie blauwe auto's en twee taxi's", []),
        ("'s morgens drie auto's bij Hans' huis", []),
        ("'t huis en Hans' auto", []),
        ("’s avonds de foto’s van Hans’ auto", []),
        ("the dogs' bowls and the cats' toys", []),
        ("the '60s cars and the dogs' bowls", []),
        ("a poster that says '60s rock'", ["60s rock"]),
        ("the letter 's' beside the dogs' bowls", ["s"]),
        ("a sign that says 'OPEN' and the dogs' bowls", ["OPEN"]),
        ("'Joe's' in neon", ["Joe's"]),
    ],
)
def test_an_apostrophe_opens_no_quotation(text: str, quotations: list[str]) -> None:
    assert quoted_texts(text) == quotations
    assert read(text).quotations == quotations
