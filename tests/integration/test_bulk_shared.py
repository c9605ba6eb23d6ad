"""What the machines of a cluster share: leases on prompts, checkpoints in PostgreSQL and shared storage."""

from __future__ import annotations

import json
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
from langgraph.runtime import RunControl
from servers.waiting import wait_until
from shared_servers import marks, needs

from gems.bulk.ray_workers import check_shared_storage
from gems.database import database_pool
from gems.errors import InputError
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
    with database_pool(lease_location) as pool, closing(DatabaseLeases(pool)) as database_leases:
        yield database_leases


def end_sessions(database: str) -> None:
    """End all other sessions, as a restart of the server does."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


def holders(database: str) -> int:
    import psycopg

    with psycopg.connect(database) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchall()
    return int(count)


@needs("postgres")
def test_leases_are_taken_again_when_the_database_was_restarted(database: str) -> None:
    lost: list[str] = []
    with database_pool(database) as pool, closing(DatabaseLeases(pool, lost.append)) as leases:
        assert all(map(leases.acquire, "abc"))
        leases.release("c")
        end_sessions(database)
        wait_until(lambda: holders(database) == 2, lambda: "the leases are free")
        with database_pool(database) as other_pool, closing(DatabaseLeases(other_pool)) as others:
            assert [others.acquire(name) for name in "abc"] == [False, False, True]
            leases.release("a")
            assert others.acquire("a")
    assert lost == []


@needs("postgres")
def test_a_lost_connection_is_no_lost_lease(database: str) -> None:
    """The server may still hold the locks of the session behind it."""
    lost: list[str] = []
    with database_pool(database) as pool, closing(DatabaseLeases(pool, lost.append)) as leases:
        assert leases.acquire("a")
        lost_connection, leases._connection = leases._connection, None
        assert lost_connection is not None
        assert leases.acquire("b")
        assert (lost, holders(database)) == ([], 2)
        lost_connection.close()
        pool.putconn(lost_connection)


@needs("postgres")
def test_work_ends_before_its_next_step_once_another_process_has_its_lease(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, says = RunControl(), "another process works on it"
    opened: list[DatabaseLeases] = []

    class Recorded(DatabaseLeases):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self)

    def work(others: DatabaseLeases) -> None:
        with leased_in_database(database, "run", says, control):
            assert not others.acquire("run")
            with opened[0]._lock:  # it does not look yet
                end_sessions(database)
                wait_until(lambda: others.acquire("run"), lambda: "the lease stays held")
            wait_until(lambda: control.drain_requested, lambda: "the work goes on")

    with database_pool(database) as pool, closing(DatabaseLeases(pool)) as others:
        monkeypatch.setattr("gems.leases.DatabaseLeases", Recorded)
        with pytest.raises(InputError, match=f"the database was away, and meanwhile {says}"):
            work(others)
        with pytest.raises(InputError, match=f"^{says}"):
            work(others)


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
