"""What GEMS keeps in its home folder is for its owner alone; elsewhere the umask decides."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from embedding import PointEmbeddings
from forked import gems
from servers.gems_service import serving

from gems.learning import shelf
from gems.memory.store import FaissStore, reindex
from gems.paths import home
from gems.serve.links import Links


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """The folder and what lies in it, as far as other users may read or change it."""
    paths = [folder, *folder.rglob("*")]
    return [f"{path} {stat.filemode(path.stat().st_mode)}" for path in paths if path.stat().st_mode & 0o077]


@pytest.mark.slow
def test_runs_and_the_service_keep_the_home_folder_private(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "gems"
    result = gems("generate", "two red cars", "--seed", "3", "--out", tmp_path / "out", home=folder)
    assert result.returncode == 0, result.stderr
    with serving(folder) as served, served.client() as client:
        run = client.post("/v1/runs", json={"prompt": "two red cars", "settings": {"seed": 3}}).json()["id"]
        served.wait_for(run)
        assert open_to_others(folder) == []
    names = {path.name for path in folder.rglob("*")}
    assert {"checkpoints.sqlite", "records.sqlite", "runs.sqlite", "secret", "threads", "images"} <= names
    assert open_to_others(folder) == []
    assert not (tmp_path / "data").stat().st_mode & 0o077
    assert (tmp_path / "out").stat().st_mode & 0o055 == 0o055, "an output folder is the user's own affair"


def test_the_index_of_a_memory_and_learned_skills_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("gems.memory.live_index.EXACT_UP_TO", 4)
    store = FaissStore(home() / "memory", embedder=PointEmbeddings())
    for n in range(9):
        store.put(("a",), str(n), {"text": f"text {n}"})
    store.compact()
    store.close()
    assert list((tmp_path / "home" / "memory" / "index").rglob("*.npy"))
    assert open_to_others(tmp_path / "home") == []
    reindex(home() / "memory", PointEmbeddings())
    with shelf.lock_shelf():
        shelf.add_draft("careful", "Use it with care.", "Be careful.", {}, {"more.md": "More."})
    assert open_to_others(tmp_path / "home") == []


@pytest.mark.slow
def test_results_that_are_kept_in_the_home_folder_are_private(tmp_path: Path) -> None:
    """Also where the operator made the home folder, for others to look into."""
    home_folder = tmp_path / "home"
    home_folder.mkdir(mode=0o755)
    (tmp_path / "p.txt").write_text("two red cars\n")
    options = ("--max-rounds", "1", "--no-plan", "--no-skills", "--no-memory", "--quiet")
    batch = home_folder / "results" / "batch"
    for words in (
        ("batch", tmp_path / "p.txt", "--out", batch, *options),
        ("export", batch, "--to", "imagefolder", "--all", "--out", home_folder / "exports" / "images"),
        ("generate", "two red cars", "--seed", "1", "--out", home_folder / "runs", *options[:-1]),
    ):
        result = gems(*words, home=home_folder)
        assert result.returncode == 0, result.stderr
    assert (batch / "results.jsonl").exists()
    others_see = [path.name for path in home_folder.iterdir() if path.stat().st_mode & 0o077]
    assert others_see == []


def test_a_memory_elsewhere_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    FaissStore(tmp_path / "memory", embedder=PointEmbeddings()).close()
    assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "memory" / "records.sqlite").stat().st_mode & 0o777 == 0o644


@pytest.mark.slow
def test_doctor_tells_that_others_can_read_an_older_home_folder(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    for mode, is_told in ((0o755, True), (0o700, False)):
        (tmp_path / "home").chmod(mode)
        checks = json.loads(gems("doctor", "--json", home=tmp_path / "home").stdout)
        [detail] = [check["detail"] for check in checks if check["name"] == "home folder"]
        assert ("chmod -R go-rwx" in detail) == is_told


# --- the service's secret ---------------------------------------------------------------------------------------------


def test_a_secret_that_others_could_read_is_taken_away_from_them(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s" * 64)
    Links(tmp_path / "secret", 60)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
