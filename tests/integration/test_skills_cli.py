"""``gems skills``: what a user sees, and learning from end to end with the pocket models."""

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

PROMPTS = "24"
"""Of a gate: no fewer than twenty, and enough for an interval that excludes zero."""

RELATED = "Use when the wish places things in relation to each other."


def gems(*args: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["skills", *args])
    assert done.exit_code == code, done.output
    return done


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
    """A home with a copy of that memory."""
    shutil.copytree(remembered, own_home / "memory")
    return own_home


def remember_runs(home: Path, n: int) -> None:
    """Runs that failed a position with the plain wish, and passed as the pocket refiner words it."""
    related = [p for p in crowded(4 * n, 3) if any(q.skill == "position" for q in p.questions)]
    with closing(FaissStore(home / "memory", embedder=init_embedder())) as store:
        for number, asked in enumerate(related[:n]):
            remember(store, "default", f"run{number}", past_run(asked.prompt))


def past_run(wish: str) -> Trajectory:
    requirements = [
        Requirement(id=f"r{i}", question=text, kind=q.kind)
        for i, (text, q) in enumerate(questions_of(parse_prompt(wish)))
    ]
    wordings = wish, reworded(wish)
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
        prompt=wish,
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


def reworded(wish: str) -> str:
    from langchain_core.messages import HumanMessage

    from gems.models.fencing import fence
    from gems.nodes.refiner import Refinement

    told = [fence("user_prompt", wish), fence("history", "1.0 plan: 1/2 passed"), fence("best_attempt", "prompt: x")]
    answer: Any = PocketChatModel().with_structured_output(Refinement).invoke([HumanMessage("\n".join(told))])
    return str(answer.prompt)


def test_list_and_show(tmp_path: Path) -> None:
    add(tmp_path / "own", "lighting")
    add(tmp_path / "own", "counting")
    add(tmp_path / "own", "broken", "no front matter")
    found = rows("list", "--skills-dir", str(tmp_path / "own"))
    names = {row["name"]: row["origin"] for row in found["skills"]}
    assert names["lighting"] == names["counting"] == "given"
    assert names["spatial-layout"] == "built in"
    assert found["problems"] == ["broken: skipped, SKILL.md does not begin with YAML between two lines of ---"]
    assert found["notices"] == ["counting (given) replaces the one that is built in"]
    told = gems("list", "--skills-dir", str(tmp_path / "own")).output
    assert "lighting" in told
    assert "broken: skipped" in told
    assert "draws the right number" in gems("show", "counting").output
    assert rows("show", "text-rendering")["checks"]
    assert "no skill is called" in gems("show", "nonsense", code=2).output


def test_validate(tmp_path: Path) -> None:
    good, odd = add(tmp_path, "good"), add(tmp_path, "odd", "---\nname: Other Name\ndescription: Use it.\n---\nText.\n")
    assert gems("validate", str(good)).output.startswith("✓")
    assert "lower-case letters" in gems("validate", str(odd)).output
    add(tmp_path, "broken", "---\nname: [\n---\n")
    done = gems("validate", str(tmp_path), code=1)
    assert "its YAML is broken" in re.sub(r"\s+", " ", done.output)
    assert [row["usable"] for row in json.loads(gems("validate", str(tmp_path), "--json", code=1).stdout)] == [
        False,
        True,
        True,
    ]
    (tmp_path / "empty").mkdir()
    assert "there is no SKILL.md" in gems("validate", str(tmp_path / "empty"), code=2).output


def test_nothing_to_learn_from() -> None:
    done = gems("learn", code=2)
    assert "nothing to learn from" in done.output


@needs("skills_cli")
def test_it_learns_a_skill_gates_it_and_offers_it(experienced: Path) -> None:
    dry = rows("learn", "--no-builtin-skills", "--dry-run")
    assert [(lesson["kind"], lesson["fixes"] > 20) for lesson in dry["lessons"]] == [("position", True)]
    assert ";" in dry["lessons"][0]["phrases"]
    assert learned_skills() == [], "a dry run leaves nothing"

    found = rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)
    [one] = found["learned"]
    assert (one["name"], one["state"], one["kind"]) == ("position-wording", "promoted", "position")
    gate = one["gate"]
    assert gate["interval"][0] > 0
    assert gate["images_with"] == gate["images_without"]
    assert gate["used"] == gate["wishes"]
    names = [row["name"] for row in rows("list", "--no-builtin-skills")["skills"]]
    assert names == ["position-wording"]
    assert "passed with" in (Path(one["path"]).parent / "references" / "evidence.md").read_text()
    assert "it helps, and harms nothing" in gems("show", "position-wording").output

    assert rows("learn", "--no-builtin-skills")["learned"] == [], "the same runs teach nothing new"

    done = CliRunner().invoke(
        app, ["generate", "six cats behind two dogs", "--no-builtin-skills", "--seed", "1", "--json"]
    )
    assert json.loads(done.stdout)["skills"] == ["position-wording"]
    gems("retire", "position-wording")
    assert rows("list", "--no-builtin-skills")["skills"] == []
    assert "not in use" in gems("retire", "position-wording", code=2).output
    gems("promote", "position-wording")
    assert [row["name"] for row in rows("list", "--no-builtin-skills")["skills"]] == ["position-wording"]


@needs("skills_cli")
def test_the_gate_refuses_what_does_nothing_and_what_does_harm(experienced: Path) -> None:
    about = {"gems-kind": "position", "gems-generator": "pocket", "gems-fixes": "100000"}
    good = "1. Clauses `{clauses}`, each with its place `{place}` and arrangement `{arrangement}`, and `{depth}`."
    add_draft("good", RELATED, good, about, {})
    [one] = rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)["learned"]
    assert one["state"] == "promoted"
    add_draft("useless", RELATED, "Draw with love.", about, {})
    add_draft("harmful", RELATED, "Keep it short: `{plain}`.", about, {})
    found = {row["name"]: row for row in rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)["learned"]}
    assert {row["state"] for row in found.values()} == {"quarantine"}
    assert found["useless"]["gate"]["reason"] == "its gain cannot be distinguished from zero"
    assert found["harmful"]["gate"]["reason"] == "it does harm"
    assert found["harmful"]["gate"]["interval"][1] < 0
    assert [row["name"] for row in rows("list", "--no-builtin-skills")["skills"]] == ["good"]
    refused = gems("promote", "harmful", code=2).output
    assert "has not passed its trial" in re.sub(r"\s+", " ", refused)


@needs("skills_cli")
def test_what_stops_helping_is_retired(experienced: Path) -> None:
    about = {"gems-kind": "position", "gems-generator": "pocket", "gems-fixes": "100000"}
    one = add_draft("useless", RELATED, "Draw with love.", about, {})
    gate = {"passed": True, "reason": "it helped", "points": 9.0, "interval": [2.0, 16.0], "wishes": 20, "won": 4}
    move(write_figures(one, {**gate, "lost": 1, "tried": []}), "promoted")
    [found] = rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)["learned"]
    assert (found["name"], found["state"]) == ("useless", "retired")
    assert found["gate"]["points"] <= 0
    assert rows("list", "--no-builtin-skills")["skills"] == []
    assert rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)["learned"] == []


def test_two_at_once_do_not_get_into_each_others_way(own_home: Path) -> None:
    remember_runs(own_home, 2)
    with lock_shelf():
        assert "another gems is learning" in gems("learn", code=2).output


def test_versions_and_their_difference() -> None:
    add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.", {}, {})
    assert "one version only" in gems("diff", "lamps", code=2).output
    add_draft("lamps", "Use when there are lamps.", "1. Name the lamp.\n2. And its light.", {}, {})
    done = gems("diff", "lamps").stdout
    assert "+2. And its light." in done
    assert done.startswith("--- lamps version 1")
    assert "no version 7" in gems("diff", "lamps", "1", "7", code=2).output
    assert "no learned skill" in gems("diff", "nothing", code=2).output
    [one] = learned_skills("lamps")
    assert (one.version, one.state) == (2, "quarantine")


@needs("skills_cli")
def test_killed_at_the_gate_it_goes_on(experienced: Path) -> None:
    command = forked.command_line("skills", "learn", "--no-builtin-skills", "--prompts", PROMPTS, "--json")
    process = forked.Process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def tried() -> int:
        assert process.poll() is None, "it has ended before it could be killed"
        return sum(
            len(p.read_text().splitlines()) for p in experienced.glob("skills/quarantine/*/gate/*/*/results.jsonl")
        )

    wait_until(lambda: tried() >= 5, lambda: f"it has tried {tried()}", seconds=120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {p: p.read_text() for p in experienced.glob("skills/quarantine/*/gate/*/*/results.jsonl")}
    assert sum(text.count("\n") for text in before.values()) >= 5
    [one] = rows("learn", "--no-builtin-skills", "--prompts", PROMPTS)["learned"]
    assert (one["state"], one["version"]) == ("promoted", 1), "it was not drafted anew"
    for path, text in before.items():
        later = Path(str(path).replace("quarantine", "promoted")).read_text()
        assert later.startswith(text[: text.rfind("\n") + 1]), "what was tried is not tried again"
