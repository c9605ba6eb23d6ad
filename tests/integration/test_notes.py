"""What a chat model has the user know about its reading of a prompt reaches the user, whichever model it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fakes import PaintGenerator, ScriptedChatModel
from forked import gems
from langchain_core.messages import AIMessage

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore

QUESTIONS = {"requirements": [{"question": "Are there any cars?", "kind": "object"}]}


def answer(schema: str, _: list[Any], notes: object) -> AIMessage:
    args = {
        "Plan": {"prompt": "a car"},
        "Requirements": QUESTIONS,
        "Verdicts": {"verdicts": [{"id": "r1", "answer": "yes", "confidence": 0.9, "reason": "seen"}]},
    }[schema]
    return AIMessage(json.dumps(args), response_metadata={"gems_notes": notes} if schema == "Requirements" else {})


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        (["left out:\n shiny\x1b[2J", "left out:\n shiny\x1b[2J", ""], ["left out: shiny[2J"]),
        ("a text", []),
        ([{"a": 1}, 3], []),
        (None, []),
    ],
)
def test_notes_are_in_the_result_and_in_the_event_of_the_requirements(
    notes: object, told: list[str], tmp_path: Path
) -> None:
    model = ScriptedChatModel(script=lambda schema, messages, index: answer(schema, messages, notes))
    graph = build_graph(mllm=model, generator=PaintGenerator(), images=ImageStore(tmp_path / "images"))
    events, out = [], {}
    context = GemsContext(memory=False, seed=5)
    for mode, part in graph.stream({"prompt": "a shiny car"}, context=context, stream_mode=["custom", "values"]):
        events += [part] if mode == "custom" and part["event"] == "requirements" else []
        out = part if mode == "values" else out
    assert (out["notes"], out["errors"]) == (told, [])
    assert events[0]["notes"] == told


def test_a_run_ends_once_its_chat_model_says_that_no_prompt_can_mend_what_failed(tmp_path: Path) -> None:
    def script(schema: str, _: list[Any], index: int) -> AIMessage:
        answers = {
            "Plan": {"prompt": "a car"},
            "Requirements": QUESTIONS,
            "Verdicts": {"verdicts": [{"id": "r1", "answer": "no", "confidence": 0.9, "reason": "none"}]},
            "Refinement": {"experience": "cars fail", "strategy": "rewrite", "prompt": f"the car {index}"},
        }
        metadata = {"gems_unmendable": ["it has no cars"]} if schema == "Refinement" else {}
        return AIMessage(json.dumps(answers[schema]), response_metadata=metadata)

    graph = build_graph(
        mllm=ScriptedChatModel(script=script), generator=PaintGenerator(), images=ImageStore(tmp_path / "images")
    )
    out = graph.invoke({"prompt": "a car"}, context=GemsContext(memory=False, seed=5, max_rounds=5))
    assert (out["outcome"], out["notes"], out["errors"], len(out["attempts"])) == ("stalled", ["it has no cars"], [], 1)
    assert out["image"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["a cat and three corgis", "a dog in a kitchen", "a dog next to a quokka"])
def test_a_wish_that_the_open_models_cannot_draw_ends_once_all_else_is_right(prompt: str, tmp_path: Path) -> None:
    options = ("--generator", "open", "--mllm", "open", "--seed", 3, "--no-memory", "--out", tmp_path / "out")
    result = gems("generate", prompt, *options, home=tmp_path / "home")
    assert result.returncode == 1, result.stderr
    [record] = (tmp_path / "out").rglob("run.json")
    content = json.loads(record.read_text())
    *others, last = content["attempts"]
    assert content["outcome"] == "stalled"
    assert content["notes"][-1].startswith("all else is right")
    undrawn = {r["id"] for r in content["requirements"] if r["question"].startswith("Does the image really show")}
    assert {v["requirement_id"] for v in last["verdicts"] if v["answer"] != "yes"} == undrawn
    assert all(any(v["answer"] != "yes" and v["requirement_id"] not in undrawn for v in a["verdicts"]) for a in others)
    assert "`{" not in result.stdout + result.stderr


@pytest.mark.slow
def test_the_open_models_tell_what_they_leave_out(tmp_path: Path) -> None:
    options = ("--generator", "open", "--mllm", "open", "--max-rounds", 1, "--no-memory", "--out", tmp_path / "out")
    result = gems("generate", "an ornate corgi", *options, home=tmp_path / "home")
    assert result.returncode in (0, 1), result.stderr
    before_the_first_image = result.stderr.partition("passed, score")[0] + result.stdout.partition("passed, score")[0]
    assert "note: 'corgi' is drawn as a dog" in before_the_first_image
    [record] = (tmp_path / "out").rglob("run.json")
    assert result.stderr.count("'corgi' is drawn as a dog") == 1
    content = json.loads(record.read_text())
    assert content["notes"] == ["'corgi' is drawn as a dog", "left out: ornate"]
    assert content["errors"] == []
    assert "left out: ornate" in (record.parent / "report.html").read_text()


@pytest.mark.slow
def test_the_last_line_says_what_a_solved_image_lacks(tmp_path: Path) -> None:
    options = ("--generator", "open", "--mllm", "open", "--seed", 6, "--no-memory", "--out", tmp_path / "out")
    result = gems("generate", "a red apple glistening in the snow", *options, home=tmp_path / "home")
    assert result.returncode == 0, result.stderr
    assert "solved, without: glistening, after" in " ".join(result.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("form", [(), ("--quiet",)])
def test_notes_are_told_once_however_much_is_shown(form: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--generator", "open", "--mllm", "open", "--max-rounds", 1, "--no-memory", "--out", tmp_path / "out")
    result = gems("generate", "a corgi", *options, *form, home=tmp_path / "home")
    assert result.returncode in (0, 1), result.stderr
    assert (result.stdout + result.stderr).count("note: 'corgi' is drawn as a dog") == 1


@pytest.mark.slow
def test_notes_are_neither_failures_nor_errors_of_a_batch(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a corgi\na red apple\n")
    options = ("--max-rounds", 1, "--no-memory", "--concurrency", 1, "--out", tmp_path / "out")
    env = {"GEMS_MLLM": "open", "GEMS_GENERATOR": "open"}
    run = gems("batch", "run", tmp_path / "prompts.txt", *options, home=tmp_path / "home", **env)
    assert run.returncode == 0, run.stderr
    assert "decomposer" not in run.stdout + run.stderr
    assert "with errors" not in run.stdout
    again = gems("batch", "run", tmp_path / "prompts.txt", *options, "--json", home=tmp_path / "home", **env)
    assert not {"with_errors", "errors"} & {*json.loads(again.stdout)}
    status = gems("batch", "status", tmp_path / "out", "--json", home=tmp_path / "home", **env)
    assert json.loads(status.stdout)["errors"] == []
    rows = {
        row["prompt"]: row for row in map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    }
    assert rows["a corgi"]["notes"] == ["'corgi' is drawn as a dog"]
    assert rows["a red apple"]["notes"] == []
    assert all(row["errors"] == [] for row in rows.values())
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert {row["prompt"]: row["notes"] for row in index} == {prompt: row["notes"] for prompt, row in rows.items()}


@pytest.mark.slow
def test_what_the_open_models_print_reads_well(tmp_path: Path) -> None:
    options = ("--generator", "open", "--mllm", "open", "--seed", 8, "--max-rounds", 2, "--no-memory")
    prompt = "an astronaut riding a giraffe on the moon, holding a green umbrella"
    result = gems("generate", prompt, *options, "--out", tmp_path / "out", home=tmp_path / "home")
    printed = " ".join((result.stdout + result.stderr).split())
    assert 'Does the image really show "on the moon"?' in printed
    assert "Next wording tried: arrangement, place, depth" in printed
    [report] = (tmp_path / "out").rglob("report.html")
    assert "`{" not in printed + report.read_text()


def test_what_must_not_be_there_is_not_named_to_the_image_model_where_only_a_background_is_asked_for(
    tmp_path: Path,
) -> None:
    options = ("--generator", "open", "--mllm", "open", "--seed", 3, "--no-memory", "--json")
    prompt = "a beach at sunset with no people"
    record = json.loads(gems("generate", prompt, *options, "--out", tmp_path, home=tmp_path / "home").stdout)
    assert [attempt["prompt"] for attempt in record["attempts"]] == ["on the sea"]
    questions = {requirement["id"]: requirement["question"] for requirement in record["requirements"]}
    answers = {questions[v["requirement_id"]]: v["answer"] for v in record["attempts"][0]["verdicts"]}
    assert answers["Is the image free of people?"] == "yes"
    assert "not drawn: at sunset (there is one background, the sea)" in record["notes"]
    assert any("they draw one background, and it is the sea" in note for note in record["notes"])


def test_what_is_painted_in_a_background_is_neither_named_nor_passed_for_left_out(tmp_path: Path) -> None:
    options = ("--generator", "open", "--mllm", "open", "--seed", 3, "--no-memory", "--json", "--out", tmp_path)
    stars = json.loads(gems("generate", "a snowman at night, no stars", *options, home=tmp_path / "home").stdout)
    assert stars["outcome"] == "stalled"
    assert "stars stay: they are painted in night" in stars["notes"][-1]
    assert all("stars" not in attempt["prompt"] for attempt in stars["attempts"])
    trees = json.loads(gems("generate", "a dog without trees", *options, home=tmp_path / "home").stdout)
    assert all("on a plain background" in attempt["prompt"] for attempt in trees["attempts"])
