"""``gems eval open``: prompts in strata, arms on the open models, scores by the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gems.cli.main import app
from gems.evals.open_prompts import STRATA, open_prompts
from gems.models.open.wish_reading import read


def test_fresh_prompts_are_of_every_stratum_and_differ_by_seed() -> None:
    prompts = open_prompts(36, seed=1)
    assert [p.stratum for p in prompts[: len(STRATA)]] == list(STRATA)
    assert len({p.prompt for p in prompts}) == 36
    assert prompts == open_prompts(36, seed=1) != open_prompts(36, seed=2)
    for prompt in prompts:
        assert all(q.answer == "Yes" for q in prompt.questions)
        assert read(prompt.prompt).notes == ()


@pytest.mark.slow
def test_arms_are_measured_by_the_oracle(tmp_path: Path) -> None:
    words = ["eval", "open", "--n", "9", "--arms", "single,loop", "--generator", "open", "--mllm", "open", "--json"]
    result = CliRunner().invoke(app, [*words, "--quiet", "--images", "2", "--seed", "3", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    for arm in report["arms"].values():
        assert arm["failed"] == 0
        assert set(arm["by_stratum"]) == set(STRATA)
    assert report["arms"]["single"]["images_per_prompt"] == 1
    assert "By kind of prompt" in (tmp_path / "report.html").read_text()
