"""``gems memory`` on real files, with MiniLM."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import forked
import pytest
from PIL import Image
from recording_server import recorded_requests
from typer.testing import CliRunner

from gems.cli.main import app
from gems.memory.embedder import init_embedder
from gems.memory.experience import remember
from gems.memory.image_store import ImageStore
from gems.memory.store import FaissStore
from gems.memory.trajectory import PastAttempt, Trajectory

RUNS = {
    "run-a1": ("adam", "three blue cars", "red"),
    "run-a2": ("adam", "two red dogs and a cat", "blue"),
    "run-e1": ("eve.smith", "three blue cars", "red"),  # the same image as Adam's
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three remembered runs of two users; two of the runs have the same image."""
    home = tmp_path_factory.mktemp("filled")
    images, store = ImageStore(home / "images"), FaissStore(home / "memory", embedder=init_embedder())
    for run, (user, prompt, colour) in RUNS.items():
        image = images.put(Image.new("RGB", (8, 8), colour), {})
        best = f"exactly {prompt}"
        attempt = PastAttempt(prompt=best, seed=1, strategy="plan", score=0.9, failed=["Is it [bold]?"], image=image)
        remember(
            store,
            user,
            run,
            Trajectory(
                prompt=prompt,
                solved=run != "run-a2",
                outcome="solved",
                score=0.9,
                best_prompt=best,
                kinds=["count"],
                failed=[],
                skills=["counting"],
                rounds=1,
                images=1,
                mllm="pocket",
                generator="pocket",
                attempts=[attempt],
            ),
        )
    store.put(("another", "program"), "k", {"text": "not ours"}, index=False)
    store.close()
    return home


@pytest.fixture
def home(filled: Path, tmp_path: Path) -> Path:
    """``filled`` for tests that may damage it; restored afterwards. Absolute image paths mean it cannot move."""
    backup = tmp_path / "backup"
    shutil.copytree(filled, backup)
    for part in ("memory", "images"):
        shutil.rmtree(filled / part)
        shutil.copytree(backup / part, filled / part)
    return filled


@pytest.fixture(autouse=True)
def _restored(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    yield
    if "home" in request.fixturenames:
        for part in ("memory", "images"):
            where = request.getfixturevalue("filled") / part
            shutil.rmtree(where)
            shutil.copytree(tmp_path / "backup" / part, where)


def memory(home: Path, *args: object, code: int = 0) -> str:
    env = {"GEMS_HOME": str(home), "COLUMNS": "250"}
    result = CliRunner().invoke(app, ["memory", *map(str, args)], env=env)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_the_command_runs_in_a_shell(filled: Path) -> None:
    result = forked.gems("memory", "stats", "--json", home=filled)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["records"] == 7


def test_stats_show_the_content_of_the_memory(filled: Path) -> None:
    stats = json.loads(memory(filled, "stats", "--json"))
    assert (stats["records"], stats["vectors"], stats["indexed"]) == (7, 3, 0)
    assert stats["users"] == {
        "adam": {"runs": 2, "solved": 1, "experiences": 2},
        "eve.smith": {"runs": 1, "solved": 1, "experiences": 1},
    }
    assert stats["size"] > 10_000
    text = memory(filled, "stats")
    assert "eve.smith" in text
    assert "all-MiniLM-L6-v2" in text


def test_a_search_recalls_what_a_run_would(filled: Path) -> None:
    [experience] = json.loads(memory(filled, "search", "four blue cars", "--user", "adam", "--json"))
    assert (experience["run"], experience["prompt"]) == ("run-a1", "three blue cars")
    assert "exactly three blue cars" in memory(filled, "search", "four blue cars", "--user", "adam")
    assert json.loads(memory(filled, "search", "four blue cars", "--json")) == []


def test_one_run_is_shown_whole(filled: Path) -> None:
    run = json.loads(memory(filled, "show", "run-e", "--json"))
    assert (run["id"], run["user"], run["attempts"][0]["seed"]) == ("run-e1", "eve.smith", 1)
    assert "Is it [bold]?" in memory(filled, "show", "run-e1")
    assert "2 remembered runs begin with run-a" in memory(filled, "show", "run-a", code=2)
    assert "no remembered run has the id nobody" in memory(filled, "show", "nobody", code=2)


def test_an_export_can_be_imported_twice(filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    memory(filled, "export", file)
    assert memory(filled, "export") == file.read_text()
    for _ in range(2):
        memory(tmp_path, "import", file)
        stats = json.loads(memory(tmp_path, "stats", "--json"))
        assert (stats["records"], stats["vectors"]) == (7, 3)
    original, imported = (json.loads(memory(home, "show", "run-a2", "--json")) for home in (filled, tmp_path))
    assert original["attempts"] == imported["attempts"]
    assert {line["key"] for line in map(json.loads, memory(tmp_path, "export").splitlines())} >= {*RUNS, "k"}


def test_an_import_says_what_it_leaves_out(tmp_path: Path) -> None:
    note = {"namespace": ["gems", "solved", "u"], "key": "k", "value": {"run": "r"}, "updated_at": "2026-01-01"}
    expired = {"namespace": ["a"], "key": "k", "value": {}, "updated_at": "2026-01-01", "ttl": 5}
    expired |= {"expires_at": "2026-01-02T00:00:00+00:00"}
    other = {"namespace": ["a"], "key": "l", "value": {}, "updated_at": "2026-01-01"}
    file = tmp_path / "memory.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (note, expired, other)))
    figures = json.loads(memory(tmp_path, "import", file, "--json"))
    assert figures == {"imported": 1, "left_out": {"solved_prompts": 1, "expired": 1}}
    text = forked.gems("memory", "import", file, home=tmp_path).stderr
    assert "1 record imported" in text
    assert "1 record of solved prompts left out: --own" in text
    assert "1 record left out: the time to live is over" in text
    own = forked.gems("memory", "import", file, "--own", home=tmp_path).stderr
    assert "2 records imported" in own
    assert "solved" not in own


@pytest.mark.parametrize("bad", ["{", "[]", '{"namespace": [], "key": "k", "value": {}, "updated_at": "2026-01-01"}'])
def test_a_bad_line_is_named_and_the_lines_before_it_are_imported(filled: Path, tmp_path: Path, bad: str) -> None:
    file = tmp_path / "memory.jsonl"
    file.write_text(memory(filled, "export").splitlines()[0] + "\n\n" + bad + "\n")
    assert "line 3: " in memory(tmp_path, "import", file, code=2)
    assert json.loads(memory(tmp_path, "stats", "--json"))["records"] == 1


def test_forgetting_removes_images_that_no_other_run_uses(home: Path) -> None:
    summary = json.loads(memory(home, "forget", "--user", "adam", "--images", "--yes", "--json"))
    assert summary == {"forgotten": ["run-a1", "run-a2"], "experiences": 2, "images": 1, "overwritten": True}
    assert len(list((home / "images").rglob("*.png"))) == 1
    assert json.loads(memory(home, "stats", "--json"))["users"] == {
        "eve.smith": {"runs": 1, "solved": 1, "experiences": 1}
    }
    for file in (home / "memory").iterdir():
        if file.is_file():
            words_left = [word for word in (b"two red dogs", b"adam") if word in file.read_bytes()]
            assert not words_left, "forgotten data must not remain in the file"
    memory(home, "verify")


def test_forgetting_asks_first_and_names_unknown_runs(home: Path) -> None:
    assert "nope; nothing was forgotten" in memory(home, "forget", "run-a1", "nope", "--yes", code=2)
    assert "say which runs" in memory(home, "forget", code=2)
    assert "Forget 1 runs" in memory(home, "forget", "run-a1", code=1)  # the question gets no answer
    assert json.loads(memory(home, "stats", "--json"))["records"] == 7


def test_images_stay_where_another_memory_may_need_them(home: Path) -> None:
    assert json.loads(memory(home, "forget", "--user", "adam", "--yes", "--json"))["images"] == 0
    assert len(list((home / "images").rglob("*.png"))) == 2


def test_experiences_without_runs_are_forgotten_after_confirmation(home: Path) -> None:
    with sqlite3.connect(home / "memory" / "records.sqlite") as db:
        db.execute("DELETE FROM records WHERE key LIKE 'run-a%'")
    assert "Forget 0 runs and 2 experiences?" in memory(home, "forget", "--user", "adam", code=1)
    assert "experiences 2" in memory(home, "forget", "--user", "adam", "--yes")
    assert list(json.loads(memory(home, "stats", "--json"))["users"]) == ["eve.smith"]


def test_a_database_address_is_not_a_folder(home: Path) -> None:
    message = memory(home, "stats", "--folder", "postgresql://g:canary7@h/gems", code=2)
    assert "looks after folders" in message
    assert "canary7" not in message


def test_runs_are_forgotten_by_age_and_by_prompt(home: Path) -> None:
    with sqlite3.connect(home / "memory" / "records.sqlite") as db:
        long_ago = (datetime.now(UTC) - timedelta(days=40)).isoformat()
        db.execute("UPDATE records SET updated_at = ? WHERE key = 'run-e1'", (long_ago,))
    before = json.loads(memory(home, "stats", "--json"))["users"]
    summary = json.loads(memory(home, "forget", "--older-than", 30, "--prompt", "three blue cars", "-y", "--json"))
    assert summary["forgotten"] == ["run-e1"]
    assert summary["experiences"] == before["eve.smith"]["experiences"] == 1
    assert "runs 1, experiences 1," in memory(home, "forget", "run-a1", "-y")
    assert json.loads(memory(home, "stats", "--json"))["users"] == {
        "adam": {**before["adam"], "runs": 1, "solved": 0, "experiences": 1}
    }


def test_no_address_in_an_imported_memory_is_opened(filled: Path, tmp_path: Path) -> None:
    [png] = [path.read_bytes() for path in (filled / "images").rglob("*.png")][:1]
    sha256 = hashlib.sha256(png).hexdigest()
    with recorded_requests(png) as (host, requested):
        lines = [json.loads(line) for line in memory(filled, "export").splitlines()]
        for line in lines:
            for attempt in line["value"].get("attempts", []):
                attempt["image"] |= {"uri": f"http://{host}/a.png", "sha256": sha256}
        (tmp_path / "memory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        memory(tmp_path, "import", tmp_path / "memory.jsonl")
        memory(tmp_path, "show", "run-a1")
        report = json.loads(memory(tmp_path, "verify", "--json", code=1))
        assert [check["ok"] for check in report] == [True, True, True, True, True, False]
        assert "3 of 3 are missing or damaged" in report[5]["detail"]
        assert "--images" in report[5]["detail"]
        assert f"http://{host}/a.png" in report[5]["detail"]
        assert "images: 3 images" in memory(tmp_path, "verify", "--images", tmp_path, "--images", filled / "images")
        shutil.copytree(filled / "images", tmp_path / "images")
        assert "images: 3 images" in memory(tmp_path, "verify")
        summary = json.loads(memory(tmp_path, "forget", "run-a1", "run-a2", "run-e1", "--images", "--yes", "--json"))
        assert summary["images"] == 0, "a record that names another place deletes nothing here"
    assert requested == []


def test_verify_reports_damage(home: Path) -> None:
    assert "images: 3 images" in memory(home, "verify")
    next((home / "images").rglob("*.png")).write_bytes(b"no image")
    report = json.loads(memory(home, "verify", "--json", code=1))
    assert [check["ok"] for check in report] == [True, True, True, True, True, False]
    assert "damaged" in report[5]["detail"]
    with sqlite3.connect(home / "memory" / "records.sqlite") as db:
        db.execute("UPDATE vectors SET vector = zeroblob(length(vector)) WHERE id = 2")
    assert "1 of 3 are not of unit length" in memory(home, "verify", code=1)


def test_reindex_repairs_vectors(home: Path) -> None:
    with sqlite3.connect(home / "memory" / "records.sqlite") as db:
        db.execute("UPDATE vectors SET vector = zeroblob(length(vector))")
    assert "3 records embedded with minilm" in memory(home, "reindex")
    assert "3 vectors of 384 dimensions" in memory(home, "verify")
    assert "before" in memory(home, "compact")


@pytest.mark.parametrize(
    "command", ["stats", "show x", "search x", "export", "forget x", "compact", "reindex", "verify"]
)
def test_a_missing_memory_is_reported(tmp_path: Path, command: str) -> None:
    assert "there is no memory in" in memory(tmp_path, *command.split(), code=2)
    assert not (tmp_path / "memory").exists()


@pytest.mark.slow
def test_whatever_is_exported_can_be_imported(tmp_path: Path) -> None:
    """Also a record with an empty key, which another program may have stored; when it was written is kept."""
    theirs, ours, file = tmp_path / "theirs", tmp_path / "ours", tmp_path / "memory.jsonl"
    store = FaissStore(theirs / "memory", embedder=init_embedder())
    store.put(("another", "program"), "", {"text": "without a key"}, index=False)
    store.close()
    assert forked.gems("memory", "export", file, home=theirs).returncode == 0
    result = forked.gems("memory", "import", file, home=ours)
    assert result.returncode == 0, result.stderr
    written = [FaissStore(home / "memory", embedder=init_embedder()) for home in (theirs, ours)]
    try:
        first, second = (store.get(("another", "program"), "") for store in written)
        assert first is not None
        assert second is not None
        assert second.created_at == first.created_at
    finally:
        for store in written:
            store.close()
