"""Reads what a skill keeps beside its SKILL.md, on demand: one level deep, never outside its folder."""

from __future__ import annotations

from gems.skills.format import MAX_SKILL_BYTES, Skill, UnusableError, read_text

__all__ = ["read_reference"]


def read_reference(skill: Skill, file: str) -> str:
    """A reference's text.

    Args:
        skill: Whose.
        file: As the skill lists it, such as ``references/papers.md``; ``./`` in front does not matter.

    Raises:
        UnusableError: The skill lists no such file, or it is no text file inside the skill's folder.
    """
    name = file.strip().removeprefix("./")
    if name not in skill.references:
        listed = ", ".join(skill.references[:20]) or "none"
        raise UnusableError(f"{skill.name} has no reference {name[:80]!r}; it has: {listed}")
    return read_text(skill.path.parent / name, within=skill.path.parent, limit=MAX_SKILL_BYTES)
