"""SIGKILL anywhere, run again: the same image, and nothing is spent twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("killable_run.py")
STEPS = 16
"""Of an undisturbed run of three rounds: intake, memory, planner, skills, planner, three rounds, the end."""


def run(folder: Path, moment: str) -> subprocess.CompletedProcess[str]:
    return forked.run([sys.executable, SCRIPT, folder, moment], timeout=120)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder, "never")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), sorted((folder / "spent.log").read_text().splitlines())


SIDE_BY_SIDE = [f"{kind}:{k}" for kind in ("writes", "checkpoint") for k in range(7)]
"""From intake's end to the planner's: the decomposer runs beside memory and planner."""

MOMENTS = [
    *(f"{kind}:{k}" for kind in ("writes", "checkpoint") for k in range(STEPS)),
    *(f"{kind}:{k}" for kind in ("image", "verdicts") for k in range(3)),
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
    paid = Counter((tmp_path / "spent.log").read_text().splitlines())
    assert Counter(spent) <= paid
    # Where two branches run side by side, one may die in the middle of its call when the other ends: a call whose
    # answer never arrived is the one thing that can be made again. Images and verdicts have no such neighbour.
    again = [line.split()[0] for line in (paid - Counter(spent)).elements()]
    assert again in ([], ["Requirements"], ["Plan"]) if moment in SIDE_BY_SIDE else again == []


@pytest.mark.parametrize("kind", ["writes", "checkpoint"])
def test_the_moments_are_all_there_are(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path, f"{kind}:{STEPS}").returncode == 0
