"""Runs arms over prompts. Stopped or killed at any moment and started again, it resumes where it was.

A prompt that failed has a result like any other, which says why, and counts as wrong. The next start tries it again if
a backend failed.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from PIL import Image

from gems.bulk.batch import Batch, Stop, brief, run_batch, run_jobs
from gems.bulk.jobs import Job
from gems.bulk.journal import Journal
from gems.bulk.results import BatchRow, Tally, UsageFields, best_attempt_of, claim, row_of
from gems.errors import BackendError, GemsError, InputError
from gems.evals.arms import Arm
from gems.evals.identity import bind_folder, model_identities, skill_digests
from gems.evals.prompts import EvalPrompt, write_prompts
from gems.files import check_own_files, held_alone, write_atomically
from gems.graph.context import GemsContext
from gems.graph.state import Attempt, Usage
from gems.memory.embedder import init_embedder
from gems.memory.image_store import ImageStore
from gems.memory.store import FaissStore
from gems.models.generators import ASKS, FURTHER_IMAGES, ImageGenerator, ImageRequest, opaque
from gems.models.registry import init_image_generator
from gems.nodes.generator import image_metadata
from gems.nodes.retry import is_backend_failure
from gems.runs.folder import make_folder
from gems.runs.record import ModelRecord
from gems.secrets import one_line
from gems.seeds import seed_of_batch_prompt
from gems.stopping import stopping

__all__ = ["ArmPass", "EvaluationPlan", "image_paths", "interrupted_of", "locked_folder", "prepare_folder", "run_arm"]


@dataclass(frozen=True, slots=True)
class ArmPass:
    """One arm over all prompts in one order."""

    arm: Arm
    order: int = 1

    @property
    def label(self) -> str:
        """Its name for a progress bar."""
        return self.arm.name if self.order == 1 else f"{self.arm.name}, order {self.order}"


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What is run: every arm on the same prompts and seeds."""

    benchmark: str
    prompts: tuple[EvalPrompt, ...]
    arms: tuple[Arm, ...]
    context: GemsContext
    """Models and settings that all arms share; an arm's own settings take precedence."""
    seed: int
    images: int
    """Maximum number of images per prompt."""
    out: Path
    orders: int = 1
    """The number of orders of the prompts in which an arm with a memory is run."""

    @property
    def jobs(self) -> list[Job]:
        """The prompts, each with its seed: the same in every arm, so that arms can be compared in pairs."""
        return [Job(i, p.prompt, seed_of_batch_prompt(self.seed, i)) for i, p in enumerate(self.prompts)]

    @property
    def passes(self) -> list[ArmPass]:
        """Every arm in every order that it is run in."""
        return [ArmPass(arm, n) for arm in self.arms for n in range(1, (self.orders if arm.ordered else 1) + 1)]

    def jobs_in(self, order: int) -> list[Job]:
        """The jobs in one of the orders. The first is the prompts' own; the others follow from the seed."""
        jobs = self.jobs
        if order == 1:
            return jobs
        return [jobs[i] for i in np.random.default_rng([self.seed, order]).permutation(len(jobs))]

    def folder(self, arm: Arm, order: int = 1) -> Path:
        """The folder of an arm's results in one order."""
        folder = self.out / "arms" / arm.name
        return folder if order == 1 else folder / f"order-{order}"

    def context_of(self, arm: Arm) -> GemsContext:
        """The settings of an arm's runs."""
        settings: dict[str, Any] = {"generator": arm.generator, "patience": self.images, **(arm.settings or {})}
        return self.context.model_copy(update=settings).as_operator()


_FILES: Final = (
    ".lock",
    "answers-soft-tifa.jsonl",
    "arms",
    "eval.json",
    "images",
    "no-image.png",
    "prompts.jsonl",
    "scores-oracle.jsonl",
    "scores-soft-tifa.jsonl",
)
"""What is read, or written in place, in an evaluation's folder."""


@contextmanager
def locked_folder(plan: EvaluationPlan) -> Iterator[None]:
    """Make the folder, and keep other processes of this machine from working on the evaluation in it.

    Each arm has a lock of its own; without this one, two processes would pay the judge for the same images.

    Raises:
        InputError: Another process works on it, or it cannot be written to.
    """
    make_folder(plan.out)
    check_own_files(plan.out, _FILES, depth=6)
    with held_alone(plan.out / ".lock", f"another process works on the evaluation in {plan.out}"):
        yield


def prepare_folder(plan: EvaluationPlan) -> dict[str, str]:
    """Make the folder, or check that it holds the same evaluation; arms can be added to an evaluation later.

    Returns:
        The digests of the skills that the evaluation is bound to, by name.

    Raises:
        InputError: It holds another evaluation, or cannot be written to.
    """
    make_folder(plan.out)
    check_own_files(plan.out, _FILES, depth=6)
    skills = skill_digests(plan.context)
    identity = {
        "benchmark": plan.benchmark,
        "seed": plan.seed,
        "images": plan.images,
        "settings": plan.context.model_dump(mode="json"),
        "skills": skills,
        "models": model_identities(plan.context),
        "prompts": [p.row() for p in plan.prompts],
    }
    bind_folder(plan.out, identity, plan.context)
    write_prompts(list(plan.prompts), plan.out / "prompts.jsonl")
    return skills


def run_arm(
    plan: EvaluationPlan,
    arm: Arm,
    *,
    concurrency: int,
    control: RunControl,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
    order: int = 1,
) -> list[BatchRow]:
    """Run the prompts that an arm has no result for yet. Returns all its results, unless it was stopped.

    An arm with a memory runs one prompt at a time, so that what it recalls follows from the prompts' order alone.

    Raises:
        InputError: The arm's folder holds results of other settings or weights, or a model's name is unknown.
        BackendError: The disk is full, or weights are missing.
    """
    folder, images = plan.folder(arm, order), ImageStore(plan.out / "images")
    context, jobs = plan.context_of(arm), plan.jobs_in(order)
    if arm.settings is None:
        batch = _run_generator_alone(arm, jobs, folder, context, images, concurrency, control, on_start, on_done)
    else:
        with _open_memory(arm, folder, context) as store:
            batch = run_batch(
                jobs,
                folder,
                context,
                concurrency=1 if arm.ordered else concurrency,
                stop=Stop(control),
                on_start=on_start,
                on_done=on_done,
                store=store,
                images=images,
            )
    return _complete(batch)


@contextmanager
def _open_memory(arm: Arm, folder: Path, context: GemsContext) -> Iterator[FaissStore | None]:
    """Open the arm's own memory, which begins empty; the user's is not read.

    Raises:
        InputError: The arm has results, but the memory that they filled is gone.
    """
    if not arm.ordered:
        yield None
        return
    memory, results = folder / "memory", folder / "results.jsonl"
    if results.exists() and results.stat().st_size and not memory.exists():
        raise InputError(f"{memory} is gone, which the results beside it filled; choose another folder with --out")
    with closing(FaissStore(memory, embedder=init_embedder(context.embedder))) as store:
        yield store


def _complete(batch: Batch) -> list[BatchRow]:
    """A result for every prompt. Those not begun, because too many in a row failed before, have failed too."""
    rows = batch.rows()
    if batch.failure_message is None:
        return rows
    for job in batch.unfinished_jobs:
        rows.append({**row_of(job), "error": f"not begun: {batch.failure_message}", "error_kind": "backend"})
    return rows


def _run_generator_alone(
    arm: Arm,
    jobs: list[Job],
    folder: Path,
    context: GemsContext,
    images: ImageStore,
    concurrency: int,
    control: RunControl,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
) -> Batch:
    generator = init_image_generator(arm.generator, authority=context.authority)
    make_folder(folder)
    claim(folder, context, {"generator": ModelRecord(arm.generator, generator.fingerprint)})

    def work(job: Job) -> BatchRow | Usage:
        with stopping(lambda: control.drain_requested):
            return _generate(generator, job, images)

    return run_jobs(jobs, folder, work, concurrency=concurrency, stop=Stop(control), on_start=on_start, on_done=on_done)


def _generate(generator: ImageGenerator, job: Job, images: ImageStore) -> BatchRow | Usage:
    """One image of a prompt, as a result like those of the graph; what it has cost if a stop ended the wait for it."""
    start = time.perf_counter()
    try:
        with _counting_images() as counter:
            [result] = map(opaque, generator.generate([ImageRequest(job.prompt, job.seed)]))
        if isinstance(result, BackendError):
            raise result
        ref = images.put(result.image, image_metadata(result.request, generator))
        images.flush(ref)
    except GraphDrained:
        return Usage(images=counter.total())
    except Exception as error:
        if isinstance(error, OSError) and not is_backend_failure(error):
            raise  # a full disk fails every prompt
        return _failed(job, error, start, Usage(images=counter.total()))
    attempt = Attempt(round=1, candidate=0, prompt=job.prompt, seed=job.seed, image=ref)
    return {
        **row_of(job),
        "outcome": "rounds",
        "rounds": 1,
        "requirements": [],
        "attempts": [brief(attempt)],
        "best": 0,
        "usage": cast(UsageFields, Usage(images=max(1, counter.total())).model_dump(mode="json")),
        "errors": [],
        "seconds": round(time.perf_counter() - start, 3),
    }


@contextmanager
def _counting_images() -> Iterator[Counter[str]]:
    """Count the images that a server is asked for in the block, with lost ones that it may have charged."""
    counter = Counter[str]()

    def ask(is_asked: bool | None) -> bool:
        if is_asked is not None:  # what may be charged stays counted
            counter["images"] += 1 if is_asked else -1
        if is_asked and counter["images"] > 1:
            FURTHER_IMAGES.get()(counter["images"])
        return True

    token = ASKS.set(ask)
    try:
        yield counter
    finally:
        ASKS.reset(token)


def _failed(job: Job, error: Exception, start: float, usage: Usage) -> BatchRow:
    text = one_line(error, 500)
    return {
        **row_of(job),
        "error": text if isinstance(error, GemsError) else f"{type(error).__name__}: {text}",
        "error_kind": "input" if isinstance(error, InputError) else "backend",
        "usage": cast(UsageFields, usage.model_dump(mode="json")),
        "seconds": round(time.perf_counter() - start, 3),
    }


def interrupted_of(plan: EvaluationPlan, arm: Arm) -> dict[str, int]:
    """What an arm has cost beside its results: what was in flight at kills, and calls of steps that stops have cut.

    Empty if there was nothing. Chat calls in flight at a kill are known to nobody.
    """
    orders = {arm_pass.order for arm_pass in plan.passes if arm_pass.arm == arm}
    journals = [Journal(plan.folder(arm, order) / "begun.jsonl") for order in sorted(orders)]
    figures = {
        "images_in_flight_at_a_kill_at_most": sum(journal.lost_images for journal in journals),
        "interrupted_chat_calls": sum(journal.interrupted.chat_calls for journal in journals),
    }
    return {name: number for name, number in figures.items() if number}


def image_paths(plan: EvaluationPlan, rows: Iterable[BatchRow]) -> dict[str, str]:
    """By prompt, the image that was returned: what the benchmark's own scorer reads as ``--image_filepath_data``.

    That scorer stops at a prompt without an image, so a prompt that has none gets a black one.
    """
    best_attempts = {row["prompt"]: best_attempt_of(row) for row in rows}
    images, paths = ImageStore(plan.out / "images"), {}
    for prompt in plan.prompts:
        best = best_attempts.get(prompt.prompt)
        # The results may be anybody's: the address in them is not handed on, and the hash finds the image.
        ref = images.find(best["sha256"]) if best else None
        paths[prompt.prompt] = ref.uri.removeprefix("file://") if ref else str(_black_image(plan.out))
    return paths


def _black_image(folder: Path) -> Path:
    path = (folder / "no-image.png").absolute()
    if not path.exists():
        buffer = io.BytesIO()
        Image.new("RGB", (256, 256)).save(buffer, "PNG")
        write_atomically(path, buffer.getvalue())
    return path
