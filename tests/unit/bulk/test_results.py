"""The folder of a batch: each prompt's result counts once, even if the file was damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from gems.bulk.batch import brief, places_of
from gems.bulk.jobs import Job
from gems.bulk.journal import PartialRun
from gems.bulk.results import (
    BatchRow,
    ResultsFile,
    best_attempt_of,
    claim,
    locked,
    read_manifest,
    row_of,
    saved_jobs,
    write_jobs,
)
from gems.bulk.row_checks import check_row
from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Attempt, Budget, ImageRef, Prices, Usage
from gems.memory.image_store import ImageStore
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


def test_an_editor_may_drop_the_last_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    ResultsFile(path).add(result(JOBS[0]))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    writer = ResultsFile(path, repair=True)
    assert writer.has(JOBS[0])
    writer.add(result(JOBS[1]))
    assert [row["index"] for row in ResultsFile(path).rows(JOBS)] == [0, 1]


def test_a_result_belongs_to_its_prompt_and_not_to_its_line(tmp_path: Path) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    for job in JOBS:
        record.add(result(job))
    moved = [replace(job, index=5 - job.index, line=99 - job.index) for job in reversed(JOBS)]
    assert all(map(record.is_done, moved))
    assert [(row["index"], row["line"], row["id"]) for row in record.rows(moved)] == [
        (job.index, job.line, job.id) for job in moved
    ]
    assert record.stray_count(moved[:4]) == 2
    for other in (replace(JOBS[0], id="x"), replace(JOBS[0], copy=1), replace(JOBS[0], prompt="p"), Job(0, "q", 1)):
        assert not record.has(other)


def test_results_of_other_settings_are_no_results_but_count_as_spent(tmp_path: Path) -> None:
    ResultsFile(tmp_path / "r.jsonl").add(result(JOBS[0], bound_to="before"))
    record = ResultsFile(tmp_path / "r.jsonl", bound_to="now")
    assert not record.has(JOBS[0])
    assert record.usage.images == 2


def test_a_run_that_goes_on_counts_once(tmp_path: Path) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0], images=1, run_id="a", error="no server", error_kind="backend"))
    record.add(result(JOBS[0], images=3, run_id="a", stopped_by_total="images"))
    assert (record.group(JOBS[0]), record.is_done(JOBS[0]), record.usage.images) == ("cut_short", False, 3)
    run = PartialRun(key=JOBS[0].key, run_id="a", usage=Usage(images=5))
    for results in (record, ResultsFile(tmp_path / "r.jsonl")):
        assert results.unrecorded(run).images == 2
    record.add(result(JOBS[0], images=6, run_id="a"))
    for results in (record, ResultsFile(tmp_path / "r.jsonl")):
        assert (results.usage.images, results.unrecorded(run).images) == (6, 0)


def test_a_tally_counts_a_run_that_goes_on_once(tmp_path: Path) -> None:
    """The progress bar counts on from there: what it says is what the record says."""
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0], images=3, run_id="a", error="no server", error_kind="backend"))
    tally = record.tally(JOBS)
    for row in (result(JOBS[0], images=5, run_id="a"), result(JOBS[1], images=1, run_id="b")):
        record.add(row)
        tally.add(row)
        assert (tally.usage, tally.outcomes) == (record.usage, record.tally(JOBS).outcomes)
    assert tally.usage.images == 6


@pytest.mark.parametrize("change", ["cut off", "other lines", "gone", "pipe", "link"])
def test_a_file_that_is_changed_while_it_is_in_use_is_told(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "batch"
    folder.mkdir()
    path = folder / "r.jsonl"
    record = ResultsFile(path)
    for job in JOBS[:3]:
        record.add(result(job))
    content = path.read_bytes()
    path.unlink()
    match change:
        case "cut off":
            path.write_bytes(content[:-40])
        case "other lines":
            path.write_bytes(b"[]\n" * len(content))
        case "pipe":
            os.mkfifo(path)
        case "link":
            (tmp_path / "own").write_bytes(content)
            path.symlink_to(tmp_path / "own")
    with pytest.raises(InputError, match="was changed while it was in use"):
        list(record.rows(JOBS))
    if change == "pipe":
        with pytest.raises(OSError, match=r"No such device|pipe"):
            record.add(result(JOBS[4]))


def test_lines_that_somebody_has_copied_count_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record = ResultsFile(path)
    record.add(result(JOBS[0], images=3, run_id="a", error="no server", error_kind="backend"))
    record.add(result(JOBS[0], images=5, run_id="a"))
    record.add(result(JOBS[1], images=1, run_id="b"))
    first, *others = path.read_bytes().splitlines(keepends=True)
    for copies in ([first, *others, *others], [first, *others, first, *others], [first, first, *others]):
        path.write_bytes(b"".join(copies))
        assert ResultsFile(path).usage.images == 6
    write_jobs(tmp_path, JOBS[:2])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(prompts.read_bytes() * 2)
    with pytest.raises(InputError, match="has a line twice"):
        saved_jobs(tmp_path)


def test_a_result_without_its_moment_is_a_result(tmp_path: Path) -> None:
    record = ResultsFile(tmp_path / "r.jsonl")
    record.add(result(JOBS[0], at=None))
    record.add(result(JOBS[1]))
    assert [moment.second for moment in ResultsFile(tmp_path / "r.jsonl").latest_moments(9)] == [1]


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
    with locked(tmp_path), pytest.raises(InputError, match="another process"), locked(tmp_path):
        pass


def test_a_start_waits_for_the_workers_of_one_that_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 77); print(); "
    code += "sys.stdout.flush(); input()"
    command = [sys.executable, "-c", code, str(tmp_path / ".leases")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        monkeypatch.setattr("gems.bulk.results._ORPHAN_SECONDS", 0.0)
        with pytest.raises(InputError, match="workers of an earlier start"), locked(tmp_path):
            pass
        monkeypatch.undo()
        threading.Timer(0.1, worker.kill).start()
        with locked(tmp_path):
            assert worker.wait(10) != 0


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
    with pytest.raises(InputError, match=r"other skills, or other contents of them \(counting\)"):
        claim(tmp_path / "a", context, MODELS, {"counting": "123"})
    # Prices can be added later, unless a limit on each prompt depends on them.
    priced = context.model_copy(update={"budget": Budget(prices=Prices(image=1))})
    assert claim(tmp_path / "a", priced, MODELS) == first
    with pytest.raises(InputError, match="other settings"):
        claim(tmp_path / "a", context.model_copy(update={"budget": Budget(cost=2, prices=Prices(image=1))}), MODELS)
    (tmp_path / "a" / "batch.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        claim(tmp_path / "a", context, MODELS)
    (tmp_path / "a" / "batch.json").write_text('{"id": "1", "bound_to": "2"}')
    with pytest.raises(InputError, match="another version"):
        claim(tmp_path / "a", context, MODELS)


def test_a_batch_stays_where_its_images_and_checkpoints_are(tmp_path: Path) -> None:
    context = GemsContext(memory=False)

    def begin(database: str | None = None, **images: str) -> None:
        settings = context.model_copy(update=images)
        claim(tmp_path, settings, MODELS, {}, places_of(settings, tmp_path, database))

    begin("postgresql://me:secret@db/gems")
    begin("postgresql://me:other@db/gems", images_url=f"{tmp_path}/images")
    assert "secret" not in (tmp_path / "batch.json").read_text()
    for database, images in (("postgresql://me@db/gems", {"images_url": f"{tmp_path}/more"}), (None, {})):
        with pytest.raises(InputError, match="begun with another --"):
            begin(database, **images)
    content = json.loads((tmp_path / "batch.json").read_text())
    del content["places"]  # as earlier versions wrote it
    (tmp_path / "batch.json").write_text(json.dumps(content))
    begin()


def test_a_batch_moves_with_an_image_store_of_its_callers(tmp_path: Path) -> None:
    context = GemsContext(memory=False)
    for name in ("here", "there"):
        images = ImageStore(tmp_path / name / "images")
        assert places_of(context, tmp_path / name / "arm", None, images) == {}


def test_a_folder_keeps_its_prompts(tmp_path: Path) -> None:
    write_jobs(tmp_path, JOBS)
    assert saved_jobs(tmp_path) == JOBS
    path = tmp_path / "prompts.jsonl"
    path.write_text(path.read_text().replace('"prompt 3"', "7"))
    with pytest.raises(InputError, match=r'line 4 is damaged .*"prompt"'):
        saved_jobs(tmp_path)
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


ATTEMPT = {
    "round": 1,
    "candidate": 0,
    "strategy": "plan",
    "prompt": "p",
    "seed": 1,
    "score": 0.5,
    "passed": 1,
    "total": 2,
    "verdicts": {"r1": ["yes", 0.9]},
    "image": "file:///i.png",
    "sha256": "0" * 64,
    "edited_from": "",
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"best": 99}, "best is 99"),
        ({"best": -1}, "best"),
        ({"usage": "x"}, "usage"),
        ({"usage": {"images": -1}}, "usage.images"),
        ({"usage": {"pictures": 1}}, "usage.pictures"),
        ({"usage": {"images": 10**30}}, "usage"),
        ({"rounds": 2**31}, "rounds"),
        ({"attempts": [ATTEMPT | {"round": 2**31}]}, "attempts.0.round"),
        ({"attempts": [ATTEMPT | {"seed": 2**63}]}, "attempts.0.seed"),
        ({"line": 2**63}, "line"),
        ({"attempts": None}, "attempts"),
        ({"attempts": [{"round": 1}]}, "attempts.0.candidate"),
        ({"attempts": [ATTEMPT | {"sha256": "../../etc"}]}, "attempts.0.sha256"),
        ({"attempts": [ATTEMPT | {"verdicts": {"r1": "yes"}}]}, "attempts.0.verdicts"),
        ({"requirements": [{"id": "r1"}]}, "requirements.0.question"),
        ({"score": float("inf")}, "Infinity"),
        ({"outcome": "won"}, "outcome"),
        ({"outcome": None}, "neither an outcome nor an error"),
        ({"error": "no server"}, "error_kind"),
        ({"error": "no server", "error_kind": "server"}, "error_kind"),
        ({"seconds": "long"}, "seconds"),
        ({"at": "yesterday"}, "at"),
        ({"at": "2026-01-01T00:00:00z"}, "at"),
        ({"at": "2026-01-01T00:00:00"}, "at: it has no time zone"),
        ({"index": "0"}, "index"),
        ({"seed": None}, "seed"),
        ({"id": 7}, "id"),
        ({"index": 2**63}, "index"),
        ({"attempts": [ATTEMPT | {"seed": 2**64}]}, "attempts.0.seed"),
        ({"usage": {"images": 2**64}}, "usage"),
    ],
)
def test_an_edited_line_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    record = ResultsFile(path)
    for job in JOBS[:3]:
        record.add(result(job, attempts=[ATTEMPT], best=0))
    assert ResultsFile(path).has(JOBS[2])
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=rf"results.jsonl, line 2 .*{says}"):
        ResultsFile(path)


@pytest.mark.parametrize(
    "line", [b"[]", b"null", b"\xff", b'{"index": 0, "prompt": "p"}', b'{"index": 1, "prom', b"[" * 10**5]
)
def test_a_line_that_is_no_result_is_named(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(line + b"\n")
    with pytest.raises(InputError, match="line 1 is no result"):
        ResultsFile(tmp_path / "r.jsonl")


@pytest.mark.parametrize("name", ["batch.json", "prompts.jsonl"])
def test_a_file_that_is_nested_too_deeply_is_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"[" * 10**5 + b"\n")
    with pytest.raises(InputError, match=f"{name}.*nested too deeply"):
        (read_manifest if name == "batch.json" else saved_jobs)(tmp_path)


def test_places_and_seeds_of_saved_prompts_have_bounds(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({**JOBS[0].fields(), "index": 2**63}) + "\n")
    with pytest.raises(InputError, match='"index" is no whole number from 0 to'):
        saved_jobs(tmp_path)


@pytest.mark.parametrize("name", ["results.jsonl", "begun.jsonl", "checkpoints.sqlite", ".leases"])
def test_a_strangers_folder_cannot_have_another_file_written(name: str, tmp_path: Path) -> None:
    own, folder = tmp_path / "own.txt", tmp_path / "batch"
    own.write_text("mine, without a line feed")
    folder.mkdir()
    (folder / name).symlink_to(own)
    with pytest.raises(InputError, match=f"{name} is a link"), locked(folder):
        ResultsFile(folder / name, repair=True)
    assert own.read_text() == "mine, without a line feed"


def test_a_result_says_how_well_each_image_is_made() -> None:
    image = ImageRef(uri="file:///x.png", sha256="0" * 64, width=8, height=8)
    attempt = Attempt(round=1, candidate=0, prompt="p", seed=1, image=image, quality=0.25, flaws="three hands")
    line = {**result(JOBS[0]), "attempts": [brief(attempt)], "best": 0}
    assert check_row(json.dumps(line).encode())["attempts"][0]["flaws"] == "three hands"
    assert brief(attempt).get("quality") == 0.25
    assert "quality" not in brief(attempt.model_copy(update={"quality": 0.5}))
    assert "negative_prompt" not in brief(attempt)
    negated = {**line, "attempts": [brief(attempt.model_copy(update={"negative_prompt": "people"}))]}
    assert check_row(json.dumps(negated).encode())["attempts"][0]["negative_prompt"] == "people"


def test_the_best_attempt_of_a_result() -> None:
    attempts = [{"round": 1}, {"round": 2}]
    assert best_attempt_of(result(JOBS[0], attempts=attempts, best=1)) == {"round": 2}
    assert best_attempt_of(result(JOBS[0], attempts=[], best=None)) is None
    assert best_attempt_of(result(JOBS[0], error="no server")) is None
