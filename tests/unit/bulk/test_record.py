"""A batch's results: what is written counts once, whatever happened to the file."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from gems.bulk.batch import Despair, Stop, run_jobs
from gems.bulk.jobs import Job, sample_of
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


def test_results_are_found_again_and_counted(tmp_path: Path) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0]))
    record.add(result(JOBS[1], images=5, outcome="rounds"))
    record.add(result(JOBS[2], error="no server", error_kind="backend"))
    for known in (record, ResultsFile(tmp_path / "r.jsonl")):
        assert [known.is_done(job) for job in JOBS[:4]] == [True, True, False, False]
        assert [row["index"] for row in known.rows(reversed(JOBS))] == [2, 1, 0]
        assert (known.usage.images, known.max_usage.images) == (9, 5)
        assert known.tally(JOBS).outcomes == {"solved": 1, "rounds": 1}
        assert known.tally(JOBS, retried=True).outcomes == {"solved": 1, "rounds": 1, "failed": 1}
    record.add(result(JOBS[2], images=1))  # it was tried again, and both tries were paid for
    assert record.is_done(JOBS[2])
    assert record.usage.images == 10
    assert [row["usage"]["images"] for row in record.rows([JOBS[2]])] == [1]


def test_a_prompt_put_right_is_another(tmp_path: Path) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0]))
    assert not record.has(Job(0, "prompt zero", 100))
    assert not record.has(Job(0, "prompt 0", 101))


def test_a_torn_line_is_cut_off_by_the_writer_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    ResultsFile(path).add(result(JOBS[0]))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"index": 1, "prom')
    assert ResultsFile(path).has(JOBS[0])
    assert path.read_bytes() != whole  # another process may just be writing it
    writer = ResultsFile(path, repair=True)
    assert path.read_bytes() == whole
    writer.add(result(JOBS[1]))
    assert [row["index"] for row in ResultsFile(path).rows(JOBS)] == [0, 1]


def test_a_full_disk_swallows_no_later_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0]))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
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


def test_a_batch_has_an_id_of_its_own_and_keeps_to_its_settings(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    context = GemsContext(memory=False)
    first = claim(tmp_path / "a", context, MODELS)
    assert claim(tmp_path / "a", context, MODELS) == first
    assert claim(tmp_path / "b", context, MODELS) != first  # or two of them would share checkpoints in one database
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path / "a", context.model_copy(update={"max_rounds": 2}), MODELS)
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path / "a", context, {"mllm": ModelRecord("pocket", "xyz")})
    # Prices that nothing depends on can be told later; those of a limit on each prompt cannot.
    priced = context.model_copy(update={"budget": Budget(prices=Prices(image=1))})
    assert claim(tmp_path / "a", priced, MODELS) == first
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path / "a", context.model_copy(update={"budget": Budget(cost=2, prices=Prices(image=1))}), MODELS)
    (tmp_path / "a" / "batch.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        claim(tmp_path / "a", context, MODELS)


def test_the_prompts_of_a_folder_are_kept(tmp_path: Path) -> None:
    write_jobs(tmp_path, JOBS)
    assert saved_jobs(tmp_path) == JOBS
    write_jobs(tmp_path, [])
    with pytest.raises(InputError, match="holds no batch"):
        saved_jobs(tmp_path)


def test_a_sample_is_the_same_at_each_call() -> None:
    assert sample_of(JOBS, 3, 1) == sample_of(JOBS, 3, 1)
    assert len({job.index for job in sample_of(JOBS, 3, 1)}) == 3
    assert sample_of(JOBS, 99, 1) == JOBS


def test_a_run_whose_backend_is_gone_is_given_up(tmp_path: Path) -> None:
    """Rather than to pay for plans of thousands of prompts that cannot be drawn."""
    jobs, tried = [Job(i, "p", i) for i in range(500)], list[int]()

    def work(job: Job) -> BatchRow:
        tried.append(job.index)
        if job.index < 50 and job.index % 2:
            return {**result(Job(job.index % 9, "p", 0)), **row_of(job)}
        return {**row_of(job), "error": "the key was revoked", "error_kind": "backend"}

    batch = run_jobs(jobs, tmp_path, work, concurrency=2, stop=Stop(), on_start=lambda _: None, on_done=lambda _: None)
    assert "the key was revoked" in (batch.given_up or "")
    assert 50 + 18 <= len(tried) <= 50 + 25
    assert len(batch.left) == 500 - len(tried)


def test_bad_prompts_are_no_reason_to_give_up() -> None:
    stop = Stop()
    despair = Despair(stop, 1)
    for _ in range(100):
        despair.hear({**row_of(JOBS[0]), "error": "unknown word", "error_kind": "input"})
    assert not stop.wanted


def test_the_same_prompt_and_seed_twice_are_two_prompts(tmp_path: Path) -> None:
    """In one file, with ids of their own."""
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
    for other in (
        line[:-1],
        line[: len(line) // 2] + b"\n",
        b"[]\n",
        b"null\n",
        b"\xff\n",
        json.dumps({**row, "index": "0"}).encode() + b"\n",
        json.dumps({"index": 0, "prompt": "p"}).encode() + b"\n",
    ):
        assert read_row(other) is None, other


def test_the_best_attempt_of_a_result() -> None:
    attempts = [{"round": 1}, {"round": 2}]
    assert best_attempt_of(result(JOBS[0], attempts=attempts, best=1)) == {"round": 2}
    assert best_attempt_of(result(JOBS[0], attempts=[], best=None)) is None
    assert best_attempt_of(result(JOBS[0], error="no server")) is None
