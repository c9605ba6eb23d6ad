"""Finds skills: built-in, learned, user and project skills. A later skill replaces an earlier one of its name."""

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
"""Resolved, because an editable install consists of links, and a link out of a skill's folder is refused."""

Place = tuple[str, Path]
"""The origin of skills, and a folder that contains skill folders or is one."""
_Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class SkillLibrary:
    """The skills by name, a line for each skipped skill, and a line for each oddity."""

    skills: dict[str, Skill]
    problems: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def promoted_folder() -> Path:
    """The folder of learned skills that have passed their trial."""
    return home_folder() / "skills" / "promoted"


def search_path(skills_dir: str | Path | None = None, *, builtin: bool = True) -> list[Place]:
    """The folders that are searched for skills; later ones take precedence.

    These are the built-in skills, the learned ones (``$GEMS_HOME/skills/promoted``), the user's
    (``~/.config/gems/skills``), and then ``skills_dir`` or the project's own (``./skills``).

    Args:
        skills_dir: One or several folders, separated by ``os.pathsep``.
        builtin: Whether to include the skills that come with the package.

    Raises:
        InputError: A folder of ``skills_dir`` does not exist.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = [("learned", promoted_folder()), ("user", config / "gems" / "skills")]
    if builtin:
        places.insert(0, ("built in", BUILTIN))
    if skills_dir is None:
        return [*places, ("project", Path("skills").absolute())]
    folders = [Path(part).expanduser().absolute() for part in str(skills_dir).split(os.pathsep) if part]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no skills folder {folder}; give a folder of folders with a SKILL.md")
    return [*places, *(("given", folder) for folder in folders)]


def load_skills(skills_dir: str | Path | None = None, *, builtin: bool = True) -> SkillLibrary:
    """All skills of the search path. A skill that cannot be read is skipped.

    Raises:
        InputError: A folder of ``skills_dir`` does not exist.
    """
    places = tuple(search_path(skills_dir, builtin=builtin))
    return _load(places, tuple(_stamp(places)))


def _stamp(places: tuple[Place, ...]) -> Iterator[tuple[str, int, int]]:
    """File times and sizes, which change with a skill: a server's next run sees promoted and edited skills."""
    for _, place in places:
        for folder in skill_folders(place):
            for path in filter(None, (folder, skill_file(folder))):
                try:
                    status = path.stat()
                except (OSError, ValueError):
                    continue
                yield str(path), status.st_mtime_ns, status.st_size


def skill_folders(place: Path) -> list[Path]:
    """The folder itself if it is a skill, else the folders in it that may be skills."""
    try:
        file = skill_file(place)
        if file and file.is_file():
            return [place]
        inside = sorted(place.iterdir())
    except OSError:
        return []
    # Folders whose names begin with a dot may be half written.
    return [folder for folder in inside if not folder.name.startswith(".") and skill_file(folder)]


@lru_cache(maxsize=16)
def _load(places: tuple[Place, ...], stamp: _Stamp) -> SkillLibrary:
    skills: dict[str, Skill] = {}
    problems: list[str] = []
    notices: list[str] = []
    for origin, place in places:
        local_skills = _load_place(origin, place, problems, notices)
        notices += [
            f"{name} ({origin}) replaces the one that is {skills[name].origin}"
            for name in local_skills
            if name in skills
        ]
        skills |= local_skills
    return SkillLibrary(skills, tuple(problems), tuple(notices))


def _load_place(origin: str, place: Path, problems: list[str], notices: list[str]) -> dict[str, Skill]:
    """The skills of one place, by name. If two have the same name, the one whose folder has that name is kept."""
    skills: dict[str, Skill] = {}
    for folder in skill_folders(place):
        try:
            skill, oddities = read_skill(folder, origin)
            rival = skills.get(skill.name)
            if rival and rival.path.parent.name == skill.name:
                raise UnusableError(f"its name {skill.name!r} is that of another skill beside it")
        except UnusableError as reason:
            problems.append(f"{folder.name}: skipped, {reason}")
            continue
        if rival:
            problems.append(f"{rival.path.parent.name}: skipped, its name is that of another skill beside it")
        notices += [f"{folder.name}: {oddity}" for oddity in oddities]
        skills[skill.name] = skill
    return skills
