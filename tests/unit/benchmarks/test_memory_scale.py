"""The comparison of stores: queries, expected results, unavailable stores, and the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import forked
import memory_scale
import memory_stores
import pytest
from embedding import PointEmbeddings
from memory_stores import KINDS, ChromaSubject, Numbered, Record, SqliteSubject

RECORDS = 600


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use no model and few queries."""
    monkeypatch.setattr(memory_scale, "init_embedder", lambda: PointEmbeddings(32))
    monkeypatch.setattr(memory_scale, "fresh_prompts", lambda count, seed: _prompts(200, seed))
    monkeypatch.setattr(memory_scale, "QUERIES", 20)
    monkeypatch.setattr(memory_scale, "TRIALS", 5)
    monkeypatch.setattr(memory_stores, "subprocess", forked.SUBPROCESS)


def _prompts(count: int, seed: int) -> list[Any]:
    return [type("Prompt", (), {"prompt": f"family{i % 20} member{i} of {seed}"}) for i in range(count)]


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> None:
    command = ["memory_scale", "--records", str(RECORDS), "--out", str(out), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    memory_scale.main()


@pytest.mark.slow
def test_stores_are_compared_and_killed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, tmp_path / "out", "--against", "InMemoryStore", "--kills", "1")
    report = json.loads(capsys.readouterr().out)
    assert list(report["stores"]) == ["FaissStore", "InMemoryStore"]
    for figures in report["stores"].values():
        for case in memory_scale.CASES:
            assert (figures[case.name]["searches"], figures[case.name]["recall_at_10"]) == (20, 1)
    killed = report["stores"]["FaissStore"]["after_kills"]
    assert killed["acknowledged"] > 0
    assert (killed["kills"], killed["missing"], killed["found_first"]) == (1, 0, killed["asked"])
    assert "in memory only" in report["stores"]["InMemoryStore"]["after_kills"]
    assert not (tmp_path / "out").exists()


def test_unavailable_stores_are_named_and_the_others_are_tabulated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class NotHere(ChromaSubject):
        package = "nowhere_to_be_found"

    monkeypatch.setitem(KINDS, "Chroma", NotHere)
    run(monkeypatch, tmp_path / "out", "--against", "Chroma", "--kills", "0", "--table")
    captured = capsys.readouterr()
    head, rule, row, _, *notes = captured.out.splitlines()
    assert head.startswith("| Store | Puts/s |")
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row.startswith("| FaissStore |")
    assert row.endswith("| not tried |")
    assert notes[-1] == "Chroma: not installed: pip install nowhere_to_be_found."


def test_another_seed_has_other_vectors_and_queries() -> None:
    first_data, repeated_data, other_data = (memory_scale.prepare(RECORDS, seed) for seed in (1, 1, 2))
    assert (first_data.embedder.vectors == repeated_data.embedder.vectors).all()
    assert not (first_data.embedder.vectors == other_data.embedder.vectors).all(axis=1).any()
    assert first_data.truth == repeated_data.truth


def test_a_hundred_records_have_their_own_namespace() -> None:
    bench = memory_scale.prepare(RECORDS, 0)
    small = {record.key for record in bench.records if record.namespace == memory_scale.SMALL}
    assert len(small) == 100
    assert all(keys <= small for keys in bench.truth["a small namespace"])


def test_the_lowest_sufficient_effort_is_chosen() -> None:
    bench = memory_scale.prepare(RECORDS, 0)

    class Lazy:
        """Finds as many of the ten nearest as its effort."""

        efforts = (3, 9, 10)

        def set_effort(self, effort: int) -> None:
            self.effort = effort

        def search(self, query: str, k: int, **_: Any) -> list[str]:
            return sorted(bench.truth["everything"][int(query) - RECORDS])[: self.effort]

    everything = memory_scale.CASES[0]
    for enough, effort in ((0.2, 3), (0.85, 9), (0.95, 10)):
        assert memory_scale._least_effort(Lazy(), everything, bench, enough) == effort  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
def test_every_store_that_can_be_run_puts_replaces_and_finds(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    if reason := kind.why_unavailable():
        pytest.skip(reason)
    records = [Record(str(i), str(i % 2), str(i), i % 3 % 2) for i in range(300)]
    store = kind(tmp_path, Numbered(16), 16)
    store.load(records)
    store.finish()
    store.put(records[7]._replace(text="1000"))
    if kind.durable:
        store.close()
        store = kind(tmp_path, Numbered(16), 16)
    for effort in store.efforts[:1]:
        store.set_effort(effort)
    assert store.search("1000", 1) == ["7"]
    assert store.search("8", 1) == ["8"]
    assert store.search("8", 1, namespace="1") != ["8"]
    assert store.search("9", 1, namespace="1", half=0) == ["9"]
    assert store.stored_keys([*records[:5], records[0]._replace(key="nobody")]) == {"0", "1", "2", "3", "4"}
    store.close()


def test_a_sqlite_without_extensions_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_stores, "_sqlite", lambda: None)
    assert "loads no extensions" in (SqliteSubject.why_unavailable() or "")
