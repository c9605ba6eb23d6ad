"""Memory and checkpoints in PostgreSQL with pgvector: a real server, the pocket models, the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedding import PointEmbeddings
from filter_cases import MATCHING_NUMBERS, MATCHING_ROWS, NUMBERS, ROWS, UNKNOWN_CONDITIONS
from forked import gems
from langgraph.store.base import BaseStore, PutOp
from remembering import past
from servers.postgres import PASSWORD
from shared_servers import marks

from gems.database import database_pool
from gems.errors import BackendError, InputError
from gems.graph.context import GemsContext
from gems.memory.embedder import init_embedder
from gems.memory.experience import EXPERIENCES, prune, recall, remember
from gems.memory.opening import open_store
from gems.memory.trajectory import namespace

pytestmark = marks("postgres")


@pytest.fixture
def store(database: str) -> Iterator[BaseStore]:
    opened = open_store(database, init_embedder())
    yield opened
    opened.conn.close()  # type: ignore[attr-defined]


def test_a_database_remembers_and_recalls_like_a_folder(store: BaseStore) -> None:
    for user in ("adam", "eve"):
        remember(store, user, f"{user}-1", past("three red cats", "a", "b"))
    remember(store, "adam", "adam-2", past("Three red cats!"))
    remember(store, "adam", "adam-3", past("a violin"))
    [recalled] = recall(store, "adam", "three blue cats", 3)
    assert (recalled.prompt, recalled.count, recalled.run) == ("three red cats", 2, "adam-2")
    remember(store, "adam", "adam-4", past("four red cats", recalled=[recalled.key]))
    assert [m.run for m in recall(store, "eve", "three blue cats", 3)] == ["eve-1"]
    assert prune(store, "adam", limit=1, days=None) == 5
    assert len(store.search(namespace("adam", EXPERIENCES), limit=9)) == 1
    assert len(store.search(namespace("eve", EXPERIENCES), limit=9)) == 1


def test_filters_mean_the_same_as_in_a_folder(store: BaseStore) -> None:
    store.batch([PutOp(("a",), str(i), row, ["color"]) for i, row in enumerate(ROWS)])
    store.batch([PutOp(("n",), str(i), {"n": number}, False) for i, number in enumerate(NUMBERS)])
    for i, value in enumerate([{"n": None}, {}, {"n": "many"}, {"n": [2]}, {"n": True}]):
        store.put(("n",), f"no number {i}", value, index=False)
    for query in (None, "abba"):
        for condition, rows in MATCHING_ROWS:
            items = store.search(("a",), filter=condition, query=query)
            assert sorted(int(item.key) for item in items) == rows, condition
        for condition in UNKNOWN_CONDITIONS:
            with pytest.raises(ValueError, match=r"filter|compares with a number"):
                store.search(("a",), filter=condition, query=query)
    for condition, rows in MATCHING_NUMBERS:
        items = store.search(("n",), filter={"n": condition})
        assert sorted(int(item.key) for item in items) == rows, condition


def test_another_embedder_is_refused(store: BaseStore, database: str) -> None:
    with pytest.raises(InputError, match="was written with the embedder all-MiniLM") as caught:
        open_store(database, PointEmbeddings(dims=384))
    assert PASSWORD not in str(caught.value)


def test_another_embedder_of_the_same_name_is_refused(database: str) -> None:
    class Named(PointEmbeddings):
        model = "text-embedding"

        def __init__(self, points: str) -> None:
            super().__init__(16, points)
            del self.fingerprint
            self._points = PointEmbeddings(16, points)

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return self._points.embed_documents(texts)

    for _ in range(2):
        open_store(database, Named("one")).conn.close()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="called text-embedding too but makes other vectors") as caught:
        open_store(database, Named("two"))
    assert PASSWORD not in str(caught.value)


def test_the_database_of_another_program_is_refused(database: str) -> None:
    with database_pool(database) as pool, pool.connection() as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE store_vectors (embedding vector(3))")
    with pytest.raises(InputError):
        open_store(database, init_embedder())


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({PASSWORD: "wrong-password"}, InputError, "refused the connection"),
        ({"/postgres": "/nowhere"}, InputError, 'database "nowhere" does not exist'),
        ({"127.0.0.1:": "127.0.0.1:1"}, BackendError, "cannot reach the memory"),
        ({"gems:": "gems:%zz"}, InputError, "cannot read the address"),
    ],
)
def test_errors_are_one_line_without_the_password(
    postgres: str, change: dict[str, str], kind: type[Exception], message: str
) -> None:
    where = postgres
    for a, b in change.items():
        where = where.replace(a, b) if "127" not in a else "postgresql://gems:pg-canary-5b2e90@127.0.0.1:1/postgres"
    with pytest.raises(kind, match=message) as error:
        open_store(where, init_embedder())
    assert PASSWORD not in str(error.value)
    assert "wrong-password" not in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_of_two_machines_share_a_memory_and_nothing_holds_the_password(database: str, tmp_path: Path) -> None:
    outputs = []
    for machine in ("one", "two"):
        home = tmp_path / machine
        result = gems("generate", "two red cars", "--memory", database, "--out", home / "out", "--json", home=home)
        assert result.returncode == 0, result.stderr
        outputs.append(json.loads(result.stdout))
        assert PASSWORD not in result.stdout + result.stderr
        assert not (home / "memory").exists()
        assert not (home / "checkpoints.sqlite").exists()
    assert [len(run["memories"]) for run in outputs] == [0, 1]
    assert outputs[1]["memories"][0]["run"] == outputs[0]["run_id"]
    assert "memory_url" not in outputs[0]["settings"]
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
    with database_pool(database) as pool, pool.connection() as connection:
        for table in ("store", "checkpoints", "checkpoint_writes", "checkpoint_blobs"):
            rows: Any = connection.execute(f"SELECT count(*) AS n, string_agg({table}::text, ' ') AS all FROM {table}")  # type: ignore[arg-type]
            row = rows.fetchone()
            assert row["n"] > 0
            assert PASSWORD not in row["all"]


def test_the_command_line_reports_what_is_wrong(postgres: str, tmp_path: Path) -> None:
    wrong = postgres.replace(PASSWORD, "wrong-password")
    result = gems("generate", "two red cars", "--memory", wrong, "--out", tmp_path / "out", "-q", home=tmp_path)
    assert result.returncode == 2
    assert "refused the connection" in result.stderr
    assert "wrong-password" not in result.stderr
    assert "looks after folders" in gems("memory", "stats", home=tmp_path, GEMS_MEMORY=postgres).stderr
    assert "memory_url" not in GemsContext.model_validate({"memory_url": postgres}).model_dump(mode="json")
    assert PASSWORD not in repr(GemsContext.model_validate({"memory_url": postgres}))
