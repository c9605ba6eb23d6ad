"""What went wrong in many prompts, as reports tell it."""

from __future__ import annotations

from typing import cast

from gems.bulk.faults import faults_of, in_words
from gems.bulk.results import BatchRow


def row(*errors: str, error: str = "", kind: str = "backend") -> BatchRow:
    fields = {"errors": list(errors)} | ({"error": error, "error_kind": kind} if error else {})
    return cast(BatchRow, fields)


def test_faults_are_counted_by_step_with_the_commonest_line() -> None:
    rows = [row(f"planner: openai answered 503 (request 7f{n}e)") for n in range(5)]
    rows += [row("planner: it took too long", "verifier: no answer"), row()]
    rows += [row("generator: no server", error="generator: no server")] * 2
    rows += [row(error="not a prompt", kind="input"), row("planner: x", error="no disk")]
    faults = {fault["step"]: fault for fault in faults_of(rows)}
    assert next(iter(faults)) == "planner"
    assert faults["planner"] == {
        "step": "planner",
        "prompts": 7,
        "failed": 0,
        "commonest": "openai answered 503 (request 7f0e)",
    }
    assert (faults["generator"]["prompts"], faults["generator"]["failed"]) == (2, 2)
    assert faults["input"]["commonest"] == "not a prompt"
    assert (faults["backend"]["prompts"], faults["backend"]["failed"]) == (1, 1)
    assert faults["verifier"]["prompts"] == 1


def test_a_fault_in_words() -> None:
    fault = faults_of([row("planner: no answer")] * 3)[0]
    assert in_words(fault) == "3 prompts, which went on without it: no answer"
    assert in_words({**fault, "failed": 3}) == "3 prompts, failed: no answer"
    assert in_words({**fault, "prompts": 1200, "failed": 7}) == "1,200 prompts, 7 of them failed: no answer"


def test_no_errors_are_no_faults() -> None:
    assert faults_of([row(), cast(BatchRow, {})]) == []
