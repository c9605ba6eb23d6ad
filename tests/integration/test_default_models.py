"""The models of a run that names none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from forked import environment, gems, gems_process, run

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


SECRET_ADDRESS = "http://bob:hunter2pw@127.0.0.1:9/d?token=tok123secret"


def test_the_login_of_the_environments_generator_is_printed_nowhere(tmp_path: Path) -> None:
    variables = {"GEMS_MLLM": "", "GEMS_GENERATOR": SECRET_ADDRESS}
    shown = gems("generate", "--help", home=tmp_path, cwd=tmp_path, **variables).stdout
    schema = "from gems import GemsContext; print(GemsContext.model_json_schema())"
    shown += run([sys.executable, "-c", schema], cwd=tmp_path, env=environment(tmp_path, **variables)).stdout
    with gems_process("generate", "a red dog", home=tmp_path, cwd=tmp_path, **variables) as process:
        assert process.stderr is not None
        warning = process.stderr.readline()
        process.kill()
    shown += warning
    assert "its verdicts on images of http://127.0.0.1:9/d mean little" in warning
    assert "hunter2pw" not in shown
    assert "tok123secret" not in shown


def test_what_the_environment_names_is_the_operators_word(tmp_path: Path) -> None:
    """A graph that is built without settings uses code and addresses that the environment names, and no others."""
    (tmp_path / "own.py").write_text("def make(options):\n    open('ran', 'w').close()\n", encoding="utf-8")
    script = "from gems import build_graph; build_graph().invoke({'prompt': 'a dog'}, context={'max_rounds': 1})"
    variables = {"GEMS_MLLM": "python:own:make", "GEMS_GENERATOR": "", "PYTHONPATH": str(tmp_path)}
    run([sys.executable, "-c", script], cwd=tmp_path, env=environment(tmp_path, **variables))
    assert (tmp_path / "ran").exists()
    other = script.replace("'max_rounds': 1", "'mllm': 'python:own:other'")
    done = run([sys.executable, "-c", other], cwd=tmp_path, env=environment(tmp_path, **variables))
    assert "runs code, so a record, a request or a run's context may not name it" in done.stderr
