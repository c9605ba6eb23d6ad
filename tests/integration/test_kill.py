"""SIGKILL anywhere, run again: the same image, and nothing is spent twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killable_run.py")
UPDATES = 15
"""Node ends in a run of three rounds: intake, memory, decomposer, planner, skills, planner, three rounds, the end."""


def run(folder: Path, moment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), moment], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder, "never")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), sorted((folder / "spent.log").read_text().splitlines())


MOMENTS = [
    *(f"update:{k}" for k in range(UPDATES)),
    *(f"{what}:{k}" for what in ("image", "verdicts") for k in range(3)),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, undisturbed: tuple[list[str], list[str]], moment: str
) -> None:
    assert run(tmp_path, moment).returncode == -signal.SIGKILL
    resumed = run(tmp_path, "never")
    assert resumed.returncode == 0, resumed.stderr
    stdout, spent = undisturbed
    assert resumed.stdout.splitlines() == stdout
    assert sorted((tmp_path / "spent.log").read_text().splitlines()) == spent


def test_the_moments_are_all_there_are(tmp_path: Path) -> None:
    assert run(tmp_path, f"update:{UPDATES}").returncode == 0
