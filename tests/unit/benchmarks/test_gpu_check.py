"""The GPU checks: that they keep what they have measured, stay within their time, and pass on small models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gpu_check
import pytest
from gpu_check import Checker, Recorder
from gpu_checks import CHECKS, SkippedError


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_a_small_model_passes_every_check(tmp_path: Path) -> None:
    out = tmp_path / "new" / "figures.jsonl"
    code = gpu_check.main(["--preset", "tiny", "--models", "z-image-turbo", "--out", str(out)])
    statuses = {line["check"]: line["status"] for line in lines(out)}
    assert code == 0, lines(out)
    assert list(statuses) == ["machine", "build", *(check.name for check in CHECKS)]
    assert {name for name, status in statuses.items() if status != "passed"} == {"compile"}
    figures = {line["check"]: line["figures"] for line in lines(out)}
    assert figures["overhead"]["equal_to_bare"] == "1 of 1"
    assert figures["memory-runs-out"]["halved_to"] == 2
    assert figures["cancel"]["images_finished"] == 0


def test_a_check_that_fails_keeps_what_it_has_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(figures: dict[str, Any]) -> None:
        figures["first"] = 1
        raise AssertionError("the second is wrong")

    def crash(figures: dict[str, Any]) -> None:
        raise RuntimeError("no kernel")

    def skip(figures: dict[str, Any]) -> None:
        raise SkippedError("no GPU")

    recorder = Recorder(tmp_path / "out", time.time())
    checker = Checker(recorder, 60, {})
    results = [checker.run(action.__name__, "m", action) for action in (fail, crash, skip, lambda figures: None)]
    assert results == [False, False, False, True]
    assert [(line["status"], line.get("reason")) for line in lines(tmp_path / "out")] == [
        ("failed", "AssertionError: the second is wrong"),
        ("failed", "RuntimeError: no kernel"),
        ("does not apply", "no GPU"),
        ("passed", None),
    ]
    assert lines(tmp_path / "out")[0]["figures"] == {"first": 1}
    assert "no kernel" in capsys.readouterr().err  # with the traceback
    assert recorder.exit_code == 1


def test_a_check_that_hangs_is_stopped_and_the_next_one_runs(tmp_path: Path) -> None:
    def hang(figures: dict[str, Any]) -> None:
        figures["first"] = 1
        try:
            while True:
                time.sleep(10)
        except Exception as error:  # as models' error handling does
            raise AssertionError from error

    recorder = Recorder(tmp_path / "out", time.time())
    checker = Checker(recorder, 60, {"hang": 0.01})
    assert not checker.run("hang", "m", hang)
    assert checker.run("next", "m", lambda figures: None)
    [line, _] = lines(tmp_path / "out")
    assert (line["status"], line["figures"]) == ("failed", {"first": 1})
    assert "its time limit" in line["reason"]


def test_checks_after_the_budget_are_skipped_by_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = gpu_check.main(["--preset", "tiny", "--budget-seconds", "1", "--out", str(out)], time.time() - 60)
    assert code == 3
    assert [(line["check"], line["model"], line["status"]) for line in lines(out)] == [
        ("machine", "-", "out of time"),
        *((name, model, "out of time") for model in gpu_check.SIZES for name in ["build", *gpu_check.NAMES]),
    ]


def test_the_gpu_preset_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit):
        gpu_check.main(["--preset", "gpu"])
    assert "device cuda:0 is not available" in capsys.readouterr().err
