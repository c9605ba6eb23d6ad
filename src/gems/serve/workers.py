"""The threads that execute runs, and the queue in front of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from langgraph.runtime import RunControl

from gems.serve.fair_queue import FairQueue
from gems.serve.refusals import BusyError

__all__ = ["STOPPING", "WorkerPool"]

LOG: Final = structlog.get_logger("gems.serve")

STOPPING: Final = "stopping"
"""The reason that a run's control gives when the service is being stopped."""

_MAX_TRIES: Final = 6
"""Tries of a run that faults interrupt; then it fails."""
_MAX_DELAY: Final = 60.0
"""Seconds, at most, between two tries."""


@dataclass(slots=True)
class _Faults:
    """The faults that interrupted a run."""

    count: int
    latest: Exception


class WorkerPool:
    """Executes queued runs in a fixed number of threads; users take turns.

    A run that a fault interrupts, such as a full disk or a locked file, is tried again, each time after twice as long;
    after six tries it fails.

    Args:
        threads: Number of threads.
        max_queued: Maximum number of waiting runs; see ``check_room``.
        max_queued_per_user: Maximum number of one user's waiting runs.
        work: Executes the run with an id until it ends or its control asks it to drain.
        fail: Writes down that faults ended a run.
        postpone: Called with the id of a run that will not be finished here, because the pool is being stopped.
        first_delay: Seconds between the first two tries of a run.
    """

    def __init__(
        self,
        threads: int,
        max_queued: int,
        max_queued_per_user: int,
        *,
        work: Callable[[str, RunControl], None],
        fail: Callable[[str, Exception], None],
        postpone: Callable[[str], None],
        first_delay: float = 1.0,
    ) -> None:
        self._size, self._max_queued, self._max_queued_per_user = threads, max_queued, max_queued_per_user
        self._work, self._fail, self._postpone, self._first_delay = work, fail, postpone, first_delay
        self._lock = threading.Lock()
        self._queue = FairQueue()
        self._controls: dict[str, RunControl] = {}
        """Controls of the runs in progress, by id."""
        self._faults: dict[str, _Faults] = {}
        """Faults of the runs that are not finished, by id."""
        self._durations: deque[float] = deque([5.0], maxlen=50)
        """Durations of the latest runs, in seconds."""
        self._threads: list[threading.Thread] = []
        self.stopping = False

    def start(self) -> None:
        """Start the threads."""
        self._threads = [threading.Thread(target=self._loop, name=f"run-{n}", daemon=True) for n in range(self._size)]
        for thread in self._threads:
            thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """The number of runs in progress, and the number of queued runs."""
        return len(self._controls), len(self._queue)

    def check_room(self, user: str, count: int = 1) -> None:
        """Check that ``count`` more runs of a user may be added.

        Raises:
            BusyError: The queue, or the user's part of it, is full.
        """
        queued, own = len(self._queue), self._queue.length_of(user)
        idle_threads = self._size - len(self._controls)
        if queued + count > self._max_queued + idle_threads:
            raise self._busy(f"{queued} runs are waiting already", queued)
        if own + count > self._max_queued_per_user + idle_threads:
            raise self._busy(f"{own} runs of this key are waiting already", own)

    def _busy(self, message: str, queued: int) -> BusyError:
        typical = sorted(self._durations)[len(self._durations) // 2]
        seconds = max(1, round(typical * queued / self._size))
        return BusyError(f"{message}; try again in {seconds} s", min(seconds, 600))

    def add(self, user: str, run: str) -> None:
        """Queue a run of a user."""
        if not self._queue.put(user, run):
            self._postpone(run)

    def note_duration(self, seconds: float) -> None:
        """Take a finished run into account when the waiting time is estimated."""
        self._durations.append(seconds)

    def withdraw(self, run: str, reason: str) -> bool:
        """Take a run out of the queue, or ask it to stop at its next step.

        Returns:
            Whether the run is in progress: then its thread ends it.
        """
        self._queue.remove(run)
        with self._lock:
            control = self._controls.get(run)
        if control is not None:
            control.request_drain(reason)
        return control is not None

    def will_not_run(self, run: str) -> bool:
        """Whether the pool is being stopped, and this run is not in progress."""
        with self._lock:
            return self.stopping and run not in self._controls

    def stop(self, grace: float) -> None:
        """Begin no other run. Let runs finish for ``grace`` seconds, then stop each at its next step.

        A second call does not wait.
        """
        with self._lock:
            if self.stopping:
                grace = 0
            self.stopping = True
        running, queued = self.load
        for run in self._queue.close():
            self._postpone(run)
        LOG.info("stopping", at_work=running, queued=queued, grace=grace)
        deadline = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            controls = list(self._controls.values())
        for control in controls:
            control.request_drain(STOPPING)
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        """The work of one thread."""
        while (entry := self._queue.get()) is not None:
            user, run = entry
            control = RunControl()
            with self._lock:
                self._controls[run] = control
                if self.stopping:  # ``stop`` may have asked the others before this one began
                    control.request_drain(STOPPING)
            delay: float | None = None
            try:
                self._try(run, control)
                self._faults.pop(run, None)
            except Exception as error:
                delay = self._note_fault(run, error)
            finally:
                with self._lock:
                    del self._controls[run]
                self._queue.finish(user)
            if delay is not None and not self._queue.put(user, run, delay=delay):
                self._postpone(run)

    def _try(self, run: str, control: RunControl) -> None:
        faults = self._faults.get(run)
        if faults is not None and faults.count >= _MAX_TRIES:
            self._fail(run, faults.latest)
        else:
            self._work(run, control)

    def _note_fault(self, run: str, error: Exception) -> float:
        """Count a fault; returns the seconds until the next try."""
        count = self._faults[run].count + 1 if run in self._faults else 1
        self._faults[run] = _Faults(count, error)
        # After the last try, the failure is written down at once.
        delay = 0.0 if count == _MAX_TRIES else min(_MAX_DELAY, self._first_delay * 2 ** min(count - 1, 16))
        LOG.warning("interrupted", run=run, tries=count, next_try_in=delay, exc_info=error)
        return delay
