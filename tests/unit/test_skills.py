from __future__ import annotations

from pathlib import Path

import pytest
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from gems.graph.errors import InputError
from gems.models.pocket.chat import ELEMENTS
from gems.skills.loader import load_skills
from gems.skills.tools import skill_tools

GOOD = "---\nname: {name}\ndescription: Use for {name}.\nmetadata:\n  author: someone\n---\n\n# Advice\n\nBe good.\n"


def add(folder: Path, name: str, text: str | bytes | None = None) -> None:
    (folder / name).mkdir(parents=True)
    content = GOOD.format(name=name) if text is None else text
    (folder / name / "SKILL.md").write_bytes(content if isinstance(content, bytes) else content.encode())


def test_the_built_in_skills_load_cleanly() -> None:
    library = load_skills()
    assert {"attribute-binding", "counting", "spatial-layout"} <= set(library.skills)
    assert library.problems == ()
    for skill in library.skills.values():
        assert skill.description.startswith("Use when")
        assert any(f"`{{{element}}}`" in skill.body for element in ELEMENTS)


def test_a_users_skill_joins_and_a_later_one_wins(tmp_path: Path) -> None:
    add(tmp_path / "one", "lighting")
    add(tmp_path / "one", "counting")
    library = load_skills(tmp_path / "one")
    assert library.skills["lighting"].body.startswith("# Advice")
    assert library.skills["counting"].description == "Use for counting."


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("no-head", "# Just Markdown", "does not begin with YAML"),
        ("open-head", "---\nname: open-head\n", "does not begin with YAML"),
        ("broken", "---\nname: [broken\n---\n", "YAML is broken"),
        ("a-list", "---\n- name\n---\n", "not a mapping"),
        ("nameless", "---\ndescription: x\n---\n", "its name"),
        ("other", "---\nname: another\ndescription: x\n---\n", "not its folder's"),
        ("Upper", "---\nname: Upper\ndescription: x\n---\n", "its name"),
        ("silent", "---\nname: silent\n---\n", "its description"),
        ("wordy", "---\nname: wordy\ndescription: " + "x" * 1025 + "\n---\n", "its description"),
        ("large", GOOD.format(name="large") + "x" * 70_000, "larger than 64 KB"),
        ("binary", b"---\nname: \xff\xfe\n---\n", "not UTF-8"),
        ("bomb", "---\na: &a [x, x]\nb: &b [*a, *a]\nname: bomb\n---\n", "anchors"),
        ("code", "---\nname: !!python/object/apply:os.system ['true']\n---\n", "YAML is broken"),
    ],
)
def test_a_bad_skill_is_skipped_with_a_reason(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    add(tmp_path, name, text)
    add(tmp_path, "good")
    library = load_skills(tmp_path)
    assert "good" in library.skills
    assert name not in library.skills
    [problem] = library.problems
    assert problem.startswith(f"{name}: skipped")
    assert reason in problem


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    add(tmp_path, "windows", b"\xef\xbb\xbf" + GOOD.format(name="windows").replace("\n", "\r\n").encode())
    assert load_skills(tmp_path).skills["windows"].description == "Use for windows."


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no skills folder"):
        load_skills(tmp_path / "nowhere")


def test_skills_are_tools_that_a_tool_node_runs() -> None:
    tools = skill_tools(load_skills())
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
