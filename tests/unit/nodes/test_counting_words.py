"""A question that counts what the prompt counts is kept, in whatever words and language it says "exactly"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gems.languages import LANGUAGES as TABLES
from gems.nodes.agreement import is_invented
from gems.nodes.question_checks import Mapped, content_of
from gems.reading import read

COUNTS: dict[str, tuple[str, list[str], str, str]] = {
    # the prompt, questions about it, the one that counts, and words for "exactly", "only" and "in total"
    "zh": (
        "两辆红色的汽车",
        ["图中有汽车吗？", "汽车是红色的吗？"],
        "图中{}有两辆汽车吗？",
        "恰好 正好 刚好 剛好 总共 總共 一共 仅有 仅仅 只有 只 共 准确地 不多不少 恰恰 确切地 统共",
    ),
    "ja": (
        "2台の赤い車",
        ["車はありますか？", "車は赤いですか？"],
        "車は{}2台ありますか？",
        "ちょうど きっかり ぴったり 丁度 合計 合計で 全部で たった 正確に 厳密に 総勢で",
    ),
    "ko": (
        "빨간 자동차 두 대",
        ["자동차가 있습니까?", "자동차가 빨간색입니까?"],
        "자동차가 {} 두 대 있습니까?",
        "정확히 정확하게 딱 꼭 오직 단지 총 모두 틀림없이",
    ),
    "de": (
        "zwei rote Autos",
        ["Sind Autos zu sehen?", "Sind die Autos rot?"],
        "Sind {} zwei Autos zu sehen?",
        "genau exakt nur insgesamt lediglich präzise haargenau bloß akkurat",
    ),
    "fr": (
        "deux voitures rouges",
        ["Y a-t-il des voitures ?", "Les voitures sont-elles rouges ?"],
        "Y a-t-il {} deux voitures ?",
        "exactement précisément seulement uniquement juste rigoureusement",
    ),
    "es": (
        "dos coches rojos",
        ["¿Hay coches?", "¿Los coches son rojos?"],
        "¿Hay {} dos coches?",
        "exactamente precisamente solo sólo únicamente justo estrictamente",
    ),
    "it": (
        "due macchine rosse",
        ["Ci sono delle macchine?", "Le macchine sono rosse?"],
        "Ci sono {} due macchine?",
        "esattamente precisamente solo soltanto unicamente rigorosamente",
    ),
    "pt": (
        "dois carros vermelhos",
        ["Há carros na imagem?", "Os carros são vermelhos?"],
        "Há {} dois carros na imagem?",
        "exatamente exactamente precisamente apenas somente só rigorosamente",
    ),
    "nl": (
        "twee rode auto's",
        ["Zijn er auto's te zien?", "Zijn de auto's rood?"],
        "Zijn er {} twee auto's te zien?",
        "precies exact alleen slechts nauwkeurig",
    ),
    "pl": (
        "dwa czerwone samochody",
        ["Czy są samochody?", "Czy samochody są czerwone?"],
        "Czy są {} dwa samochody?",
        "dokładnie tylko równo łącznie ściśle precyzyjnie",
    ),
    "tr": (
        "iki kırmızı araba",
        ["Araba var mı?", "Arabalar kırmızı mı?"],
        "{} iki araba var mı?",
        "tam|olarak sadece yalnızca toplam kesinlikle topu|topu",
    ),
    "ru": (
        "две красные машины",
        ["На изображении есть машины?", "Машины красные?"],
        "На изображении {} две машины?",
        "ровно точно только всего именно строго аккурат",
    ),
    "ar": (
        "سيارتان 2 حمراء سيارات",
        ["هل توجد سيارات؟", "هل السيارات حمراء؟"],
        "هل توجد {} 2 سيارات؟",
        "بالضبط تماما فقط تحديدا حصرا",
    ),
    "hi": (
        "दो लाल गाड़ियाँ",
        ["क्या गाड़ियाँ हैं?", "क्या गाड़ियाँ लाल हैं?"],
        "क्या {} दो गाड़ियाँ हैं?",
        "ठीक बिल्कुल केवल सिर्फ कुल सटीक हूबहू",
    ),
}


def _counting() -> Iterator[Any]:
    for name, (prompt, others, question, words) in COUNTS.items():
        for word in words.split():
            yield pytest.param(prompt, others, question.format(word.replace("|", " ")), id=f"{name} {word}")


@pytest.mark.parametrize(("prompt", "others", "question"), [*_counting()])
@pytest.mark.parametrize("draft", ["two red cars", None], ids=["English draft", "the prompt itself"])
def test_a_count_of_the_prompt_is_kept(prompt: str, others: list[str], question: str, draft: str | None) -> None:
    about = [Mapped(prompt, other, prompt) for other in others]
    assert not is_invented(Mapped(prompt, question, prompt), about, draft or prompt)


@pytest.mark.parametrize(
    ("prompt", "other", "invented"),
    [
        ("两辆红色的汽车", "图中有汽车吗？", "图中恰好有两只狗吗？"),
        ("两辆红色的汽车", "图中有汽车吗？", "汽车旁边恰好有两只狗吗？"),
        ("2台の赤い車", "車はありますか？", "犬はちょうど2匹いますか？"),
        ("2台の赤い車", "車はありますか？", "車の横に犬が丁度2匹いますか？"),
        ("빨간 자동차 두 대", "자동차가 있습니까?", "강아지가 정확히 두 마리 있습니까?"),
        ("zwei rote Autos", "Sind Autos zu sehen?", "Sind genau zwei Hunde zu sehen?"),
        ("zwei rote Autos", "Sind Autos zu sehen?", "Sind neben den Autos genau zwei Hunde zu sehen?"),
        ("deux voitures rouges", "Y a-t-il des voitures ?", "Y a-t-il exactement deux chiens ?"),
        ("две красные машины", "На изображении есть машины?", "На изображении ровно две собаки?"),
        ("two red cars", "Are there any cars?", "Are there exactly two dogs?"),
        ("两辆红色的汽车", "图中有汽车吗？", "图中恰好有三辆汽车吗？"),
    ],
)
def test_a_count_of_what_nobody_asked_for_is_not_kept(prompt: str, other: str, invented: str) -> None:
    assert is_invented(Mapped(prompt, invented, prompt), [Mapped(prompt, other, prompt)], "two red cars")


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("zh", "恰好 正好 刚好 剛好 总共 一共 仅有 只有 准确"),
        ("ja", "ちょうど きっかり ぴったり 丁度 合計 全部 正確"),
        ("ko", "정확히 딱 꼭 오직 단지"),
        ("de", "genau exakt nur insgesamt lediglich"),
        ("fr", "exactement précisément seulement uniquement"),
        ("es", "exactamente precisamente solamente únicamente"),
        ("it", "esattamente precisamente soltanto"),
        ("pt", "exatamente precisamente apenas"),
        ("nl", "precies exact slechts"),
        ("pl", "dokładnie tylko łącznie"),
        ("tr", "tam olarak sadece yalnızca toplam"),
        ("ru", "ровно точно только всего"),
        ("ar", "بالضبط تماما فقط"),
        ("hi", "ठीक केवल सिर्फ"),
    ],
)
def test_a_word_for_exactly_asks_for_nothing_itself(language: str, words: str) -> None:
    for word in words.split():
        assert content_of(read(word, TABLES[language])) == []
