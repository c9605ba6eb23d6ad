"""``gems skills``: the output for users, and learning from start to finish with the pocket models."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import forked
import pytest
from remembering import IMAGE
from servers.waiting import wait_until
from shared_servers import needs
from skill_learning import crowded
from typer.testing import CliRunner

from gems.cli.main import app
from gems.graph.state import Requirement, Verdict
from gems.learning.shelf import add_draft, learned_skills, lock_shelf, move, write_figures
from gems.memory.embedder import init_embedder
from gems.memory.experience import remember
from gems.memory.store import FaissStore
from gems.memory.trajectory import PastAttempt, Trajectory
from gems.models.pocket.chat import PocketChatModel
from gems.models.pocket.grammar import parse_prompt, questions_of

PROMPTS, FEW_PROMPTS = "24", "20"
"""Prompts of a gate: enough for an interval that excludes zero, and enough for a skill that changes nothing."""

HELPED = {
    "passed": True,
    "reason": "it helped",
    "points": 9.0,
    "interval": [2.0, 16.0],
    "wishes": 20,
    "won": 4,
    "lost": 1,
}
"""The figures of a gate that a skill has passed."""

RELATED = "Use when the wish places things in relation to each other."


def gems(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["skills", *args])
    assert result.exit_code == code, result.output
    return result


def rows(*args: str) -> Any:
    return json.loads(gems(*args, "--json").stdout)


def add(folder: Path, name: str, text: str = "---\nname: {name}\ndescription: Use it.\n---\nBe good.\n") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "SKILL.md").write_text(text.format(name=name))
    return folder / name


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory of ninety runs."""
    home = tmp_path_factory.mktemp("remembered")
    remember_runs(home, 90)
    return home / "memory"


@pytest.fixture
def experienced(remembered: Path, own_home: Path) -> Path:
    """A home with a copy of the memory of ninety runs."""
    shutil.copytree(remembered, own_home / "memory")
    return own_home


def remember_runs(home: Path, n: int) -> None:
    """Remember runs that failed a position with the plain prompt and passed with the pocket refiner's wording."""
    related = [p for p in crowded(2 * n + 8, 3) if any(q.skill == "position" for q in p.questions)]
    with closing(FaissStore(home / "memory", embedder=init_embedder())) as store:
        for number, eval_prompt in enumerate(related[:n]):
            remember(store, "default", f"run{number}", past_run(eval_prompt.prompt))


def past_run(prompt: str) -> Trajectory:
    requirements = [
        Requirement(id=f"r{i}", question=text, kind=q.kind)
        for i, (text, q) in enumerate(questions_of(parse_prompt(prompt)))
    ]
    wordings = prompt, reworded(prompt)
    attempts = []
    for i, words in enumerate(wordings):
        verdicts = [
            Verdict(requirement_id=r.id, answer="yes" if i or r.kind != "position" else "no", confidence=0.9)
            for r in requirements
        ]
        attempts.append(
            PastAttempt(
                prompt=words,
                seed=i,
                strategy="rewrite" if i else "plan",
                score=0.5,
                failed=[r.question for r in requirements if not i and r.kind == "position"],
                image=IMAGE,
                verdicts=verdicts,
            )
        )
    return Trajectory(
        prompt=prompt,
        solved=True,
        outcome="solved",
        score=0.9,
        best_prompt=wordings[1],
        kinds=list(dict.fromkeys(r.kind for r in requirements)),
        failed=[],
        skills=[],
        rounds=2,
        images=2,
        mllm="pocket",
        generator="pocket",
        attempts=attempts,
        requirements=requirements,
    )


def reworded(prompt: str) -> str:
    from langchain_core.messages import HumanMessage

    from gems.models.fencing import fence
    from gems.nodes.refiner import Refinement

    sections = [
        fence("user_prompt", prompt),
        fence("history", "1.0 plan: 1/2 passed"),
        fence("best_attempt", "prompt: x"),
    ]
    answer: Any = PocketChatModel().with_structured_output(Refinement).invoke([HumanMessage("\n".join(sections))])
    return str(answer.prompt)


def test_list_and_show(tmp_path: Path) -> None:
    add(tmp_path / "own", "lighting")
    add(tmp_path / "own", "counting")
    add(tmp_path / "own", "broken", "no front matter")
    skill_rows = rows("list", "--skills-dir", str(tmp_path / "own"))
    names = {row["name"]: row["origin"] for row in skill_rows["skills"]}
    assert names["lighting"] == names["counting"] == "given"
    assert names["spatial-layout"] == "built in"
    assert skill_rows["problems"] == ["broken: skipped, SKILL.md does not begin with YAML between two lines of ---"]
    assert skill_rows["notices"] == ["counting (given) replaces the one that is built in"]
    output = gems("list", "--skills-dir", str(tmp_path / "own")).output
    assert "lighting" in output
    assert "broken: skipped" in output
    assert "draws the right number" in gems("show", "counting").output
    assert rows("show", "text-rendering")["checks"]
    assert "no skill is called" in gems("show", "nonsense", code=2).output


def test_validate(tmp_path: Path) -> None:
    good, odd = add(tmp_path, "good"), add(tmp_path, "odd", "---\nname: Other Name\ndescription: Use it.\n---\nText.\n")
    assert gems("validate", str(good)).output.startswith("✓")
    assert "lower-case letters" in gems("validate", str(odd)).output
    add(tmp_path, "broken", "---\nname: [\n---\n")
    result = gems("validate", str(tmp_path), code=1)
    assert "its YAML is broken" in re.sub(r"\s+", " ", result.output)
    assert [row["usable"] for row in json.loads(gems("validate", str(tmp_path), "--json", code=1).stdout)] == [
        False,
        True,
        True,
    ]
    (tmp_path / "empty").mkdir()
    assert "there is no SKILL.md" in gems("validate", str(tmp_path / "empty"), code=2).output


def test_nothing_to_learn_from() -> None:
    result = gems("learn", code=2)
    assert "nothing to learn from" in result.output


def killed_gate(home: Path) -> dict[Path, str]:
    """Learn in a process that is killed amid the trials; return the files of the finished trials and their text."""
    command = forked.command_line("skills", "learn", "--no-builtin-skills", "--prompts", PROMPTS, "--json")
    process = forked.Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def trials() -> dict[Path, str]:
        return {p: p.read_text() for p in home.glob("skills/quarantine/*/gate/*/*/results.jsonl")}

    def trial_count() -> int:
        assert process.poll() is None, "the gate ended before it could be killed"
        return sum(text.count("\n") for text in trials().values())

    wait_until(lambda: trial_count() >= 5, lambda: f"only {trial_count()} trials were made", seconds=120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return trials()


@needs("skills_cli")
def test_it_learns_a_skill_in_a_gate_that_is_killed_and_continues_and_offers_it(experienced: Path) -> None:
    dry = rows("learn", "--no-builtin-skills", "--dry-run")
    assert [(lesson["kind"], lesson["fixes"] > 20) for lesson in dry["lessons"]] == [("position", True)]
    assert ";" in dry["lessons"][0]["phrases"]
    assert learned_skills() == [], "a dry run saves no skill"

    trials = killed_gate(experienced)
    [skill] = rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)["learned"]
    assert skill["version"] == 1, "the skill must not be drafted again"
    for path, text in trials.items():
        later = Path(str(path).replace("quarantine", "promoted")).read_text()
        assert later.startswith(text[: text.rfind("\n") + 1]), "finished trials are not repeated"
    assert (skill["name"], skill["state"], skill["kind"]) == ("position-wording", "promoted", "position")
    gate = skill["gate"]
    assert gate["interval"][0] > 0
    assert gate["images_with"] == gate["images_without"]
    assert gate["used"] == gate["wishes"]
    names = [row["name"] for row in rows("list", "--no-builtin-skills")["skills"]]
    assert names == ["position-wording"]
    assert "passed with" in (Path(skill["path"]).parent / "references" / "evidence.md").read_text()
    assert "it helps, and harms nothing" in gems("show", "position-wording").output
    assert skill["generator"] == "pocket"
    assert [entry["gate"]["points"] for entry in rows("show", "position-wording")["history"]] == [gate["points"]]
    assert "learned, for pocket only" in re.sub(r"\s+", " ", gems("show", "position-wording").output)

    assert rows("learn", "--no-builtin-skills")["learned"] == [], "the same runs teach nothing new"

    result = CliRunner().invoke(
        app, ["generate", "six cats behind two dogs", "--no-builtin-skills", "--seed", "1", "--json"]
    )
    record = json.loads(result.stdout)
    assert record["skills"] == ["position-wording"]
    assert list(record["offered"]) == ["position-wording"]
    assert len(record["offered"]["position-wording"]) == 64
    gems("retire", "position-wording")
    assert rows("list", "--no-builtin-skills")["skills"] == []
    assert "not in use" in gems("retire", "position-wording", code=2).output
    gems("promote", "position-wording")
    assert [row["name"] for row in rows("list", "--no-builtin-skills")["skills"]] == ["position-wording"]


@needs("skills_cli")
def test_the_gate_refuses_useless_and_harmful_skills(experienced: Path) -> None:
    about = {"gems-kind": "position", "gems-generator": "pocket", "gems-fixes": "100000"}
    good = "1. Clauses `{clauses}`, each with its place `{place}` and arrangement `{arrangement}`, and `{depth}`."
    move(write_figures(add_draft("good", RELATED, good, about, {}), {**HELPED, "known": 90}), "promoted")
    add_draft("useless", RELATED, "Draw with love.", about, {})
    [useless] = rows("learn", "--no-builtin-skills", "--prompts", FEW_PROMPTS)["learned"]
    add_draft("harmful", RELATED, "Keep it short: `{plain}`.", about, {})
    [harmful] = rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)["learned"]
    assert [(row["name"], row["state"]) for row in (useless, harmful)] == [
        ("useless", "quarantine"),
        ("harmful", "quarantine"),
    ]
    assert useless["gate"]["reason"] == "its gain cannot be distinguished from zero"
    assert harmful["gate"]["reason"] == "it does harm"
    assert harmful["gate"]["interval"][1] < 0
    assert [row["name"] for row in rows("list", "--no-builtin-skills")["skills"]] == ["good"]
    refused = gems("promote", "harmful", code=2).output
    assert "has not passed its trial" in re.sub(r"\s+", " ", refused)


@needs("skills_cli")
def test_a_skill_that_stops_helping_is_retired(experienced: Path) -> None:
    about = {"gems-kind": "position", "gems-generator": "pocket", "gems-fixes": "100000"}
    draft = add_draft("useless", RELATED, "Draw with love.", about, {})
    move(write_figures(draft, {**HELPED, "tried": []}), "promoted")
    result = gems("learn", "--no-builtin-skills", "--prompts", FEW_PROMPTS, "--json", "--quiet")
    [learned_row] = json.loads(result.stdout)["learned"]
    assert (learned_row["name"], learned_row["state"]) == ("useless", "retired")
    assert "useless is retired, and not offered any more" in result.stderr
    assert learned_row["gate"]["points"] <= 0
    assert rows("list", "--no-builtin-skills")["skills"] == []
    assert rows("learn", "--no-builtin-skills", "--prompts", FEW_PROMPTS)["learned"] == []


def test_two_processes_can_learn_at_once(own_home: Path) -> None:
    remember_runs(own_home, 2)
    with lock_shelf():
        assert "another gems is learning" in gems("learn", code=2).output


def test_versions_and_their_difference() -> None:
    add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", {}, {})
    assert "one version only" in gems("diff", "lamps", code=2).output
    add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.\n2. And its light.", {}, {})
    output = gems("diff", "lamps").stdout
    assert "+2. And its light." in output
    assert output.startswith("--- lamps version 1")
    assert "no version 7" in gems("diff", "lamps", "1", "7", code=2).output
    assert "no learned skill" in gems("diff", "nothing", code=2).output
    [skill] = learned_skills("lamps")
    assert (skill.version, skill.state) == (2, "quarantine")
