"""Numbers that the open models cannot count, and negations: never the opposite of what a prompt asks for."""

from __future__ import annotations

import pytest

from gems.errors import InputError
from gems.models.open.draft_wording import terse
from gems.models.open.phrasebook import phrasebook
from gems.models.open.things import INDEX
from gems.models.open.tokens import tokens_of_prompt
from gems.models.open.wish import Group
from gems.models.open.wish_reading import read


@pytest.mark.parametrize(
    "prompt",
    [
        *("1,000 cars", "2.0 cats", "1.5 cars", "two dozen cats", "thirteen cars", "two hundred cars", "2-3 cats"),
        *("10,000 dogs", "10.000 perros", "2,5 Autos", "deux cents voitures", "сто кошек", "两百只猫", "½ cat"),
        *("1/2 cats", "1 000 dogs", "a million birds", "10k cats", "20x cats", "more than three cats", "cats, 20"),
        *("one or two cats", "two to three cats", "twenty-one cats", "3 cats and 20 dogs", "2–3 cats"),
        *("zwei Dutzend Katzen", "zweihundert Autos", "dreizehn Hunde", "einundzwanzig Katzen", "mehr als drei Hunde"),
        *("dix-sept chats", "quinze chats", "deux douzaines de chats", "vingt et un chats"),
        *("veinte gatos", "dos docenas de gatos", "mil perros", "due dozzine di gatti", "ventuno gatti", "cento cani"),
        *("trinta gatos", "duas dúzias de gatos", "eenentwintig katten", "tweehonderd honden"),
        *("dwadzieścia kotów", "tysiąc psów", "двадцать одна кошка", "две дюжины кошек"),
        *("yüz kedi", "on üç kedi", "yirmi köpek", "iki düzine kedi", "十三只猫", "三四只猫", "20只猫", "一千只狗"),
        *("二十匹の猫", "２０匹の猫", "猫が20匹", "百匹の犬", "고양이 20마리", "고양이 스무 마리", "개 백 마리"),
    ],
)
def test_a_number_that_cannot_be_counted_is_refused_in_a_line(prompt: str) -> None:
    with pytest.raises(InputError, match="count to twelve") as caught:
        read(prompt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "meaning", "left_out"),
    [
        ("a 3-legged dog", "a dog", ("3-legged",)),
        ("a three-legged dog and two cats", "a dog, two cats", ("a three-legged",)),
        ("a 24-hour clock", "an alarm clock", ("24-hour",)),
        ("a 100 dollar bill", "a dollar bill", ("a 100",)),
        ("a 10 year old boy", "a boy", ("a 10 year old",)),
        ("a 4K photo of two cats", "two cats", ("4K",)),
        ("two cats, 3rd", "two cats", ("3rd",)),
        ("ein 3-köpfiger Drache", "a dragon", ("3-köpfiger",)),
        ("10岁的男孩", "a boy", ("10岁",)),
        ("at least three cats", "three cats", ("at least",)),
    ],
)
def test_a_number_that_counts_no_things_is_left_out(prompt: str, meaning: str, left_out: tuple[str, ...]) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.left_out) == (meaning, left_out)


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("a dozen eggs", "twelve eggs"),
        ("one dozen eggs", "twelve eggs"),
        ("cats: 3, dogs: 2", "three cats, two dogs"),
        ("3x cats", "three cats"),
        ("hundreds of birds", "many birds"),
        ("on iki kedi", "twelve cats"),
        ("3마리 고양이", "three cats"),
        ("a dog and 0 cats", "a dog, without cats"),
        ("zero cats and a dog", "a dog, without cats"),
        ("null Katzen und ein Hund", "a dog, without cats"),
        ("犬と0匹の猫", "a dog, without cats"),
        ("a dog without cats and birds", "a dog, without cats and birds"),
        ("a dog without a cat or a bird", "a dog, without cats and birds"),
        ("an ocean without people and a dog", "a dog, on the sea, without people"),
        ("no cats, cows or pigs, just a horse", "a horse, without cats and cows and pigs"),
        ("a dog, not a cat", "a dog, without cats"),
        ("neither cats nor birds, a dog", "a dog, without cats and birds"),
        ("a boy not wearing a hat", "a boy, without sun hats"),
        ("a dog without a hat next to a tree", "a dog next to a tree, without sun hats"),
        ("not only a cat and a dog", "a cat, a dog"),
        ("a street with nobody", "in a city, without people"),
        ("a treeless desert with a cow", "a cow, in a desert, without trees"),
        ("a dog without a cloud", "a dog, without clouds"),
        ("a dog with no clouds in the desert", "a dog, in a desert, without clouds"),
        ("ein Haus ohne Katzen und Hunde", "a house, without cats and dogs"),
        ("weder Katzen noch Hunde, ein Haus", "a house, without cats and dogs"),
        ("une maison sans chats ni chiens", "a house, without cats and dogs"),
        ("une maison sans chat noir", "a house, without cats"),
        ("une maison sans grands chats", "a house, without cats"),
        ("una casa sin gatos ni perros", "a house, without cats and dogs"),
        ("una casa senza gatti e cani", "a house, without cats and dogs"),
        ("uma casa sem gatos e cachorros", "a house, without cats and dogs"),
        ("een huis zonder katten en honden", "a house, without cats and dogs"),
        ("dom bez kotów i psów", "a house, without cats and dogs"),
        ("дом без кошек и собак", "a house, without cats and dogs"),
        ("kedi ve köpek olmayan bir ev", "a house, without cats and dogs"),
        ("şapkasız kedi", "a cat, without sun hats"),
        ("没有猫和狗的房子", "a house, without cats and dogs"),
        ("猫も犬もいない部屋", "in a room, without cats and dogs"),
        ("帽子のない猫", "a cat, without sun hats"),
        ("고양이와 개가 없는 방", "in a room, without cats and dogs"),
    ],
)
def test_numbers_and_absences(prompt: str, meaning: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.notes) == (meaning, ())


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "a dog that is not red",
            "a cat that isn't black",
            "a non-red car",
            "a dog that isn’t big",
            "a cat not on a chair",
        ),
        *("a cat that is not in the middle", "a cat, not in a forest", "a tree without snow", "a kite without red"),
        *('a sign without "HI"', 'a sign that does not say "HI"', 'a dog without a sign that says "HI"'),
        *("ein Auto, das nicht rot ist", "ein nicht rotes Auto", "une voiture qui n'est pas rouge"),
        *("un coche que no es rojo", "una macchina che non è rossa", "um carro que não é vermelho"),
        *("een auto die niet rood is", "samochód, który nie jest czerwony", "не красная машина", "машина не красная"),
        *(
            "kırmızı olmayan araba",
            "不是红色的车",
            "赤くない車",
            "赤ではない車",
            "빨갛지 않은 자동차",
            "「HI」のない看板",
        ),
    ],
)
def test_a_negation_of_anything_but_a_thing_is_refused_in_a_line(prompt: str) -> None:
    with pytest.raises(InputError, match=r"no look, size, place|cannot keep a text away") as caught:
        read(prompt)
    assert "\n" not in str(caught.value)


def test_what_is_unknown_and_must_not_be_there_is_not_asked_for() -> None:
    reading = read("a dog without waterfalls", lambda _: "cloud")
    assert (terse(reading.wish), reading.notes) == ("a dog", ("left out: without waterfalls",))
    assert read("a cat without corgis").stand_ins == ()
    black = read("a dog without black outlines", lambda _: "cloud")
    assert (terse(black.wish), black.notes) == ("a dog", ("left out: without outlines",))
    for prompt, left_out in (
        ("滝のない森と犬", "滝 のない"),
        ("폭포 없는 숲과 개", "폭포 없는"),
        ("şelalesiz bir orman ve bir köpek", "şelalesiz"),
        ("ein Hund ohne Wasserfälle", "ohne Wasserfälle"),
    ):
        reading = read(prompt)
        assert ([*reading.wish.absent], reading.missing, reading.left_out) == ([], (), (left_out,))
        assert terse(reading.wish).startswith("a dog")


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("two dogs: one red, one blue", "a red dog, a blue dog"),
        ("three cats, one black and two white, next to a house", "a black cat, two white cats next to a house"),
        ("a red and a blue car", "a red car, a blue car"),
        ("two black, big dogs", "two big black dogs"),
        ("zwei Katzen, eine schwarze und eine weiße", "a black cat, a white cat"),
        ("dos coches, uno rojo y otro azul", "a red car, a blue car"),
        ("deux chats, un noir et un blanc", "a black cat, a white cat"),
    ],
)
def test_a_noun_is_said_once_for_several_looks(prompt: str, meaning: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.notes) == (meaning, ())


def test_looks_and_numbers_that_no_group_takes_are_told() -> None:
    assert read("ten balloons, three red").left_out == ("3 red",)
    assert read("a red, blue and green ball").left_out == ("blue", "red")


def test_a_group_has_at_least_one_thing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Group(INDEX["dog"], 0)


def tokens(prompt: str) -> list[tuple[int, int]]:
    return tokens_of_prompt(prompt, phrasebook("en"))


def test_the_generator_reads_no_number_as_another() -> None:
    assert tokens("0 dogs and a cat") == tokens("no dogs and a cat")
    assert tokens("1,000 dogs") == tokens("13 dogs") == tokens("dogs")


def test_private_marks_in_a_prompt_mean_nothing() -> None:
    assert tokens('a dog\ue000 "HI"') == tokens('a dog "HI"')
    assert tokens("\ue000a dog\ue000") == tokens("a dog")
    assert terse(read('a dog\ue000 and a sign "HI"').wish) == 'a dog, a sign that says "HI"'
    assert read("a \ue000dog").wish == read("a dog").wish
