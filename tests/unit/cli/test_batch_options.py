"""Prices and limits that cannot be meant, and errors of the system: one line that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import forked
import pytest

from gems.bulk.results import ResultsFile


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--price", "image=inf"), "--price image=inf: input should be a finite number"),
        (("--price", "image=nan"), "--price image=nan"),
        (("--price", "image=1e308"), "--price image=1e308: no model costs more than"),
        (("--price", "verifier.prompt=1e308"), "prompt=1e308: no model costs more than"),
        (("--price", "image=-1"), "--price image=-1"),
        (("--price", "prompt=1e999"), "--price prompt=1e999"),
        (("--price", "picture=1"), "--price picture: unknown option; choose from: image, prompt, completion"),
        (("--budget-cost", "inf", "--price", "image=1"), "--budget-cost inf"),
        (("--budget-seconds", "inf"), "--budget-seconds inf"),
        (("--total-cost", "inf", "--price", "image=1"), "--total-cost inf: give a number above 0"),
        (("--total-cost", "nan", "--price", "image=1"), "--total-cost nan"),
        (("--total-cost", "0", "--price", "image=1"), "--total-cost 0"),
        (("--total-cost", "-1", "--price", "image=1"), "--total-cost -1"),
        (("--total-hours", "0"), "--total-hours 0: give a number above 0"),
        (("--total-hours", "inf"), "--total-hours inf"),
        (("--total-hours", "nan"), "--total-hours nan"),
        (("--total-hours", "-2"), "--total-hours -2"),
    ],
)
def test_a_limit_or_price_that_is_no_limit_or_price_is_refused(
    options: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    result = forked.gems_here("batch", tmp_path / "p.txt", "--out", tmp_path / "out", *options, home=tmp_path / "h")
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EACCES, "Permission denied; check who may"),
        (errno.EROFS, "Read-only file system; choose a folder"),
    ],
)
def test_an_error_of_the_system_comes_with_advice(
    number: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("a blue dragon\n")  # refused before anything is drawn, and recorded

    def add(self: ResultsFile, row: object) -> None:
        raise OSError(number, os.strerror(number), str(self.path))

    monkeypatch.setattr(ResultsFile, "add", add)
    result = forked.gems_here("batch", tmp_path / "p.txt", "--out", tmp_path / "out", home=tmp_path / "h")
    assert result.returncode == 3
    assert f"{tmp_path / 'out' / 'results.jsonl'}: {says}" in result.stderr
    assert "Errno" not in result.stderr
