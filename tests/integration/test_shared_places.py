"""What can go wrong with a memory and images that several machines share, and what must never be written down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from embedding import Points
from gems.database import database_pool, without_password
from gems.errors import BackendError, GemsError, InputError
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.memory.opening import open_store
from gems.runs.checkpoints import open_checkpoints
from servers.postgres import PASSWORD, serving_postgres

SECRET = "canary123"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_postgres() as address:
        yield address


@pytest.fixture
def database(server: str) -> str:
    """An empty database of the test's own."""
    import psycopg

    name = f"d{time.time_ns()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
    return server.replace("/postgres", f"/{name}")


def gems(home: Path, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gems", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=home.parent,
        env={**os.environ, "GEMS_HOME": str(home), "COLUMNS": "300", **env},
    )


ODD = [
    f"postgresql://127.0.0.1:1/db?user=u&password={SECRET}",
    f"postgresql://127.0.0.1:1/db?sslpassword={SECRET}",
    f"postgresql://u:a/{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:a@{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:a#{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:a?{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:%zz{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:{SECRET}@127.0.0.1:{SECRET}/db",
    f"mysql://u:{SECRET}@127.0.0.1/db",
]


@pytest.mark.parametrize("where", ODD)
def test_a_password_in_an_odd_place_is_neither_shown_nor_written_down(where: str) -> None:
    with pytest.raises(GemsError) as told:
        open_store(where, Points(dims=8))
    context = GemsContext.model_validate({"memory_url": where})
    for text in (str(told.value), context.model_dump_json(), repr(context), without_password(where)):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("postgresql://u:p@h:5432/db?sslmode=require", "postgresql://u@h:5432/db?sslmode=require"),
        ("postgres://h1:1,h2:2/db", "postgres://h1:1,h2:2/db"),
        ("postgresql://u@[::1]:5432/db", "postgresql://u@[::1]:5432/db"),
        ("postgresql:///db?host=%2Ftmp", "postgresql:///db?host=%2Ftmp"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_all_but_the_password_is_kept(given: str, left: str) -> None:
    assert without_password(given) == left


def test_a_wrong_address_leaves_no_secret_in_any_file(tmp_path: Path) -> None:
    for where in (ODD[0], ODD[2], ODD[8]):
        done = gems(tmp_path / "home", "generate", "a blue car", "--memory", where, "--out", tmp_path / "out", "-q")
        assert done.returncode in (2, 3), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert not any(SECRET.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not [path for path in tmp_path.iterdir() if "mysql" in path.name]


def test_many_processes_set_up_an_empty_database_at_once(database: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from embedding import Points; "
        "from gems.memory.opening import open_store; from gems.runs.checkpoints import open_checkpoints\n"
        "with open_checkpoints(Path(), sys.argv[1]): open_store(sys.argv[1], Points(dims=8)).put(('a',), sys.argv[3], "
        "{'prompt': 'x'})"
    )
    tests = str(Path(__file__).parents[1])
    processes = [
        subprocess.Popen([sys.executable, "-c", code, database, tests, str(k)], stderr=subprocess.PIPE, text=True)
        for k in range(4)
    ]
    told = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, told
    assert told == [""] * 4  # nor does a pool complain while the interpreter ends
    assert len(open_store(database, Points(dims=8)).search(("a",), limit=9)) == 4


def test_a_run_killed_on_one_machine_goes_on_on_another(database: str, tmp_path: Path) -> None:
    prompt, images = "seven wooden koalas chasing a sparkling giraffe", ["--images", str(tmp_path / "shared")]
    command = [sys.executable, "-m", "gems", "generate", prompt, "--seed", "1", *images]
    env = {**os.environ, "GEMS_HOME": str(tmp_path / "one"), "GEMS_MEMORY": database}
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.DEVNULL, env=env)
    until = time.monotonic() + 120
    with database_pool(database) as pool, pool.connection() as connection:
        while time.monotonic() < until:
            there = connection.execute("SELECT to_regclass('checkpoints') AS t").fetchone()
            if there and there["t"]:
                count = connection.execute("SELECT count(*) AS n FROM checkpoints").fetchone()
                if count and count["n"] >= 3:
                    break
            time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    [thread] = [path.stem for path in (tmp_path / "one" / "threads").glob("*.json")]

    without = gems(tmp_path / "one", "generate", "--resume", thread, "-q")
    assert (without.returncode, "GEMS_MEMORY" in without.stderr) == (2, True), without.stderr

    nowhere = gems(tmp_path / "two", "generate", "--resume", "no-such-run", "--memory", database)
    assert (nowhere.returncode, "there is no run" in nowhere.stderr) == (2, True), nowhere.stderr
    done = gems(tmp_path / "two", "generate", "--resume", thread, "--memory", database, "--json")
    assert done.returncode in (0, 1), done.stderr
    record = json.loads(done.stdout)
    assert record["prompt"] == prompt
    assert all(a["image"]["uri"].startswith(f"file://{tmp_path}/shared/") for a in record["attempts"])
    assert (tmp_path / "gems-out" / thread / "run.json").exists()

    again = gems(tmp_path / "one", "generate", "--resume", thread, "--json", GEMS_MEMORY=database)
    assert json.loads(again.stdout)["attempts"] == record["attempts"]
    assert not any(PASSWORD.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_server_that_is_stopped_ends_the_work_with_one_line(tmp_path: Path) -> None:
    with serving_postgres() as address:
        store = open_store(address, Points(dims=8))
        store.put(("a",), "k", {"prompt": "x"})
        remaining = ExitStack()
        saver = remaining.enter_context(open_checkpoints(tmp_path, address))
    start = time.monotonic()
    with pytest.raises(BackendError, match="PostgreSQL") as told:
        store.get(("a",), "k")
    with pytest.raises(BackendError, match="cannot write checkpoints"), remaining:
        saver.get({"configurable": {"thread_id": "t"}})
    assert time.monotonic() - start < 60
    assert PASSWORD not in str(told.value)
    done = gems(tmp_path / "home", "generate", "a blue car", "--memory", address, "--out", tmp_path / "out", "-q")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (3, 1), done.stderr
    assert PASSWORD not in done.stderr


def test_batch_remembers_where_it_is_told_to(database: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a blue car\n")
    for more, rows in (([], 0), (["--no-memory"], 0), (["--memory", database], 2)):
        out = tmp_path / f"out{len(more)}{rows}"
        done = gems(tmp_path / "home", "batch", tmp_path / "prompts.txt", "--out", out, *more, GEMS_MEMORY=database)
        assert done.returncode == 0, done.stderr
        with database_pool(database) as pool, pool.connection() as connection:
            there = connection.execute("SELECT to_regclass('store') AS t").fetchone()
            assert there is not None
            assert bool(there["t"]) == bool(rows)
        assert not any(PASSWORD.encode() in file.read_bytes() for file in out.rglob("*") if file.is_file())
    both = gems(tmp_path / "home", "batch", tmp_path / "prompts.txt", "--out", out, "--memory", "x", "--no-memory")
    assert both.returncode == 2


def test_images_are_not_kept_where_a_login_is_in_the_address() -> None:
    with pytest.raises(InputError) as told:
        ImageStore(f"ftp://u:{SECRET}@127.0.0.1/images")
    assert SECRET not in str(told.value)
