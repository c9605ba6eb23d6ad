"""Runs arms over prompts. Stopped or killed at any moment and started again, it resumes where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from langgraph.runtime import RunControl

from gems.bulk.batch import Stop, brief, run_batch, run_jobs
from gems.bulk.jobs import Job
from gems.bulk.results import BatchRow, Tally, UsageFields, best_attempt_of, claim, row_of
from gems.errors import BackendError, InputError
from gems.evals.arms import Arm
from gems.evals.prompts import EvalPrompt, write_prompts
from gems.files import write_atomically
from gems.graph.context import GemsContext
from gems.graph.state import Attempt, Usage
from gems.memory.embedder import init_embedder
from gems.memory.image_store import ImageStore
from gems.memory.store import FaissStore
from gems.models.generators import ImageGenerator, ImageRequest
from gems.models.registry import init_image_generator
from gems.nodes.generator import image_metadata
from gems.runs.folder import make_folder
from gems.runs.record import ModelRecord
from gems.seeds import seed_of_batch_prompt

__all__ = ["EvaluationPlan", "image_paths", "prepare_folder", "run_arm"]


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

    @property
    def jobs(self) -> list[Job]:
        """The prompts, each with its seed: the same in every arm, so that arms can be compared in pairs."""
        return [Job(i, p.prompt, seed_of_batch_prompt(self.seed, i)) for i, p in enumerate(self.prompts)]

    def folder(self, arm: Arm) -> Path:
        """The folder of an arm's results."""
        return self.out / "arms" / arm.name

    def context_of(self, arm: Arm) -> GemsContext:
        """The settings of an arm's runs."""
        settings: dict[str, Any] = {"generator": arm.generator, "patience": self.images, **(arm.settings or {})}
        return self.context.model_copy(update=settings).as_operator()


def prepare_folder(plan: EvaluationPlan) -> None:
    """Make the folder, or check that it holds the same evaluation; arms can be added to an evaluation later.

    Raises:
        InputError: It holds another evaluation, or cannot be written to.
    """
    make_folder(plan.out)
    identity = {
        "benchmark": plan.benchmark,
        "seed": plan.seed,
        "images": plan.images,
        "settings": plan.context.model_dump(mode="json"),
        "prompts": [p.row() for p in plan.prompts],
    }
    text, path = json.dumps(identity, indent=1).encode(), plan.out / "eval.json"
    if path.exists() and path.read_bytes() != text:
        raise InputError(
            f"{plan.out} holds an evaluation of other prompts or settings; choose another folder with --out"
        )
    write_prompts(list(plan.prompts), plan.out / "prompts.jsonl")
    write_atomically(path, text)


def run_arm(
    plan: EvaluationPlan,
    arm: Arm,
    *,
    concurrency: int,
    control: RunControl,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
) -> list[BatchRow]:
    """Run the prompts that an arm has no result for yet. Returns all its results, in the prompts' order.

    An arm with a memory runs one prompt at a time, so that what it recalls follows from the prompts alone.

    Raises:
        InputError: The arm's folder holds results of other settings or weights, or a model's name is unknown.
        BackendError: The disk is full, or weights are missing.
    """
    folder, images = plan.folder(arm), ImageStore(plan.out / "images")
    context = plan.context_of(arm)
    if arm.settings is None:
        return _run_generator_alone(plan, arm, context, images, concurrency, control, on_start, on_done)
    store = FaissStore(folder / "memory", embedder=init_embedder(context.embedder)) if arm.ordered else None
    return run_batch(
        plan.jobs,
        folder,
        context,
        concurrency=1 if arm.ordered else concurrency,
        stop=Stop(control),
        on_start=on_start,
        on_done=on_done,
        store=store,
        images=images,
    ).rows()


def _run_generator_alone(
    plan: EvaluationPlan,
    arm: Arm,
    context: GemsContext,
    images: ImageStore,
    concurrency: int,
    control: RunControl,
    on_start: Callable[[Tally], None],
    on_done: Callable[[BatchRow], None],
) -> list[BatchRow]:
    generator = init_image_generator(arm.generator, authority=context.authority)
    folder = make_folder(plan.folder(arm))
    claim(folder, context, {"generator": ModelRecord(arm.generator, generator.fingerprint)})

    def work(job: Job) -> BatchRow:
        return _generate(generator, job, images)

    return run_jobs(
        plan.jobs, folder, work, concurrency=concurrency, stop=Stop(control), on_start=on_start, on_done=on_done
    ).rows()


def _generate(generator: ImageGenerator, job: Job, images: ImageStore) -> BatchRow:
    """One image of a prompt, as a result like those of the graph."""
    start = time.perf_counter()
    try:
        [result] = generator.generate([ImageRequest(job.prompt, job.seed)])
    except InputError as error:
        return {**row_of(job), "error": str(error), "error_kind": "input"}
    if isinstance(result, BackendError):
        return {**row_of(job), "error": str(result), "error_kind": "backend"}
    ref = images.put(result.image, image_metadata(result.request, generator))
    attempt = Attempt(round=1, candidate=0, prompt=job.prompt, seed=job.seed, image=ref)
    return {
        **row_of(job),
        "outcome": "rounds",
        "rounds": 1,
        "requirements": [],
        "attempts": [brief(attempt)],
        "best": 0,
        "usage": cast(UsageFields, Usage(images=1).model_dump(mode="json")),
        "errors": [],
        "seconds": round(time.perf_counter() - start, 3),
    }


def image_paths(rows: Sequence[BatchRow]) -> dict[str, str]:
    """By prompt, the image that was returned: what the benchmark's own scorer reads as ``--image_filepath_data``."""
    return {
        row["prompt"]: best["image"].removeprefix("file://")
        for row in rows
        if (best := best_attempt_of(row)) is not None
    }
