"""Where things fly, which parts stay, and what short forms of nouns mean, in the languages there are tables for."""

from __future__ import annotations

import pytest

from gems.models.open.draft_wording import terse
from gems.models.open.questions import questions_of
from gems.models.open.wish_reading import read


def _read(prompt: str) -> str:
    return terse(read(prompt).wish)


@pytest.mark.parametrize(
    "prompt",
    [
        "Above the city flies an airplane",
        "Über der Stadt schwebt ein Flugzeug",
        "Boven de stad vliegt een vliegtuig",
        "Au-dessus de la ville vole un avion",
        "Sopra la città vola un aereo",
        "Sobre la ciudad vuela un avión",
        "Un avión sobre la ciudad",
        "Acima da cidade voa um avião",
        "Nad miastem leci samolot",
        "Над городом летит самолёт",
        "城市上空飞着一架飞机",
        "街の上を飛行機が飛んでいる",
        "도시 위에 비행기가 날고 있다",
    ],
)
def test_what_flies_over_a_background_that_is_said_first_is_at_the_top(prompt: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.notes) == ("an airplane at the top, in a city", ())


def test_a_verb_of_flying_after_a_place_is_no_fly() -> None:
    assert _read("Über dem Haus fliegt ein Vogel") == "a house, a bird, the bird flying over the house"
    assert _read("Evin üzerinde bir kuş uçuyor") == "a house, a bird, the bird flying over the house"
    assert _read("two flies on a cake") == "two flies on a birthday cake"
    assert _read("Un pájaro sobre la nieve") == "a bird, in the snow"


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("een bos rode rozen op een tafel", "some red roses on a table"),
        ("een vos in het bos", "a fox, in a forest"),
        ("青いリンゴ", "a green apple"),
        ("青い車", "a blue car"),
        ("两个青苹果", "two green apples"),
        ("two glasses on a table", "two glasses of milk on a table"),
        ("a woman with glasses", "a woman holding a pair of glasses"),
        ("a glass of wine", "a wine glass"),
        ("a vase of glass", "a glass vase"),
        ("zwei Gläser", "two glasses of milk"),
        ("zwei Gläser Wein", "two wine glasses"),
        ("some scissors", "a pair of scissors"),
        ("unas gafas", "a pair of glasses"),
        ("un par de gafas", "a pair of glasses"),
        ("une paire de ciseaux", "a pair of scissors"),
        ("ножницы", "a pair of scissors"),
        ("двое ножниц", "two pairs of scissors"),
        ("drei Brillen", "three pairs of glasses"),
        ("un vélo sans selle", "a bicycle"),
        ("冰上有一只企鹅", "a penguin, in the snow"),
        ("un pingouin sur la glace", "a penguin, in the snow"),
        ("a cherry on ice cream", "a cherry on an ice cream cone"),
        ("一只狗,坐在树下", "a dog under a tree"),
        ("uma abelha em uma flor", "a bee on a flower"),
        ("木の枝にとまるフクロウ", "an owl"),
    ],
)
def test_words_of_several_senses_are_read_in_the_one_that_is_meant(prompt: str, meaning: str) -> None:
    assert _read(prompt) == meaning


@pytest.mark.parametrize(
    "prompt",
    [
        "a big tree without leaves",
        "a big leafless tree",
        "ein großer Baum ohne Blätter",
        "een grote boom zonder bladeren",
        "un grand arbre sans feuilles",
        "un grande albero senza foglie",
        "un árbol grande sin hojas",
        "uma árvore grande que não tem folhas",
        "duże drzewo bez liści",
        "большое дерево без листьев",
        "yaprağı olmayan büyük bir ağaç",
        "一棵没有叶子的大树",
        "葉のない大きな木",
        "잎이 없는 큰 나무",
    ],
)
def test_a_tree_without_leaves_is_a_bare_tree(prompt: str) -> None:
    assert _read(prompt) == "a big bare tree"


@pytest.mark.parametrize(
    ("prompt", "part", "name"),
    [
        ("ein Haus, das keine Fenster hat", "windows", "a house"),
        ("penceresi olmayan bir ev", "windows", "a house"),
        ("a car without wheels", "wheels", "a car"),
        ("un pupazzo di neve senza naso", "noses", "a snowman"),
        ("a church that has no doors", "doors", "a church"),
        ("a horse without legs", "legs", "a horse"),
        ("кот без глаз", "eyes", "a cat"),
        ("窓のない家", "windows", "a house"),
    ],
)
def test_a_part_that_every_drawing_has_is_told_to_stay(prompt: str, part: str, name: str) -> None:
    assert read(prompt).notes == (f"left out: {part} stay: every drawing of {name} has such a part",)


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("twee zeilbootjes op zee", "two small sailboats, on the sea"),
        ("drei Bäumchen", "three small trees"),
        ("um barquinho azul", "a small blue motor boat"),
        ("dos cochecitos", "two small cars"),
        ("стульчик", "a small chair"),
        ("een mandje", "a basket"),
        ("un mulino a vento", "a windmill"),
    ],
)
def test_a_diminutive_is_its_noun_and_small_unless_a_table_has_it(prompt: str, meaning: str) -> None:
    assert _read(prompt) == meaning


@pytest.mark.parametrize(
    "prompt",
    [
        "I want to see a cat",
        "could you draw me a cat",
        "Könntest du mir eine Katze zeichnen?",
        "Kunt u een kat tekenen?",
        "Je voudrais voir un chat",
        "Vorrei vedere un gatto",
        "Quiero ver un gato",
        "Gostaria de ver um gato",
        "Chcę zobaczyć kota",
        "Хочу увидеть кошку",
        "Bir kedi görmek istiyorum",
        "我想看到一只猫",
        "猫が見たいです",
        "고양이를 보고 싶어요",
    ],
)
def test_how_a_picture_is_asked_for_is_no_part_of_it(prompt: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.notes) == ("a cat", ())


@pytest.mark.parametrize(
    "prompt",
    [
        "two birds, one red, the other blue",
        "zwei Vögel, einer rot, der andere blau",
        "twee vogels, de ene rood en de andere blauw",
        "deux oiseaux, l'un rouge et l'autre bleu",
        "due uccelli, uno rosso e l'altro blu",
        "dos pájaros, uno rojo y el otro azul",
        "dois pássaros, um vermelho e o outro azul",
        "dwa ptaki, jeden czerwony, drugi niebieski",
        "две птицы, одна красная, другая синяя",
        "iki kuş, biri kırmızı diğeri mavi",
        "两只鸟,一红一蓝",
        "二羽の鳥、一羽は赤、もう一羽は青",
    ],
)
def test_one_and_the_other_are_counted_by_their_looks(prompt: str) -> None:
    reading = read(prompt)
    assert (terse(reading.wish), reading.notes) == ("a red bird, a blue bird", ())
    counts = [text for text, question in questions_of(reading.wish) if question.kind == "count"]
    assert counts == [
        "Is there exactly one red bird in the image?",
        "Is there exactly one blue bird in the image?",
    ]


def test_who_holds_clothes_is_not_told_to_wear_them() -> None:
    assert read("a boy holding a hat").notes == ()
    assert read("an elephant with an umbrella").notes == ()
    assert read("ein Mann hält einen Hut").notes == ()
