"""A wish while its prompt is read: what waits for its noun, the groups so far, and what cannot be drawn.

What is not understood is never passed over in silence: a noun that no table has is drawn as its nearest neighbour, if
that is near enough; another is not drawn, and other words are left out. Each is a note for the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from gems.errors import InputError
from gems.models.open.draft_wording import noun_of
from gems.models.open.phrasebook import Phrasebook
from gems.models.open.slots import writable
from gems.models.open.stage import CARRIERS, MAX_THINGS
from gems.models.open.things import INDEX, LOOK_NAMES, THINGS
from gems.models.open.wish import Group, Relation, Wish
from gems.models.pocket.vocabulary import with_near_words

__all__ = [
    "CONTAINERS",
    "HINT",
    "PLACING",
    "SUPPORTS",
    "Draft",
    "Neighbour",
    "Reading",
    "Sketch",
    "Waiting",
    "quantity",
]

MAX_GROUPS: Final = 5

Neighbour = Callable[[str], str | None]
"""The name of the thing that is nearest in meaning to an unknown noun; None if none is near enough."""

HINT: Final = "for free language choose real models with --mllm and --generator"


class Reading(NamedTuple):
    """A prompt that was read.

    Attributes:
        wish: What it asks for.
        stand_ins: Nouns that are drawn as something else: pairs of the user's word and the thing's name.
        missing: Nouns that are not drawn.
        left_out: Words that mean nothing to the models.
        language: The code of the language.
    """

    wish: Wish
    stand_ins: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    language: str = "en"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        stand_ins = [f"{word!r} is drawn as {_a(name)}" for word, name in self.stand_ins]
        missing = [f"not drawn: {', '.join(self.missing)}"] if self.missing else []
        return (*stand_ins, *missing, *([f"left out: {', '.join(self.left_out)}"] if self.left_out else []))


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@dataclass
class Draft:
    """A group that is being read, and whether its number was said."""

    thing: int
    count: int = 1
    more: bool = False
    look: int = 0
    size: str = ""
    place: str = ""
    text: str = ""
    word: str = ""
    """How the thing was named."""
    is_joined: bool = False
    """Whether an "and" joins it to the group before it."""
    is_listed: bool = False
    """Whether a comma does."""

    def group(self) -> Group:
        """The group, once it is complete."""
        return Group(self.thing, self.count, self.more, self.look, self.size, self.place, self.text)


@dataclass
class Waiting:
    """What was read before its noun."""

    number: str = ""
    look: int = 0
    size: str = ""
    place: str = ""
    unknown: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits that a noun would take."""
        return not (self.number or self.look or self.size)

    def draft(self, thing: int) -> Draft:
        """A group of a thing, of which its number was said."""
        count, more = quantity(self.number)
        return Draft(thing, count, more, self.look, self.size, self.place)


class Sketch:
    """A wish that grows as its prompt is read: its groups, and what was read before its noun.

    Args:
        book: The words of the prompt's language.
        texts: The prompt's quoted parts.
        neighbour: Finds the thing that an unknown noun is nearest to.
    """

    def __init__(self, book: Phrasebook, texts: list[str], neighbour: Neighbour | None) -> None:
        self.book, self.texts, self.neighbour = book, texts, neighbour
        self.groups: list[Draft] = []
        self.relations: list[Relation] = []
        self.background = ""
        self.absent: list[int] = []
        self.stand_ins: list[tuple[str, str]] = []
        self.missing: list[str] = []
        self.left_out: list[str] = []
        self.waiting = Waiting()
        self.number_text = ""
        """The last number, as it was written."""
        self.elided: list[Waiting] = []
        """Numbers and looks whose noun is said elsewhere: "a red and a blue car", "two cats, one black, one white"."""
        self.relation: tuple[str, int] | None = None
        """A relation, and the group before it. In languages that put relations after their second group, it may be that
        the first group is still to come: then the number is -1 less the index of the second."""
        self.leading = ""
        """A relation before the first group: "behind a tree stands a cat"."""
        self.negation = ""
        """The negation that waits for its noun, as it was written."""
        self.after_absent = ""
        """How the last noun was named, if it must not be there: "bare" or with an "article"."""
        self.is_separated = True
        """Whether a comma, an "and" or a relation stands between the last group and the cursor."""
        self.is_apart = False
        """Whether an "and" or a comma stands between the last two groups."""
        self.said_with = self.said_and = self.said_comma = False
        self.shared: tuple[str, int] | None = None
        """The relation of the last group to one before it, which an "and" may give to the next group too."""
        self.to_share: list[Relation] = []
        """Relations that an "and" gave to a group, unless it turns out to have one of its own."""

    def reading(self) -> Reading:
        """What has been read, at the end of the prompt.

        Raises:
            InputError: It is nothing, too much, or contradicts itself.
        """
        self.end_phrase()
        self.leave_number()
        self.share_out()
        self._share_relations()
        self.left_out += [self.negation] if self.negation else []
        self._write()
        absent = tuple(dict.fromkeys(self.absent))
        wish = Wish(tuple(g.group() for g in self.groups), tuple(self.relations), self.background, absent)
        _check(wish, self.left_out, self.book)
        left_out, missing = (tuple(dict.fromkeys(words)) for words in (self.left_out, self.missing))
        return Reading(wish, tuple(self.stand_ins), missing, left_out, self.book.language)

    def end_phrase(self) -> None:
        """Settle words that no table has: a noun, if something waits for one; otherwise they are left out."""
        unknown, self.waiting.unknown = self.waiting.unknown, []
        if not unknown:
            self._end_adjectives()
            return
        if self.negation:  # what no table has is not drawn anyway
            self.left_out.append(" ".join((self.negation, *unknown)))
            self.negation, self.after_absent, self.waiting = "", "bare", Waiting()
            return
        is_awaited = not self.waiting.is_empty or self.relation is not None or self.said_with
        is_noun = is_awaited or (self.is_separated and _is_plural(unknown[-1]))
        if (self.groups or self.background) and (not is_noun or _is_participle(unknown[-1])):
            self.left_out += unknown
            return
        self._add_unknown(unknown)

    def _end_adjectives(self) -> None:
        """Settle numbers, looks and sizes without a noun: those without a number are of the noun before."""
        waiting = self.waiting
        if not (waiting.look or waiting.size):
            return
        if self.negation:
            self.deny(self.negation)
        if waiting.number and waiting.look:
            self.elided.append(waiting)
        elif self.groups and not waiting.number:
            self.groups[-1].look = self.groups[-1].look or waiting.look
            self.groups[-1].size = self.groups[-1].size or waiting.size
        else:
            return
        self.waiting = Waiting(place=waiting.place)

    def _settle_elided(self, thing: int, waiting: Waiting) -> None:
        """Give what waited for its noun to the noun that is read now, or to the one before."""
        if waiting.number and waiting.look:
            self.groups += [elided.draft(thing) for elided in self.elided]
            self.elided = []
        elif len(self.elided) == 1 and not waiting.number:  # "two black, big dogs"
            [elided] = self.elided
            self.left_out += [LOOK_NAMES[elided.look]] if waiting.look else []
            waiting.number, waiting.look, self.elided = elided.number, waiting.look or elided.look, []
        else:
            self.share_out()

    def share_out(self) -> None:
        """Divide the last group by the looks that were said after it, or tell that they are left out."""
        elided, self.elided = self.elided, []
        if not elided:
            return
        base = self.groups[-1] if self.groups else Draft(0, 0)
        drafts = [waiting.draft(base.thing) for waiting in elided]
        if base.look:
            self.groups += drafts
        elif base.more or sum(draft.count for draft in drafts) == base.count:
            self.groups[-1:] = [replace(draft, size=draft.size or base.size, place=base.place) for draft in drafts]
        else:
            self.left_out += [f"{waiting.number} {LOOK_NAMES[waiting.look]}" for waiting in elided]

    def leave_number(self) -> None:
        """Settle a number that no noun follows: it is of the plural before it, or is left out."""
        number, self.waiting.number = self.waiting.number, ""
        if number in ("", "1"):
            return
        if self.groups and self.groups[-1].more:
            self.groups[-1].count, self.groups[-1].more = quantity(number)
        else:
            self.left_out.append(self.number_text)

    def _add_unknown(self, words: list[str]) -> None:
        """Draw the nearest thing for an unknown noun; without one, the wish lacks it, and is nothing if that is all."""
        name = self.neighbour(" ".join(words)) if self.neighbour else None
        if name is None and len(words) > 1 and self.neighbour:
            name = self.neighbour(words[-1])
        if name is not None:
            self.stand_ins.append((" ".join(words), name))
            self.add(INDEX[name], plural=_is_plural(words[-1]), word=" ".join(words))
        elif self.groups or self.background:
            self.missing.append(" ".join(words))
            self.relation, self.waiting, self.said_with = None, Waiting(), False
            self.end_at_undrawn()
        else:
            things = with_near_words([" ".join(words)], self.book.words_of("thing"))
            raise InputError(f"unknown thing {things}; the open models draw {len(THINGS)} things; {HINT}")

    def add(self, thing: int, *, plural: bool, word: str) -> None:
        """Begin a group of what waits for its noun."""
        waiting, self.waiting = self.waiting, Waiting()
        self.left_out += waiting.unknown
        if self.negation:
            self.negation, self.after_absent = "", "article" if waiting.number else "bare"
            self.absent.append(thing)
            self.relation, self.said_with = None, False
            return
        self.after_absent = ""
        if self.elided:
            self._settle_elided(thing, waiting)
        number = waiting.number or ("some" if plural else "1")
        count, more = quantity(number)
        draft = Draft(thing, count, more, waiting.look, waiting.size, waiting.place, "", word)
        draft.is_joined, draft.is_listed = self.said_and, self.said_comma
        self.groups.append(draft)
        last = len(self.groups) - 1
        self.is_apart = self.is_separated and self.relation is None
        shared, self.shared = self.shared, None
        if self.relation is not None:
            self._join(last)
        elif self.leading and last and not self.said_and:
            self._relate_to_leading(last)
        elif self.said_with and last and self._can_hold(last - 1, last):
            self.relate("holding", last - 1, last)
        elif shared and self.said_and:
            self.shared = shared
            self.to_share.append(Relation(shared[0], last, shared[1]))
        self.said_with = self.said_and = self.said_comma = False
        self.is_separated = False

    def _relate_to_leading(self, last: int) -> None:
        if self.leading != "between":
            self.relate(self.leading, last, 0)
            self.shared = (self.leading, 0)
        elif last == 2:
            self.relations.append(Relation("between", 2, 0, 1))
        else:
            return
        self.leading = ""

    def deny(self, text: str) -> None:
        """Refuse a negation of anything but a thing.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{text!r}: the open models can leave out things, but no look, size, place, relation or background; say "
            f"what it is instead; {HINT}"
        )

    def another_follows(self) -> bool:
        """Whether "and" and a noun come next; whoever reads knows."""
        raise NotImplementedError

    def end_at_undrawn(self) -> None:
        """Remember that the last noun is no group; whoever reads knows where it is."""
        raise NotImplementedError

    def _join(self, last: int) -> None:
        assert self.relation is not None
        name, first = self.relation
        if name == "between" and first >= 0:
            if last - first == 2:
                self.relations.append(Relation("between", first, last - 1, last))
                self.relation = None
            elif self.groups[last].count == 2 and not self.another_follows():
                self.relate("in front of", first, last)
                self.relation = None
            return
        if first < 0:
            self.relate(name, last, -1 - first)
            self.shared = (name, -1 - first)
        else:
            for index in (*self._joined_to(first, name), first):
                self.relate(name, index, last)
        self.relation = None

    def _joined_to(self, index: int, name: str) -> list[int]:
        """The groups that stand where a group does: of "a dog, a cat and a mouse on a couch", the dog and the cat."""
        result: list[int] = []
        related = {k for r in self.relations for k in (r.a, r.b, r.c)}
        is_list = name in PLACING and index not in related
        while is_list and index > 0 and (self.groups[index].is_joined or (result and self.groups[index].is_listed)):
            index -= 1
            is_list = index not in related and not self.groups[index].place
            result[:0] = [index] if is_list else []
        return result

    def _share_relations(self) -> None:
        """Give the groups that an "and" joins to a related one its relation, but for those with one of their own."""
        for relation in self.to_share:
            own = {k for r in self.relations if r.name in PLACING for k in (r.a, r.b, r.c)}
            is_free = max(relation.a, relation.b) < len(self.groups) and relation.a not in own
            if relation.name in PLACING and is_free and not self.groups[relation.a].place:
                self.relate(relation.name, relation.a, relation.b)

    def subject(self, name: str) -> int:
        """The group that a relation begins with: the last, unless only who holds it, or what it is of, can do that."""
        last = len(self.groups) - 1
        before = {r.b: r for r in self.relations if r.c < 0}
        if name in _DOING:
            index = last
            while not self._is_alive(index) and index in before:
                index = before[index].a
            return index if self._is_alive(index) else last
        is_held = last in before and before[last].name == "holding"
        is_worn = THINGS[self.groups[last].thing].kind == "clothing"
        return before[last].a if is_held and name in PLACING and (is_worn or name != "in") else last

    def _is_alive(self, index: int) -> bool:
        return THINGS[self.groups[index].thing].kind in ("person", "animal")

    def relate(self, name: str, a: int, b: int) -> None:
        """Relate two groups, by a relation that so many things can be in."""
        first, second = self.groups[a], self.groups[b]
        if name == "around" and (first.count < 3 or second.count > 2):
            name = "next to"
        if name == "in" and THINGS[second.thing].name in SUPPORTS:
            name = "on"  # "en un plato"
        if name == "on" and first.count > 3 * second.count:
            name = "on top of"
        if name == "in" and THINGS[second.thing].name in _FULL:  # an apple in a bowl is not in the soup
            self.stand_ins.append((second.word, THINGS[second.thing].name))
        self.relations.append(Relation(name, a, b))

    def _can_hold(self, a: int, b: int) -> bool:
        holder, thing = THINGS[self.groups[a].thing], THINGS[self.groups[b].thing]
        return holder.kind in ("person", "animal") and thing.kind in _HOLDABLE and self.groups[a].count == 1

    # --- the end

    def _write(self) -> None:
        """Put the quoted text on what carries it: the last thing before it that can, or a sign of its own."""
        if not self.texts:
            return
        text = writable(self.texts[0])
        if not text or len(self.texts) > 1:
            raise InputError(f"the open models write one text of Latin letters and digits; {HINT}")
        if len(self.texts[0].strip()) > 16:
            raise InputError(f"the text {self.texts[0]!r} is too long: the open models write up to 16 letters; {HINT}")
        carrier = next((g for g in self.groups if THINGS[g.thing].name in CARRIERS), None)
        if (
            carrier is None
            and len(self.groups) == 1
            and self.groups[0].count == 1
            and THINGS[self.groups[0].thing].kind in _WRITABLE
        ):
            carrier = self.groups[0]
        if carrier is None:
            carrier = Draft(INDEX["placard"])
            self.groups.append(carrier)
        carrier.text = text


def _check(wish: Wish, left_out: Sequence[str], book: Phrasebook) -> None:
    """Refuse a wish for nothing, for too much, or one that contradicts itself."""
    if not wish.groups and not wish.background:
        words = with_near_words(left_out[:3], book.words_of("thing")) or "nothing"
        raise InputError(f"the prompt names no thing that the open models can draw ({words}); {HINT}")
    if len(wish.groups) > MAX_GROUPS:
        raise InputError(f"{len(wish.groups)} groups of things; the open models draw at most {MAX_GROUPS}")
    if sum(group.count for group in wish.groups) > MAX_THINGS:
        raise InputError(f"{sum(g.count for g in wish.groups)} things; the open models draw at most {MAX_THINGS}")
    for group in wish.groups:
        twins = [g for g in wish.groups if g.thing == group.thing]
        if len(twins) > 1 and len({g.look for g in twins}) < len(twins):
            raise InputError(
                f"two groups of {noun_of(group.thing, 2)}; the open models tell such groups apart by their looks"
            )
        if group.thing in wish.absent:
            raise InputError(f"{noun_of(group.thing, 2)} are asked for, and asked not to be there")


def quantity(number: str) -> tuple[int, bool]:
    """A number, or the least number that a vague word means, and whether more are meant as well."""
    return (int(number), False) if number.isdecimal() else ({"some": 2, "many": 6}[number], True)


def _is_plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "us", "is"))


def _is_participle(word: str) -> bool:
    return word.endswith(("ing", "ed", "ly"))


PLACING: Final = (
    *("to the left of", "to the right of", "in front of", "behind", "under", "on top of", "next to"),
    *("on", "flying over", "in"),
)
"""The relations that say where a thing is, not what it does."""
_DOING: Final = ("chasing", "jumping over", "playing with", "holding")
CONTAINERS: Final = (
    *("amphora", "jar", "basket", "bucket", "package", "gift box", "bowl of soup", "cup of coffee", "glass of milk"),
    *(
        "nest",
        "treasure chest",
        "bathtub",
        "shopping cart",
        "potted plant",
        "backpack",
        "suitcase",
        "handbag",
        "barrel",
    ),
    *("stew", "wine glass", "toolbox", "takeout box", "wastebasket", "tent", "house", "hut", "car"),
)
"""Where things are in, if a language only says that they are there."""
SUPPORTS: Final = ("plate", "chair", "couch", "bed", "mountain", "snowy mountain", "horse", "bicycle", "motorcycle")
"""What things are on, whether a language says that they are in it, on it or there."""
_FULL: Final = ("bowl of soup", "stew", "potted plant", "cup of coffee", "glass of milk", "wine glass")
"""Drawings of containers that something is in already."""
_HOLDABLE: Final = ("tool", "thing", "sport", "clothing", "instrument", "food", "drink", "plant")
_WRITABLE: Final = ("thing", "clothing", "building", "food", "vehicle", "furniture")
