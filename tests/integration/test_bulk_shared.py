"""What the machines of a cluster share: leases on prompts, checkpoints in PostgreSQL and shared storage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import forked
import pytest
from chatting import serving
from servers.waiting import wait_until
from shared_servers import marks, needs

from gems.bulk.ray_workers import check_shared_storage
from gems.database import database_pool
from gems.errors import BackendError, InputError
from gems.evals.prompts import fresh_prompts
from gems.graph.context import GemsContext
from gems.leases import DatabaseLeases, FileLeases, Leases, hold_lease, leased_in_database

HOLDER = """
import sys, time
from pathlib import Path
from gems.leases import DatabaseLeases, FileLeases, hold_lease
from gems.memory.opening import database_pool
where = sys.argv[1]
if where.startswith("postgresql://"):
    leases = DatabaseLeases(database_pool(where))
else:
    leases = FileLeases(Path(where))
with hold_lease(leases, "batch-7"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["file", pytest.param("database", marks=marks("postgres"))])
def lease_location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "leases") if request.param == "file" else request.getfixturevalue("database")


@pytest.fixture
def leases(lease_location: str) -> Iterator[Leases]:
    if not lease_location.startswith("postgresql://"):
        yield FileLeases(Path(lease_location))
        return
    with database_pool(lease_location) as pool:
        yield DatabaseLeases(pool)


def test_a_lease_is_held_by_one_process_and_ends_with_it(lease_location: str, leases: Leases) -> None:
    with forked.Process([sys.executable, "-c", HOLDER, lease_location], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with hold_lease(leases, "batch-8") as acquired:  # the lease of another prompt is free
            assert acquired
        with hold_lease(leases, "batch-7", lambda: True) as acquired:  # a process that must stop does not wait
            assert not acquired
        lease_taken = threading.Event()

        def take() -> None:
            with hold_lease(leases, "batch-7") as acquired:
                assert acquired
                lease_taken.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert not lease_taken.wait(0.5)
        other.send_signal(signal.SIGKILL)
        assert lease_taken.wait(20)
        thread.join()


OURS = "locktype = 'advisory'"


@needs("postgres")
def test_a_lease_that_a_restarted_database_has_forgotten_is_acquired_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr("gems.leases._RETRY_SECONDS", 0.05)
    reasons: list[str] = []
    with leased_in_database(database, "batch-7", "taken", reasons.append), psycopg.connect(database) as other:
        holders = "SELECT pid FROM pg_locks WHERE " + OURS
        [first] = other.execute(holders).fetchall()
        other.execute("SELECT pg_terminate_backend(%s)", first)
        wait_until(lambda: other.execute(holders).fetchall() not in ([], [first]), lambda: "it was not acquired again")
        with pytest.raises(InputError, match="taken"), leased_in_database(database, "batch-7", "taken", reasons.append):
            pass
    assert not reasons


@needs("postgres")
def test_a_connection_that_breaks_on_this_side_alone_loses_no_lease(database: str) -> None:
    """The server has not noticed it, and keeps the leases for the session of the broken connection."""
    with database_pool(database) as pool, closing(DatabaseLeases(pool)) as leases:
        assert leases.acquire("batch-7")
        assert leases.acquire("batch-8")
        connection = leases._connection
        assert connection is not None
        with os.fdopen(os.dup(connection.fileno()), closefd=True) as server_side, Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), connection.fileno())
            assert leases.holds("batch-7")
            assert leases.holds("batch-8")
            assert not server_side.closed
        assert leases._connection is not connection
        with database_pool(database) as other_pool, closing(DatabaseLeases(other_pool)) as other:
            assert not other.acquire("batch-7")
            leases.release("batch-7")
            assert other.acquire("batch-7")


@needs("postgres")
def test_work_is_stopped_once_another_process_has_its_lease(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    monkeypatch.setattr("gems.leases._RETRY_SECONDS", 0.05)
    stopped = threading.Event()

    def work() -> None:
        refusal = "another process has it"
        with leased_in_database(database, "batch-7", refusal, lambda reason: stopped.set()):
            row = other.execute(
                "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE granted AND " + OURS
            )
            waiting = threading.Thread(target=other.execute, args=("SELECT pg_advisory_lock(%s)", row.fetchone()))
            waiting.start()
            wait_until(
                lambda: administrator.execute("SELECT pid FROM pg_locks WHERE NOT granted").fetchone(),
                lambda: "the other process does not wait",
            )
            administrator.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE granted AND " + OURS)
            assert stopped.wait(10)
            waiting.join()

    with (
        psycopg.connect(database, autocommit=True) as other,
        psycopg.connect(database, autocommit=True) as administrator,
        pytest.raises(BackendError, match="another process has it"),
    ):
        work()


@needs("postgres")
def test_another_machine_continues_a_batch_from_checkpoints_in_a_database(database: str, tmp_path: Path) -> None:
    """Only the batch record, the results and the images are copied to the other machine."""
    file, out, other = tmp_path / "p.jsonl", tmp_path / "out", tmp_path / "other"
    file.write_text("".join(json.dumps({"prompt": p.prompt}) + "\n" for p in fresh_prompts(8, 9)))
    with serving("image_server.py") as address:

        def command(folder: Path) -> list[str]:
            options = ["--max-rounds", "3", "--no-plan", "--no-skills", "--concurrency", "4", "--images", str(tmp_path)]
            locations = ["--out", str(folder), "--checkpoints", database, "--generator", f"{address}/slow/draw"]
            return forked.command_line("batch", file, *options, *locations)

        with forked.Process(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: any(tmp_path.glob("??/*.png")), lambda: "no image was drawn")
            process.kill()
        assert not (out / "checkpoints.sqlite").exists()
        other.mkdir()
        for name in ("batch.json", "results.jsonl"):
            if (out / name).exists():
                (other / name).write_bytes((out / name).read_bytes())
        result = forked.run(command(other), timeout=120)
        assert result.returncode == 0, result.stderr
        requests = _requested_images(address)
    rows = [json.loads(line) for line in (other / "results.jsonl").read_text().splitlines()]
    assert sorted(row["index"] for row in rows) == list(range(8))
    images = sum(row["usage"]["images"] for row in rows)
    assert images == len(set(requests)) == 24  # flat colours never pass
    assert len(requests) - images <= 4  # images that were in flight when it was killed


@needs("postgres")
def test_two_machines_do_not_draw_a_batch_at_once_from_copies_of_its_folder(database: str, tmp_path: Path) -> None:
    file, out, other = tmp_path / "p.jsonl", tmp_path / "out", tmp_path / "other"
    file.write_text("".join(json.dumps({"prompt": p.prompt}) + "\n" for p in fresh_prompts(4, 9)))
    with serving("image_server.py") as address:
        options = ["--max-rounds", "1", "--no-plan", "--no-skills", "--concurrency", "2", "--images", str(tmp_path)]
        places = ["--checkpoints", database, "--generator", f"{address}/slow/draw"]
        first = forked.command_line("batch", file, *options, *places, "--out", str(out))
        with forked.Process(first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: _requested_images(address), lambda: "nothing was asked for")
            shutil.copytree(out, other)
            second = forked.command_line("batch", file, *options, *places, "--out", str(other))
            refused = forked.run(second, timeout=60)
            assert process.wait(60) == 0
        assert (refused.returncode, "another process works on this batch" in refused.stderr) == (2, True), refused
        assert len(_requested_images(address)) == 4


def _requested_images(address: str) -> list[str]:
    import urllib.request

    with urllib.request.urlopen(f"{address}/log") as answer:
        return [
            json.dumps([entry["request"]["prompt"], entry["request"]["seed"]]) for entry in json.load(answer)["seen"]
        ]


@pytest.mark.parametrize(
    ("context", "checkpoints", "evidence", "says"),
    [
        ({}, None, False, "--checkpoints postgresql"),
        ({}, "postgresql://db/gems", False, "--images"),
        ({"images_url": "s3://b/f"}, "postgresql://db/gems", True, "--evidence"),
        ({"images_url": "s3://b/f", "memory": True}, "postgresql://db/gems", False, "--memory"),
    ],
)
def test_several_machines_need_shared_storage(
    context: dict[str, Any], checkpoints: str | None, evidence: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMS_IMAGES", raising=False)
    settings = GemsContext(**{"memory": False, **context})
    with pytest.raises(InputError, match=says):
        check_shared_storage({"a", "b"}, settings, checkpoints, evidence=evidence)
    check_shared_storage({"a"}, settings, checkpoints, evidence=evidence)


def test_several_machines_accept_shared_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMS_IMAGES", raising=False)
    settings = GemsContext(memory=False, images_url="s3://b/f")
    check_shared_storage({"a", "b"}, settings, "postgresql://db/g", evidence=False)
