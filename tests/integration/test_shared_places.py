"""Faults of shared memory and image storage, and secrets that must never be saved."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import forked
import pytest
from chatting import serving
from embedding import PointEmbeddings
from servers.postgres import PASSWORD, serving_postgres
from servers.waiting import wait_until
from shared_servers import marks, needs

from gems.database import database_pool, without_password
from gems.errors import BackendError, GemsError, InputError
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.memory.opening import open_store
from gems.runs.checkpoints import open_checkpoints

SECRET = "canary123"


def gems(home: Path, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return forked.gems(*args, home=home, cwd=home.parent, COLUMNS="300", **env)


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
def test_a_password_in_an_unusual_place_is_neither_shown_nor_saved(where: str) -> None:
    with pytest.raises(GemsError) as caught:
        open_store(where, PointEmbeddings(dims=8))
    context = GemsContext.model_validate({"memory_url": where})
    for text in (str(caught.value), context.model_dump_json(), repr(context), without_password(where)):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("url", "shown_url"),
    [
        ("postgresql://u:p@h:5432/db?sslmode=require", "postgresql://u@h:5432/db?sslmode=require"),
        ("postgres://h1:1,h2:2/db", "postgres://h1:1,h2:2/db"),
        ("postgresql://u@[::1]:5432/db", "postgresql://u@[::1]:5432/db"),
        ("postgresql:///db?host=%2Ftmp", "postgresql:///db?host=%2Ftmp"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_all_but_the_password_is_kept(url: str, shown_url: str) -> None:
    assert without_password(url) == shown_url


@pytest.mark.slow
def test_a_wrong_address_leaves_no_secret_in_any_file(tmp_path: Path) -> None:
    for where in (ODD[0], ODD[2], ODD[8]):
        result = gems(tmp_path / "home", "generate", "a blue car", "--memory", where, "--out", tmp_path / "out", "-q")
        assert result.returncode in (2, 3), result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert SECRET not in result.stdout + result.stderr
    assert not any(SECRET.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not [path for path in tmp_path.iterdir() if "mysql" in path.name]


@needs("postgres")
def test_many_processes_set_up_an_empty_database_at_once(database: str) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; from embedding import PointEmbeddings; "
        "from gems.memory.opening import open_store; from gems.runs.checkpoints import open_checkpoints\n"
        "with open_checkpoints(Path(), sys.argv[1]):\n"
        "    open_store(sys.argv[1], PointEmbeddings(dims=8)).put(('a',), sys.argv[3], {'prompt': 'x'})"
    )
    tests = str(Path(__file__).parents[1])
    # The last one is a fresh interpreter, because a forked process skips the teardown of modules.
    kinds = [forked.Process, forked.Process, forked.Process, subprocess.Popen]
    processes = [
        kind([sys.executable, "-c", code, database, tests, str(k)], stderr=subprocess.PIPE, text=True)
        for k, kind in enumerate(kinds)
    ]
    error_outputs = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, error_outputs
    assert error_outputs == [""] * 4  # the connection pool prints no warning at exit
    assert len(open_store(database, PointEmbeddings(dims=8)).search(("a",), limit=9)) == 4


@needs("postgres")
def test_a_killed_run_continues_on_another_machine(database: str, tmp_path: Path) -> None:
    prompt, images = "seven wooden koalas chasing a sparkling giraffe", ["--images", str(tmp_path / "shared")]
    command = forked.command_line("generate", prompt, "--seed", "1", *images, "--out", tmp_path / "out")
    env = forked.environment(tmp_path / "one", GEMS_MEMORY=database)
    process = forked.Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    with database_pool(database) as pool, pool.connection() as connection:

        def checkpoints() -> int:
            assert process.poll() is None, "the run ended before it could be killed"
            table = connection.execute("SELECT to_regclass('checkpoints') AS t").fetchone()
            if not table or not table["t"]:
                return 0
            [count] = connection.execute("SELECT count(*) AS n FROM checkpoints").fetchall()
            return int(count["n"])

        wait_until(lambda: checkpoints() >= 3, lambda: f"{checkpoints()} checkpoints")
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    [thread] = [path.stem for path in (tmp_path / "one" / "threads").glob("*.json")]

    without = gems(tmp_path / "one", "generate", "--resume", thread, "-q")
    assert (without.returncode, "GEMS_MEMORY" in without.stderr) == (2, True), without.stderr

    nowhere = gems(tmp_path / "two", "generate", "--resume", "no-such-run", "--memory", database)
    assert (nowhere.returncode, "there is no run" in nowhere.stderr) == (2, True), nowhere.stderr
    unnamed = gems(tmp_path / "two", "generate", "--resume", thread, "--memory", database)
    assert (unnamed.returncode, "GEMS_IMAGES" in unnamed.stderr) == (2, True), unnamed.stderr
    result = gems(tmp_path / "two", "generate", "--resume", thread, "--memory", database, *images, "--json")
    assert result.returncode in (0, 1), result.stderr
    record = json.loads(result.stdout)
    assert record["prompt"] == prompt
    assert all(a["image"]["uri"].startswith(f"file://{tmp_path}/shared/") for a in record["attempts"])
    assert (tmp_path / "gems-out" / thread / "run.json").exists()

    again = gems(
        tmp_path / "one", "generate", "--resume", thread, *images, "--out", tmp_path, "--json", GEMS_MEMORY=database
    )
    assert json.loads(again.stdout)["attempts"] == record["attempts"]
    assert not any(PASSWORD.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@needs("postgres")
def test_a_stopped_database_ends_the_run_with_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gems.database._CONNECT_TIMEOUT", 1)  # seconds; nobody waits for this one to come back
    with serving_postgres() as address:
        store = open_store(address, PointEmbeddings(dims=8))
        store.put(("a",), "k", {"prompt": "x"})
        remaining = ExitStack()
        saver = remaining.enter_context(open_checkpoints(tmp_path, address))
    with pytest.raises(BackendError, match="PostgreSQL") as caught:
        store.get(("a",), "k")
    with pytest.raises(BackendError, match="cannot write checkpoints"), remaining:
        saver.get({"configurable": {"thread_id": "t"}})
    assert PASSWORD not in str(caught.value)
    result = gems(tmp_path / "home", "generate", "a blue car", "--memory", address, "--out", tmp_path / "out", "-q")
    assert (result.returncode, len(result.stderr.strip().splitlines())) == (3, 1), result.stderr
    assert PASSWORD not in result.stderr


@needs("postgres")
def test_a_batch_uses_the_given_memory(database: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a blue car\n")
    for more, rows in (([], 0), (["--no-memory"], 0), (["--memory", database], 2)):
        out = tmp_path / f"out{len(more)}{rows}"
        result = gems(tmp_path / "home", "batch", tmp_path / "prompts.txt", "--out", out, *more, GEMS_MEMORY=database)
        assert result.returncode == 0, result.stderr
        with database_pool(database) as pool, pool.connection() as connection:
            table = connection.execute("SELECT to_regclass('store') AS t").fetchone()
            assert table is not None
            assert bool(table["t"]) == bool(rows)
        assert not any(PASSWORD.encode() in file.read_bytes() for file in out.rglob("*") if file.is_file())
    both = gems(tmp_path / "home", "batch", tmp_path / "prompts.txt", "--out", out, "--memory", "x", "--no-memory")
    assert both.returncode == 2


def test_an_image_location_with_a_login_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        ImageStore(f"ftp://u:{SECRET}@127.0.0.1/images")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("place", ["file", pytest.param("database", marks=marks("postgres"))])
def test_two_processes_do_not_draw_the_same_run(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    memory = tmp_path / "memory" if place == "file" else request.getfixturevalue("database")
    own = tmp_path / "own"
    other = own if place == "file" else tmp_path / "other"  # the home folder of another machine
    with serving("image_server.py") as painter:
        places = ("--memory", memory, "--images", tmp_path / "images", "--out", tmp_path / "out")
        options = (*places, "--generator", f"{painter}/busy-for-long/draw", "--quiet")
        command = ("generate", "a cat", *options, "--no-plan", "--no-skills", "--max-rounds", 1)

        def drawn() -> int:
            with urlopen(f"{painter}/log") as answer:
                return len(json.load(answer)["seen"])

        with forked.gems_process(*command, home=own) as process:
            wait_until(drawn, lambda: "nothing was asked for")
            run = next((own / "threads").glob("*.json")).stem
            refused = gems(other, "generate", "--resume", run, *options)
            process.kill()
        assert refused.returncode == 2
        assert f"another process works on the run {run}" in refused.stderr
        assert drawn() == 1
        with forked.gems_process("generate", "--resume", run, *options, home=other) as process:
            wait_until(lambda: drawn() == 2, lambda: "a killed process has kept its run")
            process.kill()
