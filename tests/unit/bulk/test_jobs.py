"""Jobs of a batch."""

from __future__ import annotations

from gems.bulk.jobs import Job, sample_of

JOBS = [Job(i, f"prompt {i}", 100 + i) for i in range(6)]


def test_a_sample_is_the_same_at_each_call() -> None:
    assert sample_of(JOBS, 3, 1) == sample_of(JOBS, 3, 1)
    assert len({job.index for job in sample_of(JOBS, 3, 1)}) == 3
    assert sample_of(JOBS, 99, 1) == JOBS
