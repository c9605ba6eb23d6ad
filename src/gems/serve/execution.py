"""Works on one accepted run at a time: to its end, to a person's review, or until it is stopped."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl

from gems.errors import GemsError, InputError
from gems.graph.builder import GemsGraph
from gems.graph.state import GemsState, Usage
from gems.runs.interrupted import run_counted, with_interrupted
from gems.runs.record import ModelRecord, run_record
from gems.runs.threads import pending_review
from gems.secrets import one_line
from gems.serve.ledger import ErrorKind, Ledger, Run, Status
from gems.serve.quotas import check_day
from gems.serve.refusals import SpentError
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
        """Execute a run until it ends, waits for a review, or ``control`` asks it to drain.

        Raises:
            Exception: A fault that may pass, such as a locked file; the run can be executed again.
        """
        run, started = self.ledger.begin(name), time.monotonic()
        if run is None:
            return
        if run.cancel_requested:
            self.cancel(name)
            return
        try:
            self._check_day(run)
            self._work(run, control, started)
        except (GemsError, SpentError) as error:
            self._fail(run, self.values(run), error, time.monotonic() - started)
        except Exception:
            with suppress(sqlite3.Error):  # maybe the ledger is what failed
                self.ledger.park(name)
            raise

    def _check_day(self, run: Run) -> None:
        """Check that the user's day has room for a run that has spent nothing yet.

        Raises:
            SpentError: It has none any more.
        """
        day = run.settings.day
        if (day.tokens is not None or day.cost is not None) and not self.values(run):
            check_day(day, self.ledger.used_today(run.user))

    def _work(self, run: Run, control: RunControl, started: float) -> None:
        self.subscriptions.publish(run.id, BeginEvent(event="begin"))
        context = context_of(self.settings, run.user, run.settings)
        values = run_counted(
            self.graph,
            run.id,
            run.prompt,
            context,
            listener=lambda event: self.subscriptions.publish(run.id, event),
            listens_anywhere=True,
            control=control,
            answer=run.answer,
        )
        if question := pending_review(self.graph, run.id):
            self.ledger.ask(run.id, question)
            self.subscriptions.publish(run.id, ReviewEvent(event="review"))
        elif not values.get("outcome") and control.drain_reason == STOPPING:
            self.ledger.park(run.id)
            self.postpone(run.id)
        else:
            self._end(run, values, time.monotonic() - started)

    def cancel(self, name: str) -> None:
        """End a run that is not in progress, with the images that it has made."""
        run = self.ledger.run(name)
        if run.has_ended:
            return
        values = self.values(run)
        if values.get("attempts"):
            self._end(run, values, 0.0)
        elif self.ledger.end(name, "cancelled", usage=values.get("usage"), cost=self._cost(values.get("usage"))):
            self.conclude(name, "cancelled", usage=values.get("usage"))

    def fail(self, name: str, error: Exception) -> None:
        """End a run that was interrupted by faults too often."""
        run = self.ledger.run(name)
        if not run.has_ended:
            try:
                values = self.values(run)
            except Exception:  # the checkpoints are what failed: the run must end all the same
                LOG.exception("state_lost", run=name)
                values = GemsState()
            self._fail(run, values, error, 0.0)

    def values(self, run: Run) -> GemsState:
        """The state of a run that has not ended."""
        values = cast(GemsState, self.graph.get_state({"configurable": {"thread_id": run.id}}).values)
        return with_interrupted(self.graph, run.id, values)

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
        try:
            self.saver.delete_thread(name)
        except Exception as error:  # each saver raises its own errors; the next start deletes the checkpoints
            LOG.warning("checkpoints_left", run=name, error=one_line(error))
        self.on_end(outcome, seconds, usage or Usage())
        LOG.info("ended", run=name, outcome=outcome, seconds=round(seconds or 0.0, 3))
        self.subscriptions.publish(name, EndEvent(event="end", outcome=outcome))

    def _cost(self, usage: Usage | None) -> float:
        return self.settings.context.budget.prices.counted_cost(usage or Usage())

    def _fail(self, run: Run, values: GemsState, error: Exception, seconds: float) -> None:
        kind: ErrorKind = "input" if isinstance(error, InputError) else "backend"
        usage = values.get("usage")
        is_new = self.ledger.end(
            run.id,
            "failed",
            usage=usage,
            cost=self._cost(usage),
            images=[attempt.image for attempt in values.get("attempts") or ()],
            error=one_line(error, 500) or type(error).__name__,
            error_kind=kind,
        )
        if is_new:
            self.conclude(run.id, kind, seconds, usage)

    def _end(self, run: Run, values: GemsState, seconds: float) -> None:
        context = context_of(self.settings, run.user, run.settings)
        begun_at = datetime.fromtimestamp(run.started_at or run.created_at, UTC)
        values = cast(GemsState, {"prompt": run.prompt, **values})
        record = run_record(values, context, self.models, run.id, begun_at)
        statuses: dict[str, Status] = {"cancelled": "cancelled", "failed": "failed"}
        has_failed = record.outcome == "failed"
        was_refused = not record.attempts and set(values.get("undrawn") or ()) == {"refused"}
        kind: ErrorKind = "refused" if was_refused else "backend"
        is_new = self.ledger.end(
            run.id,
            statuses.get(record.outcome, "done"),
            record=record,
            usage=record.usage,
            cost=self._cost(record.usage),
            images=[attempt.image for attempt in record.attempts],
            error="; ".join(dict.fromkeys(record.errors)) if has_failed else None,
            error_kind=kind if has_failed else None,
        )
        if is_new:
            self.conclude(run.id, record.outcome, seconds, record.usage)
