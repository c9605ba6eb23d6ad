"""The pool executes runs in order, refuses runs when it is full, and stops without losing one."""

from __future__ import annotations

import threading

import pytest
from langgraph.runtime import RunControl

from gems.serve.refusals import BusyError
from gems.serve.workers import STOPPING, WorkerPool


class Work:
    """Work that lasts until it is released or drained."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.postponed: list[str] = []
        self.controls: dict[str, RunControl] = {}
        self.started_runs = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, run: str, control: RunControl) -> None:
        self.started.append(run)
        self.controls[run] = control
        self.started_runs.release()
        while not self.release.wait(0.01):
            if control.drain_requested:
                return
        if run == "broken":
            raise OSError("no space left on device")
        self.finished.append(run)

    def pool(self, threads: int = 1, max_queued: int = 2) -> WorkerPool:
        pool = WorkerPool(threads, max_queued, self, self.postponed.append)
        pool.start()
        return pool

    def wait_for(self, runs: int) -> None:
        for _ in range(runs):
            assert self.started_runs.acquire(timeout=10)


def test_runs_are_worked_on_in_order() -> None:
    work = Work()
    pool = work.pool()
    for run in "abc":
        pool.add(run)
    work.wait_for(1)
    assert pool.load == (1, 2)
    work.release.set()
    work.wait_for(2)
    pool.stop(10)
    assert work.finished == ["a", "b", "c"]
    assert pool.load == (0, 0)


def test_a_full_queue_is_refused_with_a_time_to_come_back() -> None:
    work = Work()
    pool = work.pool(threads=1, max_queued=1)
    pool.check_room()
    pool.add("a")
    work.wait_for(1)
    pool.check_room()
    pool.add("b")
    for _ in range(50):
        pool.note_duration(20)
    with pytest.raises(BusyError, match="1 runs are waiting already; try again in 20 s") as caught:
        pool.check_room()
    assert caught.value.retry_after == 20
    work.release.set()
    pool.stop(10)


def test_runs_may_finish_in_their_grace_and_queued_ones_are_postponed() -> None:
    work = Work()
    pool = work.pool()
    for run in "abc":
        pool.add(run)
    work.wait_for(1)
    assert not pool.will_not_run("b")
    stopping = threading.Thread(target=pool.stop, args=(10,))
    stopping.start()
    while not pool.stopping:
        stopping.join(0.01)
    assert pool.will_not_run("b")
    assert not pool.will_not_run("a")
    work.release.set()
    stopping.join(10)
    assert not stopping.is_alive()
    assert work.finished == ["a"]
    assert work.postponed == ["b", "c"]


def test_a_second_stop_does_not_wait() -> None:
    work = Work()
    pool = work.pool()
    pool.add("a")
    work.wait_for(1)
    patient = threading.Thread(target=pool.stop, args=(600,))
    patient.start()
    while not pool.stopping:
        patient.join(0.01)
    pool.stop(600)
    assert work.controls["a"].drain_reason == STOPPING
    assert work.finished == []
    patient.join(10)
    assert not patient.is_alive()


def test_one_run_can_be_drained() -> None:
    work = Work()
    pool = work.pool(threads=2)
    pool.add("a")
    pool.add("b")
    work.wait_for(2)
    pool.drain("a", "cancelled")
    pool.drain("nobody", "cancelled")
    assert (work.controls["a"].drain_reason, work.controls["b"].drain_reason) == ("cancelled", None)
    work.release.set()
    pool.stop(10)


def test_failing_work_is_postponed_and_its_thread_continues() -> None:
    work = Work()
    pool = work.pool()
    work.release.set()
    pool.add("broken")
    pool.add("b")
    work.wait_for(2)
    pool.stop(10)
    assert work.postponed == ["broken"]
    assert work.finished == ["b"]


def test_a_pool_that_never_started_can_be_stopped() -> None:
    work = Work()
    WorkerPool(1, 1, work, work.postponed.append).stop(10)
    assert work.started == []
