"""The heart of the service: takes runs on, has them worked on by threads, and loses none."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import structlog
from langgraph.runtime import RunControl
from pydantic import BaseModel

from gems.errors import GemsError, InputError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsState, Review, Usage
from gems.nodes.intake import check_prompt
from gems.runs.checkpoints import open_checkpoints
from gems.runs.record import ModelRecord, model_records, run_record
from gems.runs.threads import pending_review, run_thread
from gems.secrets import conceal
from gems.serve.keys import Client
from gems.serve.ledger import Ledger, Run, Status
from gems.serve.metrics import Metrics
from gems.serve.settings import ServiceSettings, context_of

__all__ = ["BusyError", "ConflictError", "Service", "SpentError", "StoppingError"]

LOG: Final = structlog.get_logger("gems.serve")

_LAST: Final = frozenset({"review", "end", "put_off"})
"""Events after which, for now, there are none."""
_MOST_UNREAD: Final = 1000


class RefusedError(Exception):
    """A run that was not accepted. ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BusyError(RefusedError):
    """The queue is full."""


class SpentError(RefusedError):
    """The key has spent what it may in a day."""


class StoppingError(RefusedError):
    """The service is being stopped."""


class ConflictError(Exception):
    """The run is not in a state for that."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """Somebody who follows a run."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[dict[str, Any]]
    everything: bool

    def tell(self, event: dict[str, Any]) -> None:
        """From any thread. Where the reader is slow, steps of drawing are left out; what matters is not."""
        if event["event"] in _LAST or (self.everything and self.events.qsize() < _MOST_UNREAD):
            try:
                self.loop.call_soon_threadsafe(self.events.put_nowait, event)
            except RuntimeError:  # its loop has ended
                return


class Service:
    """Accepts runs, works on them in ``concurrency`` threads, and tells of them.

    A run is in the ledger before it is accepted, and every step of it in the checkpoints: killed and started again, the
    service goes on with all of them. Use it as a context manager.

    Raises:
        InputError: A setting cannot be used.
        BackendError: A model cannot be loaded.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.metrics = Metrics(self)
        self._resources = ExitStack()
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._queued = 0
        self._at_work: dict[str, RunControl] = {}
        self._readers: dict[str, list[_Reader]] = {}
        self._lock = threading.Lock()
        self._admission = threading.Lock()
        self._durations: deque[float] = deque([5.0], maxlen=50)
        self._threads: list[threading.Thread] = []
        self.stopping = False
        self.models: dict[str, ModelRecord] = model_records(settings.context)

    def __enter__(self) -> Self:
        home = self.settings.home
        self.ledger = Ledger(home / "runs.sqlite")
        self._resources.callback(self.ledger.close)
        self._saver = self._resources.enter_context(open_checkpoints(home / "checkpoints.sqlite"))
        self._graph = build_graph(checkpointer=self._saver)
        self._threads = [
            threading.Thread(target=self._work, name=f"run-{n}", daemon=True) for n in range(self.settings.concurrency)
        ]
        for thread in self._threads:
            thread.start()
        unfinished = self.ledger.unfinished()
        for run in unfinished:
            self._enqueue(run)
        LOG.info("started", unfinished_runs=len(unfinished), models={k: v.name for k, v in self.models.items()})
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(0)
        self._resources.close()

    # --- what requests ask for ---------------------------------------------------------------------------------------

    def submit(
        self,
        client: Client,
        prompt: str,
        asked: BaseModel | None = None,
        *,
        thread: str = "",
        idempotency_key: str | None = None,
    ) -> Run:
        """Take a run on. The same idempotency key gives the run that is there.

        Raises:
            InputError: The prompt or a setting cannot be used.
            BusyError, SpentError, StoppingError: Not now.
            ConflictError: The thread has a run that has not ended, or the key was used for another prompt.
        """
        checked = check_prompt(prompt)
        if len(checked) > self.settings.max_prompt:
            raise InputError(
                f"the prompt has {len(checked):,} characters; the limit here is {self.settings.max_prompt:,}"
            )
        given: dict[str, Any] = {"asked": asked.model_dump(mode="json", exclude_none=True) if asked else {}}
        context = context_of(self.settings, client.name, given)
        with self._admission:
            if idempotency_key and (known := self.ledger.by_key(client.name, idempotency_key)):
                if known.prompt != checked:
                    raise ConflictError("this Idempotency-Key was used for another prompt")
                return known
            self._admit(client, thread)
            given["budget"] = self._within_day(client, context.budget)
            most = _most(context_of(self.settings, client.name, given))
            run = self.ledger.accept(client.name, thread, checked, given, most, idempotency_key)
            self._enqueue(run.id)
        LOG.info("accepted", run=run.id, user=client.name)
        return run

    def _admit(self, client: Client, thread: str) -> None:
        if self.stopping:
            raise StoppingError("the service is being stopped; try again soon", 10)
        if thread and (latest := self.ledger.latest_of(client.name, thread)) and not latest.has_ended:
            raise ConflictError(f"thread {thread} has a run that has not ended: {latest.id}")
        if self._queued >= self.settings.queue + self.settings.concurrency - len(self._at_work):
            typical = sorted(self._durations)[len(self._durations) // 2]
            seconds = max(1, round(typical * self._queued / self.settings.concurrency))
            raise BusyError(f"{self._queued} runs are waiting already; try again in {seconds} s", min(seconds, 600))

    def _within_day(self, client: Client, budget: Budget) -> dict[str, Any]:
        """The budget, held to what the key still has."""
        left = {}
        spent = self.ledger.spent_today(client.name)
        for name, limit in client.daily.model_dump(exclude_none=True).items():
            left[name] = limit - spent[name]
            # A run needs a handful of calls to come to anything at all.
            if left[name] < (4 if name == "chat_calls" else 1):
                tomorrow = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
                seconds = max(1, round((tomorrow - datetime.now(UTC)).total_seconds()))
                raise SpentError(f"this key has spent its {limit} {name.replace('_', ' ')} of the day", seconds)
        limits = budget.model_dump()
        return {**limits, **{k: v if limits[k] is None else min(v, limits[k]) for k, v in left.items()}}

    def answer(self, client: Client, run: str, review: Review) -> Run:
        """Follow a person's review.

        Raises:
            ConflictError: The run waits for none.
            StoppingError: Not now.
        """
        if self.stopping:
            raise StoppingError("the service is being stopped; try again soon", 10)
        if not self.ledger.answer(run, review.model_dump(mode="json")):
            raise ConflictError("this run waits for no review")
        self._enqueue(run)
        return self.ledger.run(run)

    def cancel(self, client: Client, run: Run) -> Run:
        """Stop a run; what it made so far is kept.

        Raises:
            ConflictError: It has ended.
        """
        if run.has_ended:
            raise ConflictError(f"this run has ended: {run.status}")
        if self.ledger.cancel_queued(run.id):
            self._finished(run.id)
        elif run.status == "waiting":
            return self.answer(client, run.id, Review(action="stop"))
        else:
            with self._lock:
                control = self._at_work.get(run.id)
            if control is not None:
                control.request_drain("cancelled")
        return self.ledger.run(run.id)

    async def follow(self, run: str, *, everything: bool = True) -> AsyncIterator[dict[str, Any]]:
        """What happens in a run from now on; ends when it ends, waits for a person, or is put off by a stop."""
        reader = _Reader(asyncio.get_running_loop(), asyncio.Queue(), everything)
        with self._lock:
            self._readers.setdefault(run, []).append(reader)
        try:
            with self._lock:
                put_off = self.stopping and run not in self._at_work
            # Once stopping, what is not at work will not begin: there is nothing to wait for.
            if put_off or (await asyncio.to_thread(self.ledger.run, run)).status not in ("queued", "running"):
                return
            while True:
                event = await reader.events.get()
                yield event
                if event["event"] in _LAST:
                    return
        finally:
            with self._lock:
                readers = self._readers.get(run, [])
                readers.remove(reader)
                if not readers:
                    self._readers.pop(run, None)

    async def wait(self, run: str) -> Run:
        """The run once it has ended, waits for a person, or was put off by a stop."""
        async for _ in self.follow(run, everything=False):
            pass
        return await asyncio.to_thread(self.ledger.run, run)

    def values(self, run: Run) -> GemsState:
        """What a run that has not ended knows so far."""
        state: GemsState = self._graph.get_state({"configurable": {"thread_id": run.id}}).values  # type: ignore[assignment]
        return state

    # --- the work ----------------------------------------------------------------------------------------------------

    @property
    def load(self) -> tuple[int, int]:
        """Runs at work, and runs that wait for their turn."""
        return len(self._at_work), self._queued

    def _enqueue(self, run: str) -> None:
        with self._lock:
            self._queued += 1
        self._waiting.put(run)

    def _work(self) -> None:
        """One worker thread."""
        while (name := self._waiting.get()) is not None:
            with self._lock:
                self._queued -= 1
                control = RunControl()
                if not self.stopping:
                    self._at_work[name] = control
            if self.stopping:
                self._publish(name, {"event": "put_off"})
                continue
            try:
                self._run(name, control)
            except Exception:  # a full disk, say: the run stays where it is, and goes on after a restart
                LOG.exception("put_off", run=name)
                self._publish(name, {"event": "put_off"})
            finally:
                with self._lock:
                    del self._at_work[name]

    def _run(self, name: str, control: RunControl) -> None:
        run = self.ledger.run(name)
        if run.status != "queued" and run.status != "running":
            return  # it was cancelled before its turn
        run, started = self.ledger.begin(name), time.monotonic()
        context = context_of(self.settings, run.user, run.settings)
        begun = datetime.fromtimestamp(run.started or run.created, UTC)
        self._publish(name, {"event": "begin"})
        try:
            values = run_thread(
                self._graph,
                name,
                run.prompt,
                context,
                listener=lambda event: self._publish(name, event),
                control=control,
                answer=run.answer,
            )
        except GemsError as error:
            values = self.values(run)
            kind = "input" if isinstance(error, InputError) else "backend"
            self.ledger.end(name, "failed", usage=values.get("usage"), error=conceal(str(error)), error_kind=kind)
            self._finished(name, time.monotonic() - started, kind)
            return
        if asked := pending_review(self._graph, name):
            self.ledger.ask(name, asked)
            self._publish(name, {"event": "review"})
            return
        if not values.get("outcome") and self.stopping and control.drain_reason != "cancelled":
            self.ledger.park(name)
            self._publish(name, {"event": "put_off"})
            return
        record = run_record(values, context, self.models, name, begun)
        outcome, errors = record["outcome"], "; ".join(record["errors"])
        status: Status = {"cancelled": "cancelled", "failed": "failed"}.get(outcome, "done")  # type: ignore[assignment]
        fault = (errors, "backend") if outcome == "failed" else (None, None)
        self.ledger.end(name, status, record=record, usage=values.get("usage"), error=fault[0], error_kind=fault[1])
        self._finished(name, time.monotonic() - started, outcome, values.get("usage"))

    def _finished(
        self, name: str, seconds: float | None = None, outcome: str = "cancelled", usage: Usage | None = None
    ) -> None:
        """The ledger has it: what the run needed to go on is no longer needed."""
        self._saver.delete_thread(name)
        if seconds is not None:
            self._durations.append(seconds)
        self.metrics.ended(outcome, seconds or 0.0, usage or Usage())
        LOG.info("ended", run=name, outcome=outcome, seconds=round(seconds or 0.0, 3))
        self._publish(name, {"event": "end", "outcome": outcome})

    def _publish(self, run: str, event: dict[str, Any]) -> None:
        if run not in self._readers:
            return
        with self._lock:
            readers = list(self._readers.get(run, ()))
        for reader in readers:
            reader.tell(event)

    # --- stopping ----------------------------------------------------------------------------------------------------

    def stop(self, grace: float) -> None:
        """Take nothing on any more; let runs at work finish for so many seconds, then stop each at its next step.

        Those that did not end, and those that had not begun, go on when the service is started again.
        """
        with self._lock:
            if self.stopping:
                grace = 0
            self.stopping = True
        for _ in self._threads:
            self._waiting.put(None)
        LOG.info("stopping", at_work=len(self._at_work), queued=self._queued, grace=grace)
        until = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            controls = list(self._at_work.values())
        for control in controls:
            control.request_drain("stopping")
        for thread in self._threads:
            thread.join()


def _most(context: GemsContext) -> dict[str, int]:
    """What a run may cost at most, for the day's limits."""
    images = min(context.budget.images or 10**9, context.max_rounds * context.candidates)
    calls = min(context.budget.chat_calls or 10**9, 2 * images + 5)
    return {"images": images, "chat_calls": calls}
