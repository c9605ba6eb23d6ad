"""The jobs of a batch: prompts from a file, each with its own seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

from gems.errors import InputError
from gems.json_text import parse_json
from gems.seeds import MAX_SEED, seed_of_file_prompt

__all__ = ["Job", "JobFields", "job_of", "read_jobs", "sample_of"]

_MAX_LINE: Final = 64 * 1024
"""The longest line of a file of prompts, in characters."""
_JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
_TEXT_SUFFIXES: Final = ("", ".txt")


class JobFields(TypedDict):
    """A job as a line of JSON."""

    index: int
    line: int
    id: str | None
    prompt: str
    seed: int
    copy: int


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt of a batch."""

    index: int
    """Its place among the prompts of the file, from 0. It may change between two starts of a batch."""
    prompt: str
    seed: int
    id: str | None = None
    """The user's own id for the prompt, copied to its result. An id that was no text is its JSON."""
    line: int = 0
    """The prompt's line in the file, from 1."""
    copy: int = 0
    """How many earlier lines have the same prompt, id and seed."""

    @property
    def key(self) -> str:
        """Identifies the job and its result: everything about the job but its place in the file."""
        return hashlib.sha256(json.dumps([self.id, self.prompt, self.seed, self.copy]).encode()).hexdigest()[:16]

    def fields(self) -> JobFields:
        """The job as JSON; a result begins with these fields."""
        return {
            "index": self.index,
            "line": self.line,
            "id": self.id,
            "prompt": self.prompt,
            "seed": self.seed,
            "copy": self.copy,
        }


def job_of(fields: Any) -> Job:
    """The job in a line of JSON, which may be a result.

    Raises:
        ValueError: A field is missing or of the wrong type; the message names it.
    """
    if not isinstance(fields, dict):
        raise ValueError("it is no object")
    numbers: dict[str, Any] = {"index": fields.get("index"), "seed": fields.get("seed")}
    numbers |= {name: fields.get(name, 0) for name in ("line", "copy")}
    for name, number in numbers.items():
        if type(number) is not int or not 0 <= number <= MAX_SEED:
            raise ValueError(f'"{name}" is no whole number from 0 to {MAX_SEED}')
    prompt, user_id = fields.get("prompt"), fields.get("id")
    if not isinstance(prompt, str):
        raise ValueError('"prompt" is no text')
    if not isinstance(user_id, str | None):
        raise ValueError('"id" is no text')
    return Job(prompt=prompt, id=user_id, **numbers)


def read_jobs(path: Path, seed: int) -> list[Job]:
    """The prompts of a .txt file (one per line, # for comments) or a .jsonl file (objects with a "prompt").

    Each prompt gets its own seed, derived from ``seed``, the prompt and its id; a "seed" in the object comes first.

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
    jobs = _jobs(_entries(path, lines, suffix in _JSON_SUFFIXES), seed)
    if not jobs:
        raise InputError(f"{path} holds no prompt")
    return jobs


def _entries(path: Path, lines: Iterable[str], are_json: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The file's objects, each with the number of its line."""
    parse = _parse_json if are_json else _parse_text
    for number, line in enumerate(lines, start=1):
        location = f"{path}, line {number}"
        if len(line) > _MAX_LINE:
            raise InputError(f"{location}: longer than {_MAX_LINE:,} characters")
        entry = parse(line, location) if line.strip() else None
        if entry is not None:
            yield number, entry


def _jobs(entries: Iterable[tuple[int, dict[str, Any]]], seed: int) -> list[Job]:
    """The jobs, none of which depends on its place; lines that say the same are told apart by their number."""
    without_seed, identical = Counter[tuple[str, str | None]](), Counter[tuple[str, str | None, int]]()
    jobs: list[Job] = []
    for number, entry in entries:
        prompt, id_, own_seed = entry["prompt"], _text_of(entry.get("id")), entry.get("seed")
        if own_seed is None:
            own_seed = seed_of_file_prompt(seed, prompt, id_, without_seed[prompt, id_])
            without_seed[prompt, id_] += 1
        jobs.append(Job(len(jobs), prompt, own_seed, id_, number, identical[prompt, id_, own_seed]))
        identical[prompt, id_, own_seed] += 1
    return jobs


def _text_of(id_: Any) -> str | None:
    """A user's id as text: data sets have one type per column."""
    return id_ if id_ is None or isinstance(id_, str) else json.dumps(id_, sort_keys=True, ensure_ascii=False)


def _parse_text(line: str, location: str) -> dict[str, Any] | None:
    return None if line.lstrip().startswith("#") else {"prompt": line.strip()}


def _parse_json(line: str, location: str) -> dict[str, Any] | None:
    try:
        entry = parse_json(line)
    except ValueError as error:
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
