"""A batch's folder: its manifest, and an append-only file of results in which each prompt counts once."""

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
from typing import Any, Final, Literal, TypedDict, cast

from filelock import FileLock, Timeout

from gems.bulk.jobs import Job, JobFields
from gems.bulk.limits import larger_usage, usage_of
from gems.errors import InputError
from gems.files import write_atomically
from gems.graph.context import GemsContext
from gems.graph.events import RequirementFields
from gems.graph.state import Outcome, Strategy, Usage
from gems.runs.record import ModelRecord

__all__ = [
    "AttemptFields",
    "BatchRow",
    "ResultsFile",
    "Tally",
    "UsageFields",
    "best_attempt_of",
    "claim",
    "is_locked",
    "locked",
    "read_row",
    "row_of",
    "saved_jobs",
    "write_jobs",
]


class UsageFields(TypedDict):
    """A ``Usage`` as a dict."""

    chat_calls: int
    prompt_tokens: int
    completion_tokens: int
    images: int
    seconds: float


class AttemptFields(TypedDict):
    """An attempt in a result."""

    round: int
    candidate: int
    strategy: Strategy
    prompt: str
    seed: int
    score: float
    passed: int
    total: int
    verdicts: dict[str, list[Any]]
    """{requirement id: [answer, confidence]}."""
    image: str
    """The image's address."""
    sha256: str
    edited_from: str


class BatchRow(JobFields, total=False):
    """One line of ``results.jsonl``. A prompt that failed before it ran has an error, and no outcome."""

    thread: str
    run_id: str
    outcome: Outcome
    score: float
    rounds: int
    requirements: list[RequirementFields]
    attempts: list[AttemptFields]
    best: int | None
    """The index of the best attempt."""
    skills: list[str]
    memories: list[str]
    """Keys of the experiences that were retrieved."""
    usage: UsageFields
    errors: list[str]
    error: str
    error_kind: Literal["input", "backend"]
    seconds: float
    at: str
    """When the result was written, ISO 8601."""


def read_row(line: bytes) -> BatchRow | None:
    """A line of ``results.jsonl``; None if it is not a whole result.

    Only what identifies the result is checked, so that 100,000 lines are read in seconds.
    """
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    types = {"index": int, "prompt": str, "seed": int}
    is_result = isinstance(row, dict) and all(type(row.get(name)) is type_ for name, type_ in types.items())
    return cast(BatchRow, row) if is_result else None


def row_of(job: Job) -> BatchRow:
    """The beginning of a job's result."""
    return cast(BatchRow, job.fields())


def best_attempt_of(row: BatchRow) -> AttemptFields | None:
    """The attempt that a result's prompt ended with; None if no image was made."""
    best = row.get("best")
    return None if best is None else row["attempts"][best]


@dataclass(slots=True)
class Tally:
    """The number of finished prompts of a batch, and their usage."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Prompts by outcome; "failed" for those with an error."""
    usage: Usage = field(default_factory=Usage)

    @property
    def done(self) -> int:
        """The number of prompts that have a result."""
        return self.outcomes.total()

    def add(self, row: BatchRow) -> None:
        """Count a new result."""
        self.outcomes[_outcome(row)] += 1
        self.usage += usage_of(row)


@dataclass(frozen=True, slots=True)
class _Line:
    """What is kept in memory of a result. There can be hundreds of thousands."""

    offset: int
    key: str
    outcome: str
    is_final: bool
    """False after a backend failure: the next start tries again. A prompt that cannot be drawn stays failed."""


class ResultsFile:
    """``results.jsonl``: one line per finished prompt, on disk before it counts.

    The last line about a prompt is its result. Earlier lines about it are failures of a backend; their usage counts.

    Args:
        path: The file. It is created with the first result.
        repair: Cut off an incomplete last line, which a killed process leaves. For the one process that writes.
    """

    def __init__(self, path: Path, *, repair: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._lines: dict[int, _Line] = {}
        self.usage = Usage()
        """The sum over all lines."""
        self.max_usage = Usage()
        """The maximum of each figure over all lines."""
        self._end = 0
        for row, offset, end in _read_rows(path):
            self._note(row, offset)
            self._end = end
        if repair and path.exists() and path.stat().st_size > self._end:
            # The prompt of the incomplete line is run again, and other readers see JSON lines only.
            os.truncate(path, self._end)

    def add(self, row: BatchRow) -> None:
        """Write a result. Once this returns, a crash of the machine does not lose it."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with self._lock:
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # a full disk, for example: the next result must not follow half a line
                    os.truncate(self.path, self._end)
                raise
            self._note(row, self._end)
            self._end += len(line)

    def _note(self, row: BatchRow, offset: int) -> None:
        usage = usage_of(row)
        self.usage += usage
        self.max_usage = larger_usage(self.max_usage, usage)
        is_final = row.get("error_kind") != "backend"
        self._lines[row["index"]] = _Line(offset, _key(row), _outcome(row), is_final)

    def has(self, job: Job) -> bool:
        """Whether there is a result of exactly this prompt and seed. The user may have edited the prompt since."""
        line = self._lines.get(job.index)
        return line is not None and line.key == job.key

    def is_done(self, job: Job) -> bool:
        """Whether a prompt has a final result."""
        return self.has(job) and self._lines[job.index].is_final

    def tally(self, jobs: Iterable[Job], *, retried: bool = False) -> Tally:
        """The number of these jobs that are done, and the usage of all lines together.

        Args:
            jobs: The jobs.
            retried: Count also failures that the next start will try again.
        """
        counts = self.has if retried else self.is_done
        return Tally(Counter(self._lines[job.index].outcome for job in jobs if counts(job)), self.usage)

    def rows(self, jobs: Iterable[Job]) -> Iterator[BatchRow]:
        """The results of these jobs, in the jobs' order, with one in memory at a time."""
        for job in jobs:
            if self.has(job):
                yield self._row(self._lines[job.index].offset)

    def latest_moments(self, most: int) -> list[datetime]:
        """When the latest results were written, in order; ``most`` of them at most."""
        offsets = sorted(line.offset for line in self._lines.values())[-most:]
        return sorted(datetime.fromisoformat(row["at"]) for o in offsets if "at" in (row := self._row(o)))

    def _row(self, offset: int) -> BatchRow:
        with self.path.open("rb") as file:
            file.seek(offset)
            row: BatchRow = json.loads(file.readline())
        return row


def _outcome(row: BatchRow) -> str:
    return "failed" if row.get("error") else str(row.get("outcome"))


def _key(row: BatchRow) -> str:
    return Job(row["index"], row["prompt"], row["seed"]).key


def _read_rows(path: Path) -> Iterator[tuple[BatchRow, int, int]]:
    """The results in a file, and the offsets at which each begins and ends."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = 0
        for line in file:
            start, end = end, end + len(line)
            row = read_row(line)
            if row is not None:  # else a crash cut the line off, or another program wrote it
                yield row, start, end


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes of this machine from working on the batch in this folder.

    Raises:
        InputError: Another process works on it.
    """
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"another process works on {out}; see 'gems batch status {out}'") from None


def is_locked(out: Path) -> bool:
    """Whether a process of this machine works on the batch in this folder."""
    if not (out / ".lock").exists():
        return False
    try:
        with FileLock(out / ".lock", timeout=0):
            return False
    except Timeout:
        return True


_LOCATIONS: Final = ("memory_url", "images_url")
"""Settings that do not identify a batch: a database or a bucket can move."""


def _identifying(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that identify a batch. Storage locations and unused prices are excluded."""
    budget = dict(settings["budget"])
    if budget["cost"] is None:
        del budget["prices"]
    return {name: value for name, value in settings.items() if name not in _LOCATIONS} | {"budget": budget}


def claim(out: Path, context: GemsContext, models: dict[str, ModelRecord]) -> str:
    """Reserve a folder for one batch, or check that it belongs to this batch. Returns the batch's id, which is unique.

    Settings and weights identify a batch. Its prompts may be edited or added to: each result names its prompt.

    Raises:
        InputError: The folder holds a batch with other settings or weights.
    """
    manifest: dict[str, Any] = {
        "settings": context.model_dump(mode="json"),
        "models": {role: asdict(model) for role, model in models.items()},
    }
    identity = {**manifest, "settings": _identifying(manifest["settings"])}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    path = out / "batch.json"
    if not path.exists():
        content = {"id": uuid.uuid4().hex[:12], "bound_to": digest, **manifest}
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
    try:
        content = json.loads(path.read_bytes())
        batch, digest_of_folder = str(content["id"]), content["bound_to"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error!r}); choose another folder with --out") from error
    if digest_of_folder != digest:
        raise InputError(f"{out} holds a batch with other settings or models; choose another folder with --out")
    return batch


def write_jobs(out: Path, jobs: Sequence[Job], name: str = "prompts.jsonl") -> None:
    """Write jobs to a file in the form that ``read_jobs`` reads. Without a job, the file is removed."""
    path = out / name
    if jobs:
        write_atomically(path, "".join(json.dumps(job.fields(), ensure_ascii=False) + "\n" for job in jobs).encode())
    else:
        path.unlink(missing_ok=True)


def saved_jobs(out: Path) -> list[Job]:
    """The jobs in a batch's folder.

    Raises:
        InputError: The folder holds no batch.
    """
    try:
        lines = (out / "prompts.jsonl").read_bytes().split(b"\n")
        return [Job(**json.loads(line)) for line in lines if line]
    except FileNotFoundError:
        raise InputError(f"{out} holds no batch; give the folder that was --out of 'gems batch'") from None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{out / 'prompts.jsonl'} cannot be read ({error})") from error
