"""An evaluation reports every prompt, measures only what was asked for, and never mixes results of two kinds."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from eval_models import GENERATOR, JUDGE, MUTE_JUDGE
from fakes import PaintGenerator
from forked import gems_here
from PIL import Image

from gems.evals.prompts import EvalPrompt, Vqa, write_prompts

ANY = Vqa("Are there any cats in the image?", "Yes", "object")
TWO = Vqa("How many cats are in the image?", "two", "count")


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no plots, which take most of an evaluation's time: ``test_eval.py`` looks at them."""
    plots = dict.fromkeys(("rates", "atoms", "curve"), "<svg/>")
    monkeypatch.setattr("gems.evals.summary._plots", lambda report: plots)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A benchmark's file of three prompts."""
    path = tmp_path / "data.jsonl"
    write_prompts([EvalPrompt(text, 3, (TWO, ANY)) for text in ("two cats", "two red cats", "two striped cats")], path)
    return path


def evaluate(data: Path, *options: str, code: int = 0, **variables: str) -> Any:
    """``gems eval geneval2``: the report, or the error line if it is refused."""
    out = data.parent / "out"
    arguments = ["eval", "geneval2", "--data", data, "--out", out, "--images", "2", "--quiet", "--json", *options]
    result = gems_here(*arguments, home=data.parent / "home", **variables)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout) if result.stdout else result.stderr


PAINT = ("--generator", GENERATOR, "--judge", JUDGE, "--arms")


def add_skill(folder: Path, name: str, text: str = "Draw well.") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "SKILL.md").write_text(f"---\nname: {name}\ndescription: Use it for cats.\n---\n{text}\n")


# --- a result that failed is a result -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["backend", "raise", "input"])
@pytest.mark.parametrize("arm", ["single", "best-of-n", "loop"])
def test_a_prompt_that_fails_is_reported_at_every_start(data: Path, arm: str, how: str) -> None:
    fails, code = json.dumps({"red": how}), 2 if how == "input" else 3
    for _ in range(2):
        report = evaluate(data, *PAINT, arm, code=code, EVAL_FAILS=fails)
        [figures] = report["arms"].values()
        assert (figures["prompts"], figures["failed"]) == (3, 1)
        assert sum(figures["outcomes"].values()) == 3
        assert figures["soft_tifa_am"] == pytest.approx((2 / 3) * (0.5 + 0.85) / 2), "a failed prompt scores 0"
        if arm == "single":
            assert figures["images_per_prompt"] == pytest.approx(2 / 3, abs=1e-4), "a failed prompt has no image"
        assert figures["first_error"] in (data.parent / "out" / "report.md").read_text().replace("&#39;", "'")
    healed = evaluate(data, *PAINT, arm, code=2 if how == "input" else 0)
    [figures] = healed["arms"].values()
    assert figures["failed"] == (1 if how == "input" else 0), "the next start tries again what a backend failed"


@pytest.mark.slow
def test_a_result_that_lacks_any_field_is_reported_or_refused_in_a_line(tmp_path: Path) -> None:
    """It is a wrong one, which the report shows with its images."""
    out = tmp_path / "out"

    def evaluation() -> Any:
        arguments = ("--n", "3", "--arms", "single,loop", "--orders", "1", "--out", out, "--quiet")
        return gems_here("eval", "grammar", *arguments, home=tmp_path / "home")

    assert evaluation().returncode == 0
    file = out / "arms" / "loop" / "results.jsonl"
    row, *rest = map(json.loads, file.read_text().splitlines())
    row["attempts"][row["best"]]["sha256"] = rest[0]["attempts"][-1]["sha256"]
    row["attempts"][row["best"]]["prompt"] = "two blue dogs"
    unknown = [row["attempts"][0] | {"prompt": "what nobody can draw", "sha256": "0" * 64}]
    for full in (row | {"error": "boom", "error_kind": "input"}, row | {"attempts": unknown, "best": 0}):
        for name in full:
            lacking = {key: value for key, value in full.items() if key != name}
            file.write_text("".join(json.dumps(line) + "\n" for line in (lacking, *rest)))
            (out / "report.html").unlink(missing_ok=True)
            result = evaluation()
            assert "GEMS_DEBUG=1" not in result.stderr, (name, result.stderr)
            is_refused = result.returncode == 2 and result.stderr.count("\n") == 1
            assert (out / "report.html").exists() or is_refused, (name, result.stderr)


def test_every_prompt_has_an_image_and_scores_for_the_benchmarks_own_scripts(data: Path) -> None:
    evaluate(data, *PAINT, "single", code=3, EVAL_FAILS=json.dumps({"red": "backend"}))
    folder = data.parent / "out" / "arms" / "single"
    paths = json.loads((folder / "image_paths.json").read_text())
    assert list(paths) == ["two cats", "two red cats", "two striped cats"]
    with Image.open(paths["two red cats"]) as image:
        assert image.getextrema() == ((0, 0),) * 3
    scores = json.loads((folder / "score_lists.json").read_text())
    assert scores == [[0.5, pytest.approx(0.85)], [0.0, 0.0], [0.5, pytest.approx(0.85)]]


def test_prompts_that_were_not_begun_because_the_backend_is_down_count_as_failed(data: Path) -> None:
    write_prompts([EvalPrompt(f"cat number {n}", 3, (ANY,)) for n in range(30)], data)
    report = evaluate(data, *PAINT, "single", code=3, EVAL_FAILS=json.dumps({"cat": "backend"}))
    assert (report["arms"]["single"]["prompts"], report["arms"]["single"]["failed"]) == (30, 30)
    assert len(json.loads((data.parent / "out" / "arms" / "single" / "image_paths.json").read_text())) == 30


@pytest.mark.slow
def test_a_prompt_that_the_oracle_cannot_read_counts_as_failed(data: Path) -> None:
    write_prompts([EvalPrompt("two cats", 3, (TWO, ANY)), EvalPrompt("two dinosaurs on cats", 3, (TWO, ANY))], data)
    for _ in range(2):
        report = evaluate(data, "--arms", "single,loop", code=2)
        assert [(arm["prompts"], arm["failed"]) for arm in report["arms"].values()] == [(2, 1), (2, 1)]


def test_a_script_sees_what_failed_and_whether_another_start_helps(data: Path) -> None:
    arguments = ["eval", "geneval2", "--data", data, "--out", data.parent / "out", "--quiet", *PAINT, "single"]
    for fails, code, says in (
        ({"red": "backend", "striped": "input"}, 3, "2 failed and count as wrong; the same command tries 1 of them"),
        ({"striped": "input"}, 2, "1 failed and count as wrong; another start changes nothing (the first: this"),
    ):
        result = gems_here(*arguments, home=data.parent / "home", EVAL_FAILS=json.dumps(fails))
        lines = [line for line in result.stderr.splitlines() if line.startswith("!")]
        assert (result.returncode, len(lines)) == (code, 1), result.stderr
        assert f"single: {says}" in lines[0]


# --- one evaluation, one set of skills and models -------------------------------------------------------------------


def test_a_skill_that_changes_between_two_starts_is_refused(data: Path, tmp_path: Path) -> None:
    skills = tmp_path / "own"
    add_skill(skills, "lamps")
    options = [*PAINT, "single", "--skills-dir", str(skills)]
    report = evaluate(data, *options)
    assert len(report["skills"]["lamps"]) == 64
    evaluate(data, *options)
    add_skill(skills, "signs")
    assert "other skills (skills: signs is new)" in evaluate(data, *options, code=2)
    (skills / "signs" / "SKILL.md").unlink()
    (skills / "signs").rmdir()
    add_skill(skills, "lamps", "Draw badly.")
    refused = evaluate(data, *options, code=2)
    assert "lamps is another" in refused
    assert len(refused.strip().splitlines()) == 1
    add_skill(skills, "lamps")
    evaluate(data, *options)


def test_a_promoted_skill_is_refused_too(data: Path) -> None:
    evaluate(data, *PAINT, "single")
    add_skill(data.parent / "home" / "skills" / "promoted", "learned-thing")
    assert "learned-thing is new" in evaluate(data, *PAINT, "single", code=2)


def test_a_file_beside_a_skill_is_part_of_it(data: Path, tmp_path: Path) -> None:
    skills = tmp_path / "own"
    add_skill(skills, "lamps")
    (skills / "lamps" / "more.md").write_text("More.")
    options = [*PAINT, "single", "--skills-dir", str(skills)]
    evaluate(data, *options)
    (skills / "lamps" / "more.md").write_text("Less.")
    assert "lamps is another" in evaluate(data, *options, code=2)


@pytest.mark.slow
def test_a_skill_that_changes_during_an_evaluation_ends_it_for_good(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skills = tmp_path / "own"
    add_skill(skills, "lamps")

    def draws_and_edits(self: Any, requests: Any, *, on_step: Any = None) -> Any:
        add_skill(skills, "lamps", "Draw badly.")
        return drawn(self, requests, on_step=on_step)

    drawn = PaintGenerator.generate
    monkeypatch.setattr(PaintGenerator, "generate", draws_and_edits)
    options = [*PAINT, "rewrite", "--skills-dir", str(skills), "--concurrency", "1"]
    assert "the skills changed while it ran, at rewrite (lamps is another)" in evaluate(data, *options, code=2)
    monkeypatch.undo()
    add_skill(skills, "lamps")
    assert "before and after its skills changed" in evaluate(data, *options, code=2)


@pytest.mark.parametrize("model", ["generator", "mllm"])
def test_other_weights_under_the_same_name_are_refused(data: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    options = [*PAINT, "single", "--mllm", JUDGE]
    evaluate(data, *options)
    if model == "generator":
        monkeypatch.setattr("fakes.PaintGenerator.fingerprint", "1" * 64)
    else:
        monkeypatch.setattr("gems.runs.record.model_fingerprint", lambda model: "2")
    assert f"other models (models: {model} is another)" in evaluate(data, *options, code=2)


@pytest.mark.slow
def test_a_memory_that_is_gone_is_refused(data: Path) -> None:
    evaluate(data, *PAINT, "loop+memory", "--orders", "1")
    shutil.rmtree(data.parent / "out" / "arms" / "loop+memory" / "memory")
    assert "memory is gone" in evaluate(data, *PAINT, "loop+memory", "--orders", "1", code=2)


# --- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_the_arms_that_were_asked_for_are_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["eval", "grammar", "--n", "1", "--arms", "single,loop", "--images", "1", "--out", out, "--json"]
    report = json.loads(gems_here(*arguments, home=tmp_path / "home").stdout)
    assert list(report["arms"]) == ["single", "loop"]
    assert {path.name for path in (out / "arms").iterdir()} == {"single", "loop"}


@pytest.mark.slow
def test_an_arm_with_a_memory_is_run_in_several_orders(data: Path) -> None:
    report = evaluate(data, *PAINT, "loop,loop+memory", "--orders", "3")
    arm, folder = report["arms"]["loop+memory"], data.parent / "out" / "arms" / "loop+memory"
    assert [entry["order"] for entry in arm["orders"]] == [1, 2, 3]
    assert arm["prompts"] == 3
    assert "orders" not in report["arms"]["loop"]
    orders = []
    for results in (folder, folder / "order-2", folder / "order-3"):
        lines = [json.loads(line) for line in (results / "results.jsonl").read_text().splitlines()]
        orders.append([line["index"] for line in lines])
        assert {line["index"]: line["seed"] for line in lines} == seeds(folder), "each prompt keeps its seed"
    assert orders[0] == [0, 1, 2]
    assert len(set(map(tuple, orders))) > 1
    [difference] = [c for c in report["comparisons"] if c["better"] == "loop+memory"]
    assert difference["prompts"] == 3
    assert "Orders of the prompts" in (data.parent / "out" / "report.md").read_text()


def seeds(folder: Path) -> dict[int, int]:
    lines = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return {line["index"]: line["seed"] for line in lines}


@pytest.mark.slow
def test_the_planner_without_skills_with_as_many_images_is_an_arm(data: Path, tmp_path: Path) -> None:
    report = evaluate(data, *PAINT, "plan+best-of-n,loop", "--images", "2")
    arm = report["arms"]["plan+best-of-2"]
    assert arm["images_per_prompt"] == 2
    results = (data.parent / "out" / "arms" / "plan+best-of-2" / "results.jsonl").read_text().splitlines()
    assert all(json.loads(line)["skills"] == [] for line in results)
    assert ("loop", "plan+best-of-2") in [(c["better"], c["than"]) for c in report["comparisons"]]


# --- the judge ------------------------------------------------------------------------------------------------------


def test_a_judge_without_log_probabilities_is_refused_before_anything_is_drawn(data: Path) -> None:
    refused = evaluate(data, "--generator", GENERATOR, "--judge", MUTE_JUDGE, "--arms", "single", code=2)
    assert "gives no log-probabilities" in refused
    assert not (data.parent / "out" / "arms").exists()
    assert not (data.parent / "out" / "images").exists()


def test_a_judge_that_is_the_verifier_is_named(data: Path) -> None:
    arguments = ["eval", "geneval2", "--data", data, "--out", data.parent / "out", "--quiet", *PAINT, "single"]
    result = gems_here(*arguments, "--mllm", JUDGE, home=data.parent / "home")
    assert f"the judge is the verifier ({JUDGE})" in result.stderr
    assert "The judge is also the verifier" in (data.parent / "out" / "report.md").read_text()
    report = json.loads((data.parent / "out" / "report.json").read_text())
    assert (report["judge"], report["verifier"], report["judge_is_verifier"]) == (JUDGE, JUDGE, True)
    page = gems_here("eval", "grammar", "--help", home=data.parent / "home", TERMINAL_WIDTH="200").stdout
    assert "the verifier judges its own choices" in " ".join(page.replace("│", " ").split())


def test_a_judge_that_is_not_the_verifier_needs_no_warning(data: Path) -> None:
    report = evaluate(data, *PAINT, "single")
    assert (report["judge"], report["verifier"], report["judge_is_verifier"]) == (JUDGE, "pocket", False)
    assert "The judge is also the verifier" not in (data.parent / "out" / "report.md").read_text()


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_a_small_probability_does_not_become_zero(data: Path) -> None:
    write_prompts([EvalPrompt("one cat", 4, (Vqa("How many cats are in the image?", "one", "count"), ANY))], data)
    report = evaluate(data, *PAINT, "single")
    figures = report["arms"]["single"]
    expected = math.exp((math.log(0.4 + 1e-9) + math.log(0.85)) / 2)
    assert figures["soft_tifa_gm"] == pytest.approx(expected, rel=1e-14)
    assert figures["by_atoms"] == {"4": {"score": pytest.approx(expected, rel=1e-14), "n": 1}}
    assert figures["by_skill"]["count"]["score"] == pytest.approx(0.4 + 1e-9, rel=1e-14)


# --- a folder that somebody has edited, or made ----------------------------------------------------------------------

ARM = "arms/single"


@pytest.fixture
def edited(data: Path) -> Path:
    """The folder of an evaluation that has finished."""
    evaluate(data, *PAINT, "single")
    return data.parent / "out"


@pytest.mark.parametrize("content", ["[]", "{", '{"wall_seconds": 1e400}', "[" * 10**5])
@pytest.mark.parametrize("name", ["eval.json", f"{ARM}/time.json", f"{ARM}/batch.json", f"{ARM}/prompts.jsonl"])
def test_a_file_of_the_wrong_form_is_told_in_one_line(name: str, content: str, edited: Path, data: Path) -> None:
    (edited / name).write_text(content)
    if name.endswith("prompts.jsonl"):
        evaluate(data, *PAINT, "single")  # written anew at every start
        return
    message = evaluate(data, *PAINT, "single", code=2)
    assert len(message.strip().splitlines()) == 1
    assert name == "eval.json" or Path(name).name in message or "another version" in message


@pytest.mark.parametrize("identity", [{"skills": 1}, {"models": [1]}, {"skills": None, "models": "x"}])
def test_an_identity_of_the_wrong_form_is_another_one(identity: dict[str, Any], edited: Path, data: Path) -> None:
    content = json.loads((edited / "eval.json").read_text())
    (edited / "eval.json").write_text(json.dumps(content | identity))
    assert "holds an evaluation with other" in evaluate(data, *PAINT, "single", code=2)


@pytest.mark.parametrize(
    "line", ["{", "[]", '["key"]', '["key", 1]', '["key", ["x"]]', '["key", [1e400]]', '["key", [-1]]', '{"a": 1}', "7"]
)
def test_a_line_that_holds_no_scores_is_named(line: str, edited: Path, data: Path) -> None:
    path = edited / "scores-soft-tifa.jsonl"
    path.write_text(f"{path.read_text()}{line}\n")
    message = evaluate(data, *PAINT, "single", code=2)
    assert "scores-soft-tifa.jsonl, line 4 holds no scores" in message
    assert len(message.strip().splitlines()) == 1


def test_an_edited_end_of_the_scores_is_never_cut_off(edited: Path, data: Path) -> None:
    path = edited / "scores-soft-tifa.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines))
    scores = evaluate(data, *PAINT, "single")["arms"]["single"]
    assert path.read_text().splitlines() == lines
    for end in ('["key", [2.0]]', json.dumps([json.loads(line) for line in lines])):
        path.write_text("\n".join([*lines, end]))
        assert "scores-soft-tifa.jsonl, line 4 holds no scores" in evaluate(data, *PAINT, "single", code=2)
        assert path.read_text().splitlines() == [*lines, end]
    path.write_text("\n".join(lines))
    assert evaluate(data, *PAINT, "single")["arms"]["single"] == scores


def test_scores_of_other_questions_are_scored_again(edited: Path, data: Path) -> None:
    path = edited / "scores-soft-tifa.jsonl"
    keys = [json.loads(line)[0] for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps([key, [1.0]]) + "\n" for key in keys) + '["torn')
    assert evaluate(data, *PAINT, "single")["arms"]["single"]["soft_tifa_am"] == pytest.approx((0.5 + 0.85) / 2)


def test_no_address_of_the_results_is_handed_on(edited: Path, data: Path) -> None:
    """The hash finds the image in the folder; what is not there is black."""
    path = edited / ARM / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, address in zip(lines, ["file:///etc/passwd", "https://stranger.example/i.png", "../../x"], strict=True):
        line["attempts"][0]["image"] = address
    lines[0]["attempts"][0]["sha256"] = "0" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluate(data, *PAINT, "single", code=3)
    paths = json.loads((edited / ARM / "image_paths.json").read_text())
    assert all(Path(file).is_relative_to(edited) and Path(file).is_file() for file in paths.values())
    assert [Path(file).name == "no-image.png" for file in paths.values()].count(True) == 1


@pytest.mark.parametrize(
    "name",
    [
        "arms",
        ARM,
        f"{ARM}/results.jsonl",
        f"{ARM}/order-2",
        "images",
        "images/ab",
        "scores-soft-tifa.jsonl",
        "answers-soft-tifa.jsonl",
    ],
)
def test_nothing_in_an_evaluation_leads_elsewhere(name: str, data: Path) -> None:
    elsewhere, link = data.parent / "elsewhere", data.parent / "out" / name
    elsewhere.mkdir()
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    assert "leads out of its folder" in evaluate(data, *PAINT, "single", code=2)
    assert list(elsewhere.iterdir()) == []
