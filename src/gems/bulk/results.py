"""A batch's folder: its manifest, and an append-only file of results in which each prompt counts once."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NotRequired, TypeAlias, TypedDict, cast

from gems.bulk.jobs import Job, JobFields, job_of
from gems.bulk.journal import PartialRun
from gems.bulk.limits import larger_usage, usage_of
from gems.bulk.row_checks import check_row
from gems.errors import InputError
from gems.files import append_whole, check_own_files, held_alone, lines_of, open_regular, read_regular, write_atomically
from gems.graph.context import GemsContext
from gems.graph.events import RequirementFields
from gems.graph.state import Outcome, Strategy, Usage
from gems.json_text import parse_json, strict_json
from gems.leases import all_returned, leased_in_database
from gems.line_files import lines_in, mend_end
from gems.runs.record import ModelRecord
from gems.runs.same_settings import changed_settings, identifying

__all__ = [
    "AttemptFields",
    "BatchRow",
    "Claim",
    "ResultsFile",
    "Tally",
    "UsageFields",
    "best_attempt_of",
    "check_folder",
    "claim",
    "group_of",
    "is_final",
    "is_looked_at",
    "is_verified",
    "leased",
    "locked",
    "open_record",
    "read_manifest",
    "row_of",
    "saved_jobs",
    "write_jobs",
]


Group: TypeAlias = Literal["finished", "failed", "to_retry", "cut_short"]
"""What became of a prompt: finished; failed for good; failed on a backend, and tried again at the next start; cut short
by a limit of the whole batch, and continued at the next start that has room."""


class UsageFields(TypedDict):
    """A ``Usage`` as a dict."""

    chat_calls: int
    prompt_tokens: int
    completion_tokens: int
    images: int
    seconds: float
    extra_cost: NotRequired[float]
    lost_tokens: NotRequired[int]
    lost_cost: NotRequired[float]
    killed_images: NotRequired[int]
    killed_calls: NotRequired[int]


class AttemptFields(TypedDict):
    """An attempt in a result."""

    round: int
    candidate: int
    strategy: Strategy
    prompt: str
    negative_prompt: NotRequired[str]
    """What the image model was told must not be there, if anything."""
    seed: int
    score: float
    passed: int
    total: int
    verified: NotRequired[bool]
    """Whether every requirement has an answer. Rows of older versions do not say so; see ``is_verified``."""
    verdicts: dict[str, list[Any]]
    """{requirement id: [answer, confidence]}."""
    image: str
    """The image's address."""
    sha256: str
    edited_from: str
    quality: NotRequired[float]
    """How free it is of faults that no requirement is about; left out where that is unknown."""
    flaws: NotRequired[str]
    """Such faults, in a few words."""


class BatchRow(JobFields, total=False):
    """One line of ``results.jsonl``. A prompt that failed before it ran has an error, and no outcome."""

    bound_to: str
    """The batch's settings, skills and models, as a digest; see ``claim``."""
    thread: str
    folder: str
    """The run's folder of evidence, beside the results."""
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
    """What the prompt's run has spent, since its first line if there are several with one run id."""
    errors: list[str]
    notes: list[str]
    """What models have the user know although nothing failed."""
    error: str
    error_kind: Literal["input", "backend"]
    stopped_by_total: str
    """The limit of the whole batch that cut the run short."""
    seconds: float
    at: str
    """When the result was written, ISO 8601."""


def is_final(row: BatchRow) -> bool:
    """Whether a prompt is over. After a backend failure, or cut short by a total, it is continued at the next start."""
    return row.get("error_kind") != "backend" and not row.get("stopped_by_total")


def group_of(row: BatchRow) -> Group:
    """What became of a prompt, for whoever watches the batch."""
    if row.get("error"):
        return "failed" if is_final(row) else "to_retry"
    return "finished" if is_final(row) else "cut_short"


def row_of(job: Job) -> BatchRow:
    """The beginning of a job's result."""
    return cast(BatchRow, job.fields())


def best_attempt_of(row: BatchRow) -> AttemptFields | None:
    """The attempt that a result's prompt ended with; None if no image was made."""
    best = row.get("best")
    return None if best is None else row["attempts"][best]


def is_verified(row: BatchRow, attempt: AttemptFields) -> bool:
    """Whether an attempt of a result has an answer to every requirement; only then can its counts be compared.

    The rest was not looked at, since another image was right or a budget had ended, or not with success.
    """
    ids = {requirement["id"] for requirement in row.get("requirements", [])} | attempt["verdicts"].keys()
    return attempt.get("verified", True) and bool(ids) and ids == _answered(attempt)


def is_looked_at(attempt: AttemptFields) -> bool:
    """Whether an attempt of a result has an answer to any requirement."""
    return bool(_answered(attempt))


def _answered(attempt: AttemptFields) -> set[str]:
    """The requirements that have an answer; see ``Verdict.is_known``."""
    verdicts = attempt["verdicts"].items()
    return {name for name, (answer, confidence) in verdicts if answer != "unsure" or confidence > 0}


@dataclass(slots=True)
class Tally:
    """The number of finished prompts of a batch, and their usage."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Prompts by outcome; "failed" for those with an error."""
    usage: Usage = field(default_factory=Usage)
    open_runs: dict[str, Usage] = field(default_factory=dict)
    """What unfinished runs have spent of that, by run id: a result says again what its run had spent before."""

    @property
    def done(self) -> int:
        """The number of prompts that have a result."""
        return self.outcomes.total()

    def add(self, row: BatchRow) -> None:
        """Count a new result."""
        self.outcomes[_outcome(row)] += 1
        self.usage += usage_of(row).since(self.open_runs.pop(row.get("run_id", ""), Usage()))


@dataclass(frozen=True, slots=True)
class _Line:
    """What is kept in memory of a result. There can be hundreds of thousands."""

    offset: int
    outcome: str
    group: Group
    run_id: str
    has_errors: bool

    @property
    def is_final(self) -> bool:
        return self.group in ("finished", "failed")


class ResultsFile:
    """``results.jsonl``: one line per finished prompt, on disk before it counts.

    A result belongs to a job's key, wherever the job stands in the file of prompts. The last final line about a job is
    its result, or else the last one. Others are failures of a backend; what they have spent counts, once for each run.

    Args:
        path: The file. It is created with the first result.
        bound_to: The batch's digest. Lines with another one are no results of this batch; their usage counts.
        repair: Mend the end of the file, see ``mend_end``. For the one process that writes.

    Raises:
        InputError: A line is no result; the message names the line.
    """

    def __init__(self, path: Path, *, bound_to: str = "", repair: bool = False) -> None:
        self.path, self._bound_to = path, bound_to
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._open_runs: dict[str, Usage] = {}
        self._closed_runs: set[str] = set()
        self.usage = Usage()
        """The sum over all runs."""
        self.max_usage = Usage()
        """The maximum of each figure over all lines."""
        for row, offset in _read_rows(path):
            self._note(row, offset)
        if repair:
            mend_end(path)

    def add(self, row: BatchRow) -> None:
        """Write a result. Once this returns, a crash of the machine does not lose it."""
        line = (strict_json(row, ensure_ascii=False) + "\n").encode()
        with self._lock:
            self._note(row, append_whole(self.path, line))

    def _note(self, row: BatchRow, offset: int) -> None:
        usage, run_id, final = usage_of(row), row.get("run_id", ""), is_final(row)
        if run_id not in self._closed_runs:  # or else somebody has copied a line, or moved it
            before = self._open_runs.pop(run_id, Usage())
            usage = larger_usage(before, usage)
            self.usage += usage.since(before)
        self.max_usage = larger_usage(self.max_usage, usage)
        if run_id and final:
            self._closed_runs.add(run_id)
        elif run_id and run_id not in self._closed_runs:
            self._open_runs[run_id] = usage
        if row.get("bound_to", self._bound_to) == self._bound_to:
            key, has_errors = job_of(row).key, bool(row.get("error") or row.get("errors"))
            if final or key not in self._lines or not self._lines[key].is_final:  # people sort the file
                self._lines[key] = _Line(offset, _outcome(row), group_of(row), run_id, has_errors)

    def has(self, job: Job) -> bool:
        """Whether there is a result of exactly this job, final or not. The user may have edited the prompt since."""
        return job.key in self._lines

    def is_done(self, job: Job) -> bool:
        """Whether a prompt has a final result."""
        line = self._lines.get(job.key)
        return line is not None and line.is_final

    def group(self, job: Job) -> Group | None:
        """What became of a prompt; None if there is no result of it."""
        line = self._lines.get(job.key)
        return line.group if line else None

    def unrecorded(self, run: PartialRun) -> Usage:
        """What a run has spent beyond what the results say."""
        line = self._lines.get(run.key)
        if line is None or line.run_id != run.run_id:
            return run.usage
        recorded = self._open_runs.get(run.run_id)
        return Usage() if recorded is None else run.usage.since(recorded)

    def recorded(self, key: str) -> Usage:
        """What the results say that the unfinished run of the job with this key has spent."""
        line = self._lines.get(key)
        return self._open_runs.get(line.run_id, Usage()) if line else Usage()

    def stray_count(self, jobs: Iterable[Job]) -> int:
        """How many results belong to none of these jobs."""
        return len(self._lines) - sum(job.key in self._lines for job in jobs)

    def tally(self, jobs: Iterable[Job], *, retried: bool = False) -> Tally:
        """The number of these jobs that are done, and the usage of all lines together.

        Args:
            jobs: The jobs.
            retried: Count also those that the next start will continue.
        """
        counts = self.has if retried else self.is_done
        outcomes = Counter(self._lines[job.key].outcome for job in jobs if counts(job))
        return Tally(outcomes, self.usage, dict(self._open_runs))

    def rows(self, jobs: Iterable[Job]) -> Iterator[BatchRow]:
        """The results of these jobs, in the jobs' order and with their places, with one in memory at a time."""
        for job in jobs:
            if line := self._lines.get(job.key):
                yield {**self._row(line.offset), **row_of(job)}

    def rows_with_errors(self, jobs: Iterable[Job]) -> Iterator[BatchRow]:
        """The results of those jobs that have an error, as for ``rows``."""
        return self.rows(job for job in jobs if (line := self._lines.get(job.key)) and line.has_errors)

    def latest_moments(self, most: int) -> list[datetime]:
        """When the latest results were written, in order; ``most`` of them at most."""
        offsets = sorted(line.offset for line in self._lines.values())[-most:]
        return sorted(datetime.fromisoformat(at) for o in offsets if (at := self._row(o).get("at")))

    def _row(self, offset: int) -> BatchRow:
        try:
            with open_regular(self.path, within=self.path.parent) as file:
                file.seek(offset)
                row = cast(BatchRow, check_row(file.readline()))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.path} was changed while it was in use ({reason}); restore it") from None
        if "usage" in row or "outcome" in row:  # people edit the file; readers rely on all figures
            row["usage"] = cast(UsageFields, usage_of(row).model_dump(mode="json"))
            row.setdefault("seconds", 0.0)
        return row


def _outcome(row: BatchRow) -> str:
    return "failed" if row.get("error") else str(row.get("outcome"))


def _read_rows(path: Path) -> Iterator[tuple[BatchRow, int]]:
    """The results in a file, and the offset at which each begins."""
    try:
        for line in lines_in(path):
            try:
                row = check_row(line.text)
            except ValueError as error:
                raise InputError(
                    f"{path}, line {line.number} is no result of a batch ({error}); restore the line, or delete it to "
                    "have its prompt drawn again"
                ) from None
            yield cast(BatchRow, row), line.offset
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


_FILES: Final = (
    ".lock",
    ".leases",
    "batch.json",
    "prompts.jsonl",
    "not_started.jsonl",
    "results.jsonl",
    "begun.jsonl",
    "latest.json",
    "index.parquet",
    *(f"checkpoints.sqlite{end}" for end in ("", "-wal", "-shm", "-journal")),
    "images",
    "runs",
)


_ORPHAN_SECONDS: Final = 60.0
"""Seconds in which the workers of a cluster end whose driver was killed: until then they draw, and are paid."""


def check_folder(out: Path) -> None:
    """Check a batch's folder, which may be somebody else's, before anything in it is read or written.

    Raises:
        InputError: A file or folder of the batch leads out of the folder, or is neither.
    """
    check_own_files(out, _FILES)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes of this machine from working on the batch in this folder.

    Raises:
        InputError: Another process works on it, or see ``check_folder``.
    """
    check_folder(out)
    with held_alone(out / ".lock", f"another process works on {out}; see 'gems batch status {out}'"):
        if not all_returned(out / ".leases", _ORPHAN_SECONDS):
            raise InputError(f"workers of an earlier start still work on {out}; wait for them, or end them")
        yield


def leased(out: Path, claim: Claim, database: str | None, stop: Callable[[str], None]) -> AbstractContextManager[None]:
    """Keep processes of other machines, which have copies of the folder, from working on the batch.

    They would draw its prompts a second time, in the same checkpoints.

    Args:
        out: The batch's folder.
        claim: What identifies the batch.
        database: The database of its checkpoints. Without one, a copy of the folder has checkpoints of its own.
        stop: Stops the work, if the database loses the lease and another process gets it.
    """
    if database is None:
        return nullcontext()
    refusal = f"another process works on this batch, in a copy of {out}: wait until it has ended, or end it"
    return leased_in_database(database, claim.id, refusal, stop)


def open_record(out: Path, jobs: Sequence[Job], claim: Claim, *, add_prompts: bool = False) -> ResultsFile:
    """Open a batch's results for writing, and save its jobs.

    Args:
        out: The batch's folder.
        jobs: The jobs of this start.
        claim: What identifies the batch.
        add_prompts: Whether the folder may hold results of other prompts alone.

    Raises:
        InputError: None of the results is of one of the jobs: this is another file of prompts.
    """
    record = ResultsFile(out / "results.jsonl", bound_to=claim.bound_to, repair=True)
    strays = record.stray_count(jobs)
    if strays and not add_prompts and not any(map(record.has, jobs)):
        raise InputError(
            f"{out} holds {strays} results, and none is of a prompt in this file: choose another folder with --out, or "
            "add --add-prompts to draw these prompts too"
        )
    write_jobs(out, jobs)
    return record


@dataclass(frozen=True, slots=True)
class Claim:
    """What identifies a batch."""

    id: str
    """Unique, so that batches can share a database of checkpoints."""
    bound_to: str
    """A digest of everything that decides a result, the prompt and its seed aside."""


_LAYOUT: Final = 2
"""The version of a batch's folder. The first one bound results to the lines of the file of prompts."""
_MANIFEST: Final = {"layout": int, "id": str, "bound_to": str, "settings": dict, "models": dict, "skills": dict}
"""What ``batch.json`` holds."""


def claim(
    out: Path,
    context: GemsContext,
    models: dict[str, ModelRecord],
    skills: Mapping[str, str] | None = None,
    places: Mapping[str, str] | None = None,
) -> Claim:
    """Reserve a folder for one batch, or check that it belongs to this batch.

    Settings, weights and the contents of skills identify a batch. Its prompts may be edited or added to: each result
    names its prompt.

    Args:
        out: The batch's folder.
        context: The settings of every run.
        models: The models of every run, by role.
        skills: A digest of each skill that the planner may read, by name.
        places: Marks of the places outside the folder where a part of its work is, by the option that names them. In
            other places a batch would miss its images and its half-finished prompts, and pay for them again.

    Raises:
        InputError: The folder holds a batch with other settings, weights or skills, or one that is kept elsewhere.
    """
    manifest: dict[str, Any] = {
        "settings": context.model_dump(mode="json"),
        "models": {role: asdict(model) for role, model in models.items()},
        "skills": dict(sorted((skills or {}).items())),
    }
    path = out / "batch.json"
    if not path.exists():
        content = {"layout": _LAYOUT, "id": uuid.uuid4().hex[:12], "bound_to": _digest(manifest), **manifest}
        content["places"] = dict(places or {})
        write_atomically(path, strict_json(content, indent=1, ensure_ascii=False).encode())
    content = read_manifest(out)
    if difference := _difference(content, manifest, context):
        raise InputError(f"{out} holds a batch with {difference}; choose another folder with --out")
    earlier_places = content.get("places")  # earlier versions did not note them
    if isinstance(earlier_places, dict) and places is not None and (names := _changed(earlier_places, places)):
        raise InputError(
            f"{out} holds a batch that was begun with another {names[0]}, where a part of its work is: give the same, "
            "or choose another folder with --out"
        )
    return Claim(content["id"], content["bound_to"])


def _digest(manifest: Mapping[str, Any]) -> str:
    """A digest of what a manifest says that decides a result."""
    identity = {name: manifest[name] for name in ("settings", "models", "skills")}
    identity["settings"] = identifying(manifest["settings"])
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def read_manifest(out: Path) -> dict[str, Any]:
    """What ``claim`` has written.

    Raises:
        InputError: The folder holds no batch, or one of an earlier version.
    """
    path = out / "batch.json"
    try:
        content = parse_json(read_regular(path, within=out))
        is_whole = all(isinstance(content.get(name), type_) for name, type_ in _MANIFEST.items())
    except FileNotFoundError:
        raise InputError(f"{out} holds no batch; give the folder that was --out of 'gems batch'") from None
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error!r}); choose another folder with --out") from error
    if content.get("layout") != _LAYOUT or not is_whole:
        raise InputError(f"{out} was made by another version of GEMS; choose another folder with --out")
    if content["bound_to"] != _digest(content):
        raise InputError(f"{path} was changed since the batch began: restore it, or choose another folder with --out")
    return cast(dict[str, Any], content)


def _difference(then: Mapping[str, Any], now: Mapping[str, Any], context: GemsContext) -> str:
    """What of a batch's identity has changed since it began; empty if nothing has."""
    if names := _changed(then["skills"], now["skills"]):
        return f"other skills, or other contents of them ({', '.join(names[:5])})"
    names = [*changed_settings(then["settings"], context), *_changed(then["models"], now["models"])]
    return f"other settings or models ({', '.join(names[:5])})" if names else ""


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def write_jobs(out: Path, jobs: Sequence[Job], name: str = "prompts.jsonl") -> None:
    """Write jobs to a file in the form that ``read_jobs`` reads. Without a job, the file is removed."""
    path = out / name
    if jobs:
        write_atomically(path, "".join(strict_json(job.fields(), ensure_ascii=False) + "\n" for job in jobs).encode())
    else:
        path.unlink(missing_ok=True)


def saved_jobs(out: Path) -> list[Job]:
    """The jobs in a batch's folder.

    Raises:
        InputError: The folder holds no batch, or a line of its prompts is damaged.
    """
    path = out / "prompts.jsonl"
    try:
        if not path.exists():
            raise InputError(f"{out} holds no batch; give the folder that was --out of 'gems batch'")
        jobs = [
            _job_in(path, number, line) for number, line in enumerate(lines_of(path, within=out), 1) if line.strip()
        ]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if len({job.index for job in jobs}) < len(jobs) or len({job.key for job in jobs}) < len(jobs):
        raise InputError(f"{path} has a line twice; start the batch again, which writes the file anew")
    return jobs


def _job_in(path: Path, number: int, line: bytes) -> Job:
    try:
        return job_of(parse_json(line))
    except ValueError as error:
        raise InputError(
            f"{path}, line {number} is damaged ({error}); start the batch again, which writes the file anew"
        ) from None
