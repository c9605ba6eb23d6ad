"""Runs many prompts through one graph: in parallel, resumable, and within limits. A prompt's failure stops no other."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl
from langgraph.store.base import BaseStore

from gems.bulk.jobs import Job
from gems.bulk.limits import Allowance, Limits, usage_of
from gems.bulk.results import (
    AttemptFields,
    BatchRow,
    ResultsFile,
    Tally,
    UsageFields,
    claim,
    locked,
    row_of,
    write_jobs,
)
from gems.errors import GemsError, InputError
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.context import ROLES, GemsContext
from gems.graph.events import RequirementFields
from gems.graph.state import Attempt, GemsState, Usage
from gems.memory.image_store import ImageStore
from gems.memory.opening import database_of
from gems.models.batching import BatchingGenerator
from gems.models.generators import ImageGenerator, Local
from gems.models.registry import POCKET, init_image_generator
from gems.nodes.retry import is_backend_failure
from gems.runs.checkpoints import open_checkpoints
from gems.runs.folder import make_folder, write_run
from gems.runs.record import ModelRecord, best_index, model_records, run_record
from gems.runs.threads import run_thread
from gems.skills.loader import load_skills

__all__ = [
    "Batch",
    "FailureStreak",
    "Stop",
    "Worker",
    "brief",
    "images_location",
    "open_generator",
    "open_worker",
    "run_batch",
    "run_jobs",
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

    def rows(self) -> list[BatchRow]:
        """All results, in the jobs' order."""
        return list(self.record.rows(self.jobs))

    @property
    def unfinished_jobs(self) -> list[Job]:
        """The jobs that have no result yet."""
        return [job for job in self.jobs if not self.record.has(job)]


# --- one prompt ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worker:
    """Runs single prompts of a batch in this process, in any thread."""

    batch_id: str
    graph: GemsGraph
    saver: BaseCheckpointSaver[Any]
    context: GemsContext
    models: dict[str, ModelRecord]
    images: ImageStore
    evidence_folder: Path | None = None
    """Folder for the run folders of prompts; None to write none."""
    control: RunControl = field(default_factory=RunControl)

    def run(self, job: Job) -> BatchRow | None:
        """Run a prompt, or continue it from its checkpoint. Returns its result; None if the batch is being stopped."""
        started, started_at, thread = time.perf_counter(), datetime.now(UTC), self._thread(job)
        context = self.context.model_copy(update={"seed": job.seed})
        row: BatchRow = {**row_of(job), "thread": thread}
        try:
            values = run_thread(self.graph, thread, job.prompt, context, control=self.control)
        except Exception as error:
            # An unusable folder or checkpoint file affects every prompt. Any other failure is this prompt's own: it is
            # recorded, and the others continue.
            if isinstance(error, (OSError, sqlite3.Error)) and not is_backend_failure(error):
                raise
            return _with_times({**_with_failure(row, error), "usage": self._usage(thread)}, started)
        if not values.get("outcome"):
            return None
        _flush_images(values["attempts"])
        if self.evidence_folder is not None:
            record = run_record(values, context, self.models, thread, started_at)
            write_run(self.evidence_folder / f"{job.index:05d}", record, self.images)
        return _with_times(_with_outcome(row, values), started)

    def forget(self, job: Job) -> None:
        """Delete a prompt's checkpoints. Call this once its result is on disk."""
        self.saver.delete_thread(self._thread(job))

    def _thread(self, job: Job) -> str:
        return f"{self.batch_id}-{job.index}-{job.key}"

    def _usage(self, thread: str) -> UsageFields:
        usage = self.graph.get_state({"configurable": {"thread_id": thread}}).values.get("usage")
        return cast(UsageFields, (usage or Usage()).model_dump(mode="json"))


def _flush_images(attempts: Sequence[Attempt]) -> None:
    """Flush image files to disk before a result names them, so that a power failure cannot lose them."""
    for attempt in attempts:
        if attempt.image.uri.startswith("file://"):
            with Path(attempt.image.uri.removeprefix("file://")).open("rb") as file:
                os.fsync(file.fileno())


def _with_times(row: BatchRow, started: float) -> BatchRow:
    seconds = round(time.perf_counter() - started, 3)
    return {**row, "seconds": seconds, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}


def _with_failure(row: BatchRow, error: Exception) -> BatchRow:
    text = " ".join(str(error).split())
    return {
        **row,
        "error": text if isinstance(error, GemsError) else f"{type(error).__name__}: {text}",
        "error_kind": "input" if isinstance(error, InputError) else "backend",
    }


def _with_outcome(row: BatchRow, values: GemsState) -> BatchRow:
    attempts = values["attempts"]
    best = best_index(attempts)
    result: BatchRow = {
        **row,
        "run_id": values["run_id"],
        "outcome": values["outcome"] or "cancelled",
        "score": 0.0 if best is None else round(attempts[best].score, 4),
        "rounds": attempts[-1].round if attempts else 0,
        "requirements": [cast(RequirementFields, r.model_dump(mode="json")) for r in values.get("requirements") or []],
        "attempts": [brief(attempt) for attempt in attempts],
        "best": best,
        "skills": values.get("skills") or [],
        "memories": [memory.key for memory in values.get("memories") or []],
        "usage": cast(UsageFields, values["usage"].model_dump(mode="json")),
        "errors": values["errors"],
    }
    if values["outcome"] == "failed":
        return {**result, "error": "; ".join(values["errors"]), "error_kind": "backend"}
    return result


def brief(attempt: Attempt) -> AttemptFields:
    """An attempt as it is written in a result. Verdicts are {requirement id: [answer, confidence]}."""
    return {
        "round": attempt.round,
        "candidate": attempt.candidate,
        "strategy": attempt.strategy,
        "prompt": attempt.prompt,
        "seed": attempt.seed,
        "score": round(attempt.score, 4),
        "passed": sum(v.answer == "yes" for v in attempt.verdicts),
        "total": len(attempt.verdicts),
        "verdicts": {v.requirement_id: [v.answer, v.confidence] for v in attempt.verdicts},
        "image": attempt.image.uri,
        "sha256": attempt.image.sha256,
        "edited_from": attempt.edited_from,
    }


# --- what prompts need -----------------------------------------------------------------------------------------------


def images_location(context: GemsContext, out: Path) -> str:
    """Where a batch's images are stored: as its settings or the environment say, or else in its folder."""
    return context.images_url or os.environ.get("GEMS_IMAGES") or str(out / "images")


@contextmanager
def open_worker(
    out: Path,
    context: GemsContext,
    batch_id: str,
    models: dict[str, ModelRecord],
    *,
    checkpoints: str | None,
    generator: ImageGenerator,
    control: RunControl,
    evidence: bool = False,
    store: BaseStore | None = None,
    images: ImageStore | None = None,
) -> Iterator[Worker]:
    """Open what a batch's prompts need in this process.

    Args:
        out: The batch's folder.
        context: The settings of every run.
        batch_id: The batch's id.
        models: The models that are written to the runs' records.
        checkpoints: A PostgreSQL database for checkpoints. None: the memory's database, or else a file in ``out``.
        generator: Makes the images.
        control: Asks for a stop.
        evidence: Whether to write a folder with report.html for each prompt too.
        store: A memory to use instead of the one in the settings.
        images: An image store to use instead of the one in the settings.
    """
    images = images or ImageStore(images_location(context, out))
    database = checkpoints or (None if store else database_of(context))
    with open_checkpoints(out / "checkpoints.sqlite", database) as saver:
        graph = build_graph(checkpointer=saver, images=images, store=store, generator=generator)
        yield Worker(batch_id, graph, saver, context, models, images, out / "runs" if evidence else None, control)


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

    Raises:
        InputError: The folder holds another batch or cannot be written to, another process works on it, or a setting
            cannot be used.
        BackendError: The disk is full, or weights are missing.
    """
    make_folder(out)
    stop = stop or Stop()
    # What would fail every prompt fails here, before it is recorded as each prompt's own failure.
    models = model_records(context)
    load_skills(context.skills_dir, builtin=context.builtin_skills)
    with locked(out), _one_torch_thread(context, concurrency), open_generator(context) as generator:
        batch_id = claim(out, context, models)
        with open_worker(
            out,
            context,
            batch_id,
            models,
            checkpoints=checkpoints,
            generator=generator,
            control=stop.control,
            evidence=evidence,
            store=store,
            images=images,
        ) as worker:
            return _run_jobs(
                jobs,
                out,
                worker.run,
                concurrency=concurrency,
                stop=stop,
                limits=limits,
                sample=sample,
                on_start=on_start,
                on_done=on_done,
                on_recorded=worker.forget,
            )


def run_jobs(
    jobs: list[Job],
    out: Path,
    work: Callable[[Job], BatchRow | None],
    *,
    concurrency: int,
    stop: Stop,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
) -> Batch:
    """Do other work than the graph's for every job that has no line in ``out/results.jsonl`` yet.

    Args:
        jobs: The batch's jobs.
        out: A folder for this batch alone.
        work: Returns a job's result; None if it was stopped.
        concurrency: Jobs in flight. With 1, jobs run in their order.
        stop: Asks for a stop.
        on_start: Called with the results that are there already.
        on_done: Called with each new result.

    Raises:
        InputError: Another process works on the folder.
    """
    with locked(out):
        return _run_jobs(jobs, out, work, concurrency=concurrency, stop=stop, on_start=on_start, on_done=on_done)


def _run_jobs(
    jobs: list[Job],
    out: Path,
    work: Callable[[Job], BatchRow | None],
    *,
    concurrency: int,
    stop: Stop,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
    limits: Limits | None = None,
    sample: Sequence[Job] = (),
    on_recorded: Callable[[Job], None] = lambda job: None,
) -> Batch:
    write_jobs(out, jobs)
    record = ResultsFile(out / "results.jsonl", repair=True)
    allowance = Allowance(limits or Limits(), record.usage, record.max_usage)
    streak = FailureStreak(stop, concurrency)
    on_start(record.tally(jobs))
    pool = _JobPool(work, concurrency, stop, record, allowance, streak, on_done, on_recorded)
    pool.run(job for job in sample or jobs if not record.is_done(job))
    return Batch(jobs, record, allowance.limit_reached, streak.reason)


@dataclass
class _JobPool:
    """Works on jobs in threads, and records their results."""

    work: Callable[[Job], BatchRow | None]
    concurrency: int
    stop: Stop
    record: ResultsFile
    allowance: Allowance
    streak: FailureStreak
    on_done: Callable[[BatchRow], None]
    on_recorded: Callable[[Job], None]
    in_flight: set[Future[BatchRow | None]] = field(default_factory=set)

    def run(self, jobs: Iterable[Job]) -> None:
        """Work on the jobs until all have finished, a stop is asked for, or a limit is reached."""
        with ThreadPoolExecutor(self.concurrency) as executor:
            for job in jobs:
                if not self._may_begin(job):
                    break
                self.in_flight.add(executor.submit(self._finish, job))
            while self.in_flight:
                self._report_finished()

    def _may_begin(self, job: Job) -> bool:
        """Wait for a free thread and for room in the allowance. Returns False if the batch ends first."""
        while not self.stop.is_requested:
            if len(self.in_flight) < self.concurrency and (decision := self.allowance.begin(job.index)) != "wait":
                return decision == "go"
            self._report_finished()
        return False

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
                self.on_recorded(job)
                self.streak.add(row)
        except BaseException:
            self.stop.control.request_drain("the batch's folder cannot be used")  # no other result can be kept either
            raise
        self.allowance.finish(job.index, usage_of(row or {}))
        return row
