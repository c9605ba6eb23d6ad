"""The models of a run that names none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import gems

NONE_NAMED = {"GEMS_MLLM": "", "GEMS_GENERATOR": ""}


def models_of(home: Path, *options: object, **variables: str) -> list[str]:
    """The chat model and the generator in the record of a run of one round."""
    words = ("generate", "two red dogs", "--max-rounds", 1, "--no-memory", "--json", "--quiet", "--seed", 3, *options)
    record = json.loads(gems(*words, home=home, cwd=home, **variables).stdout)
    return [record["models"][role]["name"] for role in ("mllm", "generator")]


@pytest.mark.parametrize(
    ("options", "variables", "models"),
    [
        ((), NONE_NAMED, ["open", "open"]),
        ((), {"GEMS_MLLM": "pocket", "GEMS_GENERATOR": "pocket-large"}, ["pocket", "pocket-large"]),
        (("--mllm", "pocket", "--generator", "pocket"), NONE_NAMED, ["pocket", "pocket"]),
    ],
    ids=["none", "by the environment", "by options"],
)
def test_open_models_draw_where_neither_options_nor_environment_name_others(
    options: tuple[str, ...], variables: dict[str, str], models: list[str], tmp_path: Path
) -> None:
    assert models_of(tmp_path, *options, **variables) == models


def test_a_benchmark_has_the_models_that_know_its_words(tmp_path: Path) -> None:
    done = gems("eval", "grammar", "--n", 1, "--arms", "single", "--json", home=tmp_path, cwd=tmp_path, **NONE_NAMED)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["verifier"], report["arms"]["single"]["failed"]) == ("pocket", 0)


def test_doctor_lists_what_the_open_models_know(tmp_path: Path) -> None:
    done = gems("doctor", home=tmp_path, cwd=tmp_path, **NONE_NAMED)
    assert done.returncode == 0, done.stdout
    assert "words of the open models" in done.stdout
    assert "pocket" not in done.stdout


def test_images_of_another_generator_are_not_judged_in_silence(tmp_path: Path) -> None:
    words = ("generate", "a red dog", "--generator", f"diffusers:{tmp_path}/none", "--max-rounds", 1)
    done = gems(*words, home=tmp_path, cwd=tmp_path, **NONE_NAMED)
    assert "the open chat model knows drawings of the open generator only" in done.stderr


def test_what_no_model_knows_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    done = gems("generate", "zzgrmblfx", home=tmp_path, cwd=tmp_path, **NONE_NAMED)
    assert done.returncode == 2
    assert "loading" not in done.stderr
