"""The pool lets users take turns, refuses runs when it is full, survives faults, and stops without losing a run."""

from __future__ import annotations

import threading

import pytest
from langgraph.runtime import RunControl
from servers.waiting import wait_until

from gems.serve.fair_queue import FairQueue
from gems.serve.refusals import BusyError
from gems.serve.workers import STOPPING, WorkerPool


class Work:
    """Work that lasts until it is released or drained."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.postponed: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self.faults: dict[str, int] = {}
        """How many times a run is still interrupted."""
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
        if self.faults.get(run, 0):
            self.faults[run] -= 1
            raise OSError("no space left on device")
        self.finished.append(run)

    def fail(self, run: str, error: Exception) -> None:
        if self.faults.get(run, 0):
            self.faults[run] -= 1
            raise OSError("still no space left on device")
        self.failed.append((run, str(error)))

    def pool(self, threads: int = 1, max_queued: int = 2, max_queued_per_user: int = 2) -> WorkerPool:
        pool = WorkerPool(
            threads,
            max_queued,
            max_queued_per_user,
            work=self,
            fail=self.fail,
            postpone=self.postponed.append,
            first_delay=0.001,
        )
        pool.start()
        return pool

    def wait_for(self, runs: int) -> None:
        for _ in range(runs):
            assert self.started_runs.acquire(timeout=10)


def test_runs_are_worked_on_in_order() -> None:
    work = Work()
    pool = work.pool()
    for run in "abc":
        pool.add("ann", run)
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
    pool.check_room("ann")
    pool.add("ann", "a")
    work.wait_for(1)
    pool.check_room("ann")
    pool.add("ann", "b")
    for _ in range(50):
        pool.note_duration(20)
    with pytest.raises(BusyError, match="1 runs are waiting already; try again in 20 s") as caught:
        pool.check_room("ann")
    assert caught.value.retry_after == 20
    work.release.set()
    pool.stop(10)


def test_runs_may_finish_in_their_grace_and_queued_ones_are_postponed() -> None:
    work = Work()
    pool = work.pool()
    for run in "abc":
        pool.add("ann", run)
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
    pool.add("ann", "a")
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
    pool.add("ann", "a")
    pool.add("ann", "b")
    work.wait_for(2)
    assert pool.withdraw("a", "cancelled")
    assert not pool.withdraw("nobody", "cancelled")
    assert (work.controls["a"].drain_reason, work.controls["b"].drain_reason) == ("cancelled", None)
    work.release.set()
    pool.stop(10)


def test_a_queued_run_can_be_withdrawn() -> None:
    work = Work()
    pool = work.pool(max_queued=3)
    for run in "abc":
        pool.add("ann", run)
    work.wait_for(1)
    assert not pool.withdraw("b", "cancelled"), "it is not in progress"
    assert pool.load == (1, 1)
    work.release.set()
    work.wait_for(1)
    pool.stop(10)
    assert work.finished == ["a", "c"]


def test_a_passing_fault_interrupts_a_run_and_no_other() -> None:
    work = Work()
    work.faults["broken"] = 3
    pool = work.pool()
    work.release.set()
    pool.add("ann", "broken")
    pool.add("ann", "b")
    work.wait_for(5)
    pool.stop(10)
    assert sorted(work.finished) == ["b", "broken"]
    assert (work.postponed, work.failed) == ([], [])


@pytest.mark.parametrize("faults", [6, 8])
def test_a_lasting_fault_fails_the_run_after_six_tries(faults: int) -> None:
    work = Work()
    work.faults["broken"] = faults  # the last ones hinder even the note that the run has failed
    pool = work.pool()
    work.release.set()
    pool.add("ann", "broken")
    wait_until(lambda: work.failed, lambda: work.started, seconds=10)
    pool.stop(10)
    assert work.started == ["broken"] * 6
    assert [run for run, _ in work.failed] == ["broken"]
    assert "no space left" in work.failed[0][1]


def test_a_run_that_waits_for_its_next_try_is_postponed_by_a_stop_and_can_be_withdrawn() -> None:
    work = Work()
    work.faults |= {"a": 6, "b": 6}
    pool = WorkerPool(1, 9, 9, work=work, fail=work.fail, postpone=work.postponed.append, first_delay=600)
    pool.start()
    work.release.set()
    pool.add("ann", "a")
    pool.add("ann", "b")
    wait_until(lambda: len(work.started) == 2 and pool.load == (0, 2), lambda: pool.load, seconds=10)
    pool.withdraw("a", "cancelled")
    assert pool.load == (0, 1)
    pool.stop(10)
    assert work.postponed == ["b"]


def test_users_take_turns_however_many_runs_one_of_them_has() -> None:
    work = Work()
    pool = work.pool(max_queued=2000, max_queued_per_user=2000)
    for n in range(1000):
        pool.add("greedy", f"greedy {n}")
    work.wait_for(1)
    for run in ("ann 0", "ann 1"):
        pool.add("ann", run)
    pool.add("bob", "bob 0")
    work.release.set()
    work.wait_for(7)
    first_runs = work.started[:7]
    pool.stop(0)
    assert first_runs == ["greedy 0", "ann 0", "bob 0", "greedy 1", "ann 1", "greedy 2", "greedy 3"]


def test_a_user_with_runs_in_progress_lets_others_go_first() -> None:
    queue = FairQueue()
    for run in ("g0", "g1", "g2"):
        queue.put("greedy", run)
    assert [queue.get(), queue.get()] == [("greedy", "g0"), ("greedy", "g1")]
    queue.put("ann", "a0")
    queue.put("ann", "a1")
    assert queue.get() == ("ann", "a0")
    assert queue.get() == ("ann", "a1"), "greedy has two runs in progress, ann has one"
    queue.finish("greedy")
    queue.finish("greedy")
    assert queue.get() == ("greedy", "g2")


def test_each_user_has_a_bound_and_all_together_have_one() -> None:
    work = Work()
    pool = work.pool(threads=1, max_queued=3, max_queued_per_user=2)
    pool.add("greedy", "a")
    work.wait_for(1)
    pool.check_room("greedy", 2)
    with pytest.raises(BusyError, match="0 runs of this key are waiting already"):
        pool.check_room("greedy", 3)
    pool.add("greedy", "b")
    pool.add("greedy", "c")
    with pytest.raises(BusyError, match="2 runs of this key are waiting already"):
        pool.check_room("greedy")
    pool.check_room("ann")
    with pytest.raises(BusyError, match="2 runs are waiting already"):
        pool.check_room("ann", 2)
    work.release.set()
    pool.stop(10)


def test_a_pool_that_never_started_can_be_stopped() -> None:
    work = Work()
    WorkerPool(1, 1, 1, work=work, fail=work.fail, postpone=work.postponed.append).stop(10)
    assert work.started == []
