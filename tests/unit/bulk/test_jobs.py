"""Jobs of a batch."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from gems.bulk.jobs import Job, read_jobs, sample_of

JOBS = [Job(i, f"prompt {i}", 100 + i) for i in range(6)]


def test_a_sample_is_the_same_at_each_call() -> None:
    assert sample_of(JOBS, 3, 1) == sample_of(JOBS, 3, 1)
    assert len({job.index for job in sample_of(JOBS, 3, 1)}) == 3
    assert sample_of(JOBS, 99, 1) == JOBS


def jobs_of(path: Path, entries: list[Any]) -> list[Job]:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return read_jobs(path, 0)


def test_a_job_does_not_depend_on_its_line(tmp_path: Path) -> None:
    """Lines that say the same are told apart, and it does not matter which is which."""
    entries: list[dict[str, Any]] = [{"prompt": f"{i} cats"} for i in range(6)]
    entries += [{"prompt": "a dog", "id": i} for i in range(3)] + [{"prompt": "a dog"}] * 3
    entries += [{"prompt": "a dog", "seed": 7}] * 2 + [{"prompt": "a dog", "seed": 7, "id": "x"}]
    keys = {job.key for job in jobs_of(tmp_path / "p.jsonl", entries)}
    assert len(keys) == len(entries)
    for seed in range(5):
        shuffled = random.Random(seed).sample(entries, len(entries))
        assert {job.key for job in jobs_of(tmp_path / "p.jsonl", shuffled)} == keys
    more = {job.key for job in jobs_of(tmp_path / "p.jsonl", [{"prompt": "first"}, *entries])}
    assert more > keys
    seeds = [job.seed for job in jobs_of(tmp_path / "p.jsonl", entries[:12])]
    assert len(set(seeds)) == 12


def test_an_id_that_is_no_text_becomes_its_json(tmp_path: Path) -> None:
    ids = [7, "7", True, 1.5, None, [1, "ü"], {"b": 1, "a": None}, ""]
    jobs = jobs_of(tmp_path / "p.jsonl", [{"prompt": "a cat", "id": id_} for id_ in ids])
    assert [job.id for job in jobs] == ["7", "7", "true", "1.5", None, '[1, "ü"]', '{"a": null, "b": 1}', ""]
    assert len({job.key for job in jobs}) == len(ids)
