"""The threads that execute runs, and the queue in front of them."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog
from langgraph.runtime import RunControl

from gems.serve.refusals import BusyError

__all__ = ["STOPPING", "WorkerPool"]

LOG: Final = structlog.get_logger("gems.serve")

STOPPING: Final = "stopping"
"""The reason that a run's control gives when the service is being stopped."""


class WorkerPool:
    """Executes queued runs, in order, in a fixed number of threads.

    Args:
        threads: Number of threads.
        max_queued: Maximum number of waiting runs; see ``check_room``.
        work: Executes the run with an id until it ends or its control asks it to drain.
        postpone: Called with the id of a run that will not be finished here: the pool is being stopped, or ``work``
            raised an exception.
    """

    def __init__(
        self, threads: int, max_queued: int, work: Callable[[str, RunControl], None], postpone: Callable[[str], None]
    ) -> None:
        self._size, self._max_queued, self._work, self._postpone = threads, max_queued, work, postpone
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._queued = 0
        self._controls: dict[str, RunControl] = {}
        """Controls of the runs in progress, by id."""
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
        return len(self._controls), self._queued

    def check_room(self) -> None:
        """Check that one more run may be added.

        Raises:
            BusyError: The queue is full.
        """
        if self._queued >= self._max_queued + self._size - len(self._controls):
            typical = sorted(self._durations)[len(self._durations) // 2]
            seconds = max(1, round(typical * self._queued / self._size))
            raise BusyError(f"{self._queued} runs are waiting already; try again in {seconds} s", min(seconds, 600))

    def add(self, run: str) -> None:
        """Queue a run."""
        with self._lock:
            self._queued += 1
        self._queue.put(run)

    def note_duration(self, seconds: float) -> None:
        """Take a finished run into account when the waiting time is estimated."""
        self._durations.append(seconds)

    def drain(self, run: str, reason: str) -> None:
        """Ask a run to stop at its next step, if it is in progress."""
        with self._lock:
            control = self._controls.get(run)
        if control is not None:
            control.request_drain(reason)

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
        for _ in self._threads:
            self._queue.put(None)
        running, queued = self.load
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
        while (run := self._queue.get()) is not None:
            control = RunControl()
            with self._lock:
                self._queued -= 1
                accepted = not self.stopping
                if accepted:
                    self._controls[run] = control
            if not accepted:
                self._postpone(run)
                continue
            try:
                self._work(run, control)
            except Exception:  # a full disk, for example: the run keeps its status, and is resumed after a restart
                LOG.exception("put_off", run=run)
                self._postpone(run)
            finally:
                with self._lock:
                    del self._controls[run]
