"""The workers of a batch on a Ray cluster: processes that run the graph, and the actor that coordinates them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gems.bulk.account import AccountStart
from gems.bulk.batch import Stop, check_skills, open_worker, run_within
from gems.bulk.jobs import Job, job_of
from gems.bulk.journal import PartialRun
from gems.bulk.limits import Share
from gems.bulk.ray_generators import POLL_SECONDS, ClusterGenerator, GeneratorRouter
from gems.bulk.results import BatchRow, Claim
from gems.database import database_pool
from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Usage
from gems.json_text import parse_json, strict_json
from gems.leases import DatabaseLeases, FileLeases, Leases, hold_lease
from gems.memory.image_store import ImageStore
from gems.memory.opening import database_of
from gems.models.generators import ImageGenerator, Local
from gems.models.registry import init_image_generator
from gems.runs.record import ModelRecord, model_records

__all__ = ["BatchTask", "Coordinator", "GraphWorker", "check_shared_storage"]


class Coordinator:
    """Tells workers which prompts may begin, whether to stop, and which generators are ready.

    It runs as an actor on the driver's machine.
    """

    def __init__(self, start: AccountStart) -> None:
        self._account = start.open()
        self._stop: Literal["", "finish", "drain"] = ""
        self._generators: list[str] = []

    def begin(self, key: str, before: Usage) -> Share | Literal["wait", "stop"]:
        """See ``Account.begin``."""
        if self._stop and not self._account.has_begun(key):
            return "stop"
        return self._account.begin(key, before)

    def ask(self, key: str, images: int) -> None:
        """See ``Account.ask``."""
        self._account.ask(key, images)

    def finish(self, key: str, run: PartialRun | None, row: BatchRow | None, *, is_drawing: bool = False) -> None:
        """See ``Account.finish``."""
        self._account.finish(key, run, row, is_drawing=is_drawing)

    def limit_reached(self) -> str | None:
        """See ``Account.limit_reached``."""
        return self._account.limit_reached

    def stop(self, how: Literal["finish", "drain"]) -> None:
        """Let no other prompt begin; with "drain", stop the prompts in flight too."""
        self._stop = how

    def stop_requested(self) -> Literal["", "finish", "drain"]:
        """Whether prompts in flight are to stop waiting for servers, or to stop at their next step."""
        return self._stop

    def set_generators(self, names: list[str]) -> None:
        """Let the workers know which generators are ready."""
        self._generators = names

    def generators(self) -> list[str]:
        """The names of the generators that are ready."""
        return self._generators


@dataclass(frozen=True)
class BatchTask:
    """What the driver sends to each worker."""

    out: Path
    context: GemsContext
    claim: Claim
    host: str
    """The driver's machine."""
    models: dict[str, ModelRecord]
    skills: dict[str, str]
    """The contents of the skills, by name."""
    checkpoints: str | None
    images: str
    evidence: bool
    coordinator: Any
    """The handle of the actor."""


class GraphWorker:
    """What the actors of Ray Data run: it takes blocks of jobs, and returns blocks of results."""

    def __init__(self, task: BatchTask) -> None:
        self._task, self._stack, self._stop = task, ExitStack(), Stop()
        # What would fail every prompt on this machine fails here: no key, no package, other weights.
        check_shared_storage({socket.gethostname(), task.host}, task.context, task.checkpoints, evidence=task.evidence)
        if model_records(task.context, load=False) != task.models:
            raise InputError(
                f"{socket.gethostname()} has other model weights than {task.host}; install the same on both machines"
            )
        check_skills(task.context, task.skills)
        self._worker = self._stack.enter_context(
            open_worker(
                task.out,
                task.context,
                task.claim,
                task.models,
                checkpoints=task.checkpoints,
                generator=self._generator(),
                stop=self._stop,
                skills=task.skills,
                evidence=task.evidence,
                images=ImageStore(task.images),
            )
        )
        self._leases = self._stack.enter_context(_open_leases(task))
        threading.Thread(target=self._watch_for_stop, daemon=True).start()

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """Run a block's prompts one after another. Ray Data calls this in several threads at the same time.

        Returns:
            The results as JSON, in the column "row"; an empty text for a prompt without a result.
        """
        rows = [self._run(job_of(parse_json(text))) for text in block["job"].tolist()]
        return {"row": [strict_json(row) if row else "" for row in rows]}

    def _generator(self) -> ImageGenerator:
        import ray

        task = self._task
        generator = init_image_generator(task.context.generator, task.context.generator_options, task.context.authority)
        if not isinstance(generator, Local):  # each worker can ask a server by itself
            return generator
        router = GeneratorRouter(
            lambda: ray.get(task.coordinator.generators.remote()), task.claim.id, self._stop.control
        )
        return ClusterGenerator(task.context, router)

    def _run(self, job: Job) -> BatchRow | None:
        name = f"{self._task.claim.id}-{job.key}"
        with hold_lease(self._leases, name, lambda: self._stop.control.drain_requested) as is_held:
            return run_within(_RemoteAccount(self._task.coordinator), self._worker, job) if is_held else None

    def _watch_for_stop(self) -> None:
        import ray

        while not self._stop.control.drain_requested:
            time.sleep(POLL_SECONDS)
            match ray.get(self._task.coordinator.stop_requested.remote()):
                case "finish":
                    self._stop.finish()
                case "drain":
                    self._stop.control.request_drain("interrupted")


class _RemoteAccount:
    """The coordinator's account, as a worker uses it."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def wait_to_begin(self, key: str, before: Usage, is_stopped: Callable[[], bool]) -> Share | None:
        """See ``Account.wait_to_begin``. The coordinator knows best whether a stop is requested."""
        import ray

        while (share := ray.get(self._coordinator.begin.remote(key, before))) == "wait" and not is_stopped():
            time.sleep(POLL_SECONDS)
        return share if isinstance(share, Share) else None

    def ask(self, key: str, images: int) -> None:
        """See ``Account.ask``."""
        import ray

        ray.get(self._coordinator.ask.remote(key, images))

    def finish(self, key: str, run: PartialRun | None, row: BatchRow | None, *, is_drawing: bool = False) -> None:
        """See ``Account.finish``."""
        import ray

        ray.get(self._coordinator.finish.remote(key, run, row, is_drawing=is_drawing))


@contextmanager
def _open_leases(task: BatchTask) -> Iterator[Leases]:
    database = task.checkpoints or database_of(task.context)
    if database is None:
        yield FileLeases(task.out / ".leases")
        return
    with database_pool(database) as pool:
        yield DatabaseLeases(pool)


def check_shared_storage(
    hosts: AbstractSet[str], context: GemsContext, checkpoints: str | None, *, evidence: bool
) -> None:
    """Check that workers on several machines share nothing that is stored on only one of them.

    Raises:
        InputError: They would.
    """
    if len(hosts) < 2:
        return
    if not (checkpoints or database_of(context)):
        advice = "add --checkpoints postgresql://USER@HOST/DATABASE, so that each of them can continue any prompt"
    elif context.memory and not database_of(context):
        advice = "use --memory postgresql://USER@HOST/DATABASE, so that they share one memory"
    elif not (context.images_url or os.environ.get("GEMS_IMAGES")):
        advice = "add --images s3://BUCKET/FOLDER, or a folder that all of them share"
    elif evidence:
        advice = "leave out --evidence, which works on one machine only; 'gems export' reads the images afterwards"
    else:
        return
    raise InputError(f"the cluster has several machines: {advice}")
