"""What a store must survive: kills, torn and foreign files, many processes, time, and a change of mind."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from embedding import PointEmbeddings
from langgraph.store.base import InvalidNamespaceError, PutOp
from servers.waiting import wait_until

from gems.errors import InputError
from gems.memory import index as index_module
from gems.memory import live_index as live_index_module
from gems.memory.store import FaissStore, reindex

WRITER = Path(__file__).parent / "writing_store.py"
FEW = 300


@pytest.fixture(params=["every cell", "some cells"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverted lists from so few vectors on, that a test need not write twenty thousand."""
    monkeypatch.setattr(index_module, "EXACT_UP_TO", FEW)
    monkeypatch.setattr(live_index_module, "EXACT_UP_TO", FEW)
    if request.param == "some cells":  # as with many vectors
        monkeypatch.setattr(index_module, "_SEARCH_ALL_CELLS", 20)
        monkeypatch.setattr(index_module, "_PROBES", 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "memory"


def texts(n: int) -> list[str]:
    return [f"family{i % 20} member{i}" for i in range(n)]


def fill(store: FaissStore, names: list[str], namespace: str = "a") -> None:
    for start in range(0, len(names), 100):
        some = names[start : start + 100]
        store.batch([PutOp((namespace,), name, {"text": name, "n": len(name)}, ["text"]) for name in some])


def exact(names: list[str], query: str, limit: int = 10) -> list[str]:
    embedder = PointEmbeddings()
    scores = embedder.points(names) @ embedder.points([query])[0]
    return [names[i] for i in np.argsort(-scores, kind="stable")[:limit]]


def agree(store: FaissStore, names: list[str], namespace: str = "a") -> float:
    """How many of the ten nearest by comparison with all are found."""
    hits = 0
    for query in names[:: max(1, len(names) // 25)][:25]:
        found = store.search((namespace,), query=query, limit=10)
        assert [item.score for item in found] == sorted((item.score or 0 for item in found), reverse=True)
        assert found[0].key == query
        assert found[0].score == pytest.approx(1, abs=1e-5)
        hits += len({item.key for item in found} & set(exact(names, query)))
    return hits / 250


def agree_with(store: FaissStore, embedder: PointEmbeddings, names: list[str]) -> float:
    scores = embedder.points(names) @ embedder.points([names[3]])[0]
    nearest = {names[i] for i in np.argsort(-scores)[:10]}
    return len({item.key for item in store.search(("a",), query=names[3], limit=10)} & nearest) / 10


def saved(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "index").glob("*") if path.name.isdigit())


# --- growing --------------------------------------------------------------------------------------------------------


def test_many_records_are_found_through_a_file_and_new_ones_beside_it(few: None, folder: Path) -> None:
    names = texts(1500)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names[:200])
    assert agree(store, names[:200]) == 1
    assert not saved(folder), "so few are compared one by one"
    for upto in (800, 1500):  # searched while it grows, and while files are made
        fill(store, names[200 if upto == 800 else 800 : upto])
        assert agree(store, names[:upto]) > 0.95
    store.close()
    assert len(saved(folder)) == 1

    embedder = PointEmbeddings()
    again = FaissStore(folder, embedder=embedder)
    assert agree(again, names) > 0.95
    assert embedder.texts == 25, "the queries' alone"
    again.close()


def test_what_was_removed_or_changed_is_not_found_whatever_the_file_says(few: None, folder: Path) -> None:
    names = texts(900)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names)
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    gone = names[::3]
    store.batch([PutOp(("a",), name, None) for name in gone])
    moved = names[1]
    store.put(("a",), moved, {"text": "elsewhere entirely"}, index=["text"])
    for _ in range(2):
        left = [name for name in names if name not in gone and name != moved]
        for query in gone[:10]:
            found = {item.key for item in store.search(("a",), query=query, limit=20)}
            assert not found & set(gone)
            assert len(found & set(exact(left, query, 20))) >= 18
        [nearest] = store.search(("a",), query="elsewhere entirely", limit=1)
        assert (nearest.key, nearest.score) == (moved, pytest.approx(1, abs=1e-5))
        fill(store, [f"late comer{i}" for i in range(FEW + 50)], "b")  # has the file made again
        store.close()
        store = FaissStore(folder, embedder=PointEmbeddings())
    store.close()


def test_a_namespace_is_searched_alone_however_small_it_is(few: None, folder: Path) -> None:
    names = texts(1200)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names[:1190], "large")
    fill(store, names[1190:], "small")
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    assert [i.key for i in store.search(("small",), query=names[5], limit=20)] == exact(names[1190:], names[5], 20)
    assert {i.namespace for i in store.search(("large",), query=names[1195], limit=20)} == {("large",)}
    assert store.search((), query=names[1195], limit=1)[0].namespace == ("small",)
    assert [i.key for i in store.search((), query=names[3], filter={"text": names[1192]}, limit=3)] == [names[1192]]
    store.close()


def test_a_filter_that_few_records_pass_finds_them_all(few: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, texts(1000))
    for i in range(10):
        store.put(("a",), f"rare{i}", {"text": f"rare{i}", "rare": True}, index=["text"])
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    found = store.search(("a",), query="family3 member3", filter={"rare": True}, limit=20)
    assert {item.key for item in found} == {f"rare{i}" for i in range(10)}
    assert len(store.search(("a",), query="family3 member3", limit=2000)) == 1010
    assert len(store.search(("a",), query="family3 member3", limit=20, offset=1000)) == 10
    store.close()


def test_a_file_is_made_when_it_is_needed_and_by_one_of_those_who_could(few: None, folder: Path) -> None:
    first = FaissStore(folder, embedder=PointEmbeddings())
    fill(first, texts(900))
    first.compact()  # or a file made meanwhile may hold so few of them that the next one is due
    first.close()
    [before] = saved(folder)
    others = [FaissStore(folder, embedder=PointEmbeddings()) for _ in range(2)]
    for store in others:
        store.put(("b",), "k", {"text": "x"}, index=False)
        store.search(("a",), query="family1 member1")
        store.put(("b",), "k", {"text": "y"}, index=False)
        store.close()
    assert saved(folder) == [before]


def test_a_record_that_changes_often_needs_no_file(few: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    for i in range(FEW + 20):
        store.put(("a",), "k", {"text": f"value {i}"}, index=["text"])
    assert store.search(("a",), query="value 319")[0].score == pytest.approx(1, abs=1e-5)
    store.close()
    assert not saved(folder)


@pytest.mark.slow
def test_ids_with_gaps_make_an_index_too(few: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    names = texts(1400)
    for name in names:  # every second id is that of a record which was deleted again
        store.batch([PutOp(("a",), name, {"text": name}, ["text"]), PutOp(("a",), "gone", {"text": "gone"}, ["text"])])
    assert agree(store, names) > 0.9
    store.compact()
    assert agree(store, names) > 0.9
    store.batch([PutOp(("a",), name, None) for name in names[400:]])
    store.compact()
    assert agree(store, names[:400]) > 0.9
    store.batch([PutOp(("a",), name, None) for name in names[100:]])
    store.compact()
    assert not saved(folder), "so few need none"
    assert agree(store, names[:100]) == 1
    store.close()


def test_an_index_that_cannot_be_made_costs_time_alone(few: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, texts(250))
    (folder / "index").write_text("in the way")
    fill(store, texts(900)[250:])
    assert agree(store, texts(900)) == 1
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    assert agree(store, texts(900)) == 1
    store.close()


@pytest.mark.parametrize("namespace", [(), ("",), ("a", "b.c")])
def test_a_namespace_that_could_be_taken_for_another_is_refused(folder: Path, namespace: tuple[str, ...]) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(namespace, "k", {}, False)])
    store.close()


def test_prefixes_are_of_labels_whatever_characters_they_hold(folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    names = [("a",), ("a", "b"), ("a-b",), ("a/b",), ("a%",), ("ä",), ("a b", "c"), ("A",)]
    for name in names:
        store.put(name, "k", {"text": "the same"}, index=["text"])
    for name in names:
        expected = {n for n in names if n[: len(name)] == name}
        assert {item.namespace for item in store.search(name)} == expected
        assert {item.namespace for item in store.search(name, query="the same")} == expected
    assert len(store.search((), query="the same", limit=20)) == len(names)
    store.close()


# --- files that are not what they should be -------------------------------------------------------------------------


def _torn(folder: Path) -> None:
    file = saved(folder)[-1] / "vectors.faiss"
    file.write_bytes(file.read_bytes()[:-1000])


def _flipped(folder: Path) -> None:
    file = saved(folder)[-1] / "vectors.faiss"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def _without_places(folder: Path) -> None:
    (saved(folder)[-1] / "spaces.npy").unlink()


def _no_manifest(folder: Path) -> None:
    (saved(folder)[-1] / "manifest.json").write_text("{}")


def _gone(folder: Path) -> None:
    shutil.rmtree(folder / "index")


def _foreign(folder: Path) -> None:
    other = folder.parent / "other"
    store = FaissStore(other, embedder=PointEmbeddings())
    fill(store, [f"stranger number{i}" for i in range(900)])
    store.close()
    shutil.rmtree(folder / "index")
    shutil.copytree(other / "index", folder / "index")


@pytest.mark.parametrize("harm", [_torn, _flipped, _without_places, _no_manifest, _gone, _foreign])
def test_an_index_that_cannot_be_used_is_made_again(few: None, folder: Path, harm: Any) -> None:
    names = texts(900)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names)
    store.close()
    harm(folder)
    store = FaissStore(folder, embedder=PointEmbeddings())
    assert agree(store, names) > 0.95
    store.close()
    assert len(saved(folder)) == 1
    assert not list((folder / "index").glob("draft-*"))


# --- processes ------------------------------------------------------------------------------------------------------


def _write(folder: Path, name: str, first: int, last: int) -> forked.Process:
    command = [sys.executable, str(WRITER), str(folder), name, str(first), str(last)]
    return forked.Process(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_writers_lose_nothing_that_was_acknowledged(folder: Path) -> None:
    dice = random.Random(5)
    ours = FaissStore(folder, embedder=PointEmbeddings())
    acknowledged: dict[tuple[str, int], bool] = {}
    begun = dict.fromkeys(("one", "two", "three"), 0)
    for written in (40, 80):
        writers = {name: _write(folder, name, first, first + 10_000) for name, first in begun.items()}
        wait_until(lambda: len(ours.search(("w",), limit=written)) == written, lambda: f"{written} did not come")  # noqa: B023
        time.sleep(dice.random() / 2)  # anywhere in what they do
        for name, process in writers.items():
            process.send_signal(signal.SIGKILL)
            lines = process.communicate(timeout=30)[0].splitlines(keepends=True)
            said = [line.split() for line in lines if line.endswith("\n")]
            acknowledged |= {(name, int(n)): verb == "put" for verb, n in said}
            begun[name] = max([begun[name], *(int(n) + 1 for _, n in said)])
    assert len(acknowledged) > 60
    for (name, n), there in acknowledged.items():
        item = ours.get(("w", name), str(n))
        if n % 7:
            assert item is not None
            assert item.value == {"text": f"{name} {n}", "n": n}
        elif not there:
            assert item is None
    present = [f"{name} {n}" for (name, n), there in acknowledged.items() if there and n % 7]
    for text in dice.sample(present, 20):
        [nearest] = ours.search(("w",), query=text, limit=1)
        assert (nearest.value["text"], nearest.score) == (text, pytest.approx(1, abs=1e-5))
    ours.close()


def test_what_other_processes_write_is_seen_whatever_file_they_make(few: None, folder: Path) -> None:
    ours, theirs = (FaissStore(folder, embedder=PointEmbeddings()) for _ in range(2))
    names = texts(2000)
    fill(ours, names[:100])
    assert agree(theirs, names[:100]) == 1
    for start in range(100, 2000, 380):  # each of them makes files, and sleeps through some of the other's
        writer, reader = (ours, theirs) if start % 3 else (theirs, ours)
        fill(writer, names[start : start + 380])
        writer.delete(("a",), names[start + 1])
        assert agree(reader, [n for n in names[: start + 380] if reader.get(("a",), n)]) > 0.95
        assert names[start + 1] not in {i.key for i in reader.search(("a",), query=names[start + 1], limit=30)}
    ours.close()
    theirs.close()


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000_000.0]
    monkeypatch.setattr("gems.memory.records.time.time", lambda: now[0])
    return now


def test_what_has_outlived_its_time_is_gone(clock: list[float], folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    store.put(("a",), "short", {"text": "a cat"}, index=["text"], ttl=1)
    store.put(("a",), "long", {"text": "a cat"}, index=["text"], ttl=10)
    store.put(("a",), "ever", {"text": "a cat"}, index=["text"])
    clock[0] += 59
    assert store.get(("a",), "short", refresh_ttl=False) is not None
    clock[0] += 2
    assert {i.key for i in store.search(("a",), query="a cat", refresh_ttl=False)} == {"long", "ever"}
    assert store.get(("a",), "short") is None
    clock[0] += 60 * 10
    assert [i.key for i in store.search(("a",))] == ["ever"]
    assert store.list_namespaces() == [("a",)]
    store.close()


def test_reading_renews_a_life_unless_told_otherwise(clock: list[float], folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings(), ttl={"default_ttl": 1})
    store.put(("a",), "k", {"text": "a cat"}, index=["text"])
    for read in (lambda: store.get(("a",), "k"), lambda: store.search(("a",)), lambda: store.search((), query="a cat")):
        clock[0] += 50
        assert read()
    store.ttl_config = {"default_ttl": 1, "refresh_on_read": False}
    clock[0] += 50
    assert store.get(("a",), "k") is not None
    clock[0] += 11
    assert store.get(("a",), "k") is None
    store.close()


# --- another embedder -----------------------------------------------------------------------------------------------


def test_a_store_can_be_embedded_anew_and_goes_on_where_it_was_stopped(few: None, folder: Path) -> None:
    names = texts(1100)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names)
    store.put(("a",), "silent", {"text": "never embedded"}, index=False)
    store.close()
    new = PointEmbeddings(24, "newer")
    with pytest.raises(InputError, match="gems memory reindex"):
        FaissStore(folder, embedder=new)

    def stop(done: int, total: int) -> None:
        assert total == 1101
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(folder, new, stop)
    for embedder in (new, PointEmbeddings()):
        with pytest.raises(InputError, match="half-way to the embedder newer"):
            FaissStore(folder, embedder=embedder)
    with pytest.raises(InputError, match="half-way to the embedder newer"):
        reindex(folder, PointEmbeddings(8, "third"))
    assert reindex(folder, new) == 100
    assert new.texts == 1100
    store = FaissStore(folder, embedder=new)
    assert agree_with(store, new, names) > 0.9
    [nearest] = store.search(("a",), query=names[7], limit=1)
    assert (nearest.key, nearest.score) == (names[7], pytest.approx(1, abs=1e-5))
    assert store.get(("a",), "silent") is not None
    store.close()


def test_those_who_have_a_store_open_are_refused_once_it_is_embedded_anew(folder: Path) -> None:
    ours = FaissStore(folder, embedder=PointEmbeddings())
    fill(ours, texts(20))
    reindex(folder, PointEmbeddings(16, "newer"))
    for attempt in (
        lambda: ours.put(("a",), "k", {"text": "a cat"}, index=["text"]),
        lambda: ours.search(("a",), query="a cat"),
    ):
        with pytest.raises(InputError, match="newer, not points"):
            attempt()
    ours.close()


def test_vectors_of_other_dimensions_are_refused_before_anything_is_written(folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings(16))
    store.put(("a",), "k", {"text": "a cat"}, index=["text"])
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings(8))
    with pytest.raises(InputError, match=r"8 dimensions, .* holds 16"):
        store.batch([PutOp(("a",), "l", {"text": "a dog"}, ["text"]), PutOp(("a",), "m", {}, False)])
    assert [item.key for item in store.search(("a",))] == ["k"]
    store.close()


@pytest.mark.parametrize("bad", [[float("nan")] * 16, [[0.1] * 16, [0.1] * 15], [[0.1] * 16], 3.0])
def test_what_is_no_vector_is_refused(folder: Path, bad: Any) -> None:
    class Broken(PointEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return bad if isinstance(bad, list) and isinstance(bad[0], list) else [bad] * len(texts)

    store = FaissStore(folder, embedder=Broken())
    with pytest.raises(InputError, match="did not return 2 vectors"):
        store.batch([PutOp(("a",), str(i), {"text": "a cat"}, ["text"]) for i in range(2)])
    assert store.get(("a",), "0") is None
    store.close()


# --- files of other programs and versions ---------------------------------------------------------------------------


def test_a_database_of_another_program_is_refused_and_left_as_it_was(folder: Path) -> None:
    folder.mkdir()
    with sqlite3.connect(folder / "records.sqlite") as db:
        db.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, song TEXT)")
        db.execute("INSERT INTO records (song) VALUES ('abba')")
    with pytest.raises(InputError, match=r"cannot use .*records\.sqlite as a memory store"):
        FaissStore(folder, embedder=PointEmbeddings())
    with sqlite3.connect(folder / "records.sqlite") as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("records",)]
        assert db.execute("SELECT * FROM records").fetchall() == [(1, "abba")]


def test_a_store_of_a_later_version_is_left_alone(folder: Path) -> None:
    FaissStore(folder, embedder=PointEmbeddings()).close()
    with sqlite3.connect(folder / "records.sqlite") as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(InputError, match="newer version of GEMS"):
        FaissStore(folder, embedder=PointEmbeddings())
