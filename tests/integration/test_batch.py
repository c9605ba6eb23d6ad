"""``gems batch`` can be resumed after any interruption, and a bad prompt does not stop the others."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import forked
import pytest
from servers.waiting import wait_until

PROMPTS = ["a cat", "two red cars", "a blue dragon", "a dog to the left of a chair", "three birds", "a green bear"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "extra": 1}) + "\n" for p in PROMPTS))
    return path


def arguments(file: Path, out: Path, *more: str) -> list[str]:
    return ["batch", str(file), "--out", str(out), "--max-rounds", "2", *more]


def run(file: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return forked.gems(*arguments(file, out, *more), home=out.parent / "home")


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def attempts_without_images(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The attempts of a row without the image paths, which depend on the folder."""
    return [{key: value for key, value in attempt.items() if key != "image"} for attempt in row["attempts"]]


@pytest.mark.slow
def test_a_bad_prompt_does_not_stop_the_rest(prompts: Path, tmp_path: Path) -> None:
    result = run(prompts, tmp_path / "out", "--json")
    assert result.returncode == 2
    summary = json.loads(result.stdout)
    assert (summary["prompts"], summary["finished"], summary["failed"]) == (6, 5, 1)
    assert "line 3: unknown word 'dragon'" in result.stderr
    assert "dragon" in result.stderr
    by_index = {row["index"]: row for row in rows(tmp_path / "out")}
    assert [by_index[i]["prompt"] for i in range(6)] == PROMPTS
    for i, row in by_index.items():
        if i != 2:
            best = row["attempts"][row["best"]]
            assert best["score"] >= row["attempts"][0]["score"]
            assert Path(best["image"].removeprefix("file://")).exists()
    assert len({row["seed"] for row in by_index.values()}) == 6


@pytest.mark.slow
def test_a_finished_batch_is_not_run_again(prompts: Path, tmp_path: Path) -> None:
    run(prompts, tmp_path / "out")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    again = run(prompts, tmp_path / "out")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert "6 of 6 prompts were done before" in again.stderr


@pytest.mark.slow
def test_a_killed_batch_can_be_resumed(prompts: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    run(prompts, undisturbed)
    results = out / "results.jsonl"
    with forked.gems_process(*arguments(prompts, out), home=tmp_path / "home") as process:
        wait_until(
            lambda: results.exists() and results.read_bytes().count(b"\n") >= 2,
            lambda: "two results were not written",
            seconds=120,
        )
        process.send_signal(signal.SIGKILL)
    killed_at = results.read_bytes()
    with results.open("ab") as file:
        file.write(b'{"index": 5, "prom')  # an incomplete line, as after a crash of the machine
    resumed = run(prompts, out)
    assert resumed.returncode == 2, resumed.stderr
    lines = results.read_bytes()
    assert lines.startswith(killed_at)
    resumed_rows = [json.loads(line) for line in lines.splitlines() if line.endswith(b"}")]
    assert sorted(row["index"] for row in resumed_rows) == list(range(6))
    expected = {row["index"]: row for row in rows(undisturbed)}
    for row in resumed_rows:
        if "attempts" in row:
            assert attempts_without_images(row) == attempts_without_images(expected[row["index"]])
            assert row["usage"]["images"] == expected[row["index"]]["usage"]["images"]


@pytest.mark.slow
def test_a_corrected_and_extended_file_costs_only_its_new_prompts(prompts: Path, tmp_path: Path) -> None:
    run(prompts, tmp_path / "out")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    prompts.write_text(prompts.read_text().replace("dragon", "dog") + '{"prompt": "two cats"}\n')
    again = run(prompts, tmp_path / "out", "--json")
    assert again.returncode == 0, again.stderr
    assert "5 of 7 prompts were done before" in again.stderr
    assert json.loads(again.stdout)["failed"] == 0
    after = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert after.startswith(before)
    assert [row["prompt"] for row in rows(tmp_path / "out")[6:]] in (
        ["a blue dog", "two cats"],
        ["two cats", "a blue dog"],
    )


@pytest.mark.slow
def test_a_folder_of_another_batch_is_refused(prompts: Path, tmp_path: Path) -> None:
    run(prompts, tmp_path / "out")
    result = run(prompts, tmp_path / "out", "--seed", "5")
    assert result.returncode == 2
    assert "other settings" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("empty.txt", "# nothing\n\n", "holds no prompt"),
        ("broken.jsonl", '{"prompt": "a cat"}\n{"prompt"', "line 2: not usable JSON"),
        ("wrong.jsonl", '{"text": "a cat"}\n', "line 1"),
        ("seed.jsonl", '{"prompt": "a cat", "seed": -4}\n', "seed"),
    ],
)
def test_a_bad_file_gives_a_one_line_error(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    result = forked.gems_here(*arguments(tmp_path / name, tmp_path / "out"), home=tmp_path / "home")
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_text_file_and_evidence(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# two prompts\na cat\n\ntwo dogs\n")
    result = run(tmp_path / "p.txt", tmp_path / "out", "--evidence")
    assert result.returncode == 0, result.stderr
    for row in rows(tmp_path / "out"):
        assert row["prompt"] in (tmp_path / "out" / row["folder"] / "report.html").read_text()
