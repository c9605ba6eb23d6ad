"""Questions about images: those that a wish gives rise to, and what a question means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from gems.models.open.draft_wording import BACKGROUND_PHRASES, NUMBERS, noun_of, place_phrase
from gems.models.open.phrasebook import Match, phrasebook
from gems.models.open.things import DEPTHS, INDEX, LOOK_NAMES
from gems.models.open.wish import Group, Wish

__all__ = ["Kind", "Question", "Who", "parse_question", "questions_of", "who_of"]

Kind = Literal["object", "count", "attribute", "size", "place", "relation", "background", "absent", "text"]


class Who(NamedTuple):
    """The things that a question is about: all of a kind, or only those of a look, if ``look`` is not -1."""

    thing: int
    look: int = -1


_NOBODY: Final = Who(-1)


@dataclass(frozen=True, slots=True)
class Question:
    """The meaning of a yes/no question about an image. Only what the kind needs is set."""

    kind: Kind
    who: Who = _NOBODY
    count: int = 0
    more: bool = False
    look: int = 0
    name: str = ""
    """A size, place, relation or background, or the text."""
    partners: tuple[Who, ...] = ()


def who_of(wish: Wish, index: int) -> Who:
    """Whom a group's questions are about: groups of one kind are told apart by their looks."""
    group = wish.groups[index]
    twins = sum(g.thing == group.thing for g in wish.groups) > 1
    return Who(group.thing, group.look if twins else -1)


def questions_of(wish: Wish) -> list[tuple[str, Question]]:
    """The atomic questions of a wish, each with its meaning."""
    result: list[tuple[str, Question]] = []
    for index, group in enumerate(wish.groups):
        result += _questions_of_group(group, who_of(wish, index))
    for relation in wish.relations:
        a, b = who_of(wish, relation.a), who_of(wish, relation.b)
        partners = (b, who_of(wish, relation.c)) if relation.c >= 0 else (b,)
        targets = " and ".join(
            f"the {_noun(who, wish.groups[k].count)}"
            for who, k in zip(partners, (relation.b, relation.c), strict=False)
        )
        text = f"{_are_the(wish.groups[relation.a], a)} {relation.name} {targets}?"
        result.append((text, Question("relation", a, name=relation.name, partners=partners)))
    if wish.background:
        text = f"Is the scene set {BACKGROUND_PHRASES[wish.background]}?"
        result.append((text, Question("background", name=wish.background)))
    for thing in wish.absent:
        result.append((f"Is the image free of {noun_of(thing, 2)}?", Question("absent", Who(thing))))
    return result


def _questions_of_group(group: Group, who: Who) -> list[tuple[str, Question]]:
    are, is_one = _are_the(group, who), group.count == 1 and not group.more
    result = [(f"Are there any {_noun(who, 2)} in the image?", Question("object", who))]
    noun = _noun(who, 1 if is_one else 2)
    quantity = "at least" if group.more else "exactly"
    count = f"{'Is' if is_one else 'Are'} there {quantity} {NUMBERS[group.count - 1]} {noun} in the image?"
    result.append((count, Question("count", who, count=group.count, more=group.more)))
    if group.look and who.look < 0:
        result.append((f"{are} {LOOK_NAMES[group.look]}?", Question("attribute", who, look=group.look)))
    if group.size:
        result.append((f"{are} {group.size}?", Question("size", who, name=group.size)))
    if group.place:
        where = place_phrase(group.place) + ("" if group.place in DEPTHS else " of the image")
        result.append((f"{are} {where}?", Question("place", who, name=group.place)))
    if group.text:
        result.append(
            (f'{"Does" if is_one else "Do"} the {noun} say "{group.text}"?', Question("text", who, name=group.text))
        )
    return result


def _noun(who: Who, count: int) -> str:
    look = f"{LOOK_NAMES[who.look]} " if who.look > 0 else "plain " if who.look == 0 else ""
    return look + noun_of(who.thing, count)


def _are_the(group: Group, who: Who) -> str:
    is_one = group.count == 1 and not group.more
    return f"{'Is' if is_one else 'Are'} the {_noun(who, 1 if is_one else 2)}"


# --- and back -------------------------------------------------------------------------------------------------------

_ANY: Final = re.compile(r"(?:are|is) there (?:any|an?|some) (.+?)(?: in the (?:image|picture))?")
_COUNT: Final = re.compile(r"(?:are|is) there (exactly|at least) (\S+) (.+?)(?: in the (?:image|picture))?")
_FREE: Final = re.compile(r"is the (?:image|picture) free of (?:any )?(.+)")
_SCENE: Final = re.compile(r"is the scene set (.+)|is the background (?:an? |the )?(.+)")
_SAYS: Final = re.compile(r"do(?:es)? the (.+?) say [\"'](.+)[\"']")
_BE: Final = re.compile(r"(?:are|is) (?:all )?(?:of )?the (.+)")


def parse_question(text: str) -> Question | None:
    """What a question means; None if it is none that the open models can answer."""
    plain = " ".join(text.strip().rstrip("?").split())
    if match := _SAYS.fullmatch(plain) or _SAYS.fullmatch(plain.lower()):
        who = _who(match[1])
        return Question("text", who, name=match[2].upper()) if who else None
    plain = plain.lower()
    if match := _COUNT.fullmatch(plain):
        who, number = _who(match[3]), _number(match[2])
        return Question("count", who, count=number, more=match[1] == "at least") if who and number else None
    if match := _ANY.fullmatch(plain):
        who = _who(match[1])
        return Question("object", who) if who else None
    if match := _FREE.fullmatch(plain):
        who = _who(match[1])
        return Question("absent", who) if who else None
    if match := _SCENE.fullmatch(plain):
        meanings = [m.of("background") for m in phrasebook("en").matches(match[1] or match[2])]
        meaning = next((m for m in meanings if m), None)
        return Question("background", name=meaning.value) if meaning and not meaning.is_told else None
    if match := _BE.fullmatch(plain):
        return _parse_statement(
            phrasebook("en").matches(match[1].removesuffix(" of the image").removesuffix(" in the image"))
        )
    return None


def _parse_statement(matches: Sequence[Match]) -> Question | None:
    """What is said of things: "the cats red", "the cat on the left", "the cat between the dog and the car"."""
    nouns = [
        k
        for k, m in enumerate(matches)
        if m.of("thing") and not (m.of("look") and k + 1 < len(matches) and matches[k + 1].of("thing"))
    ]
    if not nouns:
        return None
    first = nouns[0]
    who = _who_in(matches[: first + 1])
    rest = matches[first + 1 :]
    if who is None or not rest:
        return None
    relation = next((m.of("relation") for m in rest if m.of("relation")), None)
    if relation and relation.is_told:
        return None
    partners = _partners(rest)
    if relation and partners:
        needs = 2 if relation.value == "between" else 1
        return (
            Question("relation", who, name=relation.value, partners=tuple(partners[:needs]))
            if len(partners) >= needs
            else None
        )
    for match in rest:
        if place := match.of("place"):
            return Question("place", who, name=place.value)
        if size := match.of("size"):
            return Question("size", who, name=size.value)
        if look := match.of("look"):
            return Question("attribute", who, look=LOOK_NAMES.index(look.value))
    return None


def _partners(matches: Sequence[Match]) -> list[Who]:
    """The groups named after a relation."""
    result, start = [], 0
    for k, match in enumerate(matches):
        following = matches[k + 1] if k + 1 < len(matches) else None
        is_look = match.of("look") and following is not None and following.of("thing")
        if match.of("thing") and not is_look:
            who = _who_in(matches[start : k + 1])
            result += [who] if who else []
            start = k + 1
    return result


def _who(text: str) -> Who | None:
    matches = phrasebook("en").matches(text)
    nouns = [k for k, m in enumerate(matches) if m.of("thing")]
    return _who_in(matches[: nouns[-1] + 1]) if nouns and nouns[-1] == len(matches) - 1 else None


def _who_in(matches: Sequence[Match]) -> Who | None:
    """Looks and a noun at the end of phrases; None if the noun only stands in for another, or a word is unknown."""
    thing = matches[-1].of("thing")
    if thing is None or thing.is_stand_in or any(not m.meanings for m in matches):
        return None
    looks = [m.of("look") for m in matches[:-1]]
    look = next((LOOK_NAMES.index(m.value) for m in looks if m), -1)
    return Who(INDEX[thing.value], look)


def _number(word: str) -> int:
    if word in NUMBERS:
        return NUMBERS.index(word) + 1
    return int(word) if word.isdecimal() and int(word) < 30 else 0
