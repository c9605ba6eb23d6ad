"""Loads skills in the open Agent Skills format (agentskills.io): a folder with a SKILL.md.

SKILL.md is YAML between two lines of three dashes, with at least ``name`` and ``description``, then Markdown. A skill
that cannot be read is skipped with a reason; it never stops the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from gems.graph.errors import InputError

__all__ = ["BUILTIN", "MAX_SKILL_BYTES", "Skill", "SkillLibrary", "load_skills"]

BUILTIN: Final = Path(__file__).parent / "builtin"
MAX_SKILL_BYTES: Final = 64 * 1024
_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_DOCUMENT: Final = re.compile(r"\A---[ \t]*\n(?P<head>.*?\n)---[ \t]*(?:\n(?P<body>.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Skill:
    """One skill: what the planner sees of it first (name, description), and what it reads on demand (body)."""

    name: str
    description: str
    body: str
    path: Path


@dataclass(frozen=True, slots=True)
class SkillLibrary:
    """The skills by name, and a line for each that was skipped."""

    skills: dict[str, Skill]
    problems: tuple[str, ...] = ()


class _UnusableError(Exception):
    """Why a skill is skipped."""


def load_skills(*folders: Path) -> SkillLibrary:
    """The built-in skills and those in the given folders; of two with one name, the later wins.

    Raises:
        InputError: A given folder is not there.
    """
    skills: dict[str, Skill] = {}
    problems: list[str] = []
    for folder in (BUILTIN, *folders):
        if not folder.is_dir():
            raise InputError(f"there is no skills folder {folder}; give one that holds folders with a SKILL.md")
        for path in sorted(folder.glob("*/SKILL.md")):
            try:
                skill = _load(path)
            except _UnusableError as reason:
                problems.append(f"{path.parent.name}: skipped, {reason}")
                continue
            skills[skill.name] = skill
    return SkillLibrary(skills, tuple(problems))


def _load(path: Path) -> Skill:
    try:
        if path.stat().st_size > MAX_SKILL_BYTES:
            raise _UnusableError(f"SKILL.md is larger than {MAX_SKILL_BYTES // 1024} KB")
        text = path.read_text(encoding="utf-8-sig")  # reads CRLF as LF, and drops a byte order mark
    except UnicodeDecodeError as error:
        raise _UnusableError("SKILL.md is not UTF-8 text") from error
    except OSError as error:
        raise _UnusableError(f"SKILL.md cannot be read ({error.strerror})") from error
    document = _DOCUMENT.match(text)
    if document is None:
        raise _UnusableError("SKILL.md does not begin with YAML between two lines of ---")
    head = _head(document["head"])
    name, description = head.get("name"), head.get("description")
    if not isinstance(name, str) or len(name) > 64 or not _NAME.fullmatch(name):
        raise _UnusableError("its name is not 1 to 64 lower-case letters, digits and hyphens")
    if name != path.parent.name:
        raise _UnusableError(f"its name {name!r} is not its folder's")
    if not isinstance(description, str) or not 1 <= len(description.strip()) <= 1024:
        raise _UnusableError("its description is not 1 to 1024 characters")
    return Skill(name, " ".join(description.split()), (document["body"] or "").strip(), path)


def _head(text: str) -> dict[str, Any]:
    if re.search(r"(?m)[:\-]\s*[&*]\w", text):  # anchors and aliases: no skill needs them, and they can explode
        raise _UnusableError("its YAML uses anchors or aliases")
    try:
        head = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _UnusableError(f"its YAML is broken ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(head, dict):
        raise _UnusableError("its YAML is not a mapping")
    return head
