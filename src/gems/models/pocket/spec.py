"""What a prompt asks for. Reading a prompt needs this and no numbers, so that a bad one is refused at once."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Group", "SceneSpec"]


@dataclass(frozen=True, slots=True)
class Group:
    """``count`` things of one kind. ``attribute`` and ``object`` index ATTRIBUTES (0 is none) and OBJECTS."""

    count: int
    attribute: int
    object: int


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """What a prompt asks for. ``relations[i]`` relates groups i and i + 1 ("groups[i] RELATION groups[i + 1]")."""

    groups: tuple[Group, ...]
    relations: tuple[str | None, ...]

    @property
    def atoms(self) -> int:
        """The benchmark's measure of difficulty: the number of objects, attributes, counts above one and relations."""
        return sum(1 + (g.attribute > 0) + (g.count > 1) for g in self.groups) + sum(
            r is not None for r in self.relations
        )
