"""How the groups of a wish stand to each other, while its prompt is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from gems.models.open.things import THINGS
from gems.models.open.wish import Group, Relation

__all__ = ["CONTAINERS", "DOING", "PLACING", "SUPPORTS", "Bonds", "Draft", "is_perch", "quantity"]


def quantity(number: str) -> tuple[int, bool]:
    """A number, or the least number that a vague word means, and whether more are meant as well."""
    return (int(number), False) if number.isdecimal() else ({"some": 2, "many": 6}[number], True)


def drawn_as(text: str, name: str) -> str:
    """How the user is told of words that are read as a relation, and say more or else."""
    return f"{text} (drawn as {name})"


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
    is_settled: bool = False
    """Whether it was said to stand at something that is no group."""

    def group(self) -> Group:
        """The group, once it is complete."""
        return Group(self.thing, self.count, self.more, self.look, self.size, self.place, self.text)


class Bonds:
    """The groups so far, their relations, and the relation that waits for its second group."""

    def __init__(self) -> None:
        self.groups: list[Draft] = []
        self.relations: list[Relation] = []
        self.stand_ins: list[tuple[str, str]] = []
        self.left_out: list[str] = []
        self.holder_with = (-1, -1)
        """Who has the last thing that a "with" named, and that."""
        self.vessels: dict[int, int] = {}
        """The things that were said after what they are in or on, and that."""
        self.relation_text = ""
        """The last relation, as it was written; empty if only a case or particle says it."""
        self.told_relation = ""
        """That, if it says more than the relation that it is read as, until two groups are in it."""
        self.relation: tuple[str, int] | None = None
        """A relation, and the group before it. In languages that put relations after their second group, it may be that
        the first group is still to come: then the number is -1 less the index of the second."""
        self.leading = self.leading_text = ""
        """A relation before the first group: "behind a tree stands a cat"."""
        self.shared: tuple[str, int] | None = None
        """The relation of the last group to one before it, which an "and" may give to the next group too."""
        self.to_share: list[Relation] = []
        """Relations that an "and" gave to a group, unless it turns out to have one of its own."""

    def another_follows(self) -> bool:
        """Whether "and" and a noun come next; whoever reads knows."""
        raise NotImplementedError

    def relate_to_leading(self, last: int) -> None:
        """Relate the last group by the relation before the first one."""
        if self.leading != "between":
            self.relate(self.leading, last, 0)
            self.shared = (self.leading, 0)
        elif last == 2:
            self.relations.append(Relation("between", 2, 0, 1))
        elif self.groups[0].count > 1:
            self.relate("between", last, 0)
        else:
            return
        self.leading = ""

    def join(self, last: int) -> None:
        """Relate the last group by the relation that waits for it."""
        assert self.relation is not None
        name, first = self.relation
        if name == "between" and first >= 0:
            if last - first == 2:
                self.relations.append(Relation("between", first, last - 1, last))
                self.relation = None
            elif self.groups[last].count > 1 and not self.another_follows():
                self.relate("between", first, last)
                self.relation = None
            return
        if name == "between" and self.groups[-1 - first].is_joined and first < -1:
            self.relations.append(Relation("between", last, -2 - first, -1 - first))
        elif first < 0:
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
        is_list = name in PLACING and index not in related and not self.groups[index].is_settled
        while is_list and index > 0 and (self.groups[index].is_joined or (result and self.groups[index].is_listed)):
            index -= 1
            is_list = index not in related and not (self.groups[index].place or self.groups[index].is_settled)
            result[:0] = [index] if is_list else []
        return result

    def share_relations(self) -> None:
        """Give the groups that an "and" joins to a related one its relation, but for those with one of their own."""
        for relation in self.to_share:
            own = {k for r in self.relations if r.name in PLACING for k in (r.a, r.b, r.c)}
            is_free = max(relation.a, relation.b) < len(self.groups) and relation.a not in own
            if relation.name in PLACING and is_free and not self.groups[relation.a].place:
                self.relate(relation.name, relation.a, relation.b)

    def subject(self, name: str) -> int:
        """The group that a relation begins with: the last, unless only who holds it, or what it is of, can do that."""
        last = len(self.groups) - 1
        if last in self.vessels and name in PLACING:  # "a basket with eggs next to a rabbit"
            last = self.vessels[last]
        before = {r.b: r for r in self.relations if r.c < 0 and self.vessels.get(r.a) != r.b}
        if name in DOING:
            index = last
            while not self.is_alive(index) and index in before:
                index = before[index].a
            return index if self.is_alive(index) else last
        is_held = last in before and before[last].name == "holding"
        is_worn = THINGS[self.groups[last].thing].kind == "clothing"
        return before[last].a if is_held and name in PLACING and (is_worn or name != "in") else last

    def head(self, index: int, *names: str) -> int:
        """What a group was said of, by some relations or any: of "a castle on a mountain", the castle."""
        while relation := next(
            (r for r in self.relations if r.b == index and r.a < index and (not names or r.name in names)), None
        ):
            index = relation.a
        return index

    def referent(self, index: int) -> int:
        """What "it" means after a group: that, or what bears it, stands on it or is in it."""
        return self.head(index, "on", "in", "holding")

    def is_alive(self, index: int) -> bool:
        """Whether a group is somebody, a person or an animal, or the likeness of one."""
        thing = THINGS[self.groups[index].thing]
        return thing.kind in ("person", "animal") or thing.name in _FIGURES

    def perches(self, thing: int) -> bool:
        """Whether the language's "in" says of a thing that others are on it, as Spanish does of flowers."""
        raise NotImplementedError

    def relate(self, name: str, a: int, b: int) -> None:
        """Relate two groups, by a relation that so many things can be in."""
        if name == "in" and self.is_filled(a, b):
            a, b = b, a
            self.vessels[a] = b
        first, second = self.groups[a], self.groups[b]
        if name == "between":  # which takes two groups: "a fox between two trees"
            name, self.told_relation = "in front of", self.told_relation or self.relation_text
            self.left_out.append(self.told_relation)
        if name == "around" and (first.count < 3 or second.count > 2):
            name = "next to"
        if name == "in" and THINGS[second.thing].name in _WEATHER:
            return  # "in the rain"
        is_dressed = name == "in" and THINGS[second.thing].kind == "clothing"
        if is_dressed and not self.is_alive(a):  # "a snowman with a carrot and in a scarf"
            a = next((r.a for r in self.relations if (r.name, r.b) == ("holding", a)), a)
        if is_dressed and self.is_alive(a):
            name = "holding"  # "a girl in a red dress"
        if name == "holding" and THINGS[second.thing].kind == "clothing" and not self._is_told_or_held():
            self.left_out.append(drawn_as("wearing", name))
        if name == "in" and (THINGS[second.thing].name in SUPPORTS or self.perches(second.thing)):
            name = "on"  # "en un plato"
        if name == "on" and first.count > 3 * second.count:
            name = "above"
            self.left_out += [] if self.told_relation else [drawn_as("on", name)]
        if name == "in" and THINGS[second.thing].name in _FULL:  # an apple in a bowl is not in the soup
            self.stand_ins.append((second.word, THINGS[second.thing].name))
        self.relations.append(Relation(name, a, b))
        if self.told_relation in self.left_out:
            self.left_out[self.left_out.index(self.told_relation)] = drawn_as(self.told_relation, name)
        self.told_relation = ""

    def _is_told_or_held(self) -> bool:
        """Whether the user is told of a relation anyway, or it is one of holding, not of wearing."""
        is_held = self.relation is not None and _HOLDING.match(self.relation_text.lower()) is not None
        return bool(self.told_relation) or is_held

    def attach_too(self, last: int) -> bool:
        """Relate what an "and" joins to something that is held or in a vessel, as that is: "with a hat and a cane"."""
        if last - 1 in self.vessels and THINGS[self.groups[last].thing].kind in _HOLDABLE:
            vessel = self.vessels[last - 1]
            name = next(r.name for r in self.relations if (r.a, r.b) == (last - 1, vessel))
            self.relate(name, last, vessel)
            self.vessels[last] = vessel
        elif self.holder_with[1] == last - 1 and self.can_hold(self.holder_with[0], last):
            self.relate("holding", self.holder_with[0], last)
            self.holder_with = (self.holder_with[0], last)
        else:
            return False
        return True

    def is_filled(self, a: int, b: int) -> bool:
        """Whether what is in a thing is said after it: "a basket filled with eggs", りんごの入ったかご."""
        first, second = THINGS[self.groups[a].thing], THINGS[self.groups[b].thing]
        is_vessel = first.name in (*CONTAINERS, "plate", "tray") and first.kind not in _NO_VESSELS
        is_filling = second.name not in (*CONTAINERS, *SUPPORTS) and second.kind in (*_HOLDABLE, "animal")
        return is_vessel and is_filling and second.kind != "clothing"

    def attach(self, last: int, *, is_apart: bool) -> bool:
        """Relate the last group to what it was said to be with: who has it, or what it is in or on; False if none."""
        before = THINGS[self.groups[last - 1].thing]
        if (holder := self.holder(last, is_apart=is_apart)) >= 0:
            self.relate("holding", holder, last)
            self.holder_with = (holder, last)
        elif before.kind not in _NO_VESSELS and THINGS[self.groups[last].thing].kind in (*_HOLDABLE, "animal"):
            relation = "in" if before.name in CONTAINERS else "on" if before.name in (*SUPPORTS, *_CAKES) else ""
            if not relation:
                return False
            self.relate(relation, last, last - 1)
            self.vessels[last] = last - 1
        else:
            return False
        return True

    def join_mentions(self) -> None:
        """A thing that is named once in each of two relations is one: "a cat on a chair, a lamp behind the chair"."""
        for later in range(len(self.groups) - 1, 0, -1):
            group = self.groups[later]
            earlier = next((k for k in range(later) if _is_mention(group, self.groups[k])), None)
            if earlier is None or not (self._is_related(later) and self._is_related(earlier)):
                continue
            places = [earlier if k == later else k - (k > later) for k in range(len(self.groups))]
            relations = [
                replace(r, a=places[r.a], b=places[r.b], c=places[r.c] if r.c >= 0 else -1) for r in self.relations
            ]
            if all(len({r.a, r.b, r.c}) == 3 for r in relations):
                del self.groups[later]
                self.relations = relations

    def _is_related(self, index: int) -> bool:
        return any(index in (r.a, r.b, r.c) for r in self.relations)

    def holder(self, last: int, *, is_apart: bool) -> int:
        """Who has what a "with" names: whoever is named before it or, after a comma, whom that was said of; else -1."""
        is_worn = THINGS[self.groups[last - 1].thing].kind == "clothing"  # "a girl in a hat with a ball"
        wearer = self.head(last - 1, "holding") if is_worn else last - 1
        candidates = (self.head(last - 1), wearer) if is_apart else (wearer,)
        return next((k for k in candidates if self.can_hold(k, last)), -1)

    def can_hold(self, a: int, b: int) -> bool:
        """Whether one group is somebody, and another something to hold."""
        return self.is_alive(a) and THINGS[self.groups[b].thing].kind in _HOLDABLE and self.groups[a].count == 1


def is_perch(thing: int) -> bool:
    """Whether a thing is a plant on which others are, though a language says "in" or "at"."""
    return THINGS[thing].kind == "plant" and THINGS[thing].name not in CONTAINERS


def _is_mention(group: Draft, earlier: Draft) -> bool:
    """Whether a group can be an earlier one once more: it says nothing that is not said of that."""
    own = (group.count, group.more, group.look or earlier.look, group.size, group.place, group.text)
    return group.thing == earlier.thing and own == (1, False, earlier.look, "", "", "") and earlier.count == 1


PLACING: Final = (
    *("to the left of", "to the right of", "in front of", "behind", "under", "above", "next to"),
    *("on", "flying over", "in"),
)
"""The relations that say where a thing is, not what it does."""
_HOLDING: Final = re.compile(
    "hold|carr|h[aä]lt|houd|vasthoud|(?:qui |che |que )?(?:tien|ten)|sost|sujet|segur|trzym|держ|tut"
    "|拿|手持|捧|举|を?持|들"
)
"""How verbs of holding begin: whoever holds a hat does not wear it."""
DOING: Final = ("chasing", "jumping over", "playing with", "holding")
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
    *("bowl", "jug", "cooking pot", "frying pan", "wheelbarrow", "doghouse", "water well", "washing machine"),
    *("stew", "wine glass", "toolbox", "takeout box", "wastebasket", "tent", "house", "hut", "car"),
)
"""Where things are in, if a language only says that they are there."""
SUPPORTS: Final = (
    *("plate", "chair", "couch", "bed", "mountain", "snowy mountain", "horse", "bicycle", "motorcycle"),
    *("table", "desk", "bench", "stool", "bookshelf", "tray", "rug", "pillow", "stove", "staircase", "swing"),
    *("fence", "wall", "tree stump", "tower", "sandcastle"),
)
"""What things are on, whether a language says that they are in it, on it or there."""
_WEATHER: Final = ("rain cloud", "snow cloud", "storm cloud", "sun")
_FULL: Final = ("bowl of soup", "stew", "potted plant", "cup of coffee", "glass of milk", "wine glass")
"""Drawings of containers that something is in already."""
_NO_VESSELS: Final = ("animal", "vehicle", "building")
"""Kinds of things that what they are with is not in or on: "a house with a tree", "a bicycle with a basket"."""
_CAKES: Final = ("birthday cake", "cupcake", "slice of cake", "pancake", "pie", "pizza")
_FIGURES: Final = (
    *("snowman", "plain snowman", "scarecrow", "teddy bear", "nesting doll", "japanese doll", "statue", "moai"),
)
"""Likenesses of people and animals: they wear and hold things."""
_HOLDABLE: Final = ("tool", "thing", "sport", "clothing", "instrument", "food", "drink", "plant")
