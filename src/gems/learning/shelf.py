"""Where learned skills are kept: drafts in quarantine, promoted skills, retired ones, and every version so far.

``$GEMS_HOME/skills/STATE/NAME`` is a skill folder like any other, with the last trial's figures in ``gate.json`` beside
its SKILL.md. Only ``promoted`` is on the search path. ``versions/NAME/N`` keeps the text of each version, and the
figures of all its trials in ``trials.jsonl``: a version that was refused stays known when another takes its place.
"""

from __future__ import annotations

import difflib
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict

from gems.errors import InputError
from gems.files import held_alone, read_regular, write_atomically
from gems.json_text import parse_json, parse_model, strict_json
from gems.paths import home, private_file, private_folder
from gems.runs.record import ModelRecord
from gems.skills.catalogue import suits
from gems.skills.format import MAX_SKILL_BYTES, Skill, UnusableError, read_skill, read_text
from gems.skills.loader import promoted_folder

__all__ = [
    "LearnedSkill",
    "PastTrial",
    "State",
    "add_draft",
    "difference",
    "learned_skills",
    "lock_shelf",
    "move",
    "past_trials",
    "write_figures",
]

State = Literal["quarantine", "promoted", "retired"]
_STATES: Final[tuple[State, ...]] = get_args(State)
_FIGURES: Final = "gate.json"
_TRIALS: Final = "trials.jsonl"
_NUMBER: Final = re.compile("[0-9]{1,18}")
"""Matches a version or a count. What it does not match, Python may not read as a number either."""
_MOVING_TO: Final = "moving_to"
"""Among the figures of a skill that is being moved: the state that it moves to."""


@dataclass(frozen=True, slots=True)
class LearnedSkill:
    """A learned skill: its state, and the figures of its last trial."""

    skill: Skill
    state: State
    figures: dict[str, Any]
    """Empty before the first trial."""

    @property
    def name(self) -> str:
        """The skill's name."""
        return self.skill.name

    @property
    def version(self) -> int:
        """The number of the version, from 1 for each name."""
        return self._number("gems-version", 1)

    @property
    def fix_count(self) -> int:
        """The number of cases that it was drafted from."""
        return self._number("gems-fixes", 0)

    @property
    def cohort(self) -> int:
        """The number of drafts tried together. The more there are, the likelier one of them passes by chance."""
        return max(1, self._number("gems-among", 1))

    def _number(self, key: str, default: int) -> int:
        text = self.skill.metadata.get(key, "")
        return int(text) if _NUMBER.fullmatch(text) else default

    @property
    def kind(self) -> str:
        """The kind of requirement that it is about."""
        return self.skill.metadata.get("gems-kind", "")

    @property
    def generator(self) -> str:
        """The image model that it was learned with."""
        return self.skill.metadata.get("gems-generator", "")

    def suits(self, generator: ModelRecord) -> bool:
        """Whether it is for this image model."""
        return suits(self.skill, generator.name, generator.fingerprint)

    @property
    def folder(self) -> Path:
        """The folder of its SKILL.md."""
        return self.skill.path.parent


@dataclass(frozen=True, slots=True)
class PastTrial:
    """A trial of some version of a learned skill, also of a version that another has replaced."""

    name: str
    version: int
    kind: str
    generator: str
    figures: dict[str, Any]


def _root() -> Path:
    return promoted_folder().parent


def _versions(name: str) -> list[int]:
    folder = _root() / "versions" / name
    return sorted(int(p.name) for p in folder.iterdir() if _NUMBER.fullmatch(p.name)) if folder.is_dir() else []


@contextmanager
def lock_shelf() -> Iterator[None]:
    """Lock all learned skills for the duration of the block: two programs that learn at once would try the same drafts.

    A move that was killed half-way is completed first.

    Raises:
        InputError: Another program holds the lock.
    """
    home()
    private_file(_root() / ".lock")
    with held_alone(_root() / ".lock", "another gems is learning or moving skills; wait until it has finished"):
        _complete_moves()
        yield


def _complete_moves() -> None:
    """Do what ``move`` and ``_write_folder`` had begun when their process was killed."""
    for skill in learned_skills():
        if (state := skill.figures.get(_MOVING_TO)) in _STATES:
            move(skill, state)
    for draft in _root().glob(f"*/.{'[0-9a-f]' * 32}"):
        shutil.rmtree(draft, ignore_errors=True)


def learned_skills(name: str | None = None) -> list[LearnedSkill]:
    """All learned skills, or those of a name: at most one in each state.

    Raises:
        InputError: There is none of that name.
    """
    skills = []
    for state in _STATES:
        folder = _root() / state
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(".") or name not in (None, path.name):
                continue
            try:
                skill, _ = read_skill(path, "learned")
            except UnusableError:
                continue  # the loader reports it
            skills.append(LearnedSkill(skill, state, _read_figures(path)))
    if name is not None and not skills:
        raise InputError(f"no learned skill is called {name!r}; gems skills list shows them")
    return skills


def _read_figures(folder: Path) -> dict[str, Any]:
    try:
        return _checked_figures(read_regular(folder / _FIGURES, within=folder))
    except (OSError, ValueError):
        return {}


class _Figures(BaseModel):
    """What every trial's figures have; there may be more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    interval: tuple[float, float]
    reason: str
    points: float
    wishes: int
    won: int
    lost: int
    known: int = 0
    attempt: int = 1
    passed: bool = False
    tried: list[str] = []


def _checked_figures(text: bytes) -> dict[str, Any]:
    """The figures of a trial.

    Raises:
        ValueError: They are none.
    """
    parse_model(_Figures, text)
    figures: dict[str, Any] = parse_json(text)
    return figures


def add_draft(
    name: str, description: str, body: str, metadata: dict[str, str], references: dict[str, str]
) -> LearnedSkill:
    """Put a new version of a skill into quarantine.

    Args:
        name: The skill's name.
        description: When to use the skill.
        body: The skill's advice, in Markdown.
        metadata: Metadata of the skill, for SKILL.md.
        references: Texts of the files in its ``references`` folder, by name.
    """
    version = max(_versions(name), default=0) + 1
    head = {
        "name": name,
        "description": description,
        "metadata": {"gems-version": str(version), **metadata},
    }
    text = f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)}---\n\n{body.strip()}\n"
    files = {"SKILL.md": text, **{f"references/{file}": content for file, content in references.items()}}
    for folder in (_root() / "versions" / name / str(version), _root() / "quarantine" / name):
        _write_folder(folder, files)
    skill, _ = read_skill(_root() / "quarantine" / name, "learned")
    return LearnedSkill(skill, "quarantine", {})


def _write_folder(folder: Path, files: dict[str, str]) -> None:
    """Write the whole folder or nothing."""
    part = folder.parent / f".{uuid.uuid4().hex}"
    for file, content in files.items():
        private_file(part / file)
        (part / file).write_text(content, encoding="utf-8")
    _replace_folder(part, folder)


def _replace_folder(source: Path, target: Path) -> None:
    """Rename a folder, and delete the one that had its new name."""
    private_folder(target.parent)
    old = target.parent / f".{uuid.uuid4().hex}"
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def write_figures(skill: LearnedSkill, figures: dict[str, Any], state: State | None = None) -> LearnedSkill:
    """Save the figures of a skill's trial, beside the skill and in the history of its version.

    Args:
        skill: The skill.
        figures: The figures.
        state: The state that the skill moves to by them. The move is made even if this process is killed in between.
    """
    history = _root() / "versions" / skill.name / str(skill.version) / _TRIALS
    earlier = history.read_bytes() if history.exists() else b""
    private_folder(history.parent)
    separator = b"" if earlier.endswith(b"\n") or not earlier else b"\n"  # an editor may drop the last line feed
    write_atomically(history, earlier + separator + strict_json(figures).encode() + b"\n")
    moving = {} if state in (None, skill.state) else {_MOVING_TO: state}
    _write_gate(skill.folder, {**figures, **moving})
    skill = LearnedSkill(skill.skill, skill.state, figures)
    return move(skill, state) if state and moving else skill


def _write_gate(folder: Path, figures: dict[str, Any]) -> None:
    write_atomically(folder / _FIGURES, (strict_json(figures, indent=1) + "\n").encode())


def past_trials(name: str | None = None) -> list[PastTrial]:
    """All trials so far, or those of a name, by name and version; of one version in the order they were made."""
    trials = list[PastTrial]()
    folder = _root() / "versions"
    for owner in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
        if name in (None, owner):
            for version in _versions(owner):
                trials += _trials_in(folder / owner / str(version), owner, version)
    return trials


def _trials_in(folder: Path, name: str, version: int) -> Iterator[PastTrial]:
    path = folder / _TRIALS
    try:
        lines = read_regular(path, within=folder).split(b"\n")
    except OSError:
        return
    try:
        metadata = read_skill(folder, "learned")[0].metadata
    except UnusableError:
        return
    for line in lines:
        with suppress(ValueError):
            figures = _checked_figures(line)
            yield PastTrial(name, version, metadata.get("gems-kind", ""), metadata.get("gems-generator", ""), figures)


def move(skill: LearnedSkill, state: State) -> LearnedSkill:
    """Promote a skill, retire it, or put it back into quarantine. It replaces another version in that state."""
    folder = _root() / state / skill.name
    figures = {name: value for name, value in skill.figures.items() if name != _MOVING_TO}
    if skill.state != state:
        if figures:
            _write_gate(skill.folder, {**figures, _MOVING_TO: state})
        _replace_folder(skill.folder, folder)
    if figures:
        _write_gate(folder, figures)
    moved_skill, _ = read_skill(folder, "learned")
    return LearnedSkill(moved_skill, state, _read_figures(folder))


def difference(name: str, old: int | None = None, new: int | None = None) -> str:
    """Two versions of a skill as a unified diff; by default the last two. Empty if they are the same.

    Raises:
        InputError: There are no such versions, or one cannot be read.
    """
    versions = _versions(name)
    if not versions:
        raise InputError(f"no learned skill is called {name!r}; gems skills list shows them")
    new = versions[-1] if new is None else new
    old = max((version for version in versions if version < new), default=None) if old is None else old
    if old is None:
        raise InputError(f"{name} has one version only, so there is nothing to compare")
    if missing := [version for version in (old, new) if version not in versions]:
        raise InputError(f"{name} has no version {missing[0]}; it has: {', '.join(map(str, versions))}")
    folder = _root() / "versions" / name
    try:
        a, b = (
            read_text(folder / str(v) / "SKILL.md", within=folder / str(v), limit=MAX_SKILL_BYTES).splitlines(True)
            for v in (old, new)
        )
    except UnusableError as error:
        raise InputError(f"{name} cannot be compared: {error}") from error
    return "".join(difflib.unified_diff(a, b, f"{name} version {old}", f"{name} version {new}"))
