"""Killed writers: the crash test passes with our store and fails with a store that has lost something."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

import forked
import memory_crash
import numpy as np
import pytest
from memory_crash import Parent, Reader, Trial, after, look_at_all, plan, write
from memory_stores import Numbered

FORKING = """
import sys
sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]
import forked
import memory_crash
memory_crash.subprocess = forked.SUBPROCESS
memory_crash.main()
"""
"""The crash test command. Its own processes are forked too."""


@pytest.mark.slow
def test_nothing_is_lost_by_killed_writers(tmp_path: Path) -> None:
    options = {"--writers": 2, "--records": 600, "--kills": 2, "--samples": 50, "--out": tmp_path / "out"}
    arguments = [str(part) for pair in options.items() for part in pair]
    folders = [Path(module.__file__).parent for module in (forked, memory_crash)]
    result = forked.run([sys.executable, "-c", FORKING, *folders, *arguments], timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert (report["lost"], report["wrong"]) == (0, 0)
    assert 1 <= report["kills"] == report["restarts"] <= 2, "a fast writer may finish before the second kill"
    assert report["acknowledged"] > report["records"] > 900
    assert all(report["whole"].values())
    assert not (tmp_path / "out").exists()


def test_a_writer_continues_its_journal_and_ignores_an_incomplete_line(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 1, 100, 0)
    batches = plan(trial, 0)
    trial.journal(0).write_bytes(b"%d\n9999" % batches[0][-1].number)
    assert trial.acknowledged(0) == batches[0][-1].number
    trial.journal(0).write_bytes(b"%d\n" % batches[0][-1].number)
    write(trial, 0)
    assert trial.acknowledged(0) == batches[-1][-1].number
    parent = Parent(trial, 0)
    look_at_all(trial, parent, 0)
    skipped = {operation.key for operation in after(batches[0]).values()}
    assert {text.split(":")[0].removeprefix("0/") for text in parent.findings.lost_records} <= skipped


def test_lost_records_are_detected(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 1, 300, 0)
    write(trial, 0)
    operations = [operation for batch in plan(trial, 0) for operation in batch]
    last = after(operations)
    loss, stale, *_ = [
        o for o in last.values() if o.alive and any(p.key == o.key and p.number < o.number for p in operations)
    ]
    [deleted_record, *_] = [o for o in last.values() if not o.alive]
    earlier = next(o for o in operations if o.key == stale.key)
    with closing(trial.open()) as store:
        store.delete(("crash", "0"), loss.key)
        store.put(("crash", "0"), stale.key, {"t": f"0:{earlier.number}"}, index=["t"])
        store.put(("crash", "0"), deleted_record.key, {"t": f"0:{deleted_record.number}"}, index=["t"])
    parent = Parent(trial, 0)
    look_at_all(trial, parent, 400)
    assert {text.split(":")[0] for text in parent.findings.lost_records} == {f"0/{loss.key}", f"0/{stale.key}"}
    assert any(text.startswith(f"0/{deleted_record.key}:") for text in parent.findings.wrong)
    assert any("not found first" in text for text in parent.findings.wrong)


def test_a_partly_written_batch_is_detected(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 1, 300, 0)
    batches = plan(trial, 0)
    partial_batch = next(batch for batch in batches[1:] if len(batch) > 10)
    trial.journal(0).write_bytes(b"%d\n" % (partial_batch[0].number - 1))
    with closing(trial.open()) as store:
        for operation in after([o for batch in batches for o in batch if o.number <= partial_batch[4].number]).values():
            if operation.alive:
                store.put(("crash", "0"), operation.key, {"t": f"0:{operation.number}"}, index=["t"])
        parent = Parent(trial, 0)
        parent._look_at(0, store)
        assert parent.findings.lost_records or parent.findings.wrong


def test_a_value_with_the_wrong_vector_is_detected(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 1, 100, 0)
    write(trial, 0)
    with closing(trial.open()) as store:
        reader = Reader(trial, store)
        [first_record, second_record, *_] = [
            o for o in after([o for b in plan(trial, 0) for o in b]).values() if o.alive
        ]
        items = store.search(("crash",), query=f"0:{first_record.number}", limit=5)
        assert reader.mistakes(f"0:{first_record.number}", items) == []
        assert np.isclose(items[0].score or 0, 1, atol=1e-5)
        items[0].value["t"] = f"0:{second_record.number}"
        assert len(reader.mistakes(f"0:{first_record.number}", items)) == 2
        assert reader.mistakes(f"0:{first_record.number}", items[1:][::-1]) == ["not the nearest first"]
    assert Numbered(64).embed_query("0:1") != Numbered(64).embed_query("0:2")
