"""What a store must survive: kills, damaged and foreign files, many processes, time, and another embedder."""

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
from gems.memory.care import verify
from gems.memory.store import FaissStore, reindex

WRITER = Path(__file__).parent / "writing_store.py"
SMALL_LIMIT = 300


@pytest.fixture(params=["every cell", "some cells"])
def small_lists(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start inverted lists early, so a test need not write twenty thousand vectors."""
    monkeypatch.setattr(index_module, "EXACT_UP_TO", SMALL_LIMIT)
    monkeypatch.setattr(live_index_module, "EXACT_UP_TO", SMALL_LIMIT)
    if request.param == "some cells":  # as a store with many vectors does
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


def share_found(store: FaissStore, names: list[str], namespace: str = "a") -> float:
    """The share of the ten exact nearest neighbours that a search finds."""
    hits = 0
    for query in names[:: max(1, len(names) // 25)][:25]:
        items = store.search((namespace,), query=query, limit=10)
        assert [item.score for item in items] == sorted((item.score or 0 for item in items), reverse=True)
        assert items[0].key == query
        assert items[0].score == pytest.approx(1, abs=1e-5)
        hits += len({item.key for item in items} & set(exact(names, query)))
    return hits / 250


def agree_with(store: FaissStore, embedder: PointEmbeddings, names: list[str]) -> float:
    scores = embedder.points(names) @ embedder.points([names[3]])[0]
    nearest = {names[i] for i in np.argsort(-scores)[:10]}
    return len({item.key for item in store.search(("a",), query=names[3], limit=10)} & nearest) / 10


def saved(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "index").glob("*") if path.name.isdigit())


# --- growing --------------------------------------------------------------------------------------------------------


def test_records_in_the_index_file_and_newer_ones_are_found(small_lists: None, folder: Path) -> None:
    names = texts(1500)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names[:200])
    assert share_found(store, names[:200]) == 1
    assert not saved(folder), "few vectors are compared without an index"
    for upto in (800, 1500):  # search while the store grows and writes index files
        fill(store, names[200 if upto == 800 else 800 : upto])
        assert share_found(store, names[:upto]) > 0.95
    store.close()
    assert len(saved(folder)) == 1

    embedder = PointEmbeddings()
    again = FaissStore(folder, embedder=embedder)
    assert share_found(again, names) > 0.95
    assert embedder.texts == 25, "only the queries are embedded"
    again.close()


def test_removed_or_changed_records_are_not_found_through_an_old_file(small_lists: None, folder: Path) -> None:
    names = texts(900)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names)
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    deleted_names = names[::3]
    store.batch([PutOp(("a",), name, None) for name in deleted_names])
    moved_name = names[1]
    store.put(("a",), moved_name, {"text": "elsewhere entirely"}, index=["text"])
    for _ in range(2):
        left = [name for name in names if name not in deleted_names and name != moved_name]
        for query in deleted_names[:10]:
            found_keys = {item.key for item in store.search(("a",), query=query, limit=20)}
            assert not found_keys & set(deleted_names)
            assert len(found_keys & set(exact(left, query, 20))) >= 18
        [nearest] = store.search(("a",), query="elsewhere entirely", limit=1)
        assert (nearest.key, nearest.score) == (moved_name, pytest.approx(1, abs=1e-5))
        fill(store, [f"late comer{i}" for i in range(SMALL_LIMIT + 50)], "b")  # triggers a new index file
        store.close()
        store = FaissStore(folder, embedder=PointEmbeddings())
    store.close()


def test_a_namespace_is_searched_alone_however_small_it_is(small_lists: None, folder: Path) -> None:
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


def test_a_filter_that_few_records_pass_finds_them_all(small_lists: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, texts(1000))
    for i in range(10):
        store.put(("a",), f"rare{i}", {"text": f"rare{i}", "rare": True}, index=["text"])
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    items = store.search(("a",), query="family3 member3", filter={"rare": True}, limit=20)
    assert {item.key for item in items} == {f"rare{i}" for i in range(10)}
    assert len(store.search(("a",), query="family3 member3", limit=2000)) == 1010
    assert len(store.search(("a",), query="family3 member3", limit=20, offset=1000)) == 10
    store.close()


def test_a_complete_index_file_is_not_written_again(small_lists: None, folder: Path) -> None:
    first = FaissStore(folder, embedder=PointEmbeddings())
    fill(first, texts(900))
    first.compact()  # otherwise an index file written meanwhile may be so incomplete that another one is due
    first.close()
    [before] = saved(folder)
    other_stores = [FaissStore(folder, embedder=PointEmbeddings()) for _ in range(2)]
    for store in other_stores:
        store.put(("b",), "k", {"text": "x"}, index=False)
        store.search(("a",), query="family1 member1")
        store.put(("b",), "k", {"text": "y"}, index=False)
        store.close()
    assert saved(folder) == [before]


def test_a_record_that_changes_often_needs_no_file(small_lists: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    for i in range(SMALL_LIMIT + 20):
        store.put(("a",), "k", {"text": f"value {i}"}, index=["text"])
    assert store.search(("a",), query="value 319")[0].score == pytest.approx(1, abs=1e-5)
    store.close()
    assert not saved(folder)


@pytest.mark.slow
def test_ids_with_gaps_can_be_indexed(small_lists: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    names = texts(1400)
    for name in names:  # every second id belongs to a record that is deleted again
        store.batch([PutOp(("a",), name, {"text": name}, ["text"]), PutOp(("a",), "gone", {"text": "gone"}, ["text"])])
    assert share_found(store, names) > 0.9
    store.compact()
    assert share_found(store, names) > 0.9
    store.batch([PutOp(("a",), name, None) for name in names[400:]])
    store.compact()
    assert share_found(store, names[:400]) > 0.9
    store.batch([PutOp(("a",), name, None) for name in names[100:]])
    store.compact()
    assert not saved(folder), "few vectors need no index"
    assert share_found(store, names[:100]) == 1
    store.close()


def test_without_an_index_file_searches_are_only_slower(small_lists: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, texts(250))
    (folder / "index").write_text("in the way")
    fill(store, texts(900)[250:])
    assert share_found(store, texts(900)) == 1
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    assert share_found(store, texts(900)) == 1
    store.close()


@pytest.mark.parametrize("namespace", [(), ("",), ("a", "b.c")])
def test_a_namespace_that_could_be_taken_for_another_is_refused(folder: Path, namespace: tuple[str, ...]) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    with pytest.raises(InvalidNamespaceError):
        store.batch([PutOp(namespace, "k", {}, False)])
    store.close()


def test_prefixes_match_whole_labels_with_any_characters(folder: Path) -> None:
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


# --- damaged index files --------------------------------------------------------------------------------------------


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


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "index")


def _foreign(folder: Path) -> None:
    other = folder.parent / "other"
    store = FaissStore(other, embedder=PointEmbeddings())
    fill(store, [f"stranger number{i}" for i in range(900)])
    store.close()
    shutil.rmtree(folder / "index")
    shutil.copytree(other / "index", folder / "index")


@pytest.mark.parametrize("harm", [_torn, _flipped, _without_places, _no_manifest, _no_folder, _foreign])
def test_an_unusable_index_is_rebuilt(small_lists: None, folder: Path, harm: Any) -> None:
    names = texts(900)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names)
    store.close()
    harm(folder)
    store = FaissStore(folder, embedder=PointEmbeddings())
    assert share_found(store, names) > 0.95
    store.close()
    assert len(saved(folder)) == 1
    assert not list((folder / "index").glob("draft-*"))


# --- records and index of different times ---------------------------------------------------------------------------


def _copy_of(folder: Path) -> Path:
    """A copy of the records at this moment, as a backup holds it."""
    copy = folder.parent / f"backup-{len(list(folder.parent.iterdir()))}.sqlite"
    with sqlite3.connect(folder / "records.sqlite") as db, sqlite3.connect(copy) as target:
        db.backup(target)
    return copy


def _restore(copy: Path, folder: Path) -> None:
    for file in folder.glob("records.sqlite*"):
        file.unlink()
    shutil.copy(copy, folder / "records.sqlite")


def checks(folder: Path) -> dict[str, tuple[bool, str]]:
    return {name: (is_right, detail) for name, is_right, detail in verify(folder)}


@pytest.mark.parametrize("written_before_search", [1, 400, 900])
def test_older_records_under_a_newer_index_hide_nothing(
    small_lists: None, folder: Path, written_before_search: int
) -> None:
    names = texts(1300)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names[:200])
    early = _copy_of(folder)
    fill(store, names[200:900])
    store.close()
    assert len(saved(folder)) == 1
    assert checks(folder)["index"][0]
    _restore(early, folder)
    is_right, detail = checks(folder)["index"]
    assert not is_right
    assert "gems memory compact" in detail
    store = FaissStore(folder, embedder=PointEmbeddings())
    new_names = [f"later comer{i}" for i in range(written_before_search)]
    fill(store, new_names)  # without a search: ids grow past those of the index, which is not loaded
    present = names[:200] + new_names
    assert share_found(store, present) > 0.95
    for name in new_names[-20:]:
        [nearest] = store.search(("a",), query=name, limit=1)
        assert (nearest.key, nearest.score) == (name, pytest.approx(1, abs=1e-5))
    store.compact()
    store.close()
    assert all(is_right for is_right, _ in checks(folder).values()), checks(folder)


def test_an_older_index_beside_newer_records_hides_nothing(small_lists: None, folder: Path) -> None:
    names = texts(2400)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names[:900])
    store.compact()
    old_index = folder.parent / "old-index"
    shutil.copytree(folder / "index", old_index)
    store.batch([PutOp(("a",), name, None) for name in names[:300]])
    fill(store, names[900:])
    store.compact()
    store.close()
    shutil.rmtree(folder / "index")
    shutil.copytree(old_index, folder / "index")
    assert not checks(folder)["index"][0]
    store = FaissStore(folder, embedder=PointEmbeddings())
    assert share_found(store, names[300:]) > 0.95
    assert not {i.key for i in store.search(("a",), query=names[5], limit=20)} & set(names[:300])
    store.close()
    assert checks(folder)["index"][0]


def _change(folder: Path, *statements: str) -> None:
    with sqlite3.connect(folder / "records.sqlite") as db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize(
    ("harm", "check", "fault"),
    [
        ("DELETE FROM vectors WHERE id = 3", "vectors", "1 records lack vectors"),
        ("UPDATE vectors SET record = 99999 WHERE id = 3", "vectors", "1 of 899 belong to no record"),
        ("UPDATE vectors SET record = 4 WHERE id = 3", "vectors", "2 records lack vectors"),
        ("UPDATE vectors SET space = 77 WHERE id = 3", "vectors", "1 records lack vectors"),
        ("UPDATE records SET fields = NULL WHERE id = 3", "vectors", "1 of 899 belong to no record"),
        ("UPDATE vectors SET space = 77 WHERE id = 3", "index", "1 vectors differ"),
        (
            "UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE id = 4) WHERE id = 3",
            "index",
            "1 vectors differ",
        ),
        ("UPDATE vectors SET id = 1 WHERE id = 3", "index", "1 vectors of records are missing"),
        ("DELETE FROM removed", "index", "7 vectors belong to no record"),
    ],
)
def test_verify_compares_records_vectors_and_index_both_ways(
    monkeypatch: pytest.MonkeyPatch, folder: Path, harm: str, check: str, fault: str
) -> None:
    monkeypatch.setattr(index_module, "EXACT_UP_TO", SMALL_LIMIT)
    monkeypatch.setattr(live_index_module, "EXACT_UP_TO", SMALL_LIMIT)
    names = texts(907)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names)
    store.delete(("a",), names[0])
    store.compact()
    for name in names[900:]:
        store.delete(("a",), name)
    store.close()
    assert all(is_right for is_right, _ in checks(folder).values()), checks(folder)
    _change(folder, harm)
    is_right, detail = checks(folder)[check]
    assert not is_right
    assert fault in detail
    for _ in range(3):  # follow the advice
        advice = [detail for is_right, detail in checks(folder).values() if not is_right]
        if advice and "gems memory reindex" in advice[0]:
            reindex(folder, PointEmbeddings())
        elif advice and "gems memory compact" in advice[0]:
            store = FaissStore(folder, embedder=PointEmbeddings())
            store.compact()
            store.close()
    assert all(is_right for is_right, _ in checks(folder).values()), checks(folder)


# --- growth ---------------------------------------------------------------------------------------------------------


def _logged(folder: Path) -> int:
    with sqlite3.connect(folder / "records.sqlite") as db:
        (count,) = db.execute("SELECT count(*) FROM removed").fetchone()
    db.close()
    return int(count)


def test_a_small_store_keeps_no_log_of_removals(folder: Path) -> None:
    store, other = (FaissStore(folder, embedder=PointEmbeddings()) for _ in range(2))
    fill(store, texts(100))
    assert share_found(other, texts(100)) == 1
    for i in range(30):  # 3,000 removals, which the other process has not followed
        fill(store, [f"round{i} member{n}" for n in range(100)], "b")
        store.batch([PutOp(("b",), f"round{i} member{n}", None) for n in range(100)])
        assert _logged(folder) <= 2200
    store.delete(("a",), texts(100)[5])
    left = [name for name in texts(100) if name != texts(100)[5]]
    assert share_found(other, left) == 1
    assert other.search(("b",), query="round3 member3") == []
    store.close()
    assert _logged(folder) == 0
    assert share_found(other, left) == 1
    other.close()


def test_an_index_file_is_renewed_once_many_of_its_vectors_are_gone(small_lists: None, folder: Path) -> None:
    names = texts(2000)
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, names)
    store.compact()
    [before] = saved(folder)
    for start in range(0, 1000, 50):
        store.batch([PutOp(("a",), name, None) for name in names[start : start + 50]])
    store.close()
    store = FaissStore(folder, embedder=PointEmbeddings())
    store.search(("a",), query=names[1500])
    store.close()
    [after] = saved(folder)
    assert after != before
    assert _logged(folder) <= SMALL_LIMIT + 50
    store = FaissStore(folder, embedder=PointEmbeddings())
    assert share_found(store, names[1000:]) > 0.95
    store.compact()
    store.close()
    assert _logged(folder) == 0
    assert checks(folder)["index"] == (True, "1000 vectors")


def test_removed_vectors_do_not_fill_the_memory_of_a_process(small_lists: None, folder: Path) -> None:
    store = FaissStore(folder, embedder=PointEmbeddings())
    fill(store, texts(50))
    for i in range(20):
        fill(store, [f"round{i} member{n}" for n in range(100)], "b")
        store.search(("b",), query="round")
        store.batch([PutOp(("b",), f"round{i} member{n}", None) for n in range(100)])
        assert share_found(store, texts(50)) == 1
        index = store._index.open()
        assert index is not None
        assert index._recent.ntotal <= 50 + SMALL_LIMIT + 200
    store.close()


# --- processes ------------------------------------------------------------------------------------------------------


def _write(folder: Path, name: str, first: int, last: int) -> forked.Process:
    command = [sys.executable, str(WRITER), str(folder), name, str(first), str(last)]
    return forked.Process(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_writers_lose_nothing_that_was_acknowledged(folder: Path) -> None:
    dice = random.Random(5)
    store = FaissStore(folder, embedder=PointEmbeddings())
    acknowledged: dict[tuple[str, int], bool] = {}
    next_numbers = dict.fromkeys(("one", "two", "three"), 0)
    for count in (40, 80):
        writers = {name: _write(folder, name, first, first + 10_000) for name, first in next_numbers.items()}
        wait_until(lambda: len(store.search(("w",), limit=count)) == count, lambda: f"{count} records were not written")  # noqa: B023
        time.sleep(dice.random() / 2)  # a random moment of their work
        for name, process in writers.items():
            process.send_signal(signal.SIGKILL)
            lines = process.communicate(timeout=30)[0].splitlines(keepends=True)
            acknowledgements = [line.split() for line in lines if line.endswith("\n")]
            acknowledged |= {(name, int(n)): verb == "put" for verb, n in acknowledgements}
            next_numbers[name] = max([next_numbers[name], *(int(n) + 1 for _, n in acknowledgements)])
    assert len(acknowledged) > 60
    for (name, n), is_present in acknowledged.items():
        item = store.get(("w", name), str(n))
        if n % 7:
            assert item is not None
            assert item.value == {"text": f"{name} {n}", "n": n}
        elif not is_present:
            assert item is None
    present = [f"{name} {n}" for (name, n), is_present in acknowledged.items() if is_present and n % 7]
    for text in dice.sample(present, 20):
        [nearest] = store.search(("w",), query=text, limit=1)
        assert (nearest.value["text"], nearest.score) == (text, pytest.approx(1, abs=1e-5))
    store.close()


def test_records_of_another_process_are_seen_whatever_index_file_it_writes(small_lists: None, folder: Path) -> None:
    first_store, second_store = (FaissStore(folder, embedder=PointEmbeddings()) for _ in range(2))
    names = texts(2000)
    fill(first_store, names[:100])
    assert share_found(second_store, names[:100]) == 1
    for start in range(100, 2000, 380):  # each store writes index files and misses some of the other's
        writer, reader = (first_store, second_store) if start % 3 else (second_store, first_store)
        fill(writer, names[start : start + 380])
        writer.delete(("a",), names[start + 1])
        assert share_found(reader, [n for n in names[: start + 380] if reader.get(("a",), n)]) > 0.95
        assert names[start + 1] not in {i.key for i in reader.search(("a",), query=names[start + 1], limit=30)}
    first_store.close()
    second_store.close()


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000_000.0]
    monkeypatch.setattr("gems.memory.records.time.time", lambda: now[0])
    return now


def test_expired_records_are_gone(clock: list[float], folder: Path) -> None:
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


def test_reading_renews_the_time_to_live_unless_turned_off(clock: list[float], folder: Path) -> None:
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


def test_reindexing_can_be_interrupted_and_continued(small_lists: None, folder: Path) -> None:
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
    assert reindex(folder, new) == 1100 - 64  # a kill loses one page
    assert new.texts == 1100
    store = FaissStore(folder, embedder=new)
    assert agree_with(store, new, names) > 0.9
    [nearest] = store.search(("a",), query=names[7], limit=1)
    assert (nearest.key, nearest.score) == (names[7], pytest.approx(1, abs=1e-5))
    assert store.get(("a",), "silent") is not None
    store.close()


def test_open_stores_are_refused_after_reindexing(folder: Path) -> None:
    open_store = FaissStore(folder, embedder=PointEmbeddings())
    fill(open_store, texts(20))
    reindex(folder, PointEmbeddings(16, "newer"))
    for attempt in (
        lambda: open_store.put(("a",), "k", {"text": "a cat"}, index=["text"]),
        lambda: open_store.search(("a",), query="a cat"),
    ):
        with pytest.raises(InputError, match="newer, not points"):
            attempt()
    open_store.close()


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
def test_invalid_vectors_are_refused(folder: Path, bad: Any) -> None:
    class Broken(PointEmbeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return bad if isinstance(bad, list) and isinstance(bad[0], list) else [bad] * len(texts)

    store = FaissStore(folder, embedder=Broken())
    with pytest.raises(InputError, match="did not return 2 vectors"):
        store.batch([PutOp(("a",), str(i), {"text": "a cat"}, ["text"]) for i in range(2)])
    assert store.get(("a",), "0") is None
    store.close()


# --- files of other programs and versions ---------------------------------------------------------------------------


def test_a_database_of_another_program_is_refused_and_not_changed(folder: Path) -> None:
    folder.mkdir()
    with sqlite3.connect(folder / "records.sqlite") as db:
        db.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, song TEXT)")
        db.execute("INSERT INTO records (song) VALUES ('abba')")
    with pytest.raises(InputError, match=r"cannot use .*records\.sqlite as a memory store"):
        FaissStore(folder, embedder=PointEmbeddings())
    with sqlite3.connect(folder / "records.sqlite") as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("records",)]
        assert db.execute("SELECT * FROM records").fetchall() == [(1, "abba")]


def test_a_store_of_a_later_version_is_refused_and_not_changed(folder: Path) -> None:
    FaissStore(folder, embedder=PointEmbeddings()).close()
    with sqlite3.connect(folder / "records.sqlite") as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(InputError, match="newer version of GEMS"):
        FaissStore(folder, embedder=PointEmbeddings())
