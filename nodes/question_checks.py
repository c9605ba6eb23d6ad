"""Checks in code that the questions about an image are those of the prompt: none invented, none left out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from gems.languages import Words
from gems.nodes.mapping_checks import (
    VAGUE,
    contradicts,
    is_copied,
    is_free_of,
    is_light,
    locate,
    misplaced,
    other_colour,
    quotation_in,
    same_language,
    unmatched,
)
from gems.reading import Reading, alike, read

__all__ = [
    "Mapped",
    "asks_for_all",
    "content_of",
    "is_contradicted",
    "is_mapped",
    "says_optional",
    "stands_for",
    "uncovered",
]


@dataclass(frozen=True)
class Mapped:
    """A question, and the words of the prompt that it stands for, as a chat model says."""

    prompt: str
    question: str
    words: str = ""

    @cached_property
    def places(self) -> frozenset[int]:
        """Indexes of the prompt's words that it stands for."""
        return locate(read(self.prompt), self.words)

    @cached_property
    def asks(self) -> Reading:
        """The question without what is in brackets."""
        return read(re.sub(r"\([^)]*\)", "", self.question))


def is_mapped(questions: Sequence[Mapped]) -> bool:
    """Whether the words of most questions are in the prompt. Otherwise the chat model's words are of no use."""
    return bool(questions) and sum(bool(q.places) for q in questions) * 2 >= len(questions)


def is_contradicted(q: Mapped) -> bool:
    """Whether a question asks for what the prompt says otherwise: another number, colour or text, or the opposite."""
    wish, asks = read(q.prompt), q.asks
    words = read(q.words, wish.language) if q.places else wish
    if _misquotes(wish, words, asks) or _affirms(wish, asks):
        return True
    if wish.language.name == "en" and "same" in asks.words and "same" not in wish.words:
        return True  # a weak model compares what nobody compared
    if not _repeats(words, asks, wish, q) and (misplaced(wish, asks) or other_colour(wish, asks)):
        return True
    if q.places:
        return contradicts(words, asks)
    return bool(asks.values - {1} and wish.values and not asks.values & wish.values and not _is_vague(wish))


def _repeats(words: Reading, asks: Reading, wish: Reading, q: Mapped) -> bool:
    """Whether the numbers and colours of a question are those of its words, which are in the prompt as they are."""
    is_exact = bool(q.places) and is_copied(wish, q.words)
    return is_exact and asks.values - {1} <= words.values and asks.colours(shades=False) <= words.colours()


def _is_vague(words: Reading) -> bool:
    return any(word in VAGUE for word in words.words)


def _misquotes(wish: Reading, words: Reading, asks: Reading) -> bool:
    """Whether a question quotes another text than the words that it stands for."""
    foreign = [q for q in asks.quotations if not quotation_in(q, wish.text)]
    other = words.quotations and asks.quotations and not any(quotation_in(q, words.text) for q in asks.quotations)
    return bool((foreign and words.quotations) or other)


def _affirms(wish: Reading, asks: Reading) -> bool:
    """Whether a question asks for what the prompt says must not be."""
    if asks.is_negated or is_free_of(asks) or not same_language(wish, asks):
        return False
    negated = {i for group in wish.negated for i in group}
    heads = {wish.words[group[-1]] for group in wish.negated}
    elsewhere = {wish.words[i] for i in wish.content if i not in negated}
    return any(asks.has(head) and not any(alike(head, word) for word in elsewhere) for head in heads)


# --- content --------------------------------------------------------------------------------------------------------

_FRAME: Final = Words(
    "photograph visible visibly present seen appear* look* feature* contain* include* display* depict* locat* place* "
    "position* anywhere background foreground text word words letter letters lettering spell* correct* legib* readab* "
    "clear* color* colour* material type main central subject overall entire whole setting take takes happening "
    "render* drawn painted decorat* design* styl* dress* mood atmosphere lighting composition feel* exact* precise* "
    "many much number count least most more fewer true evident recogni* identif* apparent suggest* convey* evoke* "
    "seem* resembl* view* shot frame* focus part form shape element detail* object item figure character typical "
    "actual entirely completely fully portray* illustrat* give* come* fall* cast shin* suit* kinds name* label* half "
    "free nearest closest pattern texture carried print* amount"
)
"""Words that occur in questions about anything."""


def content_of(asks: Reading) -> list[int]:
    """Indexes of the words of a question that ask for something of this image, and not of any."""
    exactly = _characters_of(asks, _EXACTLY) if not asks.language.spaced else frozenset[int]()
    return [i for i in asks.content if asks.words[i] not in _FRAME and i not in exactly]


_EXACTLY: Final = re.compile(
    "丁度|合計|総計|総数|全部|正確|厳密|確実|唯一|正好|准确|準確|精确|精確|合计|整整|不多不少|总数|總數"
)
"""Words of languages without spaces that say "exactly", "in total" and "only", of characters that things have too."""


def _characters_of(asks: Reading, pattern: re.Pattern[str]) -> frozenset[int]:
    """Indexes of the words that are in what a pattern matches, where most words are single characters."""
    ends = list(itertools.accumulate(map(len, asks.words)))
    spans = [match.span() for match in pattern.finditer(asks.joint)]
    return frozenset(i for i, end in enumerate(ends) if any(start < end <= stop for start, stop in spans))


# --- left out -------------------------------------------------------------------------------------------------------


def uncovered(prompt: str, questions: Sequence[Mapped]) -> list[int]:
    """Indexes of the words of the prompt that ask for something, and that no question stands for."""
    wish = read(prompt)
    covered = {i for q in questions for i in q.places}
    covered |= {
        i for i in wish.content for q in questions if same_language(wish, q.asks) and not unmatched(wish, [i], q.asks)
    }
    negated = {i for group in wish.negated for i in group}
    missing = {i for i in wish.content if i not in covered and i not in negated and not is_light(wish, i)}
    missing |= {
        n.position
        for n in wish.numbers
        if n.value > 1 and not n.is_measure and not any(n.value in q.asks.values for q in questions)
    }
    missing |= {i for group in wish.negated if not any(_denies(wish, group, q) for q in questions) for i in group}
    return sorted(missing)


_JOINS: Final = Words("a an the and with")


def asks_for_all(prompt: str, questions: Sequence[Mapped]) -> bool:
    """Whether the questions certainly leave out nothing: each word of the prompt is among the words of one of them.

    Those that ask for something, and numbers, are in a question itself as well.
    """
    wish = read(prompt)
    covered = frozenset[int]().union(*(q.places for q in questions))
    readings = [q.asks for q in questions if same_language(wish, q.asks)]
    values = frozenset[int]().union(*(asks.values for asks in readings))
    is_named = all(i in covered or word in _JOINS for i, word in enumerate(wish.words))
    return (
        is_named
        and wish.values <= values
        and all(any(not unmatched(wish, [i], r) for r in readings) for i in wish.content)
    )


def _denies(wish: Reading, group: Sequence[int], q: Mapped) -> bool:
    """Whether a question stands for something that is not to be there."""
    says_so = q.asks.is_negated or is_free_of(q.asks)
    is_about = bool(q.places & set(group)) or (same_language(wish, q.asks) and q.asks.has(wish.words[group[-1]]))
    is_its_own = sum(i in q.places for i in wish.content) <= len(group) + 1
    return is_about and (says_so or is_its_own)


def stands_for(missing: Sequence[str], q: Mapped) -> bool:
    """Whether a question is about something that had none: by its words, or as far as can be told."""
    return not q.places or any(
        set(read(part, read(q.prompt).language).words) & {read(q.prompt).words[i] for i in q.places} for part in missing
    )


_OPTIONAL: Final = re.compile(
    r"\b(?:ideally|if (?:you can|possible|it fits)|maybe|perhaps|possibly|optional\w*|preferabl[ye]|bonus|would be nice"
    r"|nice to have|am liebsten|wenn (?:es )?(?:geht|möglich)|idealerweise|vielleicht|eventuell|gerne? auch|si possible"
    r"|idéalement|peut-être|de préférence|si es posible|idealmente|quizás?|tal vez|preferiblemente|se possibile|magari"
    r"|se possível|talvez|indien mogelijk|misschien|bij voorkeur|jeśli można|może|eğer mümkünse|mümkünse|belki)\b"
    r"|если можно|желательно|возможно|по возможности|может быть|в идеале"
    r"|最好|如果可以|可能的话|如果可能|可以的话|できれば|可能なら|もし可能"
    r"|가능하면|가능하다면|되도록|إن أمكن|ان امكن|لو أمكن|ربما|يفضل|यदि संभव|अगर संभव|हो सके|शायद",
    re.IGNORECASE,
)


def says_optional(prompt: str) -> bool:
    """Whether the user says of anything that it may be left out."""
    return bool(_OPTIONAL.search(prompt))
