"""The folder of a batch: each prompt's result counts once, even if the file was damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from gems.bulk.jobs import Job
from gems.bulk.results import (
    BatchRow,
    ResultsFile,
    best_attempt_of,
    claim,
    is_locked,
    locked,
    read_row,
    row_of,
    saved_jobs,
    write_jobs,
)
from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Budget, Prices, Usage
from gems.runs.record import ModelRecord

JOBS = [Job(i, f"prompt {i}", 100 + i, id=f"id{i}", line=i + 1) for i in range(6)]
MODELS = {"mllm": ModelRecord("pocket", "abc")}


def result(job: Job, images: int = 2, **more: Any) -> BatchRow:
    usage = Usage(images=images, prompt_tokens=10).model_dump(mode="json")
    at = f"2026-01-01T00:00:0{job.index}+00:00"
    return cast(BatchRow, {**row_of(job), "outcome": "solved", "usage": usage, "at": at, **more})


def test_results_are_read_back_and_counted(tmp_path: Path) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0]))
    record.add(result(JOBS[1], images=5, outcome="rounds"))
    record.add(result(JOBS[2], error="no server", error_kind="backend"))
    for results in (record, ResultsFile(tmp_path / "r.jsonl")):
        assert [results.is_done(job) for job in JOBS[:4]] == [True, True, False, False]
        assert [row["index"] for row in results.rows(reversed(JOBS))] == [2, 1, 0]
        assert (results.usage.images, results.max_usage.images) == (9, 5)
        assert results.tally(JOBS).outcomes == {"solved": 1, "rounds": 1}
        assert results.tally(JOBS, retried=True).outcomes == {"solved": 1, "rounds": 1, "failed": 1}
    record.add(result(JOBS[2], images=1))  # a second attempt; both count as usage
    assert record.is_done(JOBS[2])
    assert record.usage.images == 10
    assert [row["usage"]["images"] for row in record.rows([JOBS[2]])] == [1]


def test_an_edited_prompt_has_no_result(tmp_path: Path) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0]))
    assert not record.has(Job(0, "prompt zero", 100))
    assert not record.has(Job(0, "prompt 0", 101))


def test_only_the_writer_cuts_off_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    ResultsFile(path).add(result(JOBS[0]))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"index": 1, "prom')
    assert ResultsFile(path).has(JOBS[0])
    assert path.read_bytes() != whole  # another process may be writing it
    writer = ResultsFile(path, repair=True)
    assert path.read_bytes() == whole
    writer.add(result(JOBS[1]))
    assert [row["index"] for row in ResultsFile(path).rows(JOBS)] == [0, 1]


def test_a_full_disk_costs_no_later_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0]))

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            record.add(result(JOBS[1]))
    record.add(result(JOBS[2]))
    assert [row["index"] for row in ResultsFile(tmp_path / "r.jsonl").rows(JOBS)] == [0, 2]


def test_a_folder_is_locked_by_one_process(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(InputError, match="another process"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_a_batch_has_a_unique_id_and_keeps_its_settings(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    context = GemsContext(memory=False)
    first = claim(tmp_path / "a", context, MODELS)
    assert claim(tmp_path / "a", context, MODELS) == first
    assert claim(tmp_path / "b", context, MODELS) != first  # otherwise both would share checkpoints in one database
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path / "a", context.model_copy(update={"max_rounds": 2}), MODELS)
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path / "a", context, {"mllm": ModelRecord("pocket", "xyz")})
    # Prices can be added later, unless a limit on each prompt depends on them.
    priced = context.model_copy(update={"budget": Budget(prices=Prices(image=1))})
    assert claim(tmp_path / "a", priced, MODELS) == first
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path / "a", context.model_copy(update={"budget": Budget(cost=2, prices=Prices(image=1))}), MODELS)
    (tmp_path / "a" / "batch.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        claim(tmp_path / "a", context, MODELS)


def test_a_folder_keeps_its_prompts(tmp_path: Path) -> None:
    write_jobs(tmp_path, JOBS)
    assert saved_jobs(tmp_path) == JOBS
    write_jobs(tmp_path, [])
    with pytest.raises(InputError, match="holds no batch"):
        saved_jobs(tmp_path)


def test_the_same_prompt_and_seed_twice_are_two_prompts(tmp_path: Path) -> None:
    """Their ids distinguish them."""
    twins = [Job(0, "a cat", 1, id="x"), Job(1, "a cat", 1, id="y")]
    write_jobs(tmp_path, twins)
    record = ResultsFile(tmp_path / "r.jsonl")
    for twin in twins:
        record.add(result(twin))
    assert [json.dumps(row["id"]) for row in record.rows(twins)] == ['"x"', '"y"']


def test_only_whole_results_are_read() -> None:
    row = result(JOBS[0])
    line = json.dumps(row).encode() + b"\n"
    assert read_row(line) == row
    for incomplete in (
        line[:-1],
        line[: len(line) // 2] + b"\n",
        b"[]\n",
        b"null\n",
        b"\xff\n",
        json.dumps({**row, "index": "0"}).encode() + b"\n",
        json.dumps({"index": 0, "prompt": "p"}).encode() + b"\n",
    ):
        assert read_row(incomplete) is None, incomplete


def test_the_best_attempt_of_a_result() -> None:
    attempts = [{"round": 1}, {"round": 2}]
    assert best_attempt_of(result(JOBS[0], attempts=attempts, best=1)) == {"round": 2}
    assert best_attempt_of(result(JOBS[0], attempts=[], best=None)) is None
    assert best_attempt_of(result(JOBS[0], error="no server")) is None
