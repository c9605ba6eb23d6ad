"""Many prompts through one graph: concurrent, resumable, within limits, and no failure of one stops the others."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
from gems.bulk.limits import Allowance, Limits, spent_in
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
from gems.models.generators import ImageGenerator
from gems.models.registry import POCKET, init_image_generator
from gems.nodes.retry import is_backend_failure
from gems.runs.checkpoints import open_checkpoints
from gems.runs.folder import make_folder, write_run
from gems.runs.record import ModelRecord, best_index, model_records, run_record
from gems.runs.threads import run_thread
from gems.skills.loader import load_skills

__all__ = [
    "Batch",
    "Despair",
    "Stop",
    "Worker",
    "batching",
    "brief",
    "images_place",
    "is_local",
    "open_worker",
    "run_batch",
    "run_jobs",
]

_DESPAIR: Final = 20
"""Failures of backends in a row, at least, until a run is given up."""
_GPU_BATCH: Final = 8
"""Images in one call on a GPU, unless the options say otherwise: more bring little, and need much memory."""


class Stop:
    """How a bulk run is asked to end: with what is in flight, or as soon as can be."""

    def __init__(self, control: RunControl | None = None) -> None:
        self.control = control or RunControl()
        """Asks prompts in flight to stop at their next step; they can go on from there."""
        self._finish = threading.Event()

    def finish(self) -> None:
        """Begin no other prompt."""
        self._finish.set()

    @property
    def wanted(self) -> bool:
        """Whether no other prompt is to be begun."""
        return self._finish.is_set() or self.control.drain_requested


@dataclass(frozen=True, slots=True)
class Batch:
    """What a bulk run came to."""

    jobs: Sequence[Job]
    record: ResultsFile
    reached: str | None = None
    """The limit of the whole run that ended it."""
    given_up: str | None = None
    """Why it was ended early: one prompt after the other met a failing backend."""

    def rows(self) -> list[BatchRow]:
        """All results, in the jobs' order."""
        return list(self.record.rows(self.jobs))

    @property
    def left(self) -> list[Job]:
        """The jobs that have no result yet."""
        return [job for job in self.jobs if not self.record.has(job)]


@dataclass(frozen=True)
class Worker:
    """Everything that runs single prompts of a batch in this process. Safe for many threads."""

    batch: str
    graph: GemsGraph
    saver: BaseCheckpointSaver[Any]
    context: GemsContext
    models: dict[str, ModelRecord]
    images: ImageStore
    evidence: Path | None = None
    control: RunControl = field(default_factory=RunControl)

    def run(self, job: Job) -> BatchRow | None:
        """One prompt's result, or None if the batch is being stopped. One that was begun before goes on."""
        started, begun, thread = time.perf_counter(), datetime.now(UTC), self._thread(job)
        row: BatchRow = {**row_of(job), "thread": thread}
        own = self.context.model_copy(update={"seed": job.seed})
        try:
            values = run_thread(self.graph, thread, job.prompt, own, control=self.control)
        except Exception as error:
            # A folder that cannot be written to is everybody's; any other failure is this prompt's own: it is written
            # down, and the others go on.
            if isinstance(error, (OSError, sqlite3.Error)) and not is_backend_failure(error):
                raise
            row = {**_with_failure(row, error), "usage": self._spent(thread)}
            return {**row, "seconds": _since(started), "at": _now()}
        if not values.get("outcome"):
            return None
        _settle(values["attempts"])
        if self.evidence is not None:
            record = run_record(values, own, self.models, thread, begun)
            write_run(self.evidence / "runs" / f"{job.index:05d}", record, self.images)
        return {**_with_outcome(row, values), "seconds": _since(started), "at": _now()}

    def forget(self, job: Job) -> None:
        """Remove a prompt's checkpoints, once its result is on disk."""
        self.saver.delete_thread(self._thread(job))

    def _thread(self, job: Job) -> str:
        return f"{self.batch}-{job.index}-{job.key}"

    def _spent(self, thread: str) -> UsageFields:
        usage = self.graph.get_state({"configurable": {"thread_id": thread}}).values.get("usage")
        return cast(UsageFields, (usage or Usage()).model_dump(mode="json"))


def images_place(context: GemsContext, out: Path) -> str:
    """Where a batch's images go: where its settings or the environment say, or into its folder."""
    return context.images_url or os.environ.get("GEMS_IMAGES") or str(out / "images")


@contextmanager
def open_worker(
    out: Path,
    context: GemsContext,
    batch: str,
    models: dict[str, ModelRecord],
    *,
    checkpoints: str | None,
    generator: ImageGenerator,
    control: RunControl,
    evidence: bool = False,
    store: BaseStore | None = None,
    images: ImageStore | None = None,
) -> Iterator[Worker]:
    """What runs a batch's prompts in this process.

    Args:
        out: The batch's folder.
        context: Settings of every run.
        batch: The batch's name.
        models: What the runs are recorded with.
        checkpoints: A PostgreSQL database; None: the memory's, if it is one, else a file in ``out``.
        generator: Makes the images.
        control: Asks for a stop.
        evidence: Whether to write a folder with report.html for each prompt too.
        store: The memory, where it is not to be the user's.
        images: Where images go, where that is not ``out/images``.
    """
    kept = images or ImageStore(images_place(context, out))
    database = checkpoints or (None if store else database_of(context))
    with open_checkpoints(out / "checkpoints.sqlite", database) as saver:
        graph = build_graph(checkpointer=saver, images=kept, store=store, generator=generator)
        yield Worker(batch, graph, saver, context, models, kept, out if evidence else None, control)


def is_local(generator: ImageGenerator) -> bool:
    """Whether it makes images in this process, rather than asking a server; see ``Local``."""
    return hasattr(generator, "replicas")


@contextmanager
def batching(context: GemsContext) -> Iterator[ImageGenerator]:
    """The image generator of these settings, for many prompts at a time: batched across them, where that is faster."""
    options = context.generator_options
    generator: Any = init_image_generator(context.generator, options, context.authority)
    if not is_local(generator):  # a server makes its batches itself
        yield generator
        return
    devices = generator.replicas.devices
    if options.batch_size is None and any(device.startswith("cuda") for device in devices):
        options = options.model_copy(update={"batch_size": _GPU_BATCH})
        generator = init_image_generator(context.generator, options, context.authority)
    # One call makes a batch on every device.
    with BatchingGenerator(generator, largest=generator.batch_size * len(devices)) as batched:
        yield batched


@contextmanager
def _threads_for(context: GemsContext, concurrency: int) -> Iterator[None]:
    """Give each of many small models at work one thread of torch's: more of them only get into each other's way."""
    names = {context.generator, *(context.chat_model(role) for role in ROLES)}
    if concurrency == 1 or not names <= POCKET.keys():
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        jobs: What to run.
        out: Holds this batch, and nothing else.
        context: Settings of every run; the seed is each job's own.
        concurrency: Prompts in flight.
        on_start: Called with how far it had come before.
        on_done: Called with each new result.
        stop: Asks for an end.
        evidence: Whether to write a folder with report.html for each prompt too.
        limits: Of the whole run.
        sample: Run these of the jobs only.
        checkpoints: A PostgreSQL database for half-finished runs; None: the memory's, if it is one, else a file.
        store: The memory, where it is not to be the user's.
        images: Where images go, where that is not ``out/images``.

    Raises:
        InputError: The folder holds another batch or cannot be written to, another process works on it, or a setting
            cannot be used.
        BackendError: The disk is full, or weights are not there.
    """
    make_folder(out)
    stop = stop or Stop()
    # What would fail every prompt fails here, before it is written down as each prompt's own failure.
    models = model_records(context)
    load_skills(context.skills_dir, builtin=context.builtin_skills)
    with locked(out), _threads_for(context, concurrency), batching(context) as generator:
        batch = claim(out, context, models)
        with open_worker(
            out,
            context,
            batch,
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
                on_written=worker.forget,
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
    """Do the work of every job that has no line in ``out/results.jsonl`` yet.

    ``work`` returns a job's result, or None where it was stopped. With a concurrency of 1, jobs run in their order.
    The rest is as for ``run_batch``.
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
    on_written: Callable[[Job], None] = lambda job: None,
) -> Batch:
    write_jobs(out, jobs)
    record = ResultsFile(out / "results.jsonl", repair=True)
    allowance, despair = Allowance(limits or Limits(), record.usage, record.max_usage), Despair(stop, concurrency)
    on_start(record.tally(jobs))

    def finish(job: Job) -> BatchRow | None:
        try:
            row = work(job)
            if row is not None:
                record.add(row)
                on_written(job)
                despair.hear(row)
        except BaseException:
            stop.control.request_drain("the batch's folder cannot be used")  # nor can any other result be kept
            raise
        allowance.done(job.index, spent_in(row or {}))
        return row

    flying: set[Future[BatchRow | None]] = set()

    def land() -> None:
        nonlocal flying
        landed, flying = wait(flying, return_when=FIRST_COMPLETED)
        for future in landed:
            if (row := future.result()) is not None:
                on_done(row)

    def may_begin(job: Job) -> bool:
        while not stop.wanted:
            if len(flying) < concurrency and (word := allowance.begin(job.index)) != "wait":
                return word == "go"
            land()
        return False

    with ThreadPoolExecutor(concurrency) as pool:
        for job in sample or jobs:
            if record.is_done(job):
                continue
            if not may_begin(job):
                break
            flying.add(pool.submit(finish, job))
        while flying:
            land()
    return Batch(jobs, record, allowance.reached, despair.reason)


class Despair:
    """Ends a run in which every prompt meets a failing backend: the rest would be paid for, and fail too.

    Args:
        stop: What ends it.
        concurrency: Prompts in flight: that many may fail of one cause.
    """

    def __init__(self, stop: Stop, concurrency: int) -> None:
        self._stop, self._most = stop, max(_DESPAIR, 2 * concurrency)
        self._lock, self._failures = threading.Lock(), 0
        self.reason: str | None = None
        """Why it was ended; None as long as it was not."""

    def hear(self, row: BatchRow) -> None:
        """Hear of a result."""
        with self._lock:
            self._failures = self._failures + 1 if row.get("error_kind") == "backend" else 0
            if self._failures >= self._most and self.reason is None:
                self.reason = f"the last {self._failures} prompts all failed: {row['error']}"
                self._stop.finish()


def _settle(attempts: Sequence[Attempt]) -> None:
    """See that images lie on the disk, and not in a cache, before a result names them: the power may go."""
    for attempt in attempts:
        if attempt.image.uri.startswith("file://"):
            with Path(attempt.image.uri.removeprefix("file://")).open("rb") as file:
                os.fsync(file.fileno())


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _with_failure(row: BatchRow, error: Exception) -> BatchRow:
    text = " ".join(str(error).split())
    return {
        **row,
        "error": text if isinstance(error, GemsError) else f"{type(error).__name__}: {text}",
        "error_kind": "input" if isinstance(error, InputError) else "backend",
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


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
    """An attempt in a result. Verdicts are {requirement id: [answer, confidence]}."""
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
