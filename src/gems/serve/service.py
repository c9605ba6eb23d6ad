"""The service: accepts runs, executes them and never loses one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Final, Self

import structlog
from pydantic import BaseModel

from gems.errors import InputError
from gems.graph.builder import build_graph
from gems.graph.state import GemsState, Review, Usage
from gems.memory.image_store import ImageStore, open_images
from gems.runs.checkpoints import open_checkpoints
from gems.runs.record import ModelRecord, model_records
from gems.serve.execution import Executor
from gems.serve.keys import Client
from gems.serve.ledger import Ledger, Run
from gems.serve.metrics import Metrics
from gems.serve.quotas import max_usage, remaining_budget
from gems.serve.refusals import ConflictError, RefusedError, StoppingError
from gems.serve.settings import AcceptedSettings, RunSettings, ServiceSettings, context_of, images_url_of
from gems.serve.subscriptions import RunEvent, Subscriptions, is_last
from gems.serve.workers import WorkerPool
from gems.wording import check_prompt

__all__ = ["Service"]

LOG: Final = structlog.get_logger("gems.serve")


class Service:
    """Accepts runs, executes them in ``concurrency`` threads, and publishes their events.

    A run is in the ledger before it is accepted, and each of its steps is checkpointed: killed and started again, the
    service resumes all of them. Use it as a context manager.

    Args:
        settings: The settings of the service.

    Raises:
        InputError: A setting cannot be used.
        BackendError: A model cannot be loaded.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.models: dict[str, ModelRecord] = model_records(settings.context)
        self._workers = WorkerPool(
            settings.concurrency,
            settings.queue,
            work=lambda run, control: self._executor.work(run, control),
            postpone=lambda run: self._executor.postpone(run),
        )
        self.metrics = Metrics(self._workers)
        self._subscriptions = Subscriptions()
        self._resources = ExitStack()
        self._admission = threading.Lock()

    def __enter__(self) -> Self:
        home = self.settings.home
        self.ledger = Ledger(home / "runs.sqlite")
        self._resources.callback(self.ledger.close)
        saver = self._resources.enter_context(open_checkpoints(home / "checkpoints.sqlite"))
        graph = build_graph(checkpointer=saver)
        self._executor = Executor(
            self.settings, self.models, graph, saver, self.ledger, self._subscriptions, self._count_end
        )
        self._workers.start()
        unfinished = self.ledger.unfinished()
        for run in unfinished:
            self._workers.add(run)
        models = {role: model.name for role, model in self.models.items()}
        LOG.info("started", unfinished_runs=len(unfinished), models=models)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(0)
        self._resources.close()

    @property
    def stopping(self) -> bool:
        """Whether the service no longer accepts runs."""
        return self._workers.stopping

    @property
    def load(self) -> tuple[int, int]:
        """The number of runs in progress, and the number of queued runs."""
        return self._workers.load

    def stop(self, grace: float) -> None:
        """Accept no further runs. Let current runs finish for ``grace`` seconds, then stop each at its next step.

        Runs that did not end are resumed when the service is started again.
        """
        self._workers.stop(grace)
        self._subscriptions.end_all()

    # --- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        client: Client,
        prompt: str,
        settings: BaseModel | None = None,
        *,
        thread: str = "",
        idempotency_key: str | None = None,
    ) -> Run:
        """Accept a run.

        Args:
            client: The client that sent the request.
            prompt: The user's prompt.
            settings: Settings of the request, as ``RunSettings``. None: the service's own.
            thread: The client's name for related runs.
            idempotency_key: A second request with the same key gets the first one's run.

        Raises:
            InputError: The prompt or a setting cannot be used.
            RefusedError: The queue is full, the key has used up its limits, or the service is being stopped.
            ConflictError: The thread has a run that has not ended, or the key was used for another prompt.
        """
        prompt = check_prompt(prompt)
        if len(prompt) > self.settings.max_prompt:
            raise InputError(
                f"the prompt has {len(prompt):,} characters; the limit here is {self.settings.max_prompt:,}"
            )
        accepted = AcceptedSettings(requested=settings or RunSettings())
        with self._admission:
            if idempotency_key and (earlier := self.ledger.by_key(client.name, idempotency_key)):
                if earlier.prompt != prompt:
                    raise ConflictError("this Idempotency-Key was used for another prompt")
                return earlier
            try:
                self._check_admission(client, thread)
                budget = context_of(self.settings, client.name, accepted).budget
                budget = remaining_budget(self.ledger, client, budget)
            except RefusedError as error:
                self.metrics.count_refusal(error.code)
                raise
            accepted = accepted.model_copy(update={"budget": budget})
            reserved = max_usage(context_of(self.settings, client.name, accepted))
            run = self.ledger.accept(client.name, thread, prompt, accepted, reserved, idempotency_key)
            self._workers.add(run.id)
        LOG.info("accepted", run=run.id, user=client.name)
        return run

    def _check_admission(self, client: Client, thread: str) -> None:
        if self.stopping:
            raise StoppingError
        if thread and (latest := self.ledger.latest_of(client.name, thread)) and not latest.has_ended:
            raise ConflictError(f"thread {thread} has a run that has not ended: {latest.id}")
        self._workers.check_room()

    def answer(self, run: str, review: Review) -> Run:
        """Hand a person's review to the run that waits for it.

        Raises:
            ConflictError: The run does not wait for a review.
            StoppingError: The service is being stopped.
        """
        if self.stopping:
            raise StoppingError
        if not self.ledger.answer(run, review.model_dump(mode="json")):
            raise ConflictError("this run waits for no review")
        self._workers.add(run)
        return self.ledger.run(run)

    def cancel(self, run: Run) -> Run:
        """Stop a run at its next step. The images it has made are kept.

        Raises:
            ConflictError: The run has ended.
            StoppingError: The run waits for a review, and the service is being stopped.
        """
        if run.has_ended:
            raise ConflictError(f"this run has ended: {run.status}")
        if self.ledger.cancel_queued(run.id):
            self._executor.conclude(run.id, "cancelled")
        elif run.status == "waiting":
            return self.answer(run.id, Review(action="stop"))
        else:
            self._workers.drain(run.id, "cancelled")
        return self.ledger.run(run.id)

    async def follow(self, run: str, *, last_only: bool = False) -> AsyncIterator[RunEvent]:
        """The events of a run from now on, until it ends, waits for a review, or is postponed by a stop.

        Args:
            run: The run's id.
            last_only: Whether to yield the last event only.
        """
        with self._subscriptions.subscribe(run, last_only=last_only) as events:
            # No event is coming if the run has ended, waits, or will not begin.
            if self._workers.will_not_run(run):
                return
            if (await asyncio.to_thread(self.ledger.run, run)).status not in ("queued", "running"):
                return
            while True:
                event = await events.get()
                yield event
                if is_last(event):
                    return

    async def wait(self, run: str) -> Run:
        """The run once it has ended, waits for a review, or was postponed by a stop."""
        async for _ in self.follow(run, last_only=True):
            continue
        return await asyncio.to_thread(self.ledger.run, run)

    def values(self, run: Run) -> GemsState:
        """The state of a run that has not ended."""
        return self._executor.values(run)

    def images(self, user: str) -> ImageStore:
        """A user's images."""
        return open_images(images_url_of(self.settings, user))

    def _count_end(self, outcome: str, seconds: float | None, usage: Usage) -> None:
        if seconds is not None:
            self._workers.note_duration(seconds)
        self.metrics.count_run(outcome, seconds or 0.0, usage)
