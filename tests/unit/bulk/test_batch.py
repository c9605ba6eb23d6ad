"""When a batch ends early."""

from __future__ import annotations

from pathlib import Path

from gems.bulk.batch import FailureStreak, Stop, run_jobs
from gems.bulk.jobs import Job
from gems.bulk.results import BatchRow, row_of


def test_a_batch_ends_when_its_backend_fails_for_good(tmp_path: Path) -> None:
    """Otherwise the batch would pay for the plans of thousands of prompts that cannot be drawn."""
    jobs, attempted_jobs = [Job(i, "p", i) for i in range(500)], list[int]()

    def work(job: Job) -> BatchRow:
        attempted_jobs.append(job.index)
        if job.index < 50 and job.index % 2:
            return {**row_of(job), "outcome": "solved"}
        return {**row_of(job), "error": "the key was revoked", "error_kind": "backend"}

    batch = run_jobs(jobs, tmp_path, work, concurrency=2, stop=Stop(), on_start=lambda _: None, on_done=lambda _: None)
    assert "the key was revoked" in (batch.failure_message or "")
    assert 50 + 18 <= len(attempted_jobs) <= 50 + 25
    assert len(batch.unfinished_jobs) == 500 - len(attempted_jobs)


def test_bad_prompts_do_not_end_a_batch() -> None:
    stop = Stop()
    streak = FailureStreak(stop, 1)
    for _ in range(100):
        streak.add({**row_of(Job(0, "p", 1)), "error": "unknown word", "error_kind": "input"})
    assert not stop.is_requested
