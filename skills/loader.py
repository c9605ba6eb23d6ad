"""Finds skills: built in, learned, the user's and the project's. Of two with one name the later wins, with a notice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from gems.errors import InputError
from gems.paths import home_folder
from gems.skills.format import Skill, UnusableError, read_skill, skill_file

__all__ = ["BUILTIN", "SkillLibrary", "load_skills", "promoted_folder", "search_path", "skill_folders"]

BUILTIN: Final = Path(__file__).resolve().parent / "builtin"
"""Resolved: an editable install is made of links, and a skill's file may be none that leads out of its folder."""

Place = tuple[str, Path]
"""What skills found there are called, and a folder that holds skills' folders, or is one."""
_Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class SkillLibrary:
    """The skills by name, a line for each that was skipped, and one for each thing that is odd."""

    skills: dict[str, Skill]
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def promoted_folder() -> Path:
    """Where skills lie that were learned and have passed the gate."""
    return home_folder() / "skills" / "promoted"


def search_path(skills_dir: str | Path | None = None, *, builtin: bool = True) -> list[Place]:
    """Where skills are looked for, the later wins.

    Built in; learned (``$GEMS_HOME/skills/promoted``); the user's (``~/.config/gems/skills``); then ``skills_dir``, or
    the project's own (``./skills``).

    Args:
        skills_dir: One or several folders, with ``os.pathsep`` between them.
        builtin: Whether those that come with the package are among them.

    Raises:
        InputError: A folder of ``skills_dir`` is not there.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = [("learned", promoted_folder()), ("user", config / "gems" / "skills")]
    if builtin:
        places.insert(0, ("built in", BUILTIN))
    if skills_dir is None:
        return [*places, ("project", Path("skills").absolute())]
    given = [Path(part).expanduser().absolute() for part in str(skills_dir).split(os.pathsep) if part]
    for folder in given:
        if not folder.is_dir():
            raise InputError(f"there is no skills folder {folder}; give one that holds folders with a SKILL.md")
    return [*places, *(("given", folder) for folder in given)]


def load_skills(skills_dir: str | Path | None = None, *, builtin: bool = True) -> SkillLibrary:
    """All skills of the search path. A skill that cannot be read never stops the others.

    Raises:
        InputError: A folder of ``skills_dir`` is not there.
    """
    places = tuple(search_path(skills_dir, builtin=builtin))
    return _load(places, tuple(_stamp(places)))


def _stamp(places: tuple[Place, ...]) -> Iterator[tuple[str, int, int]]:
    """What changes when a skill does: a server sees at its next run what was promoted or edited."""
    for _, place in places:
        for folder in skill_folders(place):
            for path in filter(None, (folder, skill_file(folder))):
                try:
                    status = path.stat()
                except (OSError, ValueError):
                    continue
                yield str(path), status.st_mtime_ns, status.st_size


def skill_folders(place: Path) -> list[Path]:
    """The folder itself where it is a skill, else those in it that may be one."""
    try:
        file = skill_file(place)
        if file and file.is_file():
            return [place]
        inside = sorted(place.iterdir())
    except OSError:
        return []
    seen = [folder for folder in inside if not folder.name.startswith(".")]  # what begins so may be half written
    return [folder for folder in seen if skill_file(folder)]


@lru_cache(maxsize=16)
def _load(places: tuple[Place, ...], stamp: _Stamp) -> SkillLibrary:
    skills: dict[str, Skill] = {}
    problems: list[str] = []
    notices: list[str] = []
    for origin, place in places:
        found: dict[str, Skill] = {}
        for folder in skill_folders(place):
            try:
                skill, odd = read_skill(folder, origin)
                rival = found.get(skill.name)
                if rival and rival.path.parent.name == skill.name:
                    raise UnusableError(f"its name {skill.name!r} is that of another skill beside it")
            except UnusableError as reason:
                problems.append(f"{folder.name}: skipped, {reason}")
                continue
            if rival:
                problems.append(f"{rival.path.parent.name}: skipped, its name is that of another skill beside it")
            notices += [f"{folder.name}: {what}" for what in odd]
            found[skill.name] = skill
        known = [name for name in found if name in skills]
        notices += [f"{name} ({origin}) replaces the one that is {skills[name].origin}" for name in known]
        skills |= found
    return SkillLibrary(skills, tuple(problems), tuple(notices))
