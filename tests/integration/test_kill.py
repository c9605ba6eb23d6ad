"""A run that is killed at any moment and resumed gives the same image and repeats no finished call."""

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
STEPS = 17
"""Number of steps of an undisturbed run: intake, memory, planner, skills, planner, comparison, 3 rounds, the end."""


def run(folder: Path, moment: str) -> subprocess.CompletedProcess[str]:
    return forked.run([sys.executable, SCRIPT, folder, moment], timeout=120)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(folder, "never")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), sorted((folder / "spent.log").read_text().splitlines())


SIDE_BY_SIDE = [f"{kind}:{k}" for kind in ("writes", "checkpoint") for k in range(7)]
"""Moments at which the decomposer runs in parallel with memory and planner."""

MOMENTS = [
    *(f"{kind}:{k}" for kind in ("writes", "checkpoint") for k in range(STEPS)),
    *(f"{kind}:{k}" for kind in ("image", "verdicts") for k in range(3)),
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_continues_where_it_stopped(
    tmp_path: Path, undisturbed: tuple[list[str], list[str]], moment: str
) -> None:
    assert run(tmp_path, moment).returncode == -signal.SIGKILL
    resumed = run(tmp_path, "never")
    assert resumed.returncode == 0, resumed.stderr
    stdout, expected_calls = undisturbed
    assert resumed.stdout.splitlines() == stdout
    actual_calls = Counter((tmp_path / "spent.log").read_text().splitlines())
    assert Counter(expected_calls) <= actual_calls
    # When two branches run in parallel, a kill at the end of one interrupts the call of the other. Only such an
    # unanswered call may be repeated. Images and verdicts never run in parallel with another branch.
    again = [line.split()[0] for line in (actual_calls - Counter(expected_calls)).elements()]
    assert again in ([], ["Requirements"], ["Plan"]) if moment in SIDE_BY_SIDE else again == []


@pytest.mark.parametrize("kind", ["writes", "checkpoint"])
def test_there_are_no_further_moments(tmp_path: Path, kind: str) -> None:
    assert run(tmp_path, f"{kind}:{STEPS}").returncode == 0
