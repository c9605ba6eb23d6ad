"""What a prompt asks for. Reading one needs this and no numbers, so that a bad one is refused at once."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Group", "Relation", "Wish"]


@dataclass(frozen=True, slots=True)
class Group:
    """Things of one kind.

    Attributes:
        thing: Index into THINGS.
        count: How many there are; how many at least, if ``more`` is true ("some", "many").
        look: Index into LOOK_NAMES; 0 is none.
        size: A key of SIZES, or empty.
        place: One of PLACES or of DEPTHS, or empty.
        text: What is written on them, in capitals.
    """

    thing: int
    count: int = 1
    more: bool = False
    look: int = 0
    size: str = ""
    place: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"a group has at least one thing, not {self.count}: what must not be there is absent")


@dataclass(frozen=True, slots=True)
class Relation:
    """That "a NAME b" holds, or for "between" "a between b and c"; a, b and c are indices of groups."""

    name: str
    a: int
    b: int
    c: int = -1


@dataclass(frozen=True, slots=True)
class Wish:
    """A scene: groups of different things, how they stand to each other, where, and what must not be there."""

    groups: tuple[Group, ...]
    relations: tuple[Relation, ...] = ()
    background: str = ""
    absent: tuple[int, ...] = ()
