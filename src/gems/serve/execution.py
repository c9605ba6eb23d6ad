"""Works on one accepted run at a time: to its end, to a person's review, or until it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl

from gems.errors import GemsError, InputError
from gems.graph.builder import GemsGraph
from gems.graph.state import GemsState, Usage
from gems.runs.record import ModelRecord, RunRecord, run_record
from gems.runs.threads import pending_review, run_thread
from gems.secrets import conceal
from gems.serve.ledger import ErrorKind, Ledger, Run, Status
from gems.serve.settings import ServiceSettings, context_of
from gems.serve.subscriptions import BeginEvent, EndEvent, PutOffEvent, ReviewEvent, Subscriptions
from gems.serve.workers import STOPPING

__all__ = ["Executor"]

LOG: Final = structlog.get_logger("gems.serve")


@dataclass(frozen=True)
class Executor:
    """Runs the graph for accepted runs, and writes down how they end. Safe for threads.

    Attributes:
        settings: The settings of the service.
        models: The models of the service, by role.
        graph: The graph, with ``saver``.
        saver: Keeps the checkpoints of runs that have not ended.
        ledger: The accepted runs.
        subscriptions: The clients that follow the runs.
        on_end: Called when a run has ended: with its outcome, the seconds it took here (None if it never began), and
            its usage.
    """

    settings: ServiceSettings
    models: dict[str, ModelRecord]
    graph: GemsGraph
    saver: BaseCheckpointSaver[Any]
    ledger: Ledger
    subscriptions: Subscriptions
    on_end: Callable[[str, float | None, Usage], None]

    def work(self, name: str, control: RunControl) -> None:
        """Execute a run until it ends, waits for a review, or ``control`` asks it to drain."""
        run = self.ledger.run(name)
        if run.status not in ("queued", "running"):  # cancelled while it was queued
            return
        run, started = self.ledger.begin(name), time.monotonic()
        self.subscriptions.publish(name, BeginEvent(event="begin"))
        context = context_of(self.settings, run.user, run.settings)
        try:
            values = run_thread(
                self.graph,
                name,
                run.prompt,
                context,
                listener=lambda event: self.subscriptions.publish(name, event),
                control=control,
                answer=run.answer,
            )
        except GemsError as error:
            self._fail(run, error, time.monotonic() - started)
            return
        if question := pending_review(self.graph, name):
            self.ledger.ask(name, question)
            self.subscriptions.publish(name, ReviewEvent(event="review"))
            return
        if not values.get("outcome") and control.drain_reason == STOPPING:
            self.ledger.park(name)
            self.postpone(name)
            return
        begun_at = datetime.fromtimestamp(run.started_at or run.created_at, UTC)
        self._end(run_record(values, context, self.models, name, begun_at), time.monotonic() - started)

    def values(self, run: Run) -> GemsState:
        """The state of a run that has not ended."""
        return cast(GemsState, self.graph.get_state({"configurable": {"thread_id": run.id}}).values)

    def postpone(self, name: str) -> None:
        """Tell the subscribers of a run that it continues only after the service is started again."""
        self.subscriptions.publish(name, PutOffEvent(event="put_off"))

    def conclude(self, name: str, outcome: str, seconds: float | None = None, usage: Usage | None = None) -> None:
        """Clean up after a run whose end is in the ledger, and make it known.

        Args:
            name: The run's id.
            outcome: The run's outcome, or the kind of the error that ended it.
            seconds: Duration of the run; None if it never began.
            usage: Usage of the run.
        """
        self.saver.delete_thread(name)
        self.on_end(outcome, seconds, usage or Usage())
        LOG.info("ended", run=name, outcome=outcome, seconds=round(seconds or 0.0, 3))
        self.subscriptions.publish(name, EndEvent(event="end", outcome=outcome))

    def _fail(self, run: Run, error: GemsError, seconds: float) -> None:
        kind: ErrorKind = "input" if isinstance(error, InputError) else "backend"
        usage = self.values(run).get("usage")
        self.ledger.end(run.id, "failed", usage=usage, error=conceal(str(error)), error_kind=kind)
        self.conclude(run.id, kind, seconds)

    def _end(self, record: RunRecord, seconds: float) -> None:
        statuses: dict[str, Status] = {"cancelled": "cancelled", "failed": "failed"}
        status = statuses.get(record.outcome, "done")
        if record.outcome == "failed":
            error = "; ".join(record.errors)
            self.ledger.end(record.thread, status, record=record, usage=record.usage, error=error, error_kind="backend")
        else:
            self.ledger.end(record.thread, status, record=record, usage=record.usage)
        self.conclude(record.thread, record.outcome, seconds, record.usage)
