"""What questions ask to be absent, and whether a draft or another question has it all the same.

A prompt may negate in any language; the questions about it are in English, and say plainly what must not be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

from gems.graph.state import Requirement
from gems.languages import Words
from gems.nodes.mapping_checks import AFTER_A_THING, affirms, is_affirmed_at, is_gone, says_absent
from gems.nodes.question_checks import Mapped
from gems.reading import Reading, alike, read

__all__ = ["absent_things", "is_denial", "is_drawn_though_absent", "is_ruled_out", "negative_prompt_for"]


_LONGEST_NEGATIVE_PROMPT: Final = 1000
"""Characters of a negative prompt: image models read fewer, and each image, record and report repeats it."""


def negative_prompt_for(requirements: Iterable[Requirement]) -> str:
    """What requirements ask to be absent, as image models read it: "people, price tags"; empty if they ask for none.

    What is to be absent in one place and there in another is left out, and so is what would make it too long.
    """
    questions = [Mapped("", requirement.question) for requirement in requirements]
    things = {" ".join(thing): thing for q in questions for thing, _ in absent_things(q.asks)}
    text = ""
    for name, thing in things.items():
        longer = f"{text}, {name}" if text else name
        if len(longer) <= _LONGEST_NEGATIVE_PROMPT and not _is_wanted(thing, questions):
            text = longer
    return text


def is_denial(q: Mapped) -> bool:
    """Whether a question asks for something to be absent."""
    return q.asks.is_negated or says_absent(q.asks)


def is_ruled_out(q: Mapped, questions: Iterable[Mapped]) -> bool:
    """Whether a question asks for a thing that another one asks to be absent.

    Unless a third one or its own words of the prompt ask for it: "a book lying face down", where no faces are to be.
    """
    return not is_denial(q) and any(
        _has(q.asks, [*thing, *place])
        for other in questions
        for thing, place in absent_things(other.asks)
        if not _is_wanted(thing, questions) and not is_affirmed_at(read(q.prompt), thing[-1], q.places)
    )


def is_drawn_though_absent(q: Mapped, questions: Iterable[Mapped], draft: str) -> bool:
    """Whether an English draft has a thing that a question asks to be absent, and that no other one asks for."""
    text = read(draft)
    return text.language.name == "en" and any(
        affirms(text, thing) for thing, _ in absent_things(q.asks) if not _is_wanted(thing, questions)
    )


def _is_wanted(thing: Sequence[str], questions: Iterable[Mapped]) -> bool:
    return any(
        _has(q.asks, thing) or (thing[-1] in _WRITING and q.asks.quotations) for q in questions if not is_denial(q)
    )


def _has(asks: Reading, thing: Sequence[str]) -> bool:
    """Whether a question has all words of a thing; a table is no tablecloth, and a tablecloth is a cloth."""
    return all(any(alike(word, other) and len(other) + 3 > len(word) for other in asks.words) for word in thing)


_EXCEPTING: Final = Words("except besides apart but than only otherwise")
"""Words after which a thing may be there in spite of a negation."""
_OTHER: Final = Words("other others else more further additional extra")
"""Words after which things are to be absent beside those that are there."""
_ABSENT_AFTER: Final = Words("no without lack lacks lacking nobody")
_ABSENT_AFTER_OF: Final = Words("free devoid clear empty")
_WORN_AFTER: Final = Words("wear wearing")
_WRITING: Final = Words("text texts writing lettering letters word words inscription* caption*")
_PLACES: Final = Words("top bottom left right front back")
_IN_AN_IMAGE: Final = Words("visible visibly seen present anywhere completely")


@lru_cache(maxsize=256)  # every question is compared with every other one
def absent_things(asks: Reading) -> list[tuple[list[str], list[str]]]:
    """The things that an English question asks to be absent, and where.

    A thing is in words of which the last names it. The place is every other word: none, if it is the whole image. What
    somebody does not do, or how something is not, is no thing.
    """
    words = asks.words
    if any(word in _EXCEPTING for word in words):
        return []
    content = [i for i in range(len(words)) if _says_more(asks, i)]
    places, bounds = set(content), [*_starts(words), len(words)]
    things = [thing for start, end in pairwise(bounds) for thing in _listed(asks, start, end, places)]
    last = next((i for i in range(len(words)) if is_gone(words, i)), None)
    if last is not None:
        things.append([i for i in content if i < last])
    in_things = {i for thing in things for i in thing}
    place = [words[i] for i in content if i not in in_things and i != last]
    return [
        ([words[i] for i in thing], place)
        for thing in things
        if thing and not any(word in _OTHER for word in words[max(0, thing[0] - 2) : thing[-1]])
    ]


def _says_more(asks: Reading, index: int) -> bool:
    """Whether a word names a thing or a place, be it one that asks for nothing by itself elsewhere."""
    word = asks.words[index]
    is_content = index in asks.content_places or word in _WRITING or word in _PLACES
    return is_content and not any(word in words for words in (_IN_AN_IMAGE, _ABSENT_AFTER_OF, _ABSENT_AFTER))


def _starts(words: Sequence[str]) -> Iterator[int]:
    """Where things begin that are to be absent."""
    for i, word in enumerate(words):
        is_free = word == "of" and words[i - 1] in _ABSENT_AFTER_OF
        if word in _ABSENT_AFTER or is_free or (word in _WORN_AFTER and "not" in words[:i]):
            yield i + 1


def _listed(asks: Reading, start: int, end: int, content: Collection[int]) -> Iterator[list[int]]:
    """The things named from there up to the next negation: those that "and" or "or" joins, and no place."""
    thing: list[int] = []
    for i in range(start, end):
        word = asks.words[i]
        is_next_clause = asks.tokens[i].clause != asks.tokens[start].clause
        if thing and (word in AFTER_A_THING or is_next_clause):
            yield thing
            thing = []
            if is_next_clause or word not in ("and", "or", "nor"):
                return
        if i in content and not (word in _WORN_AFTER and not thing):
            thing.append(i)
    yield thing
