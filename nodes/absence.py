"""What questions ask to be absent, and whether a draft or another question has it all the same.

A prompt may negate in any language; the questions about it are in English, and say plainly what must not be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from gems.graph.state import Requirement
from gems.languages import Words
from gems.nodes.mapping_checks import affirms, is_free_of
from gems.nodes.question_checks import Mapped
from gems.reading import Reading, alike, read

__all__ = ["absent_things", "is_denial", "is_drawn_though_absent", "is_ruled_out", "negative_prompt_for"]


def negative_prompt_for(requirements: Iterable[Requirement]) -> str:
    """What requirements ask to be absent, as image models read it: "people, price tags"; empty if they ask for none."""
    things = [" ".join(thing) for r in requirements for thing in absent_things(Mapped("", r.question).asks)]
    return ", ".join(dict.fromkeys(things))


def is_denial(q: Mapped) -> bool:
    """Whether a question asks for something to be absent."""
    return q.asks.is_negated or is_free_of(q.asks)


def is_ruled_out(q: Mapped, questions: Iterable[Mapped]) -> bool:
    """Whether a question asks for a thing that another one asks to be absent, and that no third one asks for."""
    return not is_denial(q) and any(_has(q.asks, thing) for thing in _unwanted(questions, questions))


def is_drawn_though_absent(q: Mapped, questions: Iterable[Mapped], draft: str) -> bool:
    """Whether an English draft has a thing that a question asks to be absent, and that no other one asks for."""
    text = read(draft)
    return text.language.name == "en" and any(affirms(text, thing) for thing in _unwanted([q], questions))


def _unwanted(denials: Iterable[Mapped], questions: Iterable[Mapped]) -> list[list[str]]:
    wanted = [q.asks for q in questions if not is_denial(q)]
    return [thing for q in denials for thing in absent_things(q.asks) if not any(_has(asks, thing) for asks in wanted)]


def _has(asks: Reading, thing: Sequence[str]) -> bool:
    """Whether a question has all words of a thing; a table is no tablecloth, and a tablecloth is a cloth."""
    return all(any(alike(word, other) and len(other) + 3 > len(word) for other in asks.words) for word in thing)


_EXCEPTING: Final = Words(
    "except besides apart but other others else than only otherwise more further additional extra"
)
"""Words after which a thing may be there in spite of a negation."""
_ABSENT_AFTER: Final = Words("no without lack lacks lacking nobody")
_ABSENT_AFTER_OF: Final = Words("free devoid clear empty")
_ABSENT_BEFORE: Final = Words("absent missing")
_WORN_AFTER: Final = Words("wear wearing")
_IN_AN_IMAGE: Final = Words("visible visibly seen shown present anywhere image picture scene photo")
_AFTER_A_THING: Final = Words(
    "in on at with of under over behind beside near from through across against into onto above below to for that and "
    "or nor as"
)


def absent_things(asks: Reading) -> list[list[str]]:
    """The things that an English question asks to be absent, each in words of which the last names it.

    What somebody does not do, or how something is not, is no thing.
    """
    if any(word in _EXCEPTING for word in asks.words):
        return []
    content = [i for i in asks.content if asks.words[i] not in _IN_AN_IMAGE]
    things = [thing for start in _starts(asks.words) for thing in _listed(asks, start, content)]
    if asks.words and asks.words[-1] in _ABSENT_BEFORE:
        things.append([asks.words[i] for i in content if i < len(asks.words) - 1])
    return [thing for thing in things if thing]


def _starts(words: Sequence[str]) -> Iterator[int]:
    """Where things begin that are to be absent."""
    for i, word in enumerate(words):
        is_free = word == "of" and words[i - 1] in _ABSENT_AFTER_OF
        if word in _ABSENT_AFTER or is_free or (word in _WORN_AFTER and "not" in words[:i]):
            yield i + 1


def _listed(asks: Reading, start: int, content: Collection[int]) -> Iterator[list[str]]:
    """The things named from there on: those that "and" or "or" joins, and no place where they might be."""
    thing: list[str] = []
    for i in range(start, len(asks.words)):
        word = asks.words[i]
        is_next_clause = asks.tokens[i].clause != asks.tokens[start].clause
        if thing and (word in _AFTER_A_THING or is_next_clause):
            yield thing
            thing = []
            if is_next_clause or word not in ("and", "or", "nor"):
                return
        if i in content and not (word in _WORN_AFTER and not thing):
            thing.append(word)
    yield thing
