"""A bulk run's folder: its manifest, and an append-only record of results in which each prompt counts once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from gems.bulk.jobs import Job
from gems.bulk.limits import dearer, spent_in
from gems.errors import InputError
from gems.files import write_atomically
from gems.graph.context import GemsContext
from gems.graph.state import Usage
from gems.runs.record import ModelRecord

__all__ = ["Record", "Row", "Tally", "claim", "is_worked_on", "kept_jobs", "only_here", "write_jobs"]

Row = dict[str, Any]
"""One line of ``results.jsonl``."""

_PLACES: Final = ("memory_url", "images_url")
"""Settings that make no other batch: a database or a bucket can move."""


@dataclass(slots=True)
class Tally:
    """How far a bulk run has come."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Of each prompt that has a result; "failed" where that is an error."""
    spent: Usage = field(default_factory=Usage)

    @property
    def done(self) -> int:
        """Prompts that have a result."""
        return self.outcomes.total()

    def add(self, row: Row) -> None:
        """Count a new result."""
        self.outcomes[_outcome(row)] += 1
        self.spent += spent_in(row)


@dataclass(frozen=True, slots=True)
class _Line:
    """What is kept in memory of a result: thousands of them have to weigh little."""

    offset: int
    key: str
    outcome: str
    is_final: bool
    """A prompt that cannot be drawn stays so; one that met a failing backend deserves another try."""


class Record:
    """``results.jsonl``: one line per finished prompt, on disk before it counts.

    The last line about a prompt is its result; earlier ones are of backends that failed, and are counted as spent.

    Args:
        path: The file, made at the first result.
        repair: Cut off a last line that a kill has torn: for the one process that writes, and for nobody else.
    """

    def __init__(self, path: Path, *, repair: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}
        self.spent = Usage()
        """By all lines."""
        self.dearest = Usage()
        """The most of each figure in any line."""
        self._end = 0
        for row, offset, end in _lines(path):
            self._note(row, offset)
            self._end = end
        if repair and path.exists() and path.stat().st_size > self._end:
            # The torn last line of a killed batch: that prompt is run again, and other readers see JSON lines only.
            os.truncate(path, self._end)

    def add(self, row: Row) -> None:
        """Write a result down; when this returns, no crash of the machine loses it."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # the disk is full, say: half a line would swallow the next one
                    os.truncate(self.path, self._end)
                raise
            self._note(row, self._end)
            self._end += len(line)

    def _note(self, row: Row, offset: int) -> None:
        spent = spent_in(row)
        self.spent += spent
        self.dearest = dearer(self.dearest, spent)
        final = row.get("error_kind") != "backend"
        self._lines[row["index"]] = _Line(offset, _key(row), _outcome(row), final)

    def has(self, job: Job) -> bool:
        """Whether there is a result of this very prompt and seed: the file may have been put right since."""
        line = self._lines.get(job.index)
        return line is not None and line.key == job.key

    def is_done(self, job: Job) -> bool:
        """Whether nothing is left to do for a prompt."""
        return self.has(job) and self._lines[job.index].is_final

    def tally(self, jobs: Iterable[Job], *, retried: bool = False) -> Tally:
        """How far these jobs have come, and what has been spent on all there ever were.

        Args:
            jobs: Which.
            retried: Count failures too that the next start will try again.
        """
        counts = self.has if retried else self.is_done
        return Tally(Counter(self._lines[job.index].outcome for job in jobs if counts(job)), self.spent)

    def rows(self, jobs: Iterable[Job]) -> Iterator[Row]:
        """The results of these jobs that are there, in their order, one in memory at a time."""
        for job in jobs:
            if self.has(job):
                yield self._row(self._lines[job.index].offset)

    def latest_moments(self, most: int) -> list[datetime]:
        """When the last so many results came, in order."""
        last = sorted(line.offset for line in self._lines.values())[-most:]
        return sorted(datetime.fromisoformat(row["at"]) for o in last if "at" in (row := self._row(o)))

    def _row(self, offset: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(offset)
            row: Row = json.loads(file.readline())
        return row


def _outcome(row: Row) -> str:
    return "failed" if row.get("error") else str(row.get("outcome"))


def _key(row: Row) -> str:
    return Job(row["index"], row["prompt"], row["seed"]).key


def _lines(path: Path) -> Iterator[tuple[Row, int, int]]:
    """The whole lines of a file that are results, and where each begins and ends."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = 0
        for line in file:
            start, end = end, end + len(line)
            try:
                row = json.loads(line) if line.endswith(b"\n") else {}
                _key(row)
            except (ValueError, TypeError, KeyError):
                continue  # torn by a crash, or of another program
            yield row, start, end


@contextmanager
def only_here(out: Path) -> Iterator[None]:
    """Keep other processes from working on the same batch meanwhile.

    Raises:
        InputError: One does.
    """
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"another process works on {out}; see 'gems batch status {out}'") from None


def is_worked_on(out: Path) -> bool:
    """Whether some process of this machine works on a batch now."""
    if not (out / ".lock").exists():
        return False
    try:
        with FileLock(out / ".lock", timeout=0):
            return False
    except Timeout:
        return True


def _binding(settings: dict[str, Any]) -> dict[str, Any]:
    """What of the settings makes another batch: not where things lie, nor prices that nothing depends on."""
    budget = dict(settings["budget"])
    if budget["cost"] is None:
        del budget["prices"]
    return {name: value for name, value in settings.items() if name not in _PLACES} | {"budget": budget}


def claim(out: Path, context: GemsContext, models: dict[str, ModelRecord]) -> str:
    """Keep a folder for one batch. Returns the batch's id, which no other one has.

    It is bound to its settings and weights. Prompts may be put right or added: each result says what it is of.

    Raises:
        InputError: The folder holds a batch of other settings or weights.
    """
    manifest: dict[str, Any] = {
        "settings": context.model_dump(mode="json"),
        "models": {role: asdict(model) for role, model in models.items()},
    }
    said = {**manifest, "settings": _binding(manifest["settings"])}
    bound_to = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    path = out / "batch.json"
    if not path.exists():
        about = {"id": uuid.uuid4().hex[:12], "bound_to": bound_to, **manifest}
        write_atomically(path, json.dumps(about, indent=1, ensure_ascii=False).encode())
    try:
        held = json.loads(path.read_bytes())
        batch, theirs = str(held["id"]), held["bound_to"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error!r}); choose another folder with --out") from error
    if theirs != bound_to:
        raise InputError(f"{out} holds a batch of other settings or models; choose another folder with --out")
    return batch


def write_jobs(out: Path, jobs: Sequence[Job], name: str = "prompts.jsonl") -> None:
    """Write prompts down, in the form that ``read_jobs`` reads; none: no file."""
    path = out / name
    if jobs:
        write_atomically(path, "".join(json.dumps(job.row(), ensure_ascii=False) + "\n" for job in jobs).encode())
    else:
        path.unlink(missing_ok=True)


def kept_jobs(out: Path) -> list[Job]:
    """The prompts of a batch's folder.

    Raises:
        InputError: It holds no batch.
    """
    try:
        lines = (out / "prompts.jsonl").read_bytes().split(b"\n")
        rows = [json.loads(line) for line in lines if line]
        return [Job(**row) for row in rows]
    except FileNotFoundError:
        raise InputError(f"{out} holds no batch; give the folder that was --out of 'gems batch'") from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{out / 'prompts.jsonl'} cannot be read ({error})") from error
