"""Skills: where they are loaded from, how the planner sees them, and what it can read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import skills_ref
from langchain_core.messages import AIMessage
from langchain_core.messages.utils import count_tokens_approximately
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from skill_activation import called_skills
from skill_retrieval import labelled_prompts

from gems.errors import InputError
from gems.models.pocket.chat import PocketChatModel
from gems.skills.format import Skill, UnusableError, read_skill
from gems.skills.loader import BUILTIN, load_skills, promoted_folder
from gems.skills.tools import reference_tool, skill_tools

GOOD = "---\nname: {name}\ndescription: Use for {name}.\nmetadata:\n  author: someone\n---\n\n# Advice\n\nBe good.\n"


def add(folder: Path, name: str, text: str | None = None) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "SKILL.md").write_text(GOOD.format(name=name) if text is None else text)
    return folder / name


def skill(**fields: object) -> Skill:
    return Skill(**{"name": "one", "description": "Use it.", "body": "Be good.", "path": Path("SKILL.md"), **fields})  # type: ignore[arg-type]


def test_the_built_in_skills_load_cleanly() -> None:
    library = load_skills()
    assert (library.problems, library.notices) == ((), ())
    assert len(library.skills) == 10
    for skill in library.skills.values():
        assert skill.origin == "built in"
        assert skill.description.startswith("Use when")
        assert "Not " in skill.description, "the description must say when not to use the skill"
        assert len(skill.examples) >= 5
    assert load_skills(builtin=False).skills == {}


@pytest.mark.parametrize("folder", sorted(BUILTIN.iterdir()), ids=lambda folder: str(folder.name))
def test_the_formats_own_validator_finds_no_fault(folder: Path) -> None:
    assert skills_ref.validate(folder) == []


@pytest.mark.parametrize("name", ["attribute-binding", "counting", "spatial-layout"])
def test_prompts_activate_the_skill_they_need_and_near_misses_do_not(name: str) -> None:
    prompts = labelled_prompts()[name]
    for prompt in prompts["use"][:6]:  # the later ones are beyond the pocket model's vocabulary
        assert name in called_skills(PocketChatModel(), prompt), prompt
    for prompt in prompts["not"][:4]:
        assert name not in called_skills(PocketChatModel(), prompt), prompt


def test_every_skill_has_labelled_prompts_for_measurements() -> None:
    """The expectations for real models, which ``python benchmarks/skill_activation.py`` measures; none runs here."""
    assert set(labelled_prompts()) == set(load_skills().skills)
    for name, prompts in labelled_prompts().items():
        assert (len(prompts["use"]), len(prompts["not"])) == (12, 8)
        assert not set(prompts["use"]) & set(load_skills().skills[name].examples), (
            "a labelled prompt must not be an example of the skill"
        )


def test_the_later_folder_wins_with_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = [promoted_folder(), Path(os.environ["XDG_CONFIG_HOME"]) / "gems" / "skills", tmp_path / "skills"]
    for place in places:
        add(
            place, "counting", GOOD.format(name="counting").replace("Be good", f"From {place.name} {place.parent.name}")
        )
    add(places[0], "only-learned")
    library = load_skills()
    assert library.skills["counting"].origin == "project"
    assert library.skills["only-learned"].origin == "learned"
    assert [n for n in library.notices if n.startswith("counting")] == [
        "counting (learned) replaces the one that is built in",
        "counting (user) replaces the one that is learned",
        "counting (project) replaces the one that is user",
    ]
    other_folder = add(tmp_path / "other", "counting")
    library = load_skills(tmp_path / "other")
    assert (library.skills["counting"].origin, library.skills["counting"].path.parent) == ("given", other_folder)


def test_several_folders_or_one_skill_can_be_given(tmp_path: Path) -> None:
    add(tmp_path / "a", "lighting")
    skill_folder = add(tmp_path / "b", "shadows")
    add(tmp_path / "b", "not-this")
    library = load_skills(os.pathsep.join([str(tmp_path / "a"), str(skill_folder)]), builtin=False)
    assert list(library.skills) == ["lighting", "shadows"]
    with pytest.raises(InputError, match="no skills folder"):
        load_skills(tmp_path / "nowhere")


def test_what_changes_on_disk_is_seen(tmp_path: Path) -> None:
    folder = add(tmp_path, "lighting")
    assert load_skills(tmp_path).skills["lighting"].body == "# Advice\n\nBe good."
    (folder / "SKILL.md").write_text(GOOD.format(name="lighting").replace("good", "better and better"))
    assert "better" in load_skills(tmp_path).skills["lighting"].body
    add(tmp_path, "shadows")
    assert "shadows" in load_skills(tmp_path).skills


def test_a_bad_skill_never_stops_the_others(tmp_path: Path) -> None:
    add(tmp_path, "good")
    add(tmp_path, "broken", "---\nname: [broken\n---\nBody.\n")
    library = load_skills(tmp_path)
    assert "good" in library.skills
    [problem] = library.problems
    assert problem.startswith("broken: skipped, its YAML is broken")


def test_the_older_form_is_read(tmp_path: Path) -> None:
    text = "# Skill: Night Scenes\n\n## Description\nFor pictures\nat night.\n\n## Instructions\n1. Name the lamp.\n"
    loaded_skill, odd = read_skill(add(tmp_path, "night-scenes", text))
    assert (loaded_skill.name, loaded_skill.description, loaded_skill.body) == (
        "night-scenes",
        "For pictures at night.",
        "1. Name the lamp.",
    )
    assert len(odd) == 1


def test_checks_and_examples_are_read_from_the_metadata(tmp_path: Path) -> None:
    text = """---
name: signs
description: Use for signs.
metadata:
  gems-examples: |
    a shop sign that reads OPEN
    a poster
  gems-checks: |
    text: Does the image show the words "{quoted}"?
    mood: Is it nice?
    other: No question.
---
Write it large.
"""
    loaded_skill, odd = read_skill(add(tmp_path, "signs", text))
    assert loaded_skill.examples == ("a shop sign that reads OPEN", "a poster")
    assert [(c.kind, c.question) for c in loaded_skill.checks] == [
        ("text", 'Does the image show the words "{quoted}"?')
    ]
    assert len(odd) == 2


def test_references_are_read_on_demand(tmp_path: Path) -> None:
    folder = add(tmp_path, "lamps")
    (folder / "references").mkdir()
    (folder / "references" / "oil.md").write_text("Oil lamps glow.")
    (folder / "references" / "lamp.png").write_bytes(b"\x89PNG")
    loaded_skill, _ = read_skill(folder)
    assert loaded_skill.references == ("references/oil.md",)
    [tool] = skill_tools([loaded_skill])
    assert "read_reference gives what it has beside: references/oil.md." in tool.invoke({})
    reader = reference_tool([loaded_skill])
    assert "Oil lamps glow." in reader.invoke({"skill": "lamps", "file": "references/oil.md"})
    assert "has no reference" in reader.invoke({"skill": "lamps", "file": "../lamps/SKILL.md"})
    assert "no such skill" in reader.invoke({"skill": "others", "file": "references/oil.md"})


def test_an_unreadable_folder_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match=r"holds no SKILL\.md"):
        read_skill(tmp_path)


def test_skills_are_tools_that_a_tool_node_runs() -> None:
    tools = skill_tools(load_skills().skills.values())
    assert all(tool.args == {} for tool in tools)
    graph = StateGraph(MessagesState)
    graph.add_node("skills", ToolNode(tools))
    graph.add_edge(START, "skills")
    graph.add_edge("skills", END)
    calls = [{"name": "counting", "args": {}, "id": "1", "type": "tool_call"}]
    answer = graph.compile().invoke({"messages": [AIMessage("", tool_calls=calls)]})["messages"][-1]
    assert answer.status == "success"
    assert answer.content.splitlines()[0] == "Advice of the skill counting on writing the prompt:"
    assert "`{exactly}`" in answer.content


def test_skills_share_a_budget_of_tokens() -> None:
    long = "\n\n".join(f"Paragraph {i} of good advice." for i in range(200))
    first, second, third = skill_tools(
        [skill(body=long), skill(name="two", body=long), skill(name="three")], tokens=1000
    )
    whole = count_tokens_approximately([long])
    assert 900 < whole < 2000, "the first skill alone exceeds the budget"
    first_answer = first.invoke({})
    assert "Paragraph 0 " in first_answer
    assert "the rest was left out" in first_answer
    assert count_tokens_approximately([first_answer]) < 1100
    assert "Paragraph" not in second.invoke({})
    assert "Be good" not in third.invoke({})
