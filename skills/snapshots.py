"""The skills of one run as they were when it began: an edit during the run changes nothing that the planner reads.

A run's state holds names and digests only. The texts are kept in this process, and a run that goes on in another
process finds them in their folders, unless they were changed meanwhile: such a skill is then no longer offered.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gems.skills.format import Skill, UnusableError
from gems.skills.references import read_reference

__all__ = ["contents_of", "digest_of", "skills_in", "take_snapshot"]

_MAX_KEPT: Final = 1_024
"""Skills that are kept for runs under way; the least recently used one goes first."""

_snapshots: Final[OrderedDict[str, Skill]] = OrderedDict()
_lock: Final = threading.Lock()


def digest_of(skill: Skill) -> str:
    """SHA-256 of everything of a skill that a run can see, in hexadecimal: of SKILL.md, and of the files beside it."""
    checks = [(check.kind, check.question) for check in skill.checks]
    references = {name: _text_of(skill, name) for name in skill.references}
    content = [skill.name, skill.description, skill.body, checks, references, skill.scripts]
    return hashlib.sha256(json.dumps(content).encode("utf-8", "replace")).hexdigest()


def contents_of(skills: Iterable[Skill]) -> dict[str, str]:
    """SHA-256 of each skill by name, see ``digest_of``."""
    return {skill.name: digest_of(skill) for skill in skills}


def _text_of(skill: Skill, reference: str) -> str | None:
    try:
        return read_reference(skill, reference)
    except UnusableError:  # the planner cannot read it either
        return None


def take_snapshot(skills: Iterable[Skill]) -> dict[str, str]:
    """Keep the skills for a run, and return the digest of each by its name, in order."""
    snapshot = {}
    with _lock:
        for skill in skills:
            digest = snapshot[skill.name] = digest_of(skill)
            _snapshots[digest] = skill
            _snapshots.move_to_end(digest)
        while len(_snapshots) > _MAX_KEPT:
            _snapshots.popitem(last=False)
    return snapshot


def skills_in(snapshot: Mapping[str, str], load_library: Callable[[], Mapping[str, Skill]]) -> dict[str, Skill]:
    """The skills of a snapshot, by name, in order; without those that are neither kept nor unchanged in the library.

    Args:
        snapshot: From ``take_snapshot``.
        load_library: Loads the skills from their folders; called only if a skill is not kept in this process.
    """
    with _lock:
        skills = {name: _snapshots.get(digest) for name, digest in snapshot.items()}
    if None in skills.values():
        library = load_library()
        unchanged = {name for name in snapshot.keys() & library.keys() if snapshot[name] == digest_of(library[name])}
        skills = {name: skill or (library[name] if name in unchanged else None) for name, skill in skills.items()}
    return {name: skill for name, skill in skills.items() if skill is not None}
