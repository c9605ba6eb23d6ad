"""What a bulk run has to do: prompts, each with a seed of its own, from a file."""

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
    """The user's own name for it, handed through to the results."""
    line: int = 0
    """Where it stands in the file, from 1."""

    @property
    def key(self) -> str:
        """Identifies its result: what is drawn follows from prompt and seed."""
        return hashlib.sha256(json.dumps([self.prompt, self.seed]).encode()).hexdigest()[:12]

    def row(self) -> JobFields:
        """The beginning of its result."""
        return {"index": self.index, "line": self.line, "id": self.id, "prompt": self.prompt, "seed": self.seed}


def read_jobs(path: Path, seed: int) -> list[Job]:
    """The prompts of a .txt file (one a line, # for comments) or a .jsonl file (objects with "prompt").

    Each prompt has a seed of its own, drawn from ``seed`` and its index; a "seed" in the object wins.

    Raises:
        InputError: The file cannot be read, or a line is not what it should be.
    """
    try:
        # Not splitlines: JSON text may hold a line separator such as U+2028 as it is.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from error
    if path.suffix.lower() not in ("", ".txt", ".jsonl", ".ndjson"):
        raise InputError(f'{path} is neither .txt (a prompt a line) nor .jsonl (objects with a "prompt")')
    parse = _parse_json if path.suffix.lower() in (".jsonl", ".ndjson") else _parse_text
    jobs: list[Job] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or len(line) > _MAX_LINE:
            if len(line) > _MAX_LINE:
                raise InputError(f"{path}, line {number}: longer than {_MAX_LINE:,} characters")
            continue
        row = parse(line, f"{path}, line {number}")
        if row is not None:
            own = row.get("seed")
            index = len(jobs)
            jobs.append(
                Job(
                    index,
                    row["prompt"],
                    seed_of_batch_prompt(seed, index) if own is None else own,
                    row.get("id"),
                    number,
                )
            )
    if not jobs:
        raise InputError(f"{path} holds no prompt")
    return jobs


def _parse_text(line: str, where: str) -> dict[str, Any] | None:
    return None if line.lstrip().startswith("#") else {"prompt": line.strip()}


def _parse_json(line: str, where: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair could not be written down again
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not usable JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(f'{where}: not an object with a text "prompt"')
    seed = row.get("seed")
    if seed is not None and not (type(seed) is int and 0 <= seed <= MAX_SEED):
        raise InputError(f'{where}: "seed" is not a whole number from 0 to {MAX_SEED}')
    return row


def sample_of(jobs: Sequence[Job], size: int, seed: int) -> list[Job]:
    """Jobs drawn at random, the same ones at each call, in their order; all of them, if there are no more."""
    chosen = random.Random(seed).sample(range(len(jobs)), min(size, len(jobs)))
    return [jobs[i] for i in sorted(chosen)]
