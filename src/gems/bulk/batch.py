"""Runs many prompts through one graph: in parallel, resumable, and within limits. A prompt's failure stops no other."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl
from langgraph.store.base import BaseStore

from gems.bulk.account import Account, AccountStart
from gems.bulk.half_done import HalfDone
from gems.bulk.jobs import Job, job_of
from gems.bulk.journal import Journal, PartialRun
from gems.bulk.limits import Limits, Share, larger_usage, most_of_a_run, usage_of
from gems.bulk.results import (
    AttemptFields,
    BatchRow,
    Claim,
    Group,
    ResultsFile,
    Tally,
    UsageFields,
    claim,
    is_final,
    leased,
    locked,
    open_record,
    row_of,
    write_jobs,
)
from gems.database import without_password
from gems.errors import GemsError, InputError
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.context import ROLES, GemsContext
from gems.graph.events import RequirementFields
from gems.graph.state import Attempt, GemsState, Usage
from gems.memory.image_store import ImageStore
from gems.memory.opening import database_of
from gems.models.batching import BatchingGenerator
from gems.models.generators import FURTHER_IMAGES, ImageGenerator, Local
from gems.models.registry import POCKET, init_image_generator
from gems.nodes.meter import settle_run
from gems.nodes.retry import is_backend_failure
from gems.runs.checkpoints import open_checkpoints
from gems.runs.folder import make_folder, write_run
from gems.runs.record import ModelRecord, best_index, model_records, run_record
from gems.runs.threads import can_be_reopened, location_mark, reopen_failed, reopen_limited, run_thread
from gems.secrets import one_line
from gems.skills.loader import load_skills
from gems.skills.snapshots import contents_of
from gems.stopping import ending

__all__ = [
    "Batch",
    "FailureStreak",
    "Stop",
    "Worker",
    "account_start",
    "brief",
    "check_skills",
    "images_location",
    "open_generator",
    "open_worker",
    "places_of",
    "run_batch",
    "run_jobs",
    "run_within",
    "skills_of",
]

_MIN_STREAK: Final = 20
"""The fewest backend failures in a row that end a batch."""
_GPU_BATCH_SIZE: Final = 8
"""Images in one call on a GPU, unless the options set another number. More gain little speed and need much memory."""


class Stop:
    """Asks a batch to stop: after the prompts in flight have finished, or at their next step."""

    def __init__(self, control: RunControl | None = None) -> None:
        self.control = control or RunControl()
        """Asks the prompts in flight to stop at their next step. They can be continued from there."""
        self._finish = threading.Event()

    def finish(self) -> None:
        """Begin no other prompt, and let the prompts in flight finish."""
        self._finish.set()

    @property
    def is_requested(self) -> bool:
        """Whether no other prompt may begin."""
        return self._finish.is_set() or self.control.drain_requested


class FailureStreak:
    """Ends a batch after too many backend failures in a row: the remaining prompts would cost money and fail too.

    Args:
        stop: Asked to finish when the streak is too long.
        concurrency: Number of prompts in flight. One cause can fail all of them, so a streak may be twice as long.
    """

    def __init__(self, stop: Stop, concurrency: int) -> None:
        self._stop, self._max_failures = stop, max(_MIN_STREAK, 2 * concurrency)
        self._lock, self._failures = threading.Lock(), 0
        self.reason: str | None = None
        """Why the batch was ended; None as long as it was not."""

    def add(self, row: BatchRow) -> None:
        """Count a result: a backend failure makes the streak longer, any other result ends it."""
        with self._lock:
            self._failures = self._failures + 1 if row.get("error_kind") == "backend" else 0
            if self._failures >= self._max_failures and self.reason is None:
                self.reason = f"the last {self._failures} prompts all failed: {row['error']}"
                self._stop.finish()


@dataclass(frozen=True, slots=True)
class Batch:
    """The results of a batch, and why it ended."""

    jobs: Sequence[Job]
    record: ResultsFile
    reached_limit: str | None = None
    """The limit for the whole batch that ended it."""
    failure_message: str | None = None
    """The backend failures in a row that ended it, as one line."""
    account: Account | None = None
    """What the batch has spent, with what is in no result."""

    @property
    def usage(self) -> Usage:
        """What all starts have spent."""
        return self.account.usage if self.account else self.record.usage

    @property
    def lost_images(self) -> int:
        """The most images that were in flight when a process was killed, and may have been paid for."""
        return self.account.lost_images if self.account else 0

    def rows(self) -> list[BatchRow]:
        """All results, in the jobs' order."""
        return list(self.record.rows(self.jobs))

    @property
    def unfinished_jobs(self) -> list[Job]:
        """The jobs that have no result yet."""
        return [job for job in self.jobs if not self.record.has(job)]

    def lacks(self, jobs: Sequence[Job]) -> bool:
        """Whether one of these jobs has no result; without any, one of all."""
        return any(not self.record.has(job) for job in jobs or self.jobs)

    def count(self, group: Group) -> int:
        """How many of the jobs have become this."""
        return sum(self.record.group(job) == group for job in self.jobs)


# --- one prompt ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker:
    """Runs single prompts of a batch in this process, in any thread."""

    claim: Claim
    graph: GemsGraph
    saver: BaseCheckpointSaver[Any]
    context: GemsContext
    models: dict[str, ModelRecord]
    images: ImageStore
    evidence_folder: Path | None = None
    """Folder for the run folders of prompts; None to write none."""
    stop: Stop = field(default_factory=Stop)
    skills: Mapping[str, str] = field(default_factory=dict)
    """The contents of the skills that the batch is bound to, by name."""

    @property
    def half_done(self) -> HalfDone:
        """The checkpoints of the batch's prompts."""
        return HalfDone(self.graph, self.claim.id, self.context.images_per_round)

    def reopen(self, job: Job) -> None:
        """Let a prompt go on from its checkpoint that a backend failure or a limit of the batch has ended."""
        thread, values = self.half_done.thread(job.key), self.half_done.state(job.key).values
        if values.get("outcome") == "failed":
            reopen_failed(self.graph, thread)
        elif values.get("outcome") == "budget" and not _own_limit(self.context, values["usage"]):
            reopen_limited(self.graph, thread)

    def run(self, job: Job, share: Share | None = None) -> BatchRow | None:
        """Run a prompt, or continue it from its checkpoint. Returns its result; None if the batch is being stopped.

        Args:
            job: The prompt.
            share: What it may spend of the batch's limits. None: as much as its settings let it.

        Raises:
            InputError: A skill was changed since the batch began.
        """
        check_skills(self.context, self.skills)
        started, started_at, thread = time.perf_counter(), datetime.now(UTC), self.half_done.thread(job.key)
        context = self.context.model_copy(update={"seed": job.seed})
        share = share or Share()
        limited = context.model_copy(update={"budget": share.budget(context.budget)})
        row: BatchRow = {**row_of(job), "bound_to": self.claim.bound_to, "thread": thread}
        try:
            with ending(lambda: self.stop.is_requested):
                values = run_thread(self.graph, thread, job.prompt, limited, control=self.stop.control)
        except Exception as error:
            # An unusable folder or checkpoint file affects every prompt. Any other failure is this prompt's own: it is
            # recorded, and the others continue.
            if isinstance(error, (OSError, sqlite3.Error)) and not is_backend_failure(error):
                raise
            values = cast(GemsState, self.half_done.state(job.key).values)
            return _with_times({**row, **_progress(values), **_failure(error)}, started)
        if not values.get("outcome"):
            return None
        for attempt in values["attempts"]:
            self.images.flush(attempt.image)
        if self.evidence_folder is not None:
            record = run_record(values, context, self.models, thread, started_at)
            write_run(self.evidence_folder / job.key, record, self.images)
            row["folder"] = f"{self.evidence_folder.name}/{job.key}"
        limit = share.cuts_short(context.budget, values["usage"]) if values["outcome"] == "budget" else None
        row = {**row, **_progress(values), **_ending(values, context)}
        return _with_times({**row, "stopped_by_total": limit} if limit else row, started)

    def forget(self, job: Job) -> None:
        """Delete a prompt's checkpoints. Call this once its final result is on disk."""
        self.saver.delete_thread(self.half_done.thread(job.key))


def account_start(out: Path, record: ResultsFile, worker: Worker, limits: Limits, concurrency: int) -> AccountStart:
    """What a batch's account begins with: what earlier starts have spent, killed ones too.

    Args:
        out: The batch's folder.
        record: The batch's results.
        worker: Reads the checkpoints.
        limits: The batch's limits.
        concurrency: Number of prompts in flight.
    """
    path, candidates = out / "begun.jsonl", worker.context.images_per_round
    before = Journal(path)
    before.compact(lambda run: False)  # nothing may follow half a line, which a kill can leave
    for prompt in worker.half_done.killed(before):
        before.end(prompt.key, prompt.run, lost_images=prompt.lost_images)
    journal = Journal(path)
    unrecorded = [record.unrecorded(run) for run in journal.runs.values()]
    journal.compact(lambda run: record.unrecorded(run) == Usage())
    usage = sum(unrecorded, record.usage + journal.interrupted + Usage(images=journal.lost_images))
    most = most_of_a_run(worker.context)
    return AccountStart(path, limits, usage, record.max_usage, most, candidates, concurrency)


class SharesOut(Protocol):
    """What a prompt needs of a account, which may be in another process."""

    def wait_to_begin(self, key: str, before: Usage, is_stopped: Callable[[], bool]) -> Share | None:
        """See ``Account.wait_to_begin``."""
        ...

    def ask(self, key: str, images: int) -> None:
        """See ``Account.ask``."""
        ...

    def finish(self, key: str, run: PartialRun | None, row: BatchRow | None, *, is_drawing: bool = False) -> None:
        """See ``Account.finish``."""
        ...


def run_within(account: SharesOut, worker: Worker, job: Job) -> BatchRow | None:
    """Run a prompt within the batch's limits. Returns its result; None if it may not begin, or is stopped.

    A run that its share has cut short goes on as soon as there is more.
    """
    row: BatchRow | None = None
    while True:
        worker.reopen(job)
        run = worker.half_done.spent(job.key)
        before = run.usage if run else Usage()
        share = account.wait_to_begin(job.key, before, lambda: worker.stop.is_requested)
        if share is None:
            return row
        with _noting_images(partial(account.ask, job.key)):
            row = worker.run(job, share)
        run = worker.half_done.spent(job.key) if row is None else _run_of(row)
        if run is not None:
            run = run.model_copy(update={"interrupted": settle_run(run.run_id)})
        # An error of no step: the checkpoint of what it drew could not be written.
        is_drawing = row is not None and "outcome" not in row and worker.half_done.is_drawing(job.key)
        account.finish(job.key, run, row, is_drawing=is_drawing)
        if row is None or "stopped_by_total" not in row:
            return row


@contextmanager
def _noting_images(note: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the images that a run in the block has asked for, before it asks for lost ones again."""
    token = FURTHER_IMAGES.set(note)
    try:
        yield
    finally:
        FURTHER_IMAGES.reset(token)


def _run_of(row: BatchRow) -> PartialRun | None:
    """What the run behind a result has spent, as its last checkpoint says; None if it had not begun."""
    if "run_id" not in row:
        return None
    return PartialRun(key=job_of(row).key, run_id=row["run_id"], usage=Usage.model_validate(row["usage"]))


def _own_limit(context: GemsContext, usage: Usage) -> str | None:
    """The limit of the run's own budget that leaves no room for another round."""
    return context.budget.exhausted(usage, chat_calls=2, images=1)


def _with_times(row: BatchRow, started: float) -> BatchRow:
    seconds = round(time.perf_counter() - started, 3)
    return {**row, "seconds": seconds, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}


def _failure(error: Exception) -> BatchRow:
    text = one_line(error, 1000)
    is_of_database = type(error).__module__.startswith("psycopg")
    kind = "cannot use the PostgreSQL database" if is_of_database else type(error).__name__
    return cast(
        BatchRow,
        {
            "error": text if isinstance(error, GemsError) else f"{kind}: {text}",
            "error_kind": "input" if isinstance(error, InputError) else "backend",
        },
    )


def _progress(values: GemsState) -> BatchRow:
    """How far a run has come, which a failed one keeps too: its images are paid for."""
    usage = values.get("usage") or Usage()
    if not values.get("run_id"):
        return cast(BatchRow, {"usage": cast(UsageFields, usage.model_dump(mode="json"))})
    attempts = values["attempts"]
    best = best_index(attempts)
    fields: dict[str, Any] = {
        "run_id": values["run_id"],
        "score": 0.0 if best is None else round(attempts[best].score, 4),
        "rounds": attempts[-1].round if attempts else 0,
        "requirements": [cast(RequirementFields, r.model_dump(mode="json")) for r in values.get("requirements") or []],
        "attempts": [brief(attempt) for attempt in attempts],
        "best": best,
        "skills": values.get("skills") or [],
        "memories": [memory.key for memory in values.get("memories") or []],
        "usage": cast(UsageFields, usage.model_dump(mode="json")),
        "errors": values["errors"],
        "notes": values.get("notes") or [],
    }
    return cast(BatchRow, fields)


def _ending(values: GemsState, context: GemsContext) -> BatchRow:
    """Why a run ended. A prompt whose every draft the provider has refused is not drawn at the next start either."""
    outcome: dict[str, Any] = {"outcome": values["outcome"] or "cancelled"}
    if values["outcome"] == "failed":
        kind = "backend" if can_be_reopened(values, context) else "input"
        outcome |= {"error": "; ".join(values["errors"]), "error_kind": kind}
    return cast(BatchRow, outcome)


def brief(attempt: Attempt) -> AttemptFields:
    """An attempt as it is written in a result. Verdicts are {requirement id: [answer, confidence]}."""
    # Nothing where the verifier said nothing, or the model reads no negative prompt.
    optional = attempt.model_dump(mode="json", include={"quality", "flaws", "negative_prompt"})
    return {
        "round": attempt.round,
        "candidate": attempt.candidate,
        "strategy": attempt.strategy,
        "prompt": attempt.prompt,
        "seed": attempt.seed,
        "score": round(attempt.score, 4),
        "passed": sum(v.answer == "yes" for v in attempt.verdicts),
        "total": len(attempt.verdicts),
        "verified": attempt.is_answered,
        "verdicts": {v.requirement_id: [v.answer, v.confidence] for v in attempt.verdicts},
        "image": attempt.image.uri,
        "sha256": attempt.image.sha256,
        "edited_from": attempt.edited_from,
        **cast(AttemptFields, optional),
    }


# --- what prompts need -----------------------------------------------------------------------------------------------


def images_location(context: GemsContext, out: Path) -> str:
    """Where a batch's images are stored: as its settings or the environment say, or else in its folder."""
    return context.images_url or os.environ.get("GEMS_IMAGES") or str(out / "images")


def places_of(
    context: GemsContext, out: Path, checkpoints: str | None, images: ImageStore | None = None
) -> dict[str, str]:
    """Marks of the places outside its folder where a batch's work is, by the option that names them; see ``claim``.

    An image store of the caller's own, as an evaluation and a trial have one, is moved together with the folder.
    """
    places: dict[str, str] = {}
    if images is None:
        store = ImageStore(images_location(context, out), create=False)
        if store.url != ImageStore(out.absolute() / "images", create=False).url:
            places["--images"] = location_mark(store.url)
    if checkpoints:
        places["--checkpoints"] = location_mark(without_password(checkpoints))
    return places


def skills_of(context: GemsContext) -> dict[str, str]:
    """The contents of the skills that a run's planner may read, as a digest of each by its name.

    Raises:
        InputError: A folder of skills does not exist.
    """
    library = load_skills(context.skills_dir, builtin=context.builtin_skills)
    if not (context.skills and context.plan):
        return {}
    return contents_of(skill for name, skill in library.skills.items() if name not in context.without_skills)


def check_skills(context: GemsContext, expected: Mapping[str, str]) -> None:
    """Check that the skills are those that the batch is bound to.

    Raises:
        InputError: They are not.
    """
    if not (context.skills and context.plan):
        return  # nothing reads a skill
    if (current := skills_of(context)) != expected:
        names = sorted(n for n in {*current, *expected} if current.get(n) != expected.get(n))
        raise InputError(
            f"the batch has begun with other skills, or other contents of them ({', '.join(names[:5])}): restore "
            "them, or choose another folder with --out"
        )


@contextmanager
def open_worker(
    out: Path,
    context: GemsContext,
    claim: Claim,
    models: dict[str, ModelRecord],
    *,
    checkpoints: str | None,
    generator: ImageGenerator,
    stop: Stop,
    skills: Mapping[str, str],
    evidence: bool = False,
    store: BaseStore | None = None,
    images: ImageStore | None = None,
) -> Iterator[Worker]:
    """Open what a batch's prompts need in this process.

    Args:
        out: The batch's folder.
        context: The settings of every run.
        claim: What identifies the batch.
        models: The models that are written to the runs' records.
        checkpoints: A PostgreSQL database for checkpoints. None: the memory's database, or else a file in ``out``.
        generator: Makes the images.
        stop: Asks for a stop.
        skills: The contents of the skills that the batch is bound to.
        evidence: Whether to write a folder with report.html for each prompt too.
        store: A memory to use instead of the one in the settings.
        images: An image store to use instead of the one in the settings.
    """
    images = images or ImageStore(images_location(context, out))
    database = checkpoints or (None if store else database_of(context))
    with open_checkpoints(out / "checkpoints.sqlite", database) as saver:
        graph = build_graph(checkpointer=saver, images=images, store=store, generator=generator)
        yield Worker(claim, graph, saver, context, models, images, out / "runs" if evidence else None, stop, skills)


@contextmanager
def open_generator(context: GemsContext) -> Iterator[ImageGenerator]:
    """Open the settings' image generator for many prompts at a time. A local one draws batches across prompts."""
    options = context.generator_options
    generator = init_image_generator(context.generator, options, context.authority)
    has_choice = options.batch_size is None and context.generator not in POCKET  # which refuse a batch size
    if has_choice and isinstance(generator, Local) and _is_on_gpu(generator):
        options = options.model_copy(update={"batch_size": _GPU_BATCH_SIZE})
        generator = init_image_generator(context.generator, options, context.authority)
    if not isinstance(generator, Local):  # a server makes its own batches
        yield generator
        return
    largest = generator.batch_size * len(generator.replicas.devices)  # one call draws a batch on every device
    with BatchingGenerator(generator, max_batch_size=largest) as batching_generator:
        yield batching_generator


def _is_on_gpu(generator: Local) -> bool:
    return any(device.startswith("cuda") for device in generator.replicas.devices)


@contextmanager
def _one_torch_thread(context: GemsContext, concurrency: int) -> Iterator[None]:
    """Give each model one torch thread if all models are small and several run at once: more would compete for CPUs."""
    names = {context.generator, *(context.chat_model(role) for role in ROLES)}
    if concurrency == 1 or not names <= POCKET.keys():
        yield
        return
    import torch

    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


# --- all prompts -----------------------------------------------------------------------------------------------------


def run_batch(
    jobs: list[Job],
    out: Path,
    context: GemsContext,
    *,
    concurrency: int,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
    stop: Stop | None = None,
    evidence: bool = False,
    limits: Limits | None = None,
    sample: Sequence[Job] = (),
    checkpoints: str | None = None,
    store: BaseStore | None = None,
    images: ImageStore | None = None,
    add_prompts: bool = False,
    on_end: Callable[[Batch], None] = lambda batch: None,
) -> Batch:
    """Run every job that has no result yet through the graph.

    Args:
        jobs: The batch's jobs.
        out: A folder for this batch alone.
        context: The settings of every run. Each job has its own seed.
        concurrency: Number of prompts in flight.
        on_start: Called with the results that are there already.
        on_done: Called with each new result.
        stop: Asks for a stop.
        evidence: Whether to write a folder with report.html for each prompt too.
        limits: Limits for the whole batch.
        sample: Run only these jobs.
        checkpoints: A PostgreSQL database for checkpoints. None: the memory's database, or else a file in ``out``.
        store: A memory to use instead of the one in the settings.
        images: An image store to use instead of the one in the settings.
        add_prompts: Whether the folder may hold results of other prompts alone.
        on_end: Called at the end, while no other process can begin on the folder.

    Raises:
        InputError: The folder holds another batch or cannot be written to, another process works on it, or a setting
            cannot be used.
        BackendError: The disk is full, or weights are missing.
    """
    make_folder(out)
    stop = stop or Stop()
    # What would fail every prompt fails here, before it is recorded as each prompt's own failure.
    models, skills = model_records(context), skills_of(context)
    with locked(out), _one_torch_thread(context, concurrency), open_generator(context) as generator:
        database = checkpoints or (None if store else database_of(context))
        batch = claim(out, context, models, skills, places_of(context, out, database, images))
        worker_opening = open_worker(
            out,
            context,
            batch,
            models,
            checkpoints=database,
            generator=generator,
            stop=stop,
            skills=skills,
            evidence=evidence,
            store=store,
            images=images,
        )
        with leased(out, batch, database, stop.control.request_drain), worker_opening as worker:
            record = open_record(out, jobs, batch, add_prompts=add_prompts)
            account = account_start(out, record, worker, limits or Limits(), concurrency).open()
            result = _run_jobs(
                jobs,
                record,
                partial(run_within, account, worker),
                concurrency=concurrency,
                stop=stop,
                account=account,
                sample=sample,
                on_start=on_start,
                on_done=on_done,
                on_final=worker.forget,
            )
        on_end(result)
        return result


def run_jobs(
    jobs: list[Job],
    out: Path,
    work: Callable[[Job], BatchRow | Usage],
    *,
    concurrency: int,
    stop: Stop,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
) -> Batch:
    """Do other work than the graph's, which asks for one image, for every job without a line in ``out/results.jsonl``.

    ``out/begun.jsonl`` tells how many images were in flight when a process was killed, and what was spent on jobs that
    were stopped. A job's result counts what its earlier tries have spent, too: those that failed or were stopped.

    Args:
        jobs: The batch's jobs.
        out: A folder for this batch alone.
        work: Returns a job's result with what this try has spent; only what it has spent if it was stopped.
        concurrency: Jobs in flight. With 1, jobs run in their order.
        stop: Asks for a stop.
        on_start: Called with the results that are there already.
        on_done: Called with each new result.

    Raises:
        InputError: Another process works on the folder.
    """
    with locked(out):
        write_jobs(out, jobs)
        record = ResultsFile(out / "results.jsonl", repair=True)
        journal = _journal_of_images(out / "begun.jsonl", record, jobs)

        def journaled_work(job: Job) -> BatchRow | None:
            stopped_run = journal.runs.get(job.key)
            earlier = larger_usage(record.recorded(job.key), stopped_run.usage if stopped_run else Usage())
            journal.begin(job.key)
            with _noting_images(partial(journal.ask, job.key)):
                row = work(job)
            usage = earlier + (row if isinstance(row, Usage) else usage_of(row))
            if isinstance(row, Usage):
                journal.end(job.key, PartialRun(key=job.key, run_id=job.key, usage=usage))
                return None
            # A job's tries are one run, so that what its results say again counts once.
            return {**row, "run_id": job.key, "usage": cast(UsageFields, usage.model_dump(mode="json"))}

        def done(row: BatchRow) -> None:
            journal.end(job_of(row).key)
            on_done(row)

        return _run_jobs(
            jobs, record, journaled_work, concurrency=concurrency, stop=stop, on_start=on_start, on_done=done
        )


def _journal_of_images(path: Path, record: ResultsFile, jobs: Sequence[Job]) -> Journal:
    """The journal of jobs that ask for one image each. What was begun and has no result was killed, with its image.

    ``Journal.ask`` is told what the latest try of a job has asked for, which nothing else has counted.
    """
    journal = Journal(path)
    # Nothing may follow half a line, which a kill can leave.
    journal.compact(lambda run: record.unrecorded(run) == Usage())
    finished = {job.key for job in jobs if record.is_done(job)}
    for key in list(journal.open.elements()):
        journal.end(key, lost_images=0 if key in finished else journal.lost_with(key, 1, Usage()))
    return journal


def _run_jobs(
    jobs: list[Job],
    record: ResultsFile,
    work: Callable[[Job], BatchRow | None],
    *,
    concurrency: int,
    stop: Stop,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
    account: Account | None = None,
    sample: Sequence[Job] = (),
    on_final: Callable[[Job], None] = lambda job: None,
) -> Batch:
    streak = FailureStreak(stop, concurrency)
    on_start(record.tally(jobs))
    pool = _JobPool(work, concurrency, stop, record, account, streak, on_done, on_final)
    pool.run(job for job in sample or jobs if not record.is_done(job))
    return Batch(jobs, record, account.limit_reached if account else None, streak.reason, account)


@dataclass
class _JobPool:
    """Works on jobs in threads, and records their results."""

    work: Callable[[Job], BatchRow | None]
    concurrency: int
    stop: Stop
    record: ResultsFile
    account: Account | None
    streak: FailureStreak
    on_done: Callable[[BatchRow], None]
    on_final: Callable[[Job], None]
    in_flight: set[Future[BatchRow | None]] = field(default_factory=set)

    def run(self, jobs: Iterable[Job]) -> None:
        """Work on the jobs until all have finished, a stop is asked for, or a limit is reached."""
        with ThreadPoolExecutor(self.concurrency) as executor:
            for job in jobs:
                while len(self.in_flight) >= self.concurrency:
                    self._report_finished()
                if self.stop.is_requested or (self.account and self.account.limit_reached):
                    break
                self.in_flight.add(executor.submit(self._finish, job))
            while self.in_flight:
                self._report_finished()

    def _report_finished(self) -> None:
        finished, self.in_flight = wait(self.in_flight, return_when=FIRST_COMPLETED)
        for future in finished:
            if (row := future.result()) is not None:
                self.on_done(row)

    def _finish(self, job: Job) -> BatchRow | None:
        try:
            row = self.work(job)
            if row is not None:
                self.record.add(row)
                if is_final(row):
                    self.on_final(job)
                self.streak.add(row)
        except BaseException:
            self.stop.control.request_drain("the batch's folder cannot be used")  # no other result can be kept either
            raise
        return row
