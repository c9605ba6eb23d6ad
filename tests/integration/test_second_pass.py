"""The second-pass experiment: its command on the smallest input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import second_pass

from gems.evals.prompts import fresh_prompts
from gems.graph.context import GemsContext
from gems.memory.embedder import init_embedder
from gems.memory.experience import EXPERIENCES, recall
from gems.memory.store import FaissStore
from gems.memory.trajectory import namespace


def run(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    command = ["second_pass", "--n", "3", "--images", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    second_pass.main()
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


@pytest.mark.slow
def test_both_passes_run_once_and_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tmp_path, monkeypatch, capsys)
    recalled_per_prompt = {name: figures["recalled_per_prompt"] for name, figures in report["passes"].items()}
    assert (
        recalled_per_prompt["without memory"],
        recalled_per_prompt["with another domain"],
        recalled_per_prompt["told of another domain"],
    ) == (0, 0, 3)
    assert recalled_per_prompt["with the first pass"] > 0
    assert [c["prompts"] for c in report["comparisons"]] == [3, 3, 3]
    store = FaissStore(tmp_path / "first-pass" / "arms" / "loop+memory" / "memory", embedder=init_embedder())
    assert len(store.search(namespace("default"), limit=9)) == 3, "the second pass must not write to the memory"
    store.close()
    results = next((tmp_path / "second-pass").rglob("results.jsonl"))
    before = results.stat().st_mtime_ns
    assert run(tmp_path, monkeypatch, capsys) == report
    assert results.stat().st_mtime_ns == before, "nothing was run again"


def test_the_second_pass_has_other_prompts() -> None:
    first = fresh_prompts(50, 1)
    assert second_pass.without_known([*first, *fresh_prompts(20, 2)], first) == second_pass.without_known(
        fresh_prompts(20, 2), first
    )
    assert second_pass.without_known(first, first) == []


def test_a_read_only_store_is_not_written_to(tmp_path: Path) -> None:
    store = FaissStore(tmp_path, embedder=init_embedder())
    second_pass.remember_another_domain(store, GemsContext())
    guarded = second_pass.ReadOnly(store, near=True)
    guarded.put(("a",), "k", {})
    assert guarded.get(("a",), "k") is None
    assert len(store.search(namespace("default", EXPERIENCES), limit=200)) == 100
    prompt = "seven striped elephants"
    assert recall(store, "default", prompt, 3) == recall(second_pass.ReadOnly(store), "default", prompt, 3) == []
    assert len(recall(guarded, "default", prompt, 3)) == 3
    store.close()
