"""What the machines of a cluster share: leases on prompts, checkpoints in PostgreSQL, places that all of them see."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from chatting import serving
from servers.waiting import wait_until
from shared_servers import marks, needs

from gems.bulk.leases import DatabaseLeases, FileLeases, Leases, hold_lease
from gems.bulk.ray_workers import check_shared_storage
from gems.database import database_pool
from gems.errors import InputError
from gems.evals.prompts import fresh_prompts
from gems.graph.context import GemsContext

HOLDER = """
import sys, time
from pathlib import Path
from gems.bulk.leases import DatabaseLeases, FileLeases, hold_lease
from gems.memory.opening import database_pool
where = sys.argv[1]
if where.startswith("postgresql://"):
    leases = DatabaseLeases(database_pool(where))
else:
    leases = FileLeases(Path(where))
with hold_lease(leases, "batch", 7):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["file", pytest.param("database", marks=marks("postgres"))])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "leases") if request.param == "file" else request.getfixturevalue("database")


@pytest.fixture
def leases(place: str) -> Iterator[Leases]:
    if not place.startswith("postgresql://"):
        yield FileLeases(Path(place))
        return
    with database_pool(place) as pool:
        yield DatabaseLeases(pool)


def test_a_lease_is_held_by_one_process_and_ends_with_it(place: str, leases: Leases) -> None:
    with forked.Process([sys.executable, "-c", HOLDER, place], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with hold_lease(leases, "batch", 8) as ours:  # another prompt's is free
            assert ours
        with hold_lease(leases, "batch", 7, lambda: True) as ours:  # one that is to stop does not wait
            assert not ours
        got = threading.Event()

        def take() -> None:
            with hold_lease(leases, "batch", 7) as ours:
                assert ours
                got.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert not got.wait(0.5)
        other.send_signal(signal.SIGKILL)
        assert got.wait(20)
        thread.join()


@needs("postgres")
def test_a_batch_goes_on_on_another_machine_from_checkpoints_in_a_database(database: str, tmp_path: Path) -> None:
    """Of the folder, only the record and the images are taken along."""
    file, out, other = tmp_path / "p.jsonl", tmp_path / "out", tmp_path / "other"
    file.write_text("".join(json.dumps({"prompt": p.prompt}) + "\n" for p in fresh_prompts(8, 9)))
    with serving("image_server.py") as address:

        def command(folder: Path) -> list[str]:
            given = ["--max-rounds", "3", "--no-plan", "--no-skills", "--concurrency", "4", "--images", str(tmp_path)]
            places = ["--out", str(folder), "--checkpoints", database, "--generator", f"{address}/slow/draw"]
            return forked.command_line("batch", file, *given, *places)

        with forked.Process(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: any(tmp_path.glob("??/*.png")), lambda: "it made no image")
            process.kill()
        assert not (out / "checkpoints.sqlite").exists()
        other.mkdir()
        for name in ("batch.json", "results.jsonl"):
            if (out / name).exists():
                (other / name).write_bytes((out / name).read_bytes())
        done = forked.run(command(other), timeout=120)
        assert done.returncode == 0, done.stderr
        seen = _asked(address)
    rows = [json.loads(line) for line in (other / "results.jsonl").read_text().splitlines()]
    assert sorted(row["index"] for row in rows) == list(range(8))
    images = sum(row["usage"]["images"] for row in rows)
    assert images == len(set(seen)) == 24  # flat colours never pass
    assert len(seen) - images <= 4  # those that were being made when it was killed


def _asked(address: str) -> list[str]:
    import urllib.request

    with urllib.request.urlopen(f"{address}/log") as answer:
        return [json.dumps([one["request"]["prompt"], one["request"]["seed"]]) for one in json.load(answer)["seen"]]


@pytest.mark.parametrize(
    ("context", "checkpoints", "evidence", "says"),
    [
        ({}, None, False, "--checkpoints postgresql"),
        ({}, "postgresql://db/gems", False, "--images"),
        ({"images_url": "s3://b/f"}, "postgresql://db/gems", True, "--evidence"),
        ({"images_url": "s3://b/f", "memory": True}, "postgresql://db/gems", False, "--memory"),
    ],
)
def test_several_machines_need_places_that_all_of_them_see(
    context: dict[str, Any], checkpoints: str | None, evidence: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMS_IMAGES", raising=False)
    settings = GemsContext(**{"memory": False, **context})
    with pytest.raises(InputError, match=says):
        check_shared_storage({"a", "b"}, settings, checkpoints, evidence=evidence)
    check_shared_storage({"a"}, settings, checkpoints, evidence=evidence)


def test_with_such_places_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GEMS_IMAGES", raising=False)
    settings = GemsContext(memory=False, images_url="s3://b/f")
    check_shared_storage({"a", "b"}, settings, "postgresql://db/g", evidence=False)
