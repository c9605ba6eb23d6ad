"""Reads the files beside a skill's SKILL.md on demand: one level deep, never outside its folder."""

from __future__ import annotations

from gems.skills.format import MAX_SKILL_BYTES, Skill, UnusableError, read_text

__all__ = ["read_reference"]


def read_reference(skill: Skill, file: str) -> str:
    """The text of a reference.

    Args:
        skill: The skill.
        file: Its name as the skill lists it, such as ``references/papers.md``; a leading ``./`` is ignored.

    Raises:
        UnusableError: The skill lists no such file, or it is not a text file inside the skill's folder.
    """
    name = file.strip().removeprefix("./")
    if name not in skill.references:
        listed = ", ".join(skill.references[:20]) or "none"
        raise UnusableError(f"{skill.name} has no reference {name[:80]!r}; it has: {listed}")
    return read_text(skill.path.parent / name, within=skill.path.parent, limit=MAX_SKILL_BYTES)
