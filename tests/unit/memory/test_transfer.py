"""What is exported can be imported, as it was; what is imported is checked line by line."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from embedding import PointEmbeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.store.base import PutOp
from remembering import past

from gems.errors import InputError
from gems.memory.experience import EXPERIENCES, distil, prune, remember
from gems.memory.store import FaissStore
from gems.memory.trajectory import SOLVED, TRAJECTORIES, namespace
from gems.memory.transfer import export_lines, import_lines, read_lines

NOW = datetime.now(UTC).isoformat()


@contextmanager
def opened(folder: Path) -> Iterator[FaissStore]:
    with closing(FaissStore(folder, embedder=PointEmbeddings())) as store:
        yield store


def exported(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export_lines(folder)]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
labels = text.map(lambda label: label.replace(".", "·").replace("\0", "0") or "x")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
records = st.tuples(
    st.lists(labels, min_size=1, max_size=3).map(tuple),
    text,
    st.dictionaries(text | st.just("text"), values, max_size=4),
    st.sampled_from([False, ["$"], ["text"], ["text", "a[*].b", ""]]),
    st.none() | st.floats(min_value=1, exclude_min=True),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(records, max_size=6))
def test_an_export_is_imported_as_it_was(entries: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first", Path(folder) / "second"
        with opened(first) as store:
            for namespace_, key, value, index, ttl in entries:
                store.batch([PutOp(namespace_, key, value, index, ttl)])
        lines = list(export_lines(first))
        file = Path(folder) / "memory.jsonl"
        file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        with opened(second) as store:
            for _ in range(2):
                assert import_lines(store, read_lines(file)).records == len(lines)
        assert [json.loads(line) for line in export_lines(second)] == [json.loads(line) for line in lines]
        with opened(first) as a, opened(second) as b:
            hits = [
                {(item.namespace, item.key, item.score) for item in store.search((), query="x", limit=99)}
                for store in (a, b)
            ]
            assert hits[0] == hits[1]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_store_refuses_what_is_no_json(number: float, tmp_path: Path) -> None:
    """As a store in PostgreSQL does: nothing could read an export of it."""
    with opened(tmp_path) as store, pytest.raises(ValueError, match="not JSON compliant"):
        store.put(("a",), "k", {"deep": [number]}, index=False)


def test_a_record_that_is_no_json_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put(("a",), "k", {}, index=False)
    for content in ('{"weight": Infinity}', "{", "[]"):
        with closing(sqlite3.connect(tmp_path / "records.sqlite")) as db, db:
            db.execute("UPDATE records SET value = ?", (content,))
        with pytest.raises(InputError, match="the record 'k' in a cannot be read"):
            exported(tmp_path)


def test_times_and_remaining_life_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    clock = [now - 3600]
    monkeypatch.setattr("gems.memory.records.time.time", lambda: clock[0])
    with opened(tmp_path / "first") as store:
        store.put(("a",), "", {"n": 1}, index=False, ttl=90)
        store.put(("a",), "soon", {"n": 2}, index=False, ttl=61)
        store.put(("a",), "ever", {"n": 3}, index=False)
        long_ago = datetime(2025, 1, 2, tzinfo=UTC)
        store.backdate([(("a",), "ever", long_ago)])
    clock[0] = now
    lines = list(export_lines(tmp_path / "first"))
    with opened(tmp_path / "second") as store:
        assert import_lines(store, lines).records == 3
        item = store.get(("a",), "ever")
        assert item is not None
        assert item.created_at == item.updated_at == long_ago
        clock[0] = now + 120
        assert store.get(("a",), "soon", refresh_ttl=False) is None
        clock[0] = now + 29 * 60
        assert store.get(("a",), "", refresh_ttl=False) is not None
        clock[0] = now + 31 * 60
        assert store.get(("a",), "", refresh_ttl=False) is None
        assert store.get(("a",), "ever") is not None


def test_a_record_that_has_expired_is_left_out(tmp_path: Path) -> None:
    line = {"namespace": ["a"], "key": "k", "value": {}, "updated_at": NOW, "ttl": 5}
    lines = [json.dumps(line | {"expires_at": "2026-01-01T00:00:00+00:00"}), json.dumps(line | {"key": "l"})]
    with opened(tmp_path) as store:
        assert import_lines(store, lines).records == 1
    assert [line["key"] for line in exported(tmp_path)] == ["l"]


def test_a_time_to_live_without_end_is_none(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for i, ttl in enumerate((float("inf"), 1e300, float("nan"))):
            store.batch([PutOp(("a",), str(i), {}, False, ttl)])
    assert [(line["key"], "ttl" in line) for line in exported(tmp_path)] == [("0", False), ("1", False), ("2", False)]


def test_an_export_of_an_earlier_version_can_be_imported(tmp_path: Path) -> None:
    line = {"namespace": ["a"], "key": "k", "value": {"n": 1}, "updated_at": "2026-01-02T03:04:05", "ttl": 10.0}
    with opened(tmp_path) as store:
        assert import_lines(store, [json.dumps(line)]).records == 1
        item = store.get(("a",), "k")
    assert item is not None
    assert item.updated_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_time_without_a_zone_in_the_file_is_read_as_utc(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        remember(store, "adam", "run-1", past("two cats"))
    with sqlite3.connect(tmp_path / "records.sqlite") as db:
        db.execute("UPDATE records SET updated_at = '2026-01-02T03:04:05'")  # as earlier versions imported it
    db.close()
    with opened(tmp_path) as store:
        assert prune(store, "adam", limit=None, days=1) == 2


RUN = past("two cats").model_dump(mode="json")
EXPERIENCE = distil("run-1", past("two cats")).model_dump(mode="json")
GOOD: dict[str, Any] = {"namespace": ["a"], "key": "k", "value": {"text": "x"}, "updated_at": NOW}


def layer(name: tuple[str, ...], value: dict[str, Any], **change: Any) -> dict[str, Any]:
    return GOOD | {"namespace": list(namespace("adam", name)), "value": value | change}


BAD: list[tuple[Any, str]] = [
    ("{", "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    (json.dumps(GOOD)[:-1] + ', "value": {"deep": [{"weight": 1e400}]}}', "too large"),
    (json.dumps(GOOD)[:-1] + ', "value": {"weight": -1E999}}', "too large"),
    (GOOD | {"value": {"deep": [float("-inf")]}}, "Infinity"),
    (GOOD | {"value": {"text": "\udc00"}}, "surrogate"),
    ('{"a": ' + "9" * 5000 + "}", "not JSON"),
    (layer(TRAJECTORIES, RUN, best_prompt="a" * 10**6), "a text of 1,000,000 characters; the limit is 100,000"),
    (layer(EXPERIENCES, EXPERIENCE, lesson="a" * 10**6), "a text of 1,000,000 characters"),
    ([], "dictionary"),
    (None, "dictionary"),
    (GOOD | {"namespace": []}, "namespace"),
    (GOOD | {"namespace": "a"}, "namespace"),
    (GOOD | {"namespace": ["a.b"]}, "period"),
    (GOOD | {"namespace": [""]}, "empty"),
    (GOOD | {"namespace": ["x" * 1001]}, "namespace.0"),
    (GOOD | {"namespace": ["a"] * 101}, "namespace"),
    (GOOD | {"key": 5}, "key"),
    (GOOD | {"key": None}, "key"),
    (GOOD | {"key": "x" * 10_001}, "key"),
    (GOOD | {"key": "\ud800"}, "surrogate"),
    (GOOD | {"value": "x"}, "value"),
    (GOOD | {"value": {"text": "\ud800"}, "fields": ["text"]}, "surrogate"),
    (GOOD | {"fields": "text"}, "fields"),
    (GOOD | {"fields": [1]}, "fields.0"),
    (GOOD | {"updated_at": "yesterday"}, "updated_at"),
    (GOOD | {"updated_at": "9999-01-01T00:00:00+00:00"}, "updated_at: is in the future"),
    (GOOD | {"updated_at": "0001-01-01T00:00:00+23:00"}, "updated_at: is out of range"),
    (GOOD | {"updated_at": None}, "updated_at"),
    ({key: part for key, part in GOOD.items() if key != "updated_at"}, "updated_at"),
    (GOOD | {"created_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}, "created_at is later"),
    (GOOD | {"ttl": 0}, "ttl"),
    (GOOD | {"ttl": -1}, "ttl"),
    (GOOD | {"ttl": float("nan")}, "NaN"),
    (GOOD | {"ttl": float("inf")}, "Infinity"),
    (GOOD | {"ttl": "soon"}, "ttl"),
    (GOOD | {"expires_at": "2099-01-01T00:00:00+00:00"}, "expires_at needs a ttl"),
    (GOOD | {"ttl": 1, "expires_at": "2099-01-01T00:00:00"}, "no time zone"),
    (GOOD | {"namespace": ["gems", "trajectories", "adam"]}, "prompt"),
    (layer(("gems", "trajectories"), RUN, rounds=-1), "rounds"),
    (layer(("gems", "trajectories"), RUN, rounds=10**400), "too large"),
    (layer(("gems", "trajectories"), RUN, score=float("nan")), "NaN"),
    (layer(("gems", "trajectories"), RUN, attempts=[{"image": {"uri": "x", "sha256": "../../x"}}]), "attempts.0"),
    (layer(EXPERIENCES, EXPERIENCE, count=10**400), "too large"),
    (layer(EXPERIENCES, EXPERIENCE, uses=[["run", float("inf")]]), "Infinity"),
    (layer(EXPERIENCES, EXPERIENCE, lesson=["x"]), "lesson"),
    (layer(SOLVED, {"run": 5}), "run"),
    (layer(SOLVED, {}), "run"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=lambda part: str(part)[:40])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, bad: Any, reason: str) -> None:
    line = bad if isinstance(bad, str) else json.dumps(bad)
    with opened(tmp_path) as store, pytest.raises(InputError, match=r"^line 3: ") as caught:
        import_lines(store, [json.dumps(GOOD), "", line, json.dumps(GOOD | {"key": "later"})])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert [line["key"] for line in exported(tmp_path)] == ["k"], "the lines before it are imported"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps(GOOD).encode() + b"\n" + b"x" * (17 * 2**20), "line 2: longer than 16 MB"),
        (json.dumps(GOOD).encode() + b"\n\xff\xfe\n", "line 2: .*is not UTF-8 text"),
    ],
    ids=["a long line", "other bytes"],
)
def test_a_file_that_is_no_export_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with opened(tmp_path / "memory") as store, pytest.raises(InputError, match=reason):
        import_lines(store, read_lines(tmp_path / "file"))
    assert [line["key"] for line in exported(tmp_path / "memory")] == ["k"]


def test_an_import_embeds_nothing_twice(tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {"namespace": ["a"], "key": f"k{i}", "value": {"t": f"text {i}"}, "fields": ["t"], "updated_at": NOW}
        )
        for i in range(20)
    ]
    with opened(tmp_path) as store:
        import_lines(store, lines[:15])  # killed here
    embedder = PointEmbeddings()
    with closing(FaissStore(tmp_path, embedder=embedder)) as store:
        assert import_lines(store, lines).records == 20
        assert embedder.texts == 5
        changed = json.loads(lines[0]) | {"value": {"t": "text 0", "other": 1}}
        again = json.loads(lines[1]) | {"value": {"t": "text 1", "u": "new"}, "fields": ["u", "t"]}
        import_lines(store, [json.dumps(changed), json.dumps(again)])
        assert embedder.texts == 6
        first = store.search(("a",), query="text 1", limit=1)[0]
        assert (first.key, round(first.score or 0, 4)) == ("k1", 1.0)
    assert next(line for line in exported(tmp_path) if line["key"] == "k0")["value"] == changed["value"]


def test_records_are_imported_with_their_times_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"namespace": ["a"], "key": "k", "value": {}, "updated_at": "2025-01-02T00:00:00+00:00"}

    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    with opened(tmp_path) as store, monkeypatch.context() as patch:
        patch.setattr("gems.memory.records.Records.backdate", kill)
        with pytest.raises(KilledError):
            import_lines(store, [json.dumps(line)])
    assert exported(tmp_path) == []
