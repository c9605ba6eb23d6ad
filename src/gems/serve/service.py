"""The service: accepts runs, executes them and never loses one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Final, Self

import structlog
from pydantic import BaseModel

from gems.files import held_alone
from gems.graph.builder import build_graph
from gems.graph.state import GemsState, Review, Usage
from gems.memory.image_store import ImageStore, open_images
from gems.paths import private_file
from gems.runs.checkpoints import delete_threads_without, open_checkpoints
from gems.runs.record import ModelRecord, model_records
from gems.serve.admission import Admission, Submission
from gems.serve.deleted_runs import DeletedRuns
from gems.serve.deletion import Deletion
from gems.serve.execution import Executor
from gems.serve.keys import Client
from gems.serve.ledger import Ledger, Run
from gems.serve.metrics import Metrics
from gems.serve.refusals import ConflictError, StoppingError
from gems.serve.settings import RunSettings, ServiceSettings, images_url_of
from gems.serve.subscriptions import RunEvent, Subscriptions, is_last
from gems.serve.workers import WorkerPool
from gems.stopping import CANCELLED

__all__ = ["Service"]

LOG: Final = structlog.get_logger("gems.serve")


class Service:
    """Accepts runs, executes them in ``concurrency`` threads, and publishes their events.

    A run is in the ledger before it is accepted, and each of its steps is checkpointed: killed and started again, the
    service resumes all of them. Use it as a context manager.

    Args:
        settings: The settings of the service.

    Raises:
        InputError: A setting cannot be used, or another process serves from the same home folder.
        BackendError: A model cannot be loaded.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.models: dict[str, ModelRecord] = model_records(settings.context)
        self._workers = WorkerPool(
            settings.concurrency,
            settings.queue,
            settings.max_queued_per_key,
            work=lambda run, control: self._executor.work(run, control),
            fail=lambda run, error: self._executor.fail(run, error),
            postpone=lambda run: self._executor.postpone(run),
        )
        self.metrics = Metrics(self._workers)
        self._subscriptions = Subscriptions()
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        home = self.settings.home
        # Two services would each draw, and pay for, all of the runs.
        private_file(home / ".lock")
        refusal = f"another service works in {home}: stop it first, or set GEMS_HOME to another folder for this one"
        self._resources.enter_context(held_alone(home / ".lock", refusal))
        self.ledger = Ledger(home / "runs.sqlite")
        self._resources.callback(self.ledger.close)
        saver = self._resources.enter_context(open_checkpoints(home / "checkpoints.sqlite"))
        graph = build_graph(checkpointer=saver)
        self._executor = Executor(
            self.settings, self.models, graph, saver, self.ledger, self._subscriptions, self._count_end
        )
        self._admission = Admission(self.settings, self.ledger, self._workers, self.metrics)
        self._deletion = Deletion(
            self.settings,
            DeletedRuns(self.ledger.file),
            saver,
            values=lambda run: self._executor.values(self.ledger.run(run)),
            images=self.images,
        )
        self._resources.callback(self._deletion.stop)
        delete_threads_without(saver, self.ledger.open_runs())
        unfinished = self.ledger.unfinished()
        for user, run in unfinished:
            self._workers.add(user, run)
        self._workers.start()
        self._deletion.start()
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
        """Accept one run; see ``submit_all``."""
        submission = Submission(prompt, settings or RunSettings(), thread)
        return self.submit_all(client, [submission], idempotency_key=idempotency_key)[0]

    def submit_all(
        self,
        client: Client,
        submissions: Sequence[Submission],
        *,
        idempotency_key: str | None = None,
        request: str = "",
    ) -> list[Run]:
        """Accept the runs of one request: all of them or, after an error, none.

        Args:
            client: The client that sent the request.
            submissions: The runs that it asks for.
            idempotency_key: A second request with the same key gets the first one's runs.
            request: What else the request says; a second one with the same key has to say the same.

        Raises:
            InputError: A prompt or a setting cannot be used.
            RefusedError: The queue is full, the key has used up its limits, or the service is being stopped.
            ConflictError: A thread has a run that has not ended, or the key was used for another request.
        """
        runs = self._admission.admit(client, submissions, idempotency_key=idempotency_key, request=request)
        for run in runs:
            LOG.info("accepted", run=run.id, user=client.name)
        return runs

    def check(self, client: Client, submissions: Sequence[Submission]) -> None:
        """Check that ``submit_all`` would accept these runs now, and raise what it would; nothing is accepted."""
        self._admission.check(client, submissions)

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
        answered_run = self.ledger.run(run)
        self._workers.add(answered_run.user, run)
        return answered_run

    def cancel(self, run: Run) -> Run:
        """Stop a run at its next step. The images it has made are kept, and no further one is made, come what may.

        Raises:
            ConflictError: The run has ended.
            StoppingError: The run waits for a review, and the service is being stopped.
        """
        if run.has_ended:
            raise ConflictError(f"this run has ended: {run.status}")
        if run.status == "waiting":
            return self.answer(run.id, Review(action="stop"))
        self.ledger.request_cancel(run.id)
        if not self._workers.withdraw(run.id, CANCELLED):
            try:
                self._executor.cancel(run.id)
            except Exception as error:  # a locked file, for example
                LOG.warning("cancel_postponed", run=run.id, exc_info=error)
                self._workers.add(run.user, run.id)  # a thread tries again
        return self.ledger.run(run.id)

    def delete(self, run: Run) -> None:
        """Delete a run, its checkpoints, and its images that neither another run nor memory refers to.

        Raises:
            ConflictError: The run has not ended.
        """
        if not run.has_ended:
            raise ConflictError("this run has not ended: cancel it first")
        self._deletion.delete(run.user, run.id)

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
            try:
                status = (await asyncio.to_thread(self.ledger.run, run)).status
            except ConflictError:  # deleted
                return
            if status not in ("queued", "running"):
                return
            while True:
                event = await events.get()
                yield event
                if is_last(event):
                    return

    async def wait(self, run: str) -> Run:
        """The run once it has ended, waits for a review, or was postponed by a stop.

        Raises:
            ConflictError: It was deleted in the meantime.
        """
        async for _ in self.follow(run, last_only=True):
            continue
        return await asyncio.to_thread(self.ledger.run, run)

    def values(self, run: Run) -> GemsState:
        """The state of a run that has not ended; empty if its checkpoints cannot be read at present.

        What a client reads does not depend on them: the run itself is tried again, or fails.
        """
        try:
            return self._executor.values(run)
        except Exception:  # a database's own errors, or those of damaged content
            LOG.warning("checkpoints_unreadable", run=run.id, exc_info=True)
            return GemsState()

    def images(self, user: str) -> ImageStore:
        """A user's images."""
        return open_images(images_url_of(self.settings, user))

    def _count_end(self, outcome: str, seconds: float | None, usage: Usage) -> None:
        if seconds is not None:
            self._workers.note_duration(seconds)
        self.metrics.count_run(outcome, seconds or 0.0, usage)
