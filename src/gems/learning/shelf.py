"""Where learned skills lie: drafts in quarantine, promoted ones, retired ones, and every version that there ever was.

``$GEMS_HOME/skills/STATE/NAME`` is a skill folder like any other, with ``gate.json`` beside its SKILL.md. Only
``promoted`` is on the search path. ``versions/NAME/N`` keeps what each version said.
"""

from __future__ import annotations

import difflib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml
from filelock import FileLock, Timeout

from gems.errors import InputError
from gems.files import write_atomically
from gems.paths import home
from gems.skills.format import Skill, UnusableError, read_skill
from gems.skills.loader import promoted_folder

__all__ = ["Learned", "State", "difference", "draft", "learned", "locked", "move", "write_gate"]

State = Literal["quarantine", "promoted", "retired"]
_STATES: Final[tuple[State, ...]] = get_args(State)


@dataclass(frozen=True, slots=True)
class Learned:
    """A learned skill: where it stands, and how it fared at the gate."""

    skill: Skill
    state: State
    gate: dict[str, Any]
    """The last gate's figures; empty before there was one."""

    @property
    def version(self) -> int:
        """From 1 on, for each name."""
        return self._number("gems-version", 1)

    @property
    def fixes(self) -> int:
        """How many cases it was drafted from."""
        return self._number("gems-fixes", 0)

    @property
    def among(self) -> int:
        """How many drafts were to go through the gate together: one by chance is the likelier the more there are."""
        return max(1, self._number("gems-among", 1))

    def _number(self, name: str, default: int) -> int:
        told = self.skill.metadata.get(name, "")
        return int(told) if told.isdecimal() else default

    @property
    def kind(self) -> str:
        """The kind of requirement that it is about."""
        return self.skill.metadata.get("gems-kind", "")

    @property
    def generator(self) -> str:
        """The image model that it was learned with."""
        return self.skill.metadata.get("gems-generator", "")

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.skill.path.parent


def _root() -> Path:
    return promoted_folder().parent


def _versions(name: str) -> list[int]:
    folder = _root() / "versions" / name
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


@contextmanager
def locked() -> Iterator[None]:
    """Hold the shelf: two programs that learn at once would gate the same drafts.

    Raises:
        InputError: Another program holds it.
    """
    home()
    _root().mkdir(parents=True, exist_ok=True)
    lock = FileLock(_root() / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError("another gems is learning or moving skills; wait until it has finished") from None
    try:
        yield
    finally:
        lock.release()


def learned(name: str | None = None) -> list[Learned]:
    """All learned skills, or those of a name: at most one in each state.

    Raises:
        InputError: There is none of that name.
    """
    found = []
    for state in _STATES:
        folder = _root() / state
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") or name not in (None, path.name):
                continue
            try:
                skill, _ = read_skill(path, "learned")
            except UnusableError:
                continue  # the loader tells of it
            found.append(Learned(skill, state, _read_gate(path)))
    if name is not None and not found:
        raise InputError(f"no learned skill is called {name!r}; gems skills list shows them")
    return found


def _read_gate(folder: Path) -> dict[str, Any]:
    try:
        gate = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return gate if isinstance(gate, dict) else {}


def draft(name: str, description: str, body: str, metadata: dict[str, str], references: dict[str, str]) -> Learned:
    """Put a new version of a skill into quarantine."""
    version = max(_versions(name), default=0) + 1
    head = {
        "name": name,
        "description": description,
        "metadata": {"gems-version": str(version), **metadata},
    }
    text = f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)}---\n\n{body.strip()}\n"
    files = {"SKILL.md": text, **{f"references/{file}": content for file, content in references.items()}}
    for place in (_root() / "versions" / name / str(version), _root() / "quarantine" / name):
        _write_folder(place, files)
    skill, _ = read_skill(_root() / "quarantine" / name, "learned")
    return Learned(skill, "quarantine", {})


def _write_folder(place: Path, files: dict[str, str]) -> None:
    """The whole folder or nothing."""
    made = place.parent / f".{uuid.uuid4().hex}"
    for file, content in files.items():
        (made / file).parent.mkdir(parents=True, exist_ok=True)
        (made / file).write_text(content, encoding="utf-8")
    _put(made, place)


def _put(made: Path, place: Path) -> None:
    """Let a folder take a place, and what was there go."""
    place.parent.mkdir(parents=True, exist_ok=True)
    old = place.parent / f".{uuid.uuid4().hex}"
    if place.exists():
        place.rename(old)
    made.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def write_gate(one: Learned, gate: dict[str, Any]) -> Learned:
    """Write down how a skill fared."""
    write_atomically(one.folder / "gate.json", (json.dumps(gate, indent=1) + "\n").encode())
    return Learned(one.skill, one.state, gate)


def move(one: Learned, state: State) -> Learned:
    """Promote, retire, or put back into quarantine; another version there makes room, and stays among the versions."""
    place = _root() / state / one.skill.name
    _put(one.folder, place)
    skill, _ = read_skill(place, "learned")
    return Learned(skill, state, _read_gate(place))


def difference(name: str, old: int | None = None, new: int | None = None) -> str:
    """Two versions of a skill as a unified diff; the last two, unless they are named. Empty if there is no difference.

    Raises:
        InputError: There are no such versions.
    """
    there = _versions(name)
    if not there:
        raise InputError(f"no learned skill is called {name!r}; gems skills list shows them")
    new = there[-1] if new is None else new
    old = max((v for v in there if v < new), default=None) if old is None else old
    if old is None:
        raise InputError(f"{name} has one version only")
    if missing := [v for v in (old, new) if v not in there]:
        raise InputError(f"{name} has no version {missing[0]}; it has: {', '.join(map(str, there))}")
    folder = _root() / "versions" / name
    a, b = ((folder / str(v) / "SKILL.md").read_text(encoding="utf-8").splitlines(True) for v in (old, new))
    return "".join(difflib.unified_diff(a, b, f"{name} version {old}", f"{name} version {new}"))
