from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from gems.printable import printable
from gems.runs.record import RunRecord
from gems.runs.report import Change, render_report, word_changes


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def attempt(round_: int, prompt: str, answers: list[str]) -> dict[str, Any]:
    return {
        "round": round_,
        "candidate": 0,
        "strategy": "plan",
        "prompt": prompt,
        "seed": round_,
        "image": {"uri": "x", "sha256": "0" * 64, "width": 64, "height": 64, "media_type": "image/png"},
        "verdicts": [
            {"requirement_id": f"r{i}", "answer": a, "confidence": 0.9, "reason": f"reason {a}"}
            for i, a in enumerate(answers)
        ],
        "score": 0.5,
        "experience": "",
        "file": f"round-{round_}-0.png",
    }


def record(**changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "schema": 1,
        "gems_version": "0",
        "run_id": "1",
        "thread": "t",
        "prompt": "two cats",
        "outcome": "solved",
        "score": 0.9,
        "best": 1,
        "seed": 1,
        "models": {role: {"name": "pocket", "fingerprint": "f" * 64} for role in ("generator", "mllm")},
        "settings": {"candidates": 1},
        "requirements": [{"id": f"r{i}", "question": f"Question {i}?", "kind": "count"} for i in range(2)],
        "memories": [],
        "skills": ["counting"],
        "attempts": [attempt(1, "two cats", ["yes", "no"]), attempt(2, "exactly two cats", ["yes", "yes"])],
        "usage": {"images": 2, "chat_calls": 5, "prompt_tokens": 10, "completion_tokens": 5, "seconds": 1.5},
        "errors": [],
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    return RunRecord.model_validate({**fields, **changes})


def test_it_shows_every_attempt_and_verdict_in_one_file() -> None:
    page = render_report(record(), [png("red"), png("blue")])
    assert page.count("data:image/") == 3  # two thumbnails and the best image
    assert page.count("reason yes") == 3
    assert page.count("reason no") == 1
    assert "<ins>exactly</ins>" in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize("field", ["prompt", "thread", "errors", "skills"])
def test_hostile_text_stays_text(field: str) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    value = [hostile] if field in ("errors", "skills") else hostile
    page = render_report(record(**{field: value}), [png("red"), png("blue")])
    assert "<script>" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("field", ["prompt", "thread", "errors", "skills"])
def test_no_text_reorders_the_page_or_commands_a_terminal(field: str) -> None:
    hostile = "a \u202eb\u2066 \x1b]0;title\x07\x9b31m\0<c>"
    value = [hostile] if field in ("errors", "skills") else hostile
    page = render_report(record(**{field: value}), [png("red"), png("blue")])
    assert "a b ]0;title31m&lt;c&gt;" in page
    assert printable(page) == page


def test_a_run_without_an_image_has_a_page_too() -> None:
    page = render_report(record(outcome="failed", best=None, attempts=[], errors=["generator: down"]), [])
    assert "No image was made." in page
    assert "generator: down" in page


def test_an_attempt_that_was_not_checked_says_so() -> None:
    attempts = [attempt(1, "two cats", ["yes", "no"]), attempt(2, "exactly two cats", [])]
    page = render_report(record(outcome="budget", attempts=attempts), [png("red"), png("blue")])
    assert "Best attempt</dt><dd>round 2, not checked</dd>" in page
    assert 'alt="Round 2: not checked"' in page
    assert "0 of 0" not in page
    assert "0/0" not in page


def test_attempts_are_told_apart_within_a_round() -> None:
    two = [{**attempt(1, "two cats", ["yes", "no"]), "candidate": n} for n in range(2)]
    page = " ".join(render_report(record(attempts=two), [png("red"), png("blue")]).split())
    assert [f"Round 1, image {n}</strong>" in page for n in (1, 2)] == [True, True]
    assert "by its round and its image in the round" in page
    assert "image in the round" not in render_report(record(), [png("red"), png("blue")])


def test_requirements_of_skills_name_their_skill() -> None:
    checks = [{"id": "s1", "question": "Is it legible?", "kind": "text", "skill": "posters"}]
    page = render_report(record(checks=checks), [png("red"), png("blue")])
    assert "asked by the skill posters" in page
    assert page.count("asked by the skill") == 1


def test_word_changes_are_in_order() -> None:
    assert word_changes("a red cat", "a blue cat sleeping") == [
        Change("same", "a"),
        Change("removed", "red"),
        Change("added", "blue"),
        Change("same", "cat"),
        Change("added", "sleeping"),
    ]
    assert word_changes("", "a") == [Change("added", "a")]
    assert word_changes("a", "a") == [Change("same", "a")]


def test_long_prompts_are_compared_in_a_moment() -> None:
    """Word by word, these two take more than a minute."""
    changes = word_changes("red " + "a b c " * 660 + "car", "red " + "c b a " * 660 + "car")

    assert [change.kind for change in changes] == ["same", "removed", "added", "same"]
    assert changes[0] == Change("same", "red")
    assert changes[-1].text == "car"
    same = " ".join(map(str, range(400)))
    assert word_changes(same, same) == [Change("same", same)]
    assert word_changes(same, f"{same} more") == [Change("same", same), Change("added", "more")]


def test_the_report_says_tokens_of_lost_answers_apart() -> None:
    spent = {"images": 2, "chat_calls": 5, "prompt_tokens": 10, "completion_tokens": 5, "seconds": 1.5}
    pages = [
        " ".join(render_report(record(usage={**spent, **more}), [png("red"), png("blue")]).split())
        for more in ({}, {"lost_tokens": 1200})
    ]
    assert "15 tokens, 1.5 s of work" in pages[0]
    assert "15 tokens, about 1,200 more tokens for answers that were lost, 1.5 s of work" in pages[1]
