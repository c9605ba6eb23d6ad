"""The jobs of a batch: prompts from a file, each with its own seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from gems.errors import InputError
from gems.seeds import MAX_SEED, seed_of_batch_prompt

__all__ = ["Job", "JobFields", "read_jobs", "sample_of"]

_MAX_LINE: Final = 64 * 1024
"""The longest line of a file of prompts, in characters."""
_JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
_TEXT_SUFFIXES: Final = ("", ".txt")


class JobFields(TypedDict):
    """A job as a line of JSON."""

    index: int
    line: int
    id: Any
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt of a batch."""

    index: int
    prompt: str
    seed: int
    id: Any = None
    """The user's own id for the prompt, copied to its result."""
    line: int = 0
    """The prompt's line in the file, from 1."""

    @property
    def key(self) -> str:
        """Identifies the job's result, which follows from prompt and seed."""
        return hashlib.sha256(json.dumps([self.prompt, self.seed]).encode()).hexdigest()[:12]

    def fields(self) -> JobFields:
        """The job as JSON; a result begins with these fields."""
        return {"index": self.index, "line": self.line, "id": self.id, "prompt": self.prompt, "seed": self.seed}


def read_jobs(path: Path, seed: int) -> list[Job]:
    """The prompts of a .txt file (one per line, # for comments) or a .jsonl file (objects with a "prompt").

    Each prompt gets its own seed, derived from ``seed`` and its index. A "seed" in the object takes precedence.

    Raises:
        InputError: The file cannot be read, or a line has the wrong form.
    """
    try:
        # Not splitlines: JSON text may contain a line separator such as U+2028 unescaped.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from error
    suffix = path.suffix.lower()
    if suffix not in _TEXT_SUFFIXES + _JSON_SUFFIXES:
        raise InputError(f'{path} is neither .txt (one prompt per line) nor .jsonl (objects with a "prompt")')
    parse = _parse_json if suffix in _JSON_SUFFIXES else _parse_text
    jobs: list[Job] = []
    for number, line in enumerate(lines, start=1):
        location = f"{path}, line {number}"
        if len(line) > _MAX_LINE:
            raise InputError(f"{location}: longer than {_MAX_LINE:,} characters")
        entry = parse(line, location) if line.strip() else None
        if entry is not None:
            index, own_seed = len(jobs), entry.get("seed")
            prompt_seed = seed_of_batch_prompt(seed, index) if own_seed is None else own_seed
            jobs.append(Job(index, entry["prompt"], prompt_seed, entry.get("id"), number))
    if not jobs:
        raise InputError(f"{path} holds no prompt")
    return jobs


def _parse_text(line: str, location: str) -> dict[str, Any] | None:
    return None if line.lstrip().startswith("#") else {"prompt": line.strip()}


def _parse_json(line: str, location: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        json.dumps(entry, ensure_ascii=False).encode()  # half a surrogate pair could not be written to the results
    except (ValueError, RecursionError) as error:
        raise InputError(f"{location}: not usable JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise InputError(f'{location}: not an object with a text "prompt"')
    seed = entry.get("seed")
    if seed is not None and not (type(seed) is int and 0 <= seed <= MAX_SEED):
        raise InputError(f'{location}: "seed" is not a whole number from 0 to {MAX_SEED}')
    return entry


def sample_of(jobs: Sequence[Job], size: int, seed: int) -> list[Job]:
    """A random sample of the jobs, in their order and the same at each call; all jobs if there are at most ``size``."""
    indexes = random.Random(seed).sample(range(len(jobs)), min(size, len(jobs)))
    return [jobs[i] for i in sorted(indexes)]
